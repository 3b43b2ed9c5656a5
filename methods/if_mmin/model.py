"""IF-MMIN: imagination of missing embeddings, conditioned on modality-invariant features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import MethodContext, Stage
from harness.methods.common.cmd import mean_pairwise_cmd
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.imagination import MAIN, PRETRAIN, ImaginationMethod, Simulation, slot_mse
from harness.methods.if_mmin.config import IfMminConfig
from harness.types import Batch, StepOutput


class IfMmin(ImaginationMethod):
    """Invariant-feature MMIN (Zuo et al., ICASSP 2023).

    Args:
        config: Options.
        context: Data set and features.

    Attributes:
        invariant: One encoder for all modalities' embeddings, whose outputs are drawn together.
        invariant_teacher: Its frozen copy.
    """

    config: IfMminConfig

    def __init__(self, config: IfMminConfig, context: MethodContext) -> None:
        super().__init__(config, context, pretrain_width=2)
        self.invariant = _shared_encoder(config.width)
        self.invariant_teacher = _shared_encoder(config.width).requires_grad_(False)
        self.initialize()

    def start_stage(self, stage: Stage, train: ObservedDataset) -> None:
        """Copies encoders and invariant encoder into their teachers before the main stage."""
        super().start_stage(stage, train)
        if stage.name == MAIN:
            self.invariant_teacher.load_state_dict(self.invariant.state_dict())

    def pretraining_step(self, known: Batch) -> StepOutput:
        """Task loss on specific and invariant features, and the discrepancy of the observed invariant ones."""
        embedded = self.encoded(known)
        invariant = self.invariant(embedded)
        task = self.task_loss(self._pretraining_logits(embedded, invariant), known.labels)
        if not self.config.cmd_weight:
            return StepOutput(task, {"task": task})
        compared = invariant.sigmoid() if self.config.cmd_bounded else invariant
        discrepancy = mean_pairwise_cmd(
            [compared[part.rows, column] for column, part in enumerate(known.inputs.values())],
            moments=self.config.cmd_moments,
            min_rows=self.config.cmd_min_rows,
        )
        return StepOutput(task + self.config.cmd_weight * discrepancy, {"task": task, "cmd": discrepancy})

    def main_losses(self, simulation: Simulation) -> dict[str, Tensor]:
        """Task loss, imagination of dropped embeddings, and invariant features as the teacher has them."""
        embedded = self.encoded(simulation.shown)
        invariant = self.invariant(embedded)
        imagined, latent = imagine(self.imagination, embedded.flatten(1), invariant.flatten(1), self.config.recursion)
        logits, _ = self.classifier(latent)
        with torch.no_grad():
            invariant_target = self.invariant_teacher(self.taught(simulation.known))
        return {
            "task": self.task_loss(logits, simulation.known.labels),
            "imagination": slot_mse(imagined, self.taught(simulation.dropped), simulation.slots),
            "invariance": slot_mse(invariant, invariant_target, simulation.slots),
        }

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` of the current stage."""
        embedded = self.encoded(batch)
        invariant = self.invariant(embedded)
        if self.stage == PRETRAIN:
            return self._pretraining_logits(embedded, invariant)
        _, latent = imagine(self.imagination, embedded.flatten(1), invariant.flatten(1), self.config.recursion)
        logits: Tensor = self.classifier(latent)[0]
        return logits

    def _pretraining_logits(self, embedded: Tensor, invariant: Tensor) -> Tensor:
        joint = torch.cat([embedded.flatten(1), invariant.flatten(1)], dim=1)
        logits: Tensor = self.pretrain_classifier(joint)[0]
        return logits


def imagine(
    cascade: CascadedResidualAutoencoder, embedded: Tensor, invariant: Tensor, recursion: str
) -> tuple[Tensor, Tensor]:
    """Runs the cascade with the invariant features added to every block's input.

    Args:
        cascade: Its blocks and final map are used; the recursion is another one than MMIN's.
        embedded: `[B, M·d]`.
        invariant: `[B, M·d]`.
        recursion: `v2024` or `v2022`, see `IfMminConfig`.

    Returns:
        Imagined embeddings `[B, M·d]` and latent `[B, cascade.latent_width]`.
    """
    codes = []
    read, output = embedded, embedded
    for block in cascade.blocks:
        read = (output if recursion == "v2024" else read) + invariant
        output, code = block(read)
        codes.append(code)
    imagined = cascade.transition(output if recursion == "v2024" else read + output)
    return imagined, torch.cat(codes, dim=-1)


def _shared_encoder(width: int) -> nn.Sequential:
    """Linear and LeakyReLU(0.01), twice."""
    return nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(0.01), nn.Linear(width, width), nn.LeakyReLU(0.01))
