"""Variants of one network over all modalities that differ in what stands for a missing one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.masking import ObservedDataset
from harness.methods.baselines.config import ModalityDropoutConfig
from harness.methods.common.filled import FilledFusion
from harness.types import Batch, StepOutput

_CHUNK = 256


class ZeroFilledFusion(FilledFusion):
    """Missing modalities are zero features that the network attends to (`zero_fill`, `complete`)."""


class MeanFilledFusion(FilledFusion):
    """Missing modalities are the mean of the observed training tokens, position by position (`mean_fill`)."""

    @torch.no_grad()
    def prepare(self, train: ObservedDataset) -> None:
        """Averages; a position that is padding in every training sample stays padding."""
        totals = {name: torch.zeros(filler.tokens.shape, dtype=torch.float64) for name, filler in self.filler_modules()}
        counts = {name: torch.zeros(filler.mask.shape, dtype=torch.float64) for name, filler in self.filler_modules()}
        for start in range(0, len(train), _CHUNK):
            batch = train.batch(np.arange(start, min(start + _CHUNK, len(train))))
            for name, filler in self.filler_modules():
                part = batch.to(filler.tokens.device).inputs[name]
                tokens, mask = self.fillable(name, part.tokens, part.mask)
                weights = mask.reshape(*mask.shape, *(1,) * (tokens.ndim - 2)).double()
                totals[name] += (tokens.double() * weights).sum(0).cpu()
                counts[name] += mask.sum(0).cpu()
        for name, filler in self.filler_modules():
            count = counts[name].reshape(-1, *(1,) * (totals[name].ndim - 1))
            filler.tokens.copy_(totals[name] / count.clamp(min=1))
            # A modality that no training sample has is zeros that are attended to.
            filler.mask.copy_(counts[name] > 0 if counts[name].any() else torch.ones_like(filler.mask))


class DropoutFusion(FilledFusion):
    """Zero fill whose training also hides present modalities (`modality_dropout`)."""

    config: ModalityDropoutConfig

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss after a draw per sample and modality."""
        return super().training_step(batch.without(self._draw(batch.present)))

    def _draw(self, present: Tensor) -> Tensor:
        """`[B, M]` bool, what is dropped; one present modality of every sample is safe, each equally likely."""
        # Drawn on the CPU, so that the draw does not depend on the device.
        dropped = torch.rand(present.shape).to(present.device) < self.config.rate
        order = torch.rand(present.shape).to(present.device)
        safe = order.masked_fill(~present, -1.0).argmax(1, keepdim=True)
        emptied = (dropped | ~present).all(1, keepdim=True)
        return dropped & ~(emptied & torch.zeros_like(dropped).scatter(1, safe, True))
