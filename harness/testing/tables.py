"""Small data sets in memory, for contracts and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from harness.config import digest_of
from harness.dataset import LazySequence
from harness.types import (
    SPLITS,
    BoolArray,
    DatasetSpec,
    DataTable,
    IntArray,
    ModalityKind,
    ModalitySpec,
    Split,
    TaskSpec,
)

_KINDS: Mapping[str, ModalityKind] = {"text": "text", "image": "image", "audio": "audio", "video": "video"}


def make_table(
    sizes: Mapping[Split, int] | Sequence[int] = (40, 20, 30),
    modalities: Sequence[str] = ("text", "image"),
    available: BoolArray | None = None,
    ids: Sequence[str] | None = None,
    order: IntArray | None = None,
    name: str = "contract",
) -> DataTable:
    """A two-class data set whose raw values must not be read.

    Args:
        sizes: Samples of train, valid and test.
        modalities: Their names; `text`, `image`, `audio` and `video` are of that kind, others are `features`.
        available: `[N, M]` natural presence in the order of `ids`; everything by default.
        ids: N unique ids, `s0000`, … by default.
        order: A permutation of the N rows to store them in.
        name: Name of the data set.
    """
    counts = [sizes[split] for split in SPLITS] if isinstance(sizes, Mapping) else list(sizes)
    total = sum(counts)
    names = list(ids) if ids is not None else [f"s{row:04d}" for row in range(total)]
    order = np.arange(total) if order is None else order
    there = np.ones((total, len(modalities)), dtype=np.bool_) if available is None else available
    bounds = np.cumsum([0, *counts])
    splits: dict[Split, IntArray] = {
        split: np.flatnonzero((order >= bounds[part]) & (order < bounds[part + 1])) for part, split in enumerate(SPLITS)
    }
    labels = np.arange(total, dtype=np.int64) % 2
    spec = DatasetSpec(
        name=name,
        version="1",
        modalities=tuple(ModalitySpec(modality, _KINDS.get(modality, "features")) for modality in modalities),
        task=TaskSpec("binary", 2, ("no", "yes"), "accuracy"),
        license="CC0",
        citation="made up",
        fingerprint=digest_of([name, list(modalities), counts, names, there.tolist()]),
    )
    return DataTable(
        spec,
        tuple(names[row] for row in order),
        splits,
        labels[order],
        there[order],
        {modality: LazySequence(_unreadable, total) for modality in modalities},
    )


def _unreadable(row: int) -> NoReturn:
    raise AssertionError(f"raw value {row} was read")
