"""Banks of training samples and exact nearest-neighbour search.

A bank item is a training sample as the method may see it: a `MemoryBank` finds it by its frozen features, a `KeyBank`
by keys that the method learned.  Queries exclude themselves by id and by content, in every split.  Scores are inner
products of normalised vectors; `harness.search` finds the largest.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import UsageError
from harness.files import atomic_write, locked
from harness.masking import ObservedDataset
from harness.progress import say
from harness.search import INDEXES, Floats, SearchIndex
from harness.seeding import derive_seed
from harness.types import Batch, BoolArray, IntArray

#: Queries that are searched at a time: memory does not grow with queries times items.
_QUERIES = 4096
#: Candidates that are looked at beyond the k asked for, in case some are the query itself or its twins.
_SPARE = 8
#: Products of numbers above which the neighbours of a split are kept on disk; below, searching again costs nothing.
_WORTH_KEEPING = 10**9
#: Raised when the same keys get other neighbours.
_VERSION = 1


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
        for start in range(0, len(ids), _QUERIES):
            part = slice(start, start + _QUERIES)
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


class MemoryBank(Bank):
    """Retrievable training samples with their keys, payload and labels; build it with `MemoryBank.build`.

    Attributes:
        ids: Ids of the N items.
        splits: Splits the items come from, for the audit.
        present: `[N, M]` bool, which modalities the items carry.
        modalities: Column names.
    """

    def __init__(
        self,
        views: Sequence[ObservedDataset],
        *,
        complete_only: bool = True,
        backend: str = "faiss",
        exclude: str = "id",
    ) -> None:
        first = views[0]
        self.modalities = first.modalities
        self.exclude = exclude
        self.splits = tuple(view.split for view in views)
        chosen = [
            np.flatnonzero(view.present.all(axis=1) if complete_only else view.present.any(axis=1)) for view in views
        ]
        self._views = [view.subset(rows) for view, rows in zip(views, chosen, strict=True)]
        if not any(len(view) for view in self._views):
            raise UsageError(
                "the memory bank is empty: no training sample has every modality under this protocol; "
                "choose a lower missing rate, or supervision=complete with a bank of full training samples."
            )
        self.item_splits = np.repeat(np.arange(len(views)), [len(view) for view in self._views])
        labels = np.concatenate([view.labels for view in self._views])
        self._labels = torch.from_numpy(np.ascontiguousarray(labels))
        self._offsets = np.cumsum([0, *(len(view) for view in self._views)])
        self._widths = [first.feature_specs[name].pooled_dim for name in self.modalities]
        super().__init__(
            [name for view in self._views for name in view.ids],
            np.concatenate([view.present for view in self._views]),
            np.concatenate([view.digests() for view in self._views]),
        )
        self._row_number = {name: row for view in views for row, name in enumerate(view.ids)}
        self._source_row = np.concatenate(chosen) + np.repeat(
            np.cumsum([0, *(len(view) for view in views)])[:-1], [len(rows) for rows in chosen]
        )
        self._backend = backend
        self._index: dict[str | None, SearchIndex] = {}
        self._memo: dict[tuple[Any, ...], tuple[IntArray, Floats]] = {}
        self._expected: list[_Split] = []
        self._cache: Path | None = None

    @classmethod
    def build(
        cls,
        train: ObservedDataset,
        *extra: ObservedDataset,
        complete_only: bool = True,
        backend: str = "faiss",
        exclude: str = "id",
    ) -> MemoryBank:
        """Collects the retrievable samples of the training split.

        Args:
            train: The training split as the method may see it.
            extra: Further splits for replaying released code that keeps validation samples in the bank; the
                audit reports them.
            complete_only: Keep samples with every modality only, so that items are pairs.
            backend: One of `harness.search.INDEXES`.
            exclude: `id` drops the query by id and by identical content; `row_number` drops the bank item at the
                query's row number within its own split, as released code does: validation queries stay in their
                own lists.  (Released code does the same to test queries, which costs them at most one legitimate
                neighbour; a bank does not know test rows, so nothing is dropped for them here.)

        Raises:
            UsageError: If no sample qualifies.
            DependencyError: If faiss is needed and missing.
        """
        return cls([train, *extra], complete_only=complete_only, backend=backend, exclude=exclude)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and payload together."""
        return self.key_bytes + self.payload_bytes

    @property
    def key_bytes(self) -> int:
        """Bytes of the keys of all modalities as float32: what an exact index holds in memory once it is needed."""
        return 4 * len(self) * sum(self._widths)

    @property
    def payload_bytes(self) -> int:
        """Bytes of tokens and masks as the feature store keeps them: on disk, and never in memory as a whole."""
        return len(self) * sum(self._views[0].stored_bytes(name) for name in self.modalities)

    def expect(self, views: Sequence[ObservedDataset], cache: Path) -> None:
        """Takes note of the splits whose samples will be queries: they can be searched for all at once.

        Args:
            views: The splits.  A query that is in none of them, or shows other modalities, is answered just as well.
            cache: Folder in which the neighbours of large splits are kept, for every run that asks for the same.
        """
        self._expected = [_Split(view) for view in views]
        self._cache = cache

    def _keys(self, rows: IntArray, channel: str | None = None) -> Floats:
        """Concatenated normalised keys `[n, d]` of items, zeros where a modality is absent."""
        keys = np.zeros((len(rows), sum(self._widths)), dtype=np.float32)
        for number, view in enumerate(self._views):
            own = np.flatnonzero((rows >= self._offsets[number]) & (rows < self._offsets[number + 1]))
            if len(own):
                keys[own] = self._keys_of_view(view, rows[own] - self._offsets[number])
        return keys[:, slice(*self._columns(channel))]

    def _keys_of_view(self, view: ObservedDataset, rows: IntArray) -> Floats:
        keys = np.zeros((len(rows), sum(self._widths)), dtype=np.float32)
        for column, name in enumerate(self.modalities):
            there = np.flatnonzero(view.present[rows, column])
            keys[there, slice(*self._columns(name))] = _unit(view.pooled(name, rows[there]))
        return keys

    def _keys_of(self, batch: Batch) -> Floats:
        """Concatenated normalised keys `[B, sum P]`, zeros where absent."""
        keys = np.zeros((len(batch), sum(self._widths)), dtype=np.float32)
        for name in self.modalities:
            part = batch.inputs[name]
            keys[part.rows.cpu().numpy(), slice(*self._columns(name))] = _unit(part.pooled)
        return keys

    def _columns(self, channel: str | None) -> tuple[int, int]:
        if channel is None:
            return 0, sum(self._widths)
        column = self.modalities.index(channel)
        start = sum(self._widths[:column])
        return start, start + self._widths[column]

    def _search_index(self, channel: str | None) -> SearchIndex:
        if channel not in self._index:
            self._index[channel] = INDEXES[self._backend](len(self), lambda rows: self._keys(rows, channel))
        return self._index[channel]

    def neighbours(
        self, batch: Batch, k: int, *, channel: str | None = None, random_seed: int | None = None
    ) -> Neighbours:
        """The k most similar items for every sample of a batch.

        Args:
            batch: Queries; only present modalities enter the score (sum of their cosines).
            k: Neighbours per query.
            channel: Score by this modality alone (queries must have it); None uses all present ones.
            random_seed: Draw k eligible items at random instead (an ablation), fixed per seed and query id.

        Returns:
            Positions, scores and validity `[B, k]` on the batch's device.  The samples of a split that the bank
            expects are all searched for when the first of them is, for one k per channel; other results are
            remembered per query id, pattern and content.  Either way training searches once.
        """
        present = batch.present.cpu().numpy()
        index = np.full((len(batch), k), -1, dtype=np.int64)
        score = np.zeros((len(batch), k), dtype=np.float32)
        digest = content_digests(batch).cpu().numpy()
        open_rows = np.arange(len(batch))
        if random_seed is None:
            for split in self._expected:
                if not len(open_rows):
                    break
                if split.asked.setdefault(channel, k) != k:
                    continue
                rows = split.find([batch.ids[row] for row in open_rows], present[open_rows], digest[open_rows])
                known = rows >= 0
                if known.any():
                    table = self._table(split, k, channel)
                    index[open_rows[known]], score[open_rows[known]] = (
                        table.index[rows[known]],
                        table.score[rows[known]],
                    )
                    open_rows = open_rows[~known]
        if len(open_rows):
            index[open_rows], score[open_rows] = self._one_by_one(batch, open_rows, k, channel, random_seed)
        found = torch.from_numpy(index)
        return Neighbours(
            found.to(batch.device), torch.from_numpy(score).to(batch.device), (found >= 0).to(batch.device)
        )

    def _one_by_one(
        self, batch: Batch, rows: IntArray, k: int, channel: str | None, random_seed: int | None
    ) -> tuple[IntArray, Floats]:
        """Neighbours `[n, k]` of some samples of a batch, remembered by id, pattern and content."""
        present, digest = batch.present.cpu().numpy(), content_digests(batch).cpu().numpy()
        names = {
            row: (batch.ids[row], present[row].tobytes(), digest[row].tobytes(), k, channel, random_seed)
            for row in rows.tolist()
        }
        todo = [row for row, name in names.items() if name not in self._memo]
        if todo:
            ids = [batch.ids[row] for row in todo]
            if random_seed is not None:
                found = self._random(ids, digest[todo], present[todo], k, random_seed)
            else:
                queries = np.ascontiguousarray(self._keys_of(batch)[todo, slice(*self._columns(channel))])
                found = self._nearest(self._search_index(channel), queries, ids, digest[todo], present[todo], k)
            self._memo.update(zip((names[row] for row in todo), zip(*found, strict=True), strict=True))
        known = [self._memo[name] for name in names.values()]
        return np.stack([index for index, _ in known]), np.stack([score for _, score in known])

    def _table(self, split: _Split, k: int, channel: str | None) -> _Table:
        """Neighbours of a whole split: computed once, and kept on disk where that is worth it."""
        if channel in split.tables:
            return split.tables[channel]
        width = len(range(*self._columns(channel)))
        if self._cache is None or len(split.view) * len(self) * width < _WORTH_KEEPING:
            table = self._search_split(split.view, k, channel)
        else:
            name = hashlib.sha256(f"{self._content}{split.content}{k}:{channel}".encode()).hexdigest()[:32]
            path = self._cache / f"{name}.npz"
            with locked(path, "waiting for another process that searches for the same neighbours"):
                found = _Table.load(path)
                table = self._search_split(split.view, k, channel) if found is None else found
                if found is None:
                    table.save(path)
        split.tables[channel] = table
        return table

    def _search_split(self, view: ObservedDataset, k: int, channel: str | None) -> _Table:
        index, columns, digest = self._search_index(channel), slice(*self._columns(channel)), view.digests()
        parts = []
        for start in range(0, len(view), _QUERIES):
            rows = np.arange(start, min(start + _QUERIES, len(view)))
            queries = np.ascontiguousarray(self._keys_of_view(view, rows)[:, columns])
            parts.append(
                self._nearest(index, queries, view.ids[start : start + _QUERIES], digest[rows], view.present[rows], k)
            )
        return _Table(np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))

    @cached_property
    def _content(self) -> str:
        """Digest of everything on the bank's side that decides what its neighbours are."""
        digest = hashlib.sha256(f"{_VERSION}:{self._backend}:{self.exclude}:{self._widths}:".encode())
        for view in self._views:
            digest.update(_content_of(view).encode())
        if self.exclude == "row_number":
            digest.update(self._source_row.tobytes() + repr(sorted(self._row_number.items())).encode())
        return digest.hexdigest()

    def _random(
        self, ids: Sequence[str], digest: IntArray, present: BoolArray, k: int, seed: int
    ) -> tuple[IntArray, Floats]:
        """k random neighbours `[n, k]` per query, with scores of zero."""
        none = np.zeros((1, len(self)), dtype=np.float32)
        found = []
        for row, name in enumerate(ids):
            order = np.random.default_rng(derive_seed(seed, "neighbours", name)).permutation(len(self))
            found.append(self._first(order[None], none, [name], digest[row : row + 1], present[row : row + 1], k))
        return np.concatenate([index for index, _ in found]), np.concatenate([score for _, score in found])

    def _excluded(self, items: IntArray, digest: IntArray, present: BoolArray, ids: Sequence[str]) -> BoolArray:
        """True for items that are the query itself or its twin, or at its row number (`exclude=row_number`)."""
        if self.exclude == "row_number":
            own = np.array([self._row_number.get(name, -1) for name in ids], dtype=np.int64)
            return np.asarray(self._source_row[items] == own[:, None])
        return super()._excluded(items, digest, present, ids)

    def labels(self, index: Tensor) -> Tensor:
        """Labels of items: `[B, k]` int64 or `[B, k, C]` float; positions of -1 give item 0 (mask them)."""
        return self._labels[index.clamp(min=0).cpu()].to(index.device)

    def payload(self, index: Tensor, modalities: Sequence[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Tokens and masks of items.

        Args:
            index: Any shape `[...]`, positions in the bank.
            modalities: Which to return; all by default.  The items must carry them.

        Returns:
            Per modality tokens `[..., L, *token_shape]` and mask `[..., L]` on the index's device.
        """
        flat = index.reshape(-1).cpu().numpy()
        result = {}
        for name in self.modalities if modalities is None else modalities:
            tokens, mask = (part.to(index.device) for part in self._gather(name, flat))
            # Compact on the way to the device, wide only there.
            tokens = tokens.float() if tokens.is_floating_point() else tokens
            result[name] = (
                tokens.reshape(*index.shape, *tokens.shape[1:]),
                mask.reshape(*index.shape, *mask.shape[1:]),
            )
        return result

    def _gather(self, name: str, flat: IntArray) -> tuple[Tensor, Tensor]:
        """Tokens and masks of items as stored; one gathering per split that the bank draws from."""
        if len(self._views) == 1:
            return self._views[0].tokens(name, flat)
        source = np.searchsorted(self._offsets, flat, side="right") - 1
        order = np.argsort(source, kind="stable")
        parts = [
            view.tokens(name, flat[source == number] - self._offsets[number]) for number, view in enumerate(self._views)
        ]
        back = torch.from_numpy(np.argsort(order))
        return torch.cat([tokens for tokens, _ in parts])[back], torch.cat([mask for _, mask in parts])[back]


class _Split:
    """Samples that a bank expects as queries.

    Args:
        view: Their split.

    Attributes:
        view: Their split.
        asked: How many neighbours were first asked for, per channel.
        tables: What was found, per channel.
    """

    def __init__(self, view: ObservedDataset) -> None:
        self.view = view
        self.asked: dict[str | None, int] = {}
        self.tables: dict[str | None, _Table] = {}

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.view.ids)}

    @cached_property
    def content(self) -> str:
        """Digest of everything about the queries that decides what their neighbours are."""
        return _content_of(self.view)

    @cached_property
    def _digest(self) -> IntArray:
        return self.view.digests()

    def find(self, ids: Sequence[str], present: BoolArray, digest: IntArray) -> IntArray:
        """Rows `[n]` of samples, -1 for those that are not of this split, or show other modalities or values here."""
        rows = np.array([self._rows.get(name, -1) for name in ids], dtype=np.int64)
        same = (self.view.present[rows] == present) & (self._digest[rows] == digest)
        return np.where(same.all(axis=1), rows, -1)


@dataclass(frozen=True)
class _Table:
    """Neighbours of every sample of a split: positions `[n, k]` and scores `[n, k]`."""

    index: IntArray
    score: Floats

    def save(self, path: Path) -> None:
        with atomic_write(path) as temporary:
            np.savez(temporary, index=self.index, score=self.score)

    @classmethod
    def load(cls, path: Path) -> _Table | None:
        """The table of a file; None if there is none, or it is not whole (zip archives carry checksums)."""
        try:
            with np.load(path, allow_pickle=False) as parts:
                return cls(parts["index"], parts["score"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, BadZipFile):
            say(f"warning: {path} is damaged; its neighbours are searched for again.")
            return None


def _content_of(view: ObservedDataset) -> str:
    """Digest of the ids, presence, content and keys of a split's samples."""
    digest = hashlib.sha256("\0".join(view.ids).encode())
    digest.update(view.present.tobytes() + view.digests().tobytes())
    for column, name in enumerate(view.modalities):
        rows = np.flatnonzero(view.present[:, column])
        for start in range(0, len(rows), _QUERIES):
            digest.update(np.ascontiguousarray(view.pooled(name, rows[start : start + _QUERIES])).tobytes())
    return digest.hexdigest()


def _unit(pooled: Tensor | Floats) -> Floats:
    """Rows `[n, P]` scaled to length one."""
    return torch.nn.functional.normalize(torch.as_tensor(pooled).float(), dim=1).cpu().numpy()


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


def content_digests(batch: Batch) -> Tensor:
    """`[B, M]` int64 hashes of the raw values, 0 where absent."""
    found = torch.zeros(batch.present.shape, dtype=torch.int64, device=batch.device)
    for column, part in enumerate(batch.inputs.values()):
        found[part.rows, column] = part.digest
    return found


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
