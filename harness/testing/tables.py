"""Small data sets in memory, for contracts and tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

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
_WORDS = ("one", "small", "blue", "boat", "lies", "still", "before", "morning", "rain", "Oslo")


def make_table(
    sizes: Mapping[Split, int] | Sequence[int] = (40, 20, 30),
    modalities: Sequence[str] = ("text", "image"),
    available: BoolArray | None = None,
    ids: Sequence[str] | None = None,
    order: IntArray | None = None,
    name: str = "contract",
    readable: bool = False,
) -> DataTable:
    """A two-class data set whose raw values must not be read, unless they are asked for.

    Args:
        sizes: Samples of train, valid and test.
        modalities: Their names; `text`, `image`, `audio` and `video` are of that kind, others are `features`.
        available: `[N, M]` natural presence in the order of `ids`; everything by default.
        ids: N unique ids, `s0000`, … by default.
        order: A permutation of the N rows to store them in.
        name: Name of the data set.
        readable: Give raw values of each kind, drawn from the ids (see `raw_value`).
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
        {
            modality.name: LazySequence(
                _reader(modality, [names[row] for row in order]) if readable else _unreadable, total
            )
            for modality in spec.modalities
        },
    )


def raw_value(modality: ModalitySpec, sample: str) -> Any:
    """A raw value that the id decides: some words, a small picture, a short clip, or a short sequence of vectors."""
    seed = int.from_bytes(hashlib.sha256(f"{modality.name}|{sample}".encode()).digest()[:8], "big")
    draw = np.random.default_rng(seed)
    if modality.kind == "text":
        return " ".join(draw.choice(_WORDS, size=draw.integers(1, 12)).tolist())
    if modality.kind == "image":
        return draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    if modality.kind == "audio":
        return draw.normal(0, 0.1, draw.integers(4_000, 16_000)).astype(np.float32)
    return (draw.normal(0, 1, (draw.integers(1, 9), 4)) * draw.uniform(0.5, 2)).astype(np.float32)


def _reader(modality: ModalitySpec, ids: Sequence[str]) -> Callable[[int], Any]:
    return lambda row: raw_value(modality, ids[row])


def _unreadable(row: int) -> NoReturn:
    raise AssertionError(f"raw value {row} was read")
