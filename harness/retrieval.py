"""Banks of training samples and exact nearest-neighbour search.

A bank item is a training sample as the method may see it: a `MemoryBank` finds it by its frozen features, a `KeyBank`
by keys that the method learned.  Queries exclude themselves by id and by content, in every split.  Search is FAISS
(inner product on normalised vectors; on the GPU where faiss-gpu and a GPU are there); exact torch search is an
explicit option.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import DependencyError, UsageError
from harness.masking import ObservedDataset
from harness.seeding import derive_seed
from harness.types import Batch, IntArray

_GATHER = 512
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


class SearchIndex(Protocol):
    """Exact inner-product search."""

    def search(self, queries: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], IntArray]:
        """Scores and positions `[q, k]`, best first."""


class FaissIndex:
    """FAISS flat inner-product index, on all GPUs when faiss sees any.

    Raises:
        DependencyError: If no faiss package is installed.
    """

    def __init__(self, keys: npt.NDArray[np.float32]) -> None:
        try:
            import faiss
        except ImportError as error:
            raise DependencyError(
                "this method retrieves and faiss is not installed; install 'missing-modality-harness[cpu]' or "
                "'missing-modality-harness[gpu]', or ask for exact torch search with retrieval.backend=torch."
            ) from error
        index: Any = faiss.IndexFlatIP(keys.shape[1])
        if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
            index = faiss.index_cpu_to_all_gpus(index)
        index.add(np.ascontiguousarray(keys))
        self._index = index

    def search(self, queries: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], IntArray]:
        """Scores and positions `[q, k]`, best first."""
        scores, found = self._index.search(np.ascontiguousarray(queries), k)
        return scores, found


class TorchIndex:
    """Brute-force inner product with torch."""

    def __init__(self, keys: npt.NDArray[np.float32]) -> None:
        self._keys = torch.from_numpy(np.ascontiguousarray(keys))

    def search(self, queries: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], IntArray]:
        """Scores and positions `[q, k]`, best first."""
        with torch.autocast("cpu", enabled=False):
            result = (torch.from_numpy(np.ascontiguousarray(queries)) @ self._keys.T).topk(k, dim=1)
        return result.values.numpy(), result.indices.numpy()


INDEXES: dict[str, type[FaissIndex] | type[TorchIndex]] = {"faiss": FaissIndex, "torch": TorchIndex}


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

    def _take(
        self,
        order: IntArray,
        scores: npt.NDArray[np.float32],
        digest: IntArray,
        present: npt.NDArray[np.bool_],
        name: str,
        k: int,
    ) -> tuple[IntArray, npt.NDArray[np.float32]]:
        """First k eligible items of an ordered candidate list, padded with -1."""
        eligible = ~self._excluded(order, digest, present, name)
        kept = order[eligible][:k]
        index = np.full(k, -1, dtype=np.int64)
        score = np.zeros(k, dtype=np.float32)
        index[: len(kept)] = kept
        score[: len(kept)] = scores[eligible][:k]
        return index, score

    def _excluded(
        self, items: IntArray, digest: IntArray, present: npt.NDArray[np.bool_], name: str
    ) -> npt.NDArray[np.bool_]:
        """True for items that are the query itself, or its twin: every modality of the query is identical."""
        same_id = items == self._position.get(name, -1)
        return np.asarray(same_id | self.copies(items, digest, present))

    def copies(self, items: IntArray, digest: IntArray, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """True for items whose content is that of a query in every modality that the query has.

        Args:
            items: `[n]` positions in the bank.
            digest: `[M]` content hashes of the query.
            present: `[M]`, which modalities the query has.
        """
        same = (self._digest[items][:, present] == digest[present]).all(axis=1)
        return np.asarray(same & self.present[items][:, present].all(axis=1))


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
        keys, digests = zip(
            *(self._keys_of(view.batch(rows)) for view in self._views for rows in _chunks(len(view))), strict=True
        )
        self._keys = np.concatenate(keys)
        super().__init__(
            [name for view in self._views for name in view.ids],
            np.concatenate([view.present for view in self._views]),
            np.concatenate(digests),
        )
        self._row_number = {name: row for view in views for row, name in enumerate(view.ids)}
        self._source_row = np.concatenate(chosen) + np.repeat(
            np.cumsum([0, *(len(view) for view in views)])[:-1], [len(rows) for rows in chosen]
        )
        self._backend = backend
        self._index: dict[str, SearchIndex] = {}
        self._memo: dict[tuple[Any, ...], tuple[IntArray, npt.NDArray[np.float32]]] = {}

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
            backend: `faiss` or `torch`.
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
        """Bytes of keys and of the payload's tokens and masks as float32/bool."""
        specs = self._views[0].feature_specs
        per_item = 0
        for name in self.modalities:
            width = int(np.prod(specs[name].token_shape)) if specs[name].token_shape else 1
            per_item += specs[name].length * (4 * width + 1)
        return int(self._keys.nbytes + len(self) * per_item)

    def _keys_of(self, batch: Batch) -> tuple[npt.NDArray[np.float32], IntArray]:
        """Concatenated normalised keys `[B, sum P]` (zeros where absent) and digests `[B, M]`."""
        keys = np.zeros((len(batch), sum(self._widths)), dtype=np.float32)
        digest = np.zeros((len(batch), len(self.modalities)), dtype=np.int64)
        start = 0
        for column, (name, width) in enumerate(zip(self.modalities, self._widths, strict=True)):
            part = batch.inputs[name]
            rows = part.rows.cpu().numpy()
            pooled = torch.nn.functional.normalize(part.pooled.float(), dim=1).cpu().numpy()
            keys[rows, start : start + width] = pooled
            digest[rows, column] = part.digest.cpu().numpy()
            start += width
        return keys, digest

    def _columns(self, channel: str | None) -> tuple[int, int]:
        if channel is None:
            return 0, sum(self._widths)
        column = self.modalities.index(channel)
        start = sum(self._widths[:column])
        return start, start + self._widths[column]

    def _search_index(self, channel: str | None) -> SearchIndex:
        name = channel or ""
        if name not in self._index:
            low, high = self._columns(channel)
            self._index[name] = INDEXES[self._backend](np.ascontiguousarray(self._keys[:, low:high]))
        return self._index[name]

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
            Positions, scores and validity `[B, k]` on the batch's device.  Results are remembered per query id and
            pattern, so training searches once.
        """
        codes = batch.present.cpu().numpy()
        keys = [(name, code.tobytes(), k, channel, random_seed) for name, code in zip(batch.ids, codes, strict=True)]
        todo = [row for row, key in enumerate(keys) if key not in self._memo]
        if todo:
            queries, digests = self._keys_of(batch)
            low, high = self._columns(channel)
            for row, result in zip(
                todo,
                self._search(
                    [batch.ids[row] for row in todo],
                    queries[todo, low:high],
                    digests[todo],
                    codes[todo],
                    k,
                    channel,
                    random_seed,
                ),
                strict=True,
            ):
                self._memo[keys[row]] = result
        index = torch.from_numpy(np.stack([self._memo[key][0] for key in keys]))
        score = torch.from_numpy(np.stack([self._memo[key][1] for key in keys]))
        return Neighbours(index.to(batch.device), score.to(batch.device), (index >= 0).to(batch.device))

    def _search(
        self,
        ids: Sequence[str],
        queries: npt.NDArray[np.float32],
        digests: IntArray,
        present: npt.NDArray[np.bool_],
        k: int,
        channel: str | None,
        random_seed: int | None,
    ) -> list[tuple[IntArray, npt.NDArray[np.float32]]]:
        if random_seed is not None:
            none = np.zeros(len(self), dtype=np.float32)
            return [
                self._take(self._shuffled(name, random_seed), none, digest, there, name, k)
                for name, digest, there in zip(ids, digests, present, strict=True)
            ]
        index = self._search_index(channel)
        width = min(len(self), k + _SPARE)
        scores, found = index.search(queries, width)
        results = []
        for row, name in enumerate(ids):
            taken = self._take(found[row], scores[row], digests[row], present[row], name, k)
            if (taken[0] < 0).any() and width < len(self):
                # Many twins of this query: look at the whole bank.
                wide_scores, wide = index.search(queries[row : row + 1], len(self))
                taken = self._take(wide[0], wide_scores[0], digests[row], present[row], name, k)
            results.append(taken)
        return results

    def _shuffled(self, name: str, seed: int) -> IntArray:
        return np.random.default_rng(derive_seed(seed, "neighbours", name)).permutation(len(self))

    def _excluded(
        self, items: IntArray, digest: IntArray, present: npt.NDArray[np.bool_], name: str
    ) -> npt.NDArray[np.bool_]:
        """True for items that are the query itself or its twin, or at its row number (`exclude=row_number`)."""
        if self.exclude == "row_number":
            return np.asarray(self._source_row[items] == self._row_number.get(name, -1))
        return super()._excluded(items, digest, present, name)

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
        for name, (tokens, mask) in self._gather(flat, self.modalities if modalities is None else modalities).items():
            result[name] = (
                tokens.reshape(*index.shape, *tokens.shape[1:]).to(index.device),
                mask.reshape(*index.shape, *mask.shape[1:]).to(index.device),
            )
        return result

    def _gather(self, flat: IntArray, modalities: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        if len(self._views) == 1:
            batch = self._views[0].batch(flat)
            return {name: (batch.inputs[name].tokens, batch.inputs[name].mask) for name in modalities}
        source = np.searchsorted(self._offsets, flat, side="right") - 1
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        for number, view in enumerate(self._views):
            rows = np.flatnonzero(source == number)
            batch = view.batch(flat[rows] - self._offsets[number])
            for name in modalities:
                part = batch.inputs[name]
                if name not in parts:
                    parts[name] = (
                        part.tokens.new_zeros((len(flat), *part.tokens.shape[1:])),
                        part.mask.new_zeros((len(flat), *part.mask.shape[1:])),
                    )
                parts[name][0][torch.from_numpy(rows)] = part.tokens
                parts[name][1][torch.from_numpy(rows)] = part.mask
        return parts


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
        backend: `faiss` or `torch`.
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
        self._indexes: dict[int | None, tuple[IntArray, SearchIndex]] = {}
        self._memo: dict[tuple[Any, ...], tuple[IntArray, npt.NDArray[np.float32]]] = {}

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
            self._memo.update(zip((names[row] for row in todo), found, strict=True))
        shape = (len(names), k)
        index = torch.from_numpy(np.array([self._memo[name][0] for name in names], dtype=np.int64).reshape(shape))
        score = torch.from_numpy(np.array([self._memo[name][1] for name in names], dtype=np.float32).reshape(shape))
        device = queries.keys.device
        return Neighbours(index.to(device), score.to(device), (index >= 0).to(device))

    def _best(
        self, queries: Keys, present: npt.NDArray[np.bool_], digest: IntArray, k: int
    ) -> list[tuple[IntArray, npt.NDArray[np.float32]]]:
        """The winning list of every query."""
        keys = self._dense(queries, unit=self._unit_queries)
        if self._aggregation == "mean":
            lists = self._lists(None, queries.ids, keys.reshape(len(keys), -1), present, digest, k)
            return [
                (index, score / there.sum())
                for (index, score), there in zip(lists, present.astype(np.float32), strict=True)
            ]
        nothing = (np.full(k, -1, dtype=np.int64), np.zeros(k, dtype=np.float32))
        best = [nothing] * len(keys)
        for channel in range(keys.shape[1]):
            rows = np.flatnonzero(present[:, channel]).tolist()
            ids = [queries.ids[row] for row in rows]
            lists = self._lists(channel, ids, keys[rows, channel], present[rows], digest[rows], k)
            for row, found in zip(rows, lists, strict=True):
                best[row] = max(best[row], found, key=_standing)
        return best

    def _lists(
        self,
        channel: int | None,
        ids: Sequence[str],
        queries: npt.NDArray[np.float32],
        present: npt.NDArray[np.bool_],
        digest: IntArray,
        k: int,
    ) -> list[tuple[IntArray, npt.NDArray[np.float32]]]:
        """The k best items of every query by one modality, or by all together (None)."""
        items, index = self._index(channel)
        if not len(items) or not len(ids):
            return [(np.full(k, -1, dtype=np.int64), np.zeros(k, dtype=np.float32)) for _ in ids]
        width = min(len(items), k + _SPARE)
        scores, found = index.search(queries, width)
        results = []
        for row, name in enumerate(ids):
            taken = self._take(items[found[row]], scores[row], digest[row], present[row], name, k)
            if (taken[0] < 0).any() and width < len(items):
                # Many candidates are no neighbours of this query: look at all of them.
                wide_scores, wide = index.search(queries[row : row + 1], len(items))
                taken = self._take(items[wide[0]], wide_scores[0], digest[row], present[row], name, k)
            results.append(taken)
        return results

    def _index(self, channel: int | None) -> tuple[IntArray, SearchIndex]:
        """Items that have a modality (None: all items) and the index of their keys."""
        if channel not in self._indexes:
            items = np.arange(len(self)) if channel is None else np.flatnonzero(self.present[:, channel])
            keys = self._keys[items].reshape(len(items), -1) if channel is None else self._keys[items, channel]
            self._indexes[channel] = items, INDEXES[self._backend](np.ascontiguousarray(keys))
        return self._indexes[channel]

    def _excluded(
        self, items: IntArray, digest: IntArray, present: npt.NDArray[np.bool_], name: str
    ) -> npt.NDArray[np.bool_]:
        """True for what is no neighbour: the query itself or its twin, and items that share no modality with it."""
        if self._exclude == "first_hit":
            own = np.arange(len(items)) == 0
        else:
            own = super()._excluded(items, digest, present, name)
        return np.asarray(own | ~(self.present[items] & present).any(axis=1))

    @staticmethod
    def _dense(samples: Keys, *, unit: bool) -> npt.NDArray[np.float32]:
        """Keys `[B, M, d]`, zero where absent, of norm 1 per modality if `unit`."""
        keys = samples.keys.detach().float()
        if unit:
            keys = torch.nn.functional.normalize(keys, dim=2)
        return keys.masked_fill(~samples.present.unsqueeze(2), 0.0).cpu().numpy()


def _standing(found: tuple[IntArray, npt.NDArray[np.float32]]) -> tuple[int, float]:
    """What decides between lists: how many items, then the last one's score."""
    count = int((found[0] >= 0).sum())
    return count, float(found[1][count - 1]) if count else 0.0


def _chunks(total: int) -> list[IntArray]:
    return [np.arange(start, min(start + _GATHER, total)) for start in range(0, total, _GATHER)]
