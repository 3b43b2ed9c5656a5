"""Whom RAMER asks, and what it fills in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.inspector import Consulted, Inspector
from harness.method import Method
from harness.methods.common.tokens import scatter_rows
from harness.methods.ramer.model import Ramer
from harness.types import Batch


class RamerInspector(Inspector):
    """Hidden states, retrieved or the sample's own.

    Args:
        method: Trained.
    """

    def __init__(self, method: Ramer) -> None:
        self._method = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Hidden states after filling, as they are classified."""
        return dict(zip(self._method.modalities, self._method.represent(batch).unbind(1), strict=True))

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """The same of samples that have them."""
        return self.recovered(batch)

    def consulted(self, batch: Batch) -> Mapping[str, Consulted]:
        """The stored training samples behind every filled hidden state; none where the training mean fills."""
        config, keys = self._method.config, self._method.encode(batch)
        found = {}
        for name, bank in self._method.banks().items():
            rows = (~batch.present[:, self._method.modalities.index(name)]).nonzero().squeeze(1)
            if not len(rows):
                continue
            near = bank.search(keys.select(rows), config.k)
            scores = near.score / config.temperature if config.weights == "softmax" else torch.zeros_like(near.score)
            weight = scores.masked_fill(~near.found, -torch.inf).softmax(1).nan_to_num(0.0)
            found[name] = Consulted(
                bank.ids,
                scatter_rows(near.index, rows, len(batch), -1),
                scatter_rows(near.score, rows, len(batch)),
                scatter_rows(weight, rows, len(batch)),
            )
        return found


def inspector(method: Method) -> Inspector | None:
    """The inspector of RAMER."""
    return RamerInspector(method) if isinstance(method, Ramer) else None
