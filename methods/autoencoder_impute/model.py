"""Missing pooled features are imputed by an autoencoder that learned to undo simulated drops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, Stage
from harness.methods.autoencoder_impute.config import AutoencoderImputeConfig
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.fc_classifier import FcClassifier
from harness.methods.common.moments import fit_standardizers, standardizers
from harness.methods.common.simulation import draw_patterns
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch, StepOutput

IMPUTE = "impute"
CLASSIFY = "classify"


class AutoencoderImpute(Method):
    """Cascaded residual autoencoder on concatenated pooled features, then a classifier on what it completes.

    Args:
        config: Sizes and passes.
        context: Data set and features.

    Attributes:
        autoencoder: Reads and writes standardised features of all modalities, zero where missing.
        classifier: Reads them completed.
        scalers: Per modality, standardise pooled features.
    """

    config: AutoencoderImputeConfig

    def __init__(self, config: AutoencoderImputeConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self._widths = [context.features[name].pooled_dim for name in self.modalities]
        total = sum(self._widths)
        self.autoencoder = CascadedResidualAutoencoder(total, blocks=config.blocks)
        self.classifier = FcClassifier(
            total, self.task.num_outputs, hidden=(config.width, config.width), dropout=config.dropout
        )
        self.scalers = standardizers(context.features, "pooled")

    def stages(self) -> Sequence[Stage]:
        """The autoencoder, with a classifier that watches it; then the classifier alone."""
        return (Stage(IMPUTE, epochs=self.config.impute_epochs), Stage(CLASSIFY))

    def prepare(self, train: ObservedDataset) -> None:
        """Measures the observed training values."""
        fit_standardizers(self.scalers, train)

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Everything, then the classifier only."""
        return (
            (name, value)
            for name, value in super().trained()
            if self.stage == IMPUTE or not name.startswith("autoencoder.")
        )

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss on completed features, and in the first stage the reconstruction of what is known.

        The task loss never reaches the autoencoder.
        """
        task = self.task_loss(self.classifier(self.impute(batch))[0], batch.labels)
        if self.stage == CLASSIFY:
            return StepOutput(task, {"task": task})
        reconstruction = self._reconstruction(batch if batch.full is None else batch.full)
        return StepOutput(task + reconstruction, {"task": task, "reconstruction": reconstruction})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        logits: Tensor = self.classifier(self.impute(batch))[0]
        return logits

    @torch.no_grad()
    def impute(self, batch: Batch) -> Tensor:
        """Standardised features `[B, P]`, the autoencoder's where a modality is missing."""
        features = self._features(batch)
        return torch.where(self._spread(batch.present), features, self.autoencoder(features)[0].to(features.dtype))

    def _reconstruction(self, known: Batch) -> Tensor:
        """Squared error on every known modality, kept or dropped; each counts the same whatever its width."""
        kept = draw_patterns(known.present, full=False)
        output, _ = self.autoencoder(self._features(known.without(~kept)))
        error = (output.float() - self._features(known)).square()
        per_modality = torch.stack([part.mean(1) for part in error.split(self._widths, dim=1)], dim=1)
        return (per_modality * known.present).sum() / known.present.sum()

    def _features(self, batch: Batch) -> Tensor:
        """Standardised features `[B, P]`, zero, which is the training mean, where a modality is missing."""
        parts = []
        for name, scaler in self.scalers.items():
            part = batch.inputs[name]
            parts.append(scatter_rows(scaler(part.pooled), part.rows, len(batch)))
        return torch.cat(parts, dim=1)

    def _spread(self, present: Tensor) -> Tensor:
        """Presence per modality `[B, M]` as presence per feature `[B, P]`."""
        return torch.repeat_interleave(present, torch.tensor(self._widths, device=present.device), dim=1)
