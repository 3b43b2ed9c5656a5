"""Hidden states of training samples, and what they say of a missing one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.methods.ramer.config import RamerConfig
from harness.retrieval import KeyBank, Keys
from harness.types import Batch


class Database:
    """Fills in hidden states from the training samples whose modality was stored.

    A stored hidden state is its own key: neighbours are those whose hidden state of a modality that the query has
    points in the same direction.

    Args:
        items: Stored training samples; `keys` are their hidden states.
        modalities: Names of the M columns.
        config: Neighbours, their weights and the scale of fillings.
        encode: Hidden states of a batch, for the audit's queries.
        backend: `faiss` or `torch`.

    Attributes:
        banks: Per modality the samples from which it can be retrieved: they have it and something to be found by.
            Empty when nothing is retrieved.
    """

    def __init__(
        self,
        items: Keys,
        modalities: Sequence[str],
        config: RamerConfig,
        encode: Callable[[Batch], Keys],
        backend: str,
    ) -> None:
        self._config = config
        self._hidden, self._stored = items.keys, items.present
        self.banks: dict[str, KeyBank] = {}
        self._donors: dict[str, Tensor] = {}
        self._modalities = tuple(modalities)
        if config.fill == "train_mean":
            return
        several = items.present.sum(1) > 1
        for column, name in enumerate(modalities):
            donors = (items.present[:, column] & several).nonzero().squeeze(1)
            if len(donors):
                self._donors[name] = donors
                self.banks[name] = KeyBank(
                    items.select(donors),
                    encode,
                    backend=backend,
                    aggregation=config.aggregation,
                    unit_queries=config.query == "unit",
                    exclude=config.exclude,
                )

    def fill(self, column: int, queries: Keys) -> Tensor:
        """Hidden states `[b, d]` of one modality for samples without it; zeros where nothing is found."""
        name = self._modalities[column]
        if self._config.fill == "train_mean":
            filling = self._of(column).mean(0) if self._stored[:, column].any() else self._hidden.new_zeros(())
            filled = filling.expand(len(queries.ids), self._hidden.shape[2])
        elif name in self.banks:
            filled = self._retrieved(column, queries)
        else:
            return self._hidden.new_zeros(len(queries.ids), self._hidden.shape[2])
        if self._config.fill_scale in ("unit", "unit_filled"):
            return F.normalize(filled, dim=1)
        if self._config.fill_scale == "mean_norm":
            norm: Tensor = torch.linalg.vector_norm(self._of(column), dim=1).mean()
            return F.normalize(filled, dim=1) * norm
        return filled

    def _of(self, column: int) -> Tensor:
        """All stored hidden states of one modality."""
        return self._hidden[self._stored[:, column], column]

    def _retrieved(self, column: int, queries: Keys) -> Tensor:
        """Weighted mean over the neighbours that were found."""
        name = self._modalities[column]
        near = self.banks[name].search(queries, self._config.k)
        softmax = self._config.weights == "softmax"
        scores = near.score / self._config.temperature if softmax else torch.zeros_like(near.score)
        weights = scores.masked_fill(~near.found, -torch.inf).softmax(1).nan_to_num(0.0)
        values = self._hidden[self._donors[name][near.index.clamp(min=0)], column]
        return (values * weights.unsqueeze(2)).sum(1)
