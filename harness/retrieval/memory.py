"""Samples found by frozen features: searched once for every expected split, kept on disk where that is worth it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from harness.errors import UsageError
from harness.files import atomic_write, locked
from harness.masking import ObservedDataset
from harness.progress import say
from harness.retrieval.bank import QUERIES, Bank, Neighbours, content_digests
from harness.search import INDEXES, Floats, SearchIndex
from harness.seeding import derive_seed
from harness.types import Batch, BoolArray, IntArray

#: Products of numbers above which the neighbours of a split are kept on disk; below, searching again costs nothing.
_WORTH_KEEPING = 10**9
#: Raised when the same keys get other neighbours.
_VERSION = 1


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
        for start in range(0, len(view), QUERIES):
            rows = np.arange(start, min(start + QUERIES, len(view)))
            queries = np.ascontiguousarray(self._keys_of_view(view, rows)[:, columns])
            parts.append(
                self._nearest(index, queries, view.ids[start : start + QUERIES], digest[rows], view.present[rows], k)
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
        for start in range(0, len(rows), QUERIES):
            digest.update(np.ascontiguousarray(view.pooled(name, rows[start : start + QUERIES])).tobytes())
    return digest.hexdigest()


def _unit(pooled: Tensor | Floats) -> Floats:
    """Rows `[n, P]` scaled to length one."""
    return torch.nn.functional.normalize(torch.as_tensor(pooled).float(), dim=1).cpu().numpy()
