"""What MMIN and IF-MMIN share: pretrained encoders, a frozen teacher, simulated missingness, losses on slots."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, Stage
from harness.methods.common.cra import CascadedResidualAutoencoder
from harness.methods.common.fc_classifier import FcClassifier
from harness.methods.common.imagination_config import ImaginationConfig
from harness.methods.common.initialization import kaiming_
from harness.methods.common.modality_encoders import encode_present, encoder_kind, modality_encoder
from harness.methods.common.moments import fit_standardizers, standardized, standardizers
from harness.methods.common.official_layout import AUDIO_TEXT_VIDEO, block_order, reorder_blocks, reorder_cascade
from harness.methods.common.simulation import draw_patterns
from harness.types import Batch, StepOutput

PRETRAIN = "pretrain"
MAIN = "main"


@dataclass(frozen=True)
class Simulation:
    """A training batch from which known values were dropped.

    Attributes:
        known: Everything that training may see of these samples.
        shown: What is left of it.
        dropped: The rest: only values that were dropped.
        slots: `[B, M]` bool, the embeddings that are supervised.
    """

    known: Batch
    shown: Batch
    dropped: Batch
    slots: Tensor


class ImaginationMethod(Method):
    """Two stages: encoders and a classifier on all known modalities, then imagination from a part of them.

    In the second stage the encoders go on learning from where they are, and a frozen copy of them, the teacher, says
    what a dropped modality's embedding should be.

    Args:
        config: Options.
        context: Data set and features.
        pretrain_width: Input width of the pretraining classifier, in multiples of M·d.

    Attributes:
        scalers: Per modality, standardise features; none without `standardize`.
        encoders: Per modality; absent ones are encoded as an all-zero input.
        teacher: Frozen copies.
        pretrain_classifier: Used in the first stage only.
        imagination: Forward imagination module.
        classifier: On its latent.
    """

    config: ImaginationConfig
    #: Attributes whose parameters belong to one of the stages; all others are trained in both.
    stage_parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        PRETRAIN: ("pretrain_classifier",),
        MAIN: ("imagination", "classifier"),
    }

    def __init__(self, config: ImaginationConfig, context: MethodContext, *, pretrain_width: int = 1) -> None:
        super().__init__(config, context)
        joint, outputs = len(self.modalities) * config.width, self.task.num_outputs
        scaled = context.features if config.standardize else {}
        self.scalers = standardizers(scaled, "pooled" if config.encoder == "pooled" else "tokens")
        self.encoders = self._build_encoders()
        self.teacher = self._build_encoders().requires_grad_(False)
        self.pretrain_classifier = FcClassifier(pretrain_width * joint, outputs, dropout=config.pretrain_dropout)
        self.imagination = CascadedResidualAutoencoder(joint, blocks=config.blocks)
        self.classifier = FcClassifier(self.imagination.latent_width, outputs, dropout=config.dropout)

    def initialize(self) -> None:
        """Sets the initial weights; to be called when all modules are built."""
        if self.config.initialization == "kaiming":
            kaiming_(self)

    def prepare(self, train: ObservedDataset) -> None:
        """Measures the observed training values."""
        fit_standardizers(self.scalers, train)

    def stages(self) -> Sequence[Stage]:
        """Pretraining of the encoders, then the method itself."""
        return (Stage(PRETRAIN, epochs=self.config.pretrain_epochs), Stage(MAIN))

    def start_stage(self, stage: Stage, train: ObservedDataset) -> None:  # noqa: ARG002
        """Copies the pretrained encoders into the teacher before the main stage."""
        if stage.name == MAIN:
            self.teacher.load_state_dict(self.encoders.state_dict())

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Everything but the parts of the other stage and the teacher."""
        others = {part for stage, parts in self.stage_parts.items() if stage != self.stage for part in parts}
        return ((name, value) for name, value in super().trained() if name.partition(".")[0] not in others)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def training_step(self, batch: Batch) -> StepOutput:
        """Losses of the current stage; under `supervision=complete` training data are complete."""
        known = batch if batch.full is None else batch.full
        if self.stage == PRETRAIN:
            return self.pretraining_step(known)
        terms = self.main_losses(self.simulate(known))
        weights = {term: weight for term, weight in self.config.main_weights().items() if weight > 0}
        loss = torch.stack([weight * terms[term] for term, weight in weights.items()]).sum()
        return StepOutput(loss, {term: terms[term] for term in weights})

    def official_state(self, theirs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Reorders what reads or writes joined embeddings: audio, text, video in the released code."""
        first = "pretrained.netC.module.0.weight"
        cascades = ("netAE.", "netAE_cycle.")
        if first not in theirs and not any(name.startswith(cascades) for name in theirs):
            return theirs
        order, width = block_order(AUDIO_TEXT_VIDEO, self.modalities), self.config.width
        state = dict(theirs)
        for prefix in cascades:
            state |= reorder_cascade(theirs, prefix, order, width)
        if first in state:
            state[first] = reorder_blocks(state[first], 1, order, width)
        return state

    @abstractmethod
    def pretraining_step(self, known: Batch) -> StepOutput:
        """Losses of the first stage on everything that is known."""

    @abstractmethod
    def main_losses(self, simulation: Simulation) -> dict[str, Tensor]:
        """Unweighted losses of the main stage."""

    def simulate(self, known: Batch) -> Simulation:
        """Drops a random part of every sample's modalities; a single one is always kept.

        The slots are what was dropped, or every embedding with `targets=all`.
        """
        kept = draw_patterns(known.present, full=self.config.full_pattern)
        dropped = known.present & ~kept
        slots = torch.ones_like(dropped) if self.config.targets == "all" else dropped
        return Simulation(known, known.without(dropped), known.without(kept), slots)

    def encoded(self, batch: Batch) -> Tensor:
        """Embeddings `[B, M, d]`; absent modalities are encoded as an all-zero input."""
        return encode_present(self.encoders, self._scaled(batch))

    @torch.no_grad()
    def taught(self, batch: Batch) -> Tensor:
        """The teacher's embeddings, likewise."""
        return encode_present(self.teacher, self._scaled(batch))

    def _scaled(self, batch: Batch) -> Batch:
        """The batch with standardised inputs."""
        inputs = {name: standardized(self.scalers, name, batch.inputs[name]) for name in self.scalers}
        return replace(batch, inputs={**batch.inputs, **inputs})

    def _build_encoders(self) -> nn.ModuleDict:
        config, context = self.config, self.context
        return nn.ModuleDict(
            {
                modality.name: modality_encoder(
                    encoder_kind(config.encoder, modality),
                    context.features[modality.name],
                    config.width,
                    config.encoder_dropout,
                    masked=config.padding == "masked",
                )
                for modality in context.dataset.modalities
            }
        )


def slot_mse(predicted: Tensor, target: Tensor, slots: Tensor) -> Tensor:
    """Mean squared error over the supervised embeddings; zero, with the graph kept, when there is none.

    Args:
        predicted: `[B, M, d]`, or `[B, M·d]`.
        target: `[B, M, d]`, without gradient.
        slots: `[B, M]` bool.
    """
    error = (predicted.reshape(target.shape).float() - target.float()).square().mean(2)
    return (error * slots).sum() / slots.sum().clamp(min=1)
