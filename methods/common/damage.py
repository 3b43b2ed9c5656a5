"""Simulated damage in training: modalities that are dropped or corrupted, for methods that learn to live with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.errors import UsageError
from harness.masking import ObservedDataset
from harness.methods.common.moments import Kind, observed_moments, vector_shape
from harness.methods.common.simulation import draw_patterns
from harness.types import Batch, FeatureSpec, ModalityBatch

_KINDS: tuple[Kind, ...] = ("tokens", "pooled")


@dataclass(frozen=True)
class Damaged:
    """A batch after damage.

    Attributes:
        batch: What is left of it; corrupted modalities are present and noisy.
        dropped: `[B, M]` bool, modalities that are gone.
        corrupted: `[B, M]` bool, modalities with noise.
    """

    batch: Batch
    dropped: Tensor
    corrupted: Tensor


class Damage(nn.Module):
    """Drops or corrupts a part of some samples' modalities.

    A sample is damaged with probability `rate`: then a uniformly drawn non-empty proper subset of its modalities is
    hit, so that one is always left alone; a sample with a single one is never damaged.  A modality that is hit is
    dropped with probability `drop_rate`, else it gets Gaussian noise of `severity` times each dimension's deviation
    over the observed training values, severity uniform between 0 and `max_severity`.  All draws happen on the CPU.

    Args:
        features: Shapes of the modalities, in spec order; tokens must be vectors.
        rate: Share of damaged samples.
        drop_rate: Share of dropped ones among the modalities that are hit.
        max_severity: Upper end of the noise's scale.

    Raises:
        UsageError: If tokens are ids or pixels.
    """

    def __init__(
        self, features: Mapping[str, FeatureSpec], *, rate: float, drop_rate: float, max_severity: float
    ) -> None:
        super().__init__()
        self.rate, self.drop_rate, self.max_severity = rate, drop_rate, max_severity
        for name, spec in features.items():
            if len(spec.token_shape) != 1:
                raise UsageError(
                    f"noise on features needs vectors, {name!r} has tokens of shape {list(spec.token_shape)}; "
                    "use a frozen encoder whose tokens are vectors."
                )
            for kind in _KINDS:
                self.register_buffer(f"{name}_{kind}", torch.zeros(vector_shape(spec, kind)))

    def fit(self, train: ObservedDataset) -> None:
        """Measures how far the observed training values spread."""
        for name in train.modalities:
            for kind in _KINDS:
                self.get_buffer(f"{name}_{kind}").copy_(observed_moments(train, name, kind)[1])

    def forward(self, batch: Batch) -> Damaged:
        """Damages a batch; the given one stays as it is."""
        dropped, corrupted, severity = self.draw(batch.present)
        left = batch.without(dropped)
        inputs = {
            name: self._corrupt(name, part, corrupted[part.rows, column], severity[part.rows, column])
            for column, (name, part) in enumerate(left.inputs.items())
        }
        return Damaged(replace(left, inputs=inputs), dropped, corrupted)

    def draw(self, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is dropped and what is corrupted, `[B, M]` bool each, and how much `[B, M]`, for samples `[B, M]`."""
        observed = present.cpu()
        hit = observed & ~draw_patterns(observed, full=False)
        hit &= torch.rand(len(observed), 1) < self.rate
        dropped = hit & (torch.rand(observed.shape) < self.drop_rate)
        severity = self.max_severity * torch.rand(observed.shape)
        device = present.device
        return dropped.to(device), (hit & ~dropped).to(device), severity.to(device)

    def _corrupt(self, name: str, part: ModalityBatch, corrupted: Tensor, severity: Tensor) -> ModalityBatch:
        rows = corrupted.nonzero().squeeze(1)
        if not len(rows):
            return part
        noisy = {}
        for kind in _KINDS:
            values: Tensor = getattr(part, kind)
            noise = torch.randn(len(rows), *values.shape[1:]).to(values.device)
            scale = severity[rows].reshape(-1, *(1,) * (values.ndim - 1))
            noisy[kind] = values.index_add(
                0, rows, (scale * self.get_buffer(f"{name}_{kind}") * noise).to(values.dtype)
            )
        return replace(part, **noisy)
