"""Whom imputation by neighbours asks, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.inspector import Consulted, Inspector
from harness.method import Method
from harness.methods.common.inspector import FilledInspector
from harness.methods.common.tokens import scatter_rows
from harness.methods.knn_impute.model import KnnImpute
from harness.types import Batch


class KnnImputeInspector(FilledInspector):
    """Mean imputed tokens, and the donors of each missing modality.

    Args:
        method: Trained.
    """

    def __init__(self, method: KnnImpute) -> None:
        super().__init__(method)
        self._method = method

    def consulted(self, batch: Batch) -> Mapping[str, Consulted]:
        """Donors with their weights, before positions that are padding in some of them are taken out."""
        found = {}
        for name, bank in self._method.banks().items():
            rows = (~batch.present[:, self._method.modalities.index(name)]).nonzero().squeeze(1)
            if not len(rows):
                continue
            near = self._method._neighbours(bank, batch.select(rows))
            weight = self._weights(near.score, near.found)
            index = near.index.masked_fill(~near.found, -1)
            found[name] = Consulted(
                bank.ids,
                scatter_rows(index, rows, len(batch), -1),
                scatter_rows(near.score, rows, len(batch)),
                scatter_rows(weight, rows, len(batch)),
            )
        return found

    def _weights(self, score: Tensor, found: Tensor) -> Tensor:
        similar = self._method.config.weights == "similarity"
        scores = score / self._method.config.temperature if similar else torch.zeros_like(score)
        return scores.masked_fill(~found, -torch.inf).softmax(1).nan_to_num(0.0)


def inspector(method: Method) -> Inspector | None:
    """The inspector of the method."""
    return KnnImputeInspector(method) if isinstance(method, KnnImpute) else None
