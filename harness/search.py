"""Inner-product search over the keys of a bank: exact by default, approximate for banks of above a million items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from harness.errors import DependencyError, UsageError
from harness.progress import say
from harness.types import IntArray

Floats = npt.NDArray[np.float32]
#: Keys `[n, d]` of some items; indexes read them in parts, so that they are never in memory twice.
KeysOf = Callable[[IntArray], Floats]

_PART = 65_536  # keys that are read at a time
_SCORES = 2**26  # scores that brute force holds at a time
_GPU_LARGEST_K = 2048
#: Bank sizes below which approximate search is refused, and below which it is not worth its errors.
_FEWEST, _WORTH = 10_000, 1_000_000


class SearchIndex(ABC):
    """Finds the items with the largest inner products.

    Args:
        count: Number of items N, above zero.
        keys: Their keys.
    """

    def __init__(self, count: int, keys: KeysOf) -> None:
        self.count = count
        self.keys = keys

    @abstractmethod
    def search(self, queries: Floats, k: int) -> tuple[Floats, IntArray]:
        """Scores and positions `[q, k]`, best first; -1 where nothing was found."""


class FaissIndex(SearchIndex):
    """FAISS flat index: exact; on all GPUs when faiss sees any.

    Raises:
        DependencyError: If no faiss package is installed.
    """

    def __init__(self, count: int, keys: KeysOf) -> None:
        super().__init__(count, keys)
        try:
            import faiss
        except ImportError as error:
            raise DependencyError(
                "this method retrieves and faiss is not installed; install 'missing-modality-harness[cpu]' or "
                "'missing-modality-harness[gpu]', or ask for exact torch search with retrieval.backend=torch."
            ) from error
        self._largest_k = count
        index = self._build(faiss, keys(np.arange(1)).shape[1])
        if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
            index = self._on_gpus(faiss, index)
        for start in range(0, count, _PART):
            index.add(np.ascontiguousarray(keys(np.arange(start, min(start + _PART, count)))))
        self._index = index

    def search(self, queries: Floats, k: int) -> tuple[Floats, IntArray]:
        """Scores and positions `[q, k]`, best first; -1 where nothing was found."""
        if k > self._largest_k:
            return self._search_all(queries, k)
        scores, found = self._index.search(np.ascontiguousarray(queries), k)
        return scores, found

    def _build(self, faiss: Any, width: int) -> Any:
        """The empty index."""
        return faiss.IndexFlatIP(width)

    def _on_gpus(self, faiss: Any, index: Any) -> Any:
        self._largest_k = min(self._largest_k, _GPU_LARGEST_K)
        return faiss.index_cpu_to_all_gpus(index)

    def _search_all(self, queries: Floats, k: int) -> tuple[Floats, IntArray]:
        """Exact search that reads every key, for more neighbours than the index can give."""
        parts = []
        for some in np.array_split(queries, -(-len(queries) * self.count // _SCORES)):
            scores = np.empty((len(some), self.count), dtype=np.float32)
            for start in range(0, self.count, _PART):
                rows = np.arange(start, min(start + _PART, self.count))
                scores[:, rows] = some @ self.keys(rows).T
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            parts.append((np.take_along_axis(scores, order, axis=1), order))
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


class ApproximateIndex(FaissIndex):
    """Base of indexes that look at a part of the items.

    Raises:
        UsageError: If the bank is so small that exact search costs less than building the index.
    """

    backend: ClassVar[str]

    def __init__(self, count: int, keys: KeysOf) -> None:
        if count < _FEWEST:
            raise UsageError(
                f"retrieval.backend={self.backend} is meant for banks of above {_WORTH:,} items, and this one has "
                f"{count:,}; use retrieval.backend=faiss, which is exact and faster here."
            )
        if count < _WORTH:
            say(
                f"note: retrieval.backend={self.backend} is approximate; for {count:,} items exact search "
                "(retrieval.backend=faiss) takes seconds."
            )
        super().__init__(count, keys)
        # Whoever asks for all items wants no approximation.
        self._largest_k = min(self._largest_k, count - 1)


class IvfIndex(ApproximateIndex):
    """FAISS inverted file: k-means cells, of which the best 64 are searched (on GPUs when faiss sees any)."""

    backend = "faiss_ivf"
    _PROBES = 64
    _TRAINED_PER_CELL = 64

    def _build(self, faiss: Any, width: int) -> Any:
        cells = round(4 * self.count**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
        sample = np.linspace(0, self.count - 1, min(self.count, self._TRAINED_PER_CELL * cells)).astype(np.int64)
        index.train(np.ascontiguousarray(self.keys(sample)))
        index.nprobe = min(self._PROBES, cells)
        return index


class HnswIndex(ApproximateIndex):
    """FAISS graph of small worlds, on the CPU; with several threads the graph, and so its errors, vary slightly."""

    backend = "faiss_hnsw"
    _LINKS, _BREADTH = 32, 128

    def _build(self, faiss: Any, width: int) -> Any:
        index = faiss.IndexHNSWFlat(width, self._LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = self._BREADTH
        index.hnsw.efSearch = self._BREADTH
        self._largest_k = self._BREADTH
        return index

    def _on_gpus(self, faiss: Any, index: Any) -> Any:
        del faiss  # it has no such graph for GPUs
        return index


class TorchIndex(SearchIndex):
    """Brute-force inner product with torch: exact."""

    def __init__(self, count: int, keys: KeysOf) -> None:
        super().__init__(count, keys)
        self._all = torch.from_numpy(np.ascontiguousarray(keys(np.arange(count))))

    def search(self, queries: Floats, k: int) -> tuple[Floats, IntArray]:
        """Scores and positions `[q, k]`, best first."""
        asked = torch.split(torch.from_numpy(np.ascontiguousarray(queries)), max(1, _SCORES // self.count))
        with torch.autocast("cpu", enabled=False):
            found = [(some @ self._all.T).topk(k, dim=1) for some in asked]
        return torch.cat([part.values for part in found]).numpy(), torch.cat([part.indices for part in found]).numpy()


INDEXES: dict[str, type[SearchIndex]] = {
    "faiss": FaissIndex,
    "faiss_ivf": IvfIndex,
    "faiss_hnsw": HnswIndex,
    "torch": TorchIndex,
}
