"""Samples found by keys that a method learned, one per modality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.retrieval.bank import Bank, Neighbours
from harness.search import INDEXES, Floats, SearchIndex
from harness.types import Batch, BoolArray, IntArray


@dataclass(frozen=True)
class Keys:
    """Samples with a learned key per modality.

    Attributes:
        ids: B sample ids.
        keys: `[B, M, d]` float; what stands where a modality is absent is not looked at.
        present: `[B, M]` bool.
        digest: `[B, M]` int64, `content_digests` of the batch.
    """

    ids: Sequence[str]
    keys: Tensor
    present: Tensor
    digest: Tensor

    def select(self, rows: Tensor) -> Keys:
        """The samples at some rows (`[b]` int64)."""
        ids = [self.ids[row] for row in rows.tolist()]
        return Keys(ids, self.keys[rows], self.present[rows], self.digest[rows])


class KeyBank(Bank):
    """Retrievable training samples, found by keys that a method learned.

    An item is a candidate for a query when they share a modality.

    Args:
        items: The N items; their keys are normalised here.
        encode: Keys of a batch, for `neighbours`.
        backend: One of `harness.search.INDEXES`.
        aggregation: How the modalities of a query decide together.  `mean`: one list by the mean of their scores, a
            modality that an item lacks counting zero.  `max_of_kth`: a list per modality, among the items that have
            it; the list with the most items wins, among those the one whose last item scores highest.
        unit_queries: Whether queries are normalised too, so that scores are cosines.
        exclude: `id` drops the query by id and by identical content; `first_hit` drops the best candidate of every
            list, whoever it is, as released code does.
    """

    def __init__(
        self,
        items: Keys,
        encode: Callable[[Batch], Keys],
        *,
        backend: str = "faiss",
        aggregation: str = "mean",
        unit_queries: bool = True,
        exclude: str = "id",
    ) -> None:
        super().__init__(items.ids, items.present.cpu().numpy(), items.digest.cpu().numpy())
        self._encode = encode
        self._backend = backend
        self._aggregation = aggregation
        self._unit_queries = unit_queries
        self._exclude = exclude
        self._keys = self._dense(items, unit=True)
        self._indexes: dict[int | None, tuple[IntArray, SearchIndex | None]] = {}
        self._memo: dict[tuple[Any, ...], tuple[IntArray, Floats]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the keys."""
        return int(self._keys.nbytes)

    def neighbours(self, batch: Batch, k: int) -> Neighbours:
        """The k most similar items for every sample of a batch, on the batch's device."""
        near = self.search(self._encode(batch), k)
        return Neighbours(near.index.to(batch.device), near.score.to(batch.device), near.found.to(batch.device))

    def search(self, queries: Keys, k: int) -> Neighbours:
        """The k most similar items for every query, on the device of its keys.

        Results are remembered per id, pattern and content, so training searches once.
        """
        present, digest = queries.present.cpu().numpy(), queries.digest.cpu().numpy()
        names = [
            (name, there.tobytes(), content.tobytes(), k)
            for name, there, content in zip(queries.ids, present, digest, strict=True)
        ]
        todo = [row for row, name in enumerate(names) if name not in self._memo]
        if todo:
            asked = queries.select(torch.tensor(todo, device=queries.keys.device))
            found = self._best(asked, present[todo], digest[todo], k)
            self._memo.update(zip((names[row] for row in todo), zip(*found, strict=True), strict=True))
        shape = (len(names), k)
        index = torch.from_numpy(np.array([self._memo[name][0] for name in names], dtype=np.int64).reshape(shape))
        score = torch.from_numpy(np.array([self._memo[name][1] for name in names], dtype=np.float32).reshape(shape))
        device = queries.keys.device
        return Neighbours(index.to(device), score.to(device), (index >= 0).to(device))

    def _best(self, queries: Keys, present: BoolArray, digest: IntArray, k: int) -> tuple[IntArray, Floats]:
        """The winning list `[n, k]` of every query."""
        keys = self._dense(queries, unit=self._unit_queries)
        if self._aggregation == "mean":
            index, score = self._lists(None, queries.ids, keys.reshape(len(keys), -1), present, digest, k)
            return index, score / present.sum(axis=1, dtype=np.float32)[:, None]
        best = np.full((len(keys), k), -1, dtype=np.int64), np.zeros((len(keys), k), dtype=np.float32)
        for channel in range(keys.shape[1]):
            rows = np.flatnonzero(present[:, channel])
            ids = [queries.ids[row] for row in rows.tolist()]
            found = self._lists(channel, ids, keys[rows, channel], present[rows], digest[rows], k)
            (count, last), (most, best_last) = _standing(found), _standing((best[0][rows], best[1][rows]))
            wins = (count > most) | ((count == most) & (last > best_last))
            best[0][rows[wins]], best[1][rows[wins]] = found[0][wins], found[1][wins]
        return best

    def _lists(
        self,
        channel: int | None,
        ids: Sequence[str],
        queries: Floats,
        present: BoolArray,
        digest: IntArray,
        k: int,
    ) -> tuple[IntArray, Floats]:
        """The k best items `[n, k]` of every query by one modality, or by all together (None)."""
        items, index = self._index(channel)
        if index is None:
            return np.full((len(ids), k), -1, dtype=np.int64), np.zeros((len(ids), k), dtype=np.float32)
        return self._nearest(index, queries, ids, digest, present, k, items)

    def _index(self, channel: int | None) -> tuple[IntArray, SearchIndex | None]:
        """Items that have a modality (None: all items) and the index of their keys, None where there are no items."""
        if channel not in self._indexes:
            items = np.arange(len(self)) if channel is None else np.flatnonzero(self.present[:, channel])
            every = self._keys.reshape(len(self), -1) if channel is None else self._keys[:, channel]
            index = INDEXES[self._backend](len(items), lambda rows: every[items[rows]]) if len(items) else None
            self._indexes[channel] = items, index
        return self._indexes[channel]

    def _excluded(self, items: IntArray, digest: IntArray, present: BoolArray, ids: Sequence[str]) -> BoolArray:
        """True for what is no neighbour: the query itself or its twin, and items that share no modality with it."""
        if self._exclude == "first_hit":
            own = np.broadcast_to(np.arange(items.shape[1]) == 0, items.shape)
        else:
            own = super()._excluded(items, digest, present, ids)
        return own | ~(self.present[items] & present[:, None]).any(axis=2)

    @staticmethod
    def _dense(samples: Keys, *, unit: bool) -> npt.NDArray[np.float32]:
        """Keys `[B, M, d]`, zero where absent, of norm 1 per modality if `unit`."""
        keys = samples.keys.detach().float()
        if unit:
            keys = torch.nn.functional.normalize(keys, dim=2)
        return keys.masked_fill(~samples.present.unsqueeze(2), 0.0).cpu().numpy()


def _standing(found: tuple[IntArray, Floats]) -> tuple[IntArray, Floats]:
    """What decides between lists `[n, k]`: how many items, then the last one's score."""
    count = (found[0] >= 0).sum(axis=1)
    last = np.take_along_axis(found[1], np.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
    return count, np.where(count > 0, last, np.float32(0))
