"""MMIN: forward imagination of missing embeddings, backward imagination of what was there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from harness.method import MethodContext
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.imagination import MAIN, PRETRAIN, ImaginationMethod, Simulation, slot_mse
from harness.methods.mmin.config import MminConfig
from harness.types import Batch, StepOutput


class Mmin(ImaginationMethod):
    """Missing modality imagination network (Zhao, Li and Jin, ACL 2021, section 3).

    Args:
        config: Options.
        context: Data set and features.
    """

    config: MminConfig
    stage_parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ImaginationMethod.stage_parts,
        MAIN: (*ImaginationMethod.stage_parts[MAIN], "backward_imagination"),
    }

    def __init__(self, config: MminConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        separate = config.cycle_weight > 0 and not config.share_weight
        joint = len(self.modalities) * config.width
        self.backward_imagination = CascadedResidualAutoencoder(joint, blocks=config.blocks) if separate else None
        self.initialize()

    def pretraining_step(self, known: Batch) -> StepOutput:
        """Task loss on the embeddings of everything that is known."""
        loss = self.task_loss(self._pretraining_logits(known), known.labels)
        return StepOutput(loss, {"task": loss})

    def main_losses(self, simulation: Simulation) -> dict[str, Tensor]:
        """Task loss, forward imagination of dropped embeddings, and the way back to the embeddings that were fed.

        The backward target carries no gradient.  Samples without a supervised slot contribute to the task loss only.
        """
        embedded = self.encoded(simulation.shown)
        imagined, latent = self.imagination(embedded.flatten(1))
        logits, _ = self.classifier(latent)
        losses = {
            "task": self.task_loss(logits, simulation.known.labels),
            "imagination": slot_mse(imagined, self.taught(simulation.dropped), simulation.slots),
        }
        if self.config.cycle_weight > 0:
            backward = self.imagination if self.backward_imagination is None else self.backward_imagination
            returned, _ = backward(imagined)
            samples = simulation.slots.any(1, keepdim=True).expand_as(simulation.slots)
            losses["cycle"] = slot_mse(returned, embedded.detach(), samples)
        return losses

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` of the current stage."""
        if self.stage == PRETRAIN:
            return self._pretraining_logits(batch)
        _, latent = self.imagination(self.encoded(batch).flatten(1))
        logits: Tensor = self.classifier(latent)[0]
        return logits

    def _pretraining_logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self.pretrain_classifier(self.encoded(batch).flatten(1))[0]
        return logits
