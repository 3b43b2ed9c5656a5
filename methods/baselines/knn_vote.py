"""Label transfer without training: how much of a retrieval method is its retrieval."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, class_prior_logits
from harness.methods.baselines.config import KnnVoteConfig
from harness.retrieval import MemoryBank
from harness.types import Batch, StepOutput


class KnnVote(Method):
    """The k most similar training samples vote with their labels, weighted by similarity.

    Args:
        config: Neighbours, weights, smoothing.
        context: Task and search backend.
    """

    config: KnnVoteConfig

    def __init__(self, config: KnnVoteConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self._bank: MemoryBank | None = None
        self.prior: Tensor
        self.register_buffer("prior", torch.zeros(self.task.num_outputs))

    def prepare(self, train: ObservedDataset) -> None:
        """Builds the bank and counts the labels of the whole training split."""
        self._bank = MemoryBank.build(
            train, complete_only=self.config.complete_only, backend=self.context.retrieval.backend
        )
        self.prior.copy_(class_prior_logits(self.task, torch.from_numpy(train.labels)))

    def banks(self) -> Mapping[str, MemoryBank]:
        """The memory bank, for the audit."""
        return {} if self._bank is None else {"memory": self._bank}

    def training_step(self, batch: Batch) -> StepOutput:
        """Loss of the vote; nothing to train."""
        return StepOutput(self.task_loss(self.predict_step(batch), batch.labels))

    def predict_step(self, batch: Batch) -> Tensor:
        """Logits `[B, C]`: log of the smoothed vote, its log-odds (multilabel), or the weighted mean (regression).

        The training prior has share `smoothing`, and the whole say where no neighbour was found.
        """
        assert self._bank is not None, "prepare() has not run"
        near = self._bank.neighbours(batch, self.config.k)
        weights = (near.score / self.config.temperature).masked_fill(~near.found, -torch.inf).softmax(1).nan_to_num(0.0)
        labels = self._bank.labels(near.index)
        answers = one_hot(labels, self.task.num_outputs) if labels.ndim == 2 else labels
        vote = (weights.unsqueeze(-1) * answers).sum(1)
        share = torch.where(near.found.any(1, keepdim=True), self.config.smoothing, 1.0)
        mixed = (1.0 - share) * vote + share * self._base_rates()
        if self.task.kind == "regression":
            return mixed
        return torch.logit(mixed) if self.task.kind == "multilabel" else mixed.log()

    def _base_rates(self) -> Tensor:
        """The prior `[C]` as probabilities, or the mean value."""
        if self.task.kind == "regression":
            return self.prior
        return self.prior.sigmoid() if self.task.kind == "multilabel" else self.prior.exp()
