"""What every bank is: training samples, found by inner products, without the query itself or its twins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.search import Floats, SearchIndex
from harness.types import Batch, BoolArray, IntArray

#: Queries that are searched at a time: memory does not grow with queries times items.
QUERIES = 4096
#: Candidates that are looked at beyond the k asked for, in case some are the query itself or its twins.
_SPARE = 8


@dataclass(frozen=True)
class Neighbours:
    """Search result for B queries.

    Attributes:
        index: `[B, k]` int64 positions in the bank, best first, -1 where there are fewer than k.
        score: `[B, k]` float32, sum of cosines over the query's modalities; 0 where none was found.
        found: `[B, k]` bool.
    """

    index: Tensor
    score: Tensor
    found: Tensor


class Bank(ABC):
    """Retrievable training samples, as the audit knows them.

    Attributes:
        ids: Ids of the N items, unique.
        present: `[N, M]` bool, which modalities the items carry.
    """

    def __init__(self, ids: Sequence[str], present: npt.NDArray[np.bool_], digest: IntArray) -> None:
        self.ids: tuple[str, ...] = tuple(ids)
        self.present = present
        self._digest = digest
        self._position = {name: row for row, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the bank holds."""

    @abstractmethod
    def neighbours(self, batch: Batch, k: int) -> Neighbours:
        """The k most similar items for every sample of a batch, on the batch's device."""

    def _nearest(
        self,
        index: SearchIndex,
        queries: Floats,
        ids: Sequence[str],
        digest: IntArray,
        present: BoolArray,
        k: int,
        items: IntArray | None = None,
    ) -> tuple[IntArray, Floats]:
        """The k best neighbours `[n, k]` of n queries, -1 where there are fewer, and their scores.

        Args:
            index: Where to search.
            queries: `[n, d]`.
            ids: Of the queries.
            digest: `[n, M]`.
            present: `[n, M]`.
            k: How many.
            items: The bank's items that are in the index, in its order; None for all.
        """
        everybody = np.arange(len(self)) if items is None else items
        width = min(index.count, k + _SPARE)

        def search(part: slice, width: int) -> tuple[IntArray, Floats]:
            scores, found = index.search(queries[part], width)
            candidates = np.where(found < 0, -1, everybody[found])
            return self._first(candidates, scores, ids[part], digest[part], present[part], k)

        nearest = np.empty((len(ids), k), dtype=np.int64)
        score = np.empty((len(ids), k), dtype=np.float32)
        for start in range(0, len(ids), QUERIES):
            part = slice(start, start + QUERIES)
            nearest[part], score[part] = search(part, width)
        if width < index.count:
            # Many candidates of these queries are no neighbours: look at all items.
            for row in np.flatnonzero((nearest < 0).any(axis=1)).tolist():
                one = slice(row, row + 1)
                nearest[one], score[one] = search(one, index.count)
        return nearest, score

    def _first(
        self, items: IntArray, scores: Floats, ids: Sequence[str], digest: IntArray, present: BoolArray, k: int
    ) -> tuple[IntArray, Floats]:
        """The first k candidates `[n, k]` that are neighbours, in their order, padded with -1."""
        neighbour = (items >= 0) & ~self._excluded(items, digest, present, ids)
        order = np.argsort(~neighbour, axis=1, kind="stable")[:, :k]
        taken = np.take_along_axis(neighbour, order, axis=1)
        index = np.full((len(ids), k), -1, dtype=np.int64)
        score = np.zeros((len(ids), k), dtype=np.float32)
        width = order.shape[1]
        index[:, :width] = np.where(taken, np.take_along_axis(items, order, axis=1), -1)
        score[:, :width] = np.where(taken, np.take_along_axis(scores, order, axis=1), 0)
        return index, score

    def _excluded(self, items: IntArray, digest: IntArray, present: BoolArray, ids: Sequence[str]) -> BoolArray:
        """True for candidates `[n, w]` that are the query itself or have its content."""
        own = np.array([self._position.get(name, -1) for name in ids], dtype=np.int64)
        return np.asarray((items == own[:, None]) | self.copies(items, digest, present))

    def copies(self, items: IntArray, digest: IntArray, present: BoolArray) -> BoolArray:
        """True for items whose content is that of a query in every modality that the query has.

        Args:
            items: `[n, w]` positions in the bank, for n queries.
            digest: `[n, M]` content hashes of the queries.
            present: `[n, M]`, which modalities the queries have.
        """
        twin = np.ones(items.shape, dtype=np.bool_)
        for column in range(self.present.shape[1]):
            same = (self._digest[items, column] == digest[:, column, None]) & self.present[items, column]
            twin &= same | ~present[:, column, None]
        return twin


def content_digests(batch: Batch) -> Tensor:
    """`[B, M]` int64 hashes of the raw values, 0 where absent."""
    found = torch.zeros(batch.present.shape, dtype=torch.int64, device=batch.device)
    for column, part in enumerate(batch.inputs.values()):
        found[part.rows, column] = part.digest
    return found
