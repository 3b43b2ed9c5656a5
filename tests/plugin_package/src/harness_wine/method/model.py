"""The network; imported when a run needs it."""

import torch
from torch import Tensor, nn

from harness.method import Method, MethodContext
from harness.types import Batch, StepOutput
from harness_wine.method.config import ReliabilityVoteConfig


class ReliabilityVote(Method):
    """Logits of the present modalities' classifiers, averaged with softmax weights over what is present.

    Args:
        config: Options.
        context: Modalities, their feature widths, the task.
    """

    config: ReliabilityVoteConfig

    def __init__(self, config: ReliabilityVoteConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.classifiers = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(context.features[name].pooled_dim, config.hidden),
                    nn.GELU(),
                    nn.Linear(config.hidden, self.task.num_outputs),
                )
                for name in self.modalities
            }
        )
        self.reliability = nn.Parameter(torch.zeros(len(self.modalities)))

    def training_step(self, batch: Batch) -> StepOutput:
        """The task's loss under the name that `MethodConfig.loss_terms` declares."""
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`."""
        weights = self.reliability.masked_fill(~batch.present, -torch.inf).softmax(-1)
        logits = weights.new_zeros(len(batch), self.task.num_outputs)
        for column, name in enumerate(self.modalities):
            part = batch.inputs[name]
            votes = self.classifiers[name](part.pooled).float()
            logits = logits.index_add(0, part.rows, weights[part.rows, column, None] * votes)
        return logits
