"""Banks of training samples and exact nearest-neighbour search.

A bank item is a training sample as the method may see it: a `MemoryBank` finds it by its frozen features, a `KeyBank`
by keys that the method learned.  Queries exclude themselves by id and by content, in every split.  Scores are inner
products of normalised vectors; `harness.search` finds the largest.
"""

from harness.retrieval.bank import Bank, Neighbours, content_digests
from harness.retrieval.keys import KeyBank, Keys
from harness.retrieval.memory import MemoryBank

__all__ = ["Bank", "KeyBank", "Keys", "MemoryBank", "Neighbours", "content_digests"]
