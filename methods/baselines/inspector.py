"""What the training mean stands for, and who votes."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.inspector import VOTE, Consulted, Inspector
from harness.method import Method
from harness.methods.baselines.fill import MeanFilledFusion
from harness.methods.baselines.knn_vote import KnnVote
from harness.methods.common.inspector import FilledInspector
from harness.types import Batch


class KnnVoteInspector(Inspector):
    """The voters of every prediction.

    Args:
        method: Prepared.
    """

    def __init__(self, method: KnnVote) -> None:
        self._method = method

    def consulted(self, batch: Batch) -> Mapping[str, Consulted]:
        """Neighbours with their shares of the vote, before smoothing."""
        bank = self._method.banks()["memory"]
        near = bank.neighbours(batch, self._method.config.k)
        scores = (near.score / self._method.config.temperature).masked_fill(~near.found, -torch.inf)
        return {VOTE: Consulted(bank.ids, near.index, near.score, scores.softmax(1).nan_to_num(0.0))}


def inspector(method: Method) -> Inspector | None:
    """The inspector of a baseline that fills in means or votes; None for the others."""
    if isinstance(method, MeanFilledFusion):
        return FilledInspector(method)
    return KnnVoteInspector(method) if isinstance(method, KnnVote) else None
