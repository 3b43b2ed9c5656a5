"""One network per modality, combined at the level of their answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.method import Method, MethodContext
from harness.methods.baselines.config import LateFusionConfig
from harness.methods.baselines.network import ModalityNetwork
from harness.methods.common.token_network import NO_DECAY, observed_loss
from harness.methods.common.tokens import scatter_rows
from harness.types import Batch, ModalityBatch, StepOutput


class LateFusion(Method):
    """Independent networks, each trained on the samples that have its modality.

    Args:
        config: No options.
        context: Data set, features, backbone factory.
    """

    def __init__(self, config: LateFusionConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.networks = nn.ModuleDict({name: ModalityNetwork(context, name) for name in self.modalities})

    def training_step(self, batch: Batch) -> StepOutput:
        """Sum over the modalities of each network's own task loss."""
        losses = []
        for name in self.modalities:
            part = batch.inputs[name]
            losses.append(observed_loss(self.task, self._logits(name, part), batch.labels[part.rows]))
        loss = torch.stack(losses).sum()
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`: the mean over the present modalities of log-probabilities.

        For multilabel tasks the mean of log-odds, which is the same pooling label by label; for regression the
        mean of the values.
        """
        total = torch.zeros(len(batch), self.task.num_outputs, device=batch.device)
        for name in self.modalities:
            part = batch.inputs[name]
            logits = self._logits(name, part).float()
            if self.task.kind in ("binary", "multiclass"):
                logits = logits.log_softmax(-1)
            total = total + scatter_rows(logits, part.rows, len(batch))
        return total / batch.present.sum(1, keepdim=True).clamp(min=1)

    def no_decay(self) -> Sequence[str]:
        """Position tables and `[CLS]` are not decayed."""
        return NO_DECAY

    def _logits(self, name: str, part: ModalityBatch) -> Tensor:
        network = self.networks[name]
        assert isinstance(network, ModalityNetwork)
        return network.logits(part)
