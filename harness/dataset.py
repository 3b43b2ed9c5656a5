"""Contract of data sets: a config with a light entry, and a loader that returns a `DataTable`."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.plugin import PluginConfig
from harness.types import SPLITS, DataTable, IntArray, Split

#: Ends the version of data sets that are only a part of what was released.
_PART = "-subset"


def part_of(version: str) -> str:
    """The version of a part of a release; numbers of it are never compared with published ones."""
    return f"{version}{_PART}"


def is_part(version: str) -> bool:
    """Whether a version is that of a part of a release (`part_of`)."""
    return version.endswith(_PART)


@dataclass
class DatasetConfig(PluginConfig, ABC):
    """Base of data set configs; one module a data set, its loader in the same module.

    Attributes:
        license: Licence of the data.
        obtain: One line that says how to get the data.
        real: False for generated data.
    """

    license: ClassVar[str] = ""
    obtain: ClassVar[str] = ""
    real: ClassVar[bool] = True

    @abstractmethod
    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Reads (and on first use prepares) the data set.

        Args:
            data_dir: Folder with data sets that users supply.
            cache_dir: Folder for derived files, safe to delete; writes are atomic.

        Raises:
            DataError: Naming every problem file and `obtain`.
        """


class LazySequence(Sequence[Any]):
    """A sequence whose items are read on access.

    Args:
        read: Function from row to value.
        length: Number of rows.
    """

    def __init__(self, read: Callable[[int], Any], length: int) -> None:
        self._read = read
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self._read(index) for index in range(*row.indices(self._length))]
        return self._read(int(row))


def check_table(table: DataTable) -> DataTable:
    """Checks everything a data set promises and returns the table.

    Raises:
        DataError: For duplicate ids, overlapping or empty splits, labels outside the classes, shape errors.
    """
    name, task = table.spec.name, table.spec.task
    seen: set[str] = set()
    twice = sorted({sample for sample in table.ids if sample in seen or seen.add(sample)})  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"data set {name}: duplicate ids {', '.join(map(repr, twice[:5]))}; ids must be unique.")
    rows: set[int] = set()
    for split in SPLITS:
        part = set(table.splits.get(split, np.empty(0, np.int64)).tolist())
        if not part:
            raise DataError(f"data set {name}: split {split!r} is empty; every split needs samples.")
        if rows & part:
            raise DataError(f"data set {name}: {len(rows & part)} samples lie in two splits.")
        rows |= part
    count = len(table.ids)
    if len(table.labels) != count or table.available.shape != (count, len(table.spec.modalities)):
        raise DataError(f"data set {name}: labels or availability do not have one row per id ({count}).")
    if task.kind in ("binary", "multiclass"):
        bad = np.flatnonzero((table.labels < 0) | (table.labels >= task.num_outputs))
        if bad.size:
            raise DataError(
                f"data set {name}: label {table.labels[bad[0]]} of id {table.ids[bad[0]]!r} is outside "
                f"0 to {task.num_outputs - 1}."
            )
    elif table.labels.ndim != 2 or table.labels.shape[1] != task.num_outputs:
        raise DataError(f"data set {name}: {task.kind} labels must have shape [N, {task.num_outputs}].")
    elif not np.isfinite(table.labels).all():
        raise DataError(f"data set {name}: labels contain NaN or infinity.")
    if not table.available.any(axis=1).all():
        empty = table.ids[int(np.flatnonzero(~table.available.any(axis=1))[0])]
        raise DataError(f"data set {name}: id {empty!r} has no modality at all.")
    return table


def table_fingerprint(
    ids: Sequence[str],
    splits: dict[Split, IntArray],
    labels: npt.NDArray[Any],
    contents: Sequence[str | bytes],
) -> str:
    """sha256 over ids, split membership, labels and one content digest (or text) per sample."""
    where = {int(row): split for split, rows in splits.items() for row in rows}
    digest = hashlib.sha256()
    for row, sample in enumerate(ids):
        content = contents[row]
        digest.update(f"{sample}\0{where.get(row, '-')}\0{labels[row].tolist()}\0".encode())
        digest.update(hashlib.sha256(content.encode() if isinstance(content, str) else content).digest())
    return digest.hexdigest()


def join_groups(keys: Sequence[Iterable[Hashable]]) -> IntArray:
    """Groups samples that share any key, transitively.

    Args:
        keys: Per sample everything that marks it as a near-duplicate of others with the same mark.

    Returns:
        `[N]` int64: the first row of each sample's group.
    """
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[Hashable, int] = {}
    for row, marks in enumerate(keys):
        for mark in marks:
            low, high = sorted((root(first.setdefault(mark, row)), root(row)))
            parent[high] = low
    return np.array([root(row) for row in range(len(keys))], dtype=np.int64)


def grouped_split(
    groups: IntArray,
    labels: IntArray,
    salt: str,
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
) -> dict[Split, IntArray]:
    """Splits by group, stratified by class, frozen by hashing: no seed, no library's random stream.

    Groups are visited class by class (class of the group's first row), larger ones first, then in order of
    `sha256(salt | class | group)`, and each goes to the split that is furthest below its share of that class.

    Args:
        groups: `[N]` group id per sample.
        labels: `[N]` class per sample.
        salt: Names the split; another salt gives another split.
        fractions: Shares of train, valid, test.

    Returns:
        Rows per split, ascending.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    by_class: dict[int, list[int]] = {}
    for group, rows in members.items():
        by_class.setdefault(int(labels[rows[0]]), []).append(group)
    result: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for label in sorted(by_class):
        ordered = sorted(
            by_class[label],
            key=lambda group: (
                -len(members[group]),
                hashlib.sha256(f"{salt}|{label}|{members[group][0]}".encode()).digest(),
            ),
        )
        total = sum(len(members[group]) for group in ordered)
        filled = dict.fromkeys(SPLITS, 0)
        for group in ordered:
            short = {split: share * total - filled[split] for split, share in zip(SPLITS, fractions, strict=True)}
            target = max(SPLITS, key=lambda split: short[split])
            filled[target] += len(members[group])
            result[target].extend(members[group])
    return {split: np.array(sorted(rows), dtype=np.int64) for split, rows in result.items()}
