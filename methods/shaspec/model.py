"""ShaSpec: shared and specific features, fused by a residual; shared features stand in for missing modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.common.fc_classifier import FcClassifier
from harness.methods.common.moments import fit_standardizers, standardizers
from harness.methods.common.tokens import scatter_rows
from harness.methods.shaspec.config import ShaSpecConfig
from harness.types import Batch, StepOutput


@dataclass(frozen=True)
class Features:
    """Encoded modalities of a batch, `[B, M, d]` each; where a modality is missing, those of an all-zero input."""

    shared: Tensor
    specific: Tensor


class ShaSpec(Method):
    """Shared-specific feature modelling (Wang et al., CVPR 2023), on pooled frozen features.

    Args:
        config: Options.
        context: Data set and features.

    Attributes:
        scalers: Per modality, standardise pooled features; zero is the training mean.
        adapters: Per modality, to the width that the shared encoder reads.
        shared_encoder: One for all modalities.
        specific_encoders: Per modality.
        fusion: One for all modalities; reads the shared and the specific feature.
        domain_classifier: Tells from a specific feature which modality it is of; None with weight 0.
        classifier: Reads the fused features of all modalities.
    """

    config: ShaSpecConfig

    def __init__(self, config: ShaSpecConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        width, count = config.width, len(self.modalities)
        inputs = {name: context.features[name].pooled_dim for name in self.modalities}
        self.scalers = standardizers(context.features, "pooled")
        self.adapters = nn.ModuleDict({name: nn.Linear(size, width) for name, size in inputs.items()})
        self.shared_encoder = _encoder(width, config.dropout)
        self.specific_encoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, width), _encoder(width, config.dropout))
                for name, size in inputs.items()
            }
        )
        self.fusion = nn.Linear(2 * width, width)
        self.domain_classifier = nn.Linear(width, count) if config.domain_weight > 0 else None
        self.classifier = FcClassifier(count * width, self.task.num_outputs, hidden=(width,), dropout=config.dropout)

    def prepare(self, train: ObservedDataset) -> None:
        """Measures the observed training values."""
        fit_standardizers(self.scalers, train)

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss, alignment of shared features, modality classification of specific ones."""
        features = self.encode(batch)
        counted = torch.ones_like(batch.present) if self.config.auxiliary == "all" else batch.present
        weights = self.config.weights()
        terms = {"task": self.task_loss(self._logits(features, batch.present), batch.labels)}
        if "alignment" in weights:
            terms["alignment"] = alignment_loss(
                features.shared, counted, aligned_pairs(self.config.pairs, counted.shape[1])
            )
        if self.domain_classifier is not None:
            terms["domain"] = domain_loss(self.domain_classifier(features.specific), counted)
        loss = torch.stack([weight * terms[term] for term, weight in weights.items()]).sum()
        return StepOutput(loss, terms)

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        return self._logits(self.encode(batch), batch.present)

    def encode(self, batch: Batch) -> Features:
        """Shared and specific features of all modalities."""
        shared, specific = [], []
        for name in self.modalities:
            part = batch.inputs[name]
            pooled = scatter_rows(self.scalers[name](part.pooled), part.rows, len(batch))
            shared.append(self.shared_encoder(self.adapters[name](pooled)))
            specific.append(self.specific_encoders[name](pooled))
        return Features(torch.stack(shared, dim=1), torch.stack(specific, dim=1))

    def fuse(self, features: Features, present: Tensor) -> Tensor:
        """Fused features `[B, M, d]`: shared plus a projection of both; for a missing modality, others' shared ones."""
        fused = features.shared + self.fusion(torch.cat([features.shared, features.specific], dim=2))
        if self.config.filler == "first":
            first = present.int().argmax(1)
            general = features.shared[torch.arange(len(first), device=first.device), first]
        else:
            weights = present.unsqueeze(2).to(fused.dtype)
            general = (features.shared * weights).sum(1) / weights.sum(1)
        return torch.where(present.unsqueeze(2), fused, general.unsqueeze(1).to(fused.dtype))

    def _logits(self, features: Features, present: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.fuse(features, present).flatten(1))[0]
        return logits


def aligned_pairs(kind: str, count: int) -> Sequence[tuple[int, int]]:
    """Pairs of modalities: `all` of them, or each with the next and the last with the first (`ring`)."""
    if kind == "all":
        return list(combinations(range(count), 2))
    return [(column, (column + 1) % count) for column in range(count)]


def alignment_loss(shared: Tensor, counted: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Sum over pairs of modalities of the mean absolute difference of their shared features.

    Args:
        shared: `[B, M, d]`.
        counted: `[B, M]` bool; a sample enters a pair when it has both.
        pairs: Columns.

    Returns:
        Scalar; zero, with the graph kept, where no sample has two modalities.
    """
    total = shared.new_zeros((), dtype=torch.float32)
    for left, right in pairs:
        both = counted[:, left] & counted[:, right]
        distance = (shared[:, left].float() - shared[:, right].float()).abs().mean(1)
        total = total + (distance * both).sum() / both.sum().clamp(min=1)
    return total


def domain_loss(logits: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy of telling modalities apart, averaged over the counted features.

    Args:
        logits: `[B, M, M]`, the last dimension over modalities.
        counted: `[B, M]` bool.
    """
    target = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits[counted].float(), target[counted])


def _encoder(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width))
