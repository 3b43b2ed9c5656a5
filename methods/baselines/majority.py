"""The training prior as a method."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, class_prior_logits
from harness.methods.baselines.config import MajorityConfig
from harness.types import Batch, StepOutput


class Majority(Method):
    """Answers with the base rates of the training labels.

    Args:
        config: No options.
        context: Task.
    """

    def __init__(self, config: MajorityConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.prior: Tensor
        self.register_buffer("prior", torch.zeros(self.task.num_outputs))

    def prepare(self, train: ObservedDataset) -> None:
        """Counts the labels."""
        self.prior.copy_(class_prior_logits(self.task, torch.from_numpy(train.labels)))

    def training_step(self, batch: Batch) -> StepOutput:
        """Loss of the prior; nothing to train."""
        return StepOutput(self.task_loss(self.predict_step(batch), batch.labels))

    def predict_step(self, batch: Batch) -> Tensor:
        """The same logits `[B, C]` for everybody."""
        return self.prior.expand(len(batch), -1)
