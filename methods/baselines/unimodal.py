"""A network on one modality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, class_prior_logits
from harness.methods.baselines.config import UnimodalConfig
from harness.methods.baselines.network import ModalityNetwork
from harness.methods.common.token_network import NO_DECAY, observed_loss
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch, StepOutput


class Unimodal(Method):
    """Reads `config.modality`; samples without it get the base rates of the training labels.

    Args:
        config: Which modality.
        context: Data set, features, backbone factory.
    """

    config: UnimodalConfig

    def __init__(self, config: UnimodalConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        config.validate_for(context.modalities)
        self.network = ModalityNetwork(context, config.modality)
        self.prior: Tensor
        self.register_buffer("prior", torch.zeros(self.task.num_outputs))

    def prepare(self, train: ObservedDataset) -> None:
        """Counts the labels of the whole training split."""
        self.prior.copy_(class_prior_logits(self.task, torch.from_numpy(train.labels)))

    def training_step(self, batch: Batch) -> StepOutput:
        """Task loss over the samples that have the modality."""
        part = batch.inputs[self.config.modality]
        loss = observed_loss(self.task, self.network.logits(part), batch.labels[part.rows])
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        part = batch.inputs[self.config.modality]
        return scatter_rows(self.network.logits(part), part.rows, len(batch), self.prior)

    def no_decay(self) -> Sequence[str]:
        """Position tables and `[CLS]` are not decayed."""
        return NO_DECAY
