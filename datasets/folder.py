"""Bring your own data: a manifest (CSV or Parquet) and files beside it.  See docs/bring-your-own-data.md.

Nothing is unpickled, no path may leave the folder, and everything that is wrong is named at once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from harness.dataset import DatasetConfig, LazySequence, check_table, table_fingerprint
from harness.datasets._pictures import FORMATS
from harness.errors import DataError, UsageError
from harness.files import atomic_write, check_parquet
from harness.plugin import check_choice
from harness.progress import track
from harness.types import (
    SPLITS,
    DatasetSpec,
    DataTable,
    FloatArray,
    IntArray,
    ModalityKind,
    ModalitySpec,
    Split,
    TaskKind,
    TaskSpec,
)

_KINDS = ("text", "image", "features", "tabular")
_METRIC = {"binary": "accuracy", "multiclass": "accuracy", "multilabel": "f1_macro", "regression": "mae"}
_NAMED = 10  # problems that are spelled out
#: Bounds of a hostile or broken folder: a small file may claim to hold terabytes.
MAX_PIXELS = 50_000_000
MAX_CHARACTERS = 131_072
_MANIFESTS = ("manifest.csv", "manifest.parquet")


@dataclass
class FolderConfig(DatasetConfig):
    """Your own data: a folder with `manifest.csv` or `manifest.parquet`, one row a sample.

    Attributes:
        folder: The folder; empty means `<data folder>/folder`.
        modalities: Name to kind: `text` (in the cell), `image` (a path), `features` or `tabular` (the path of a `.npy`
            file, or numeric columns `<name>:<anything>`).
        task: `binary`, `multiclass`, `multilabel` or `regression`.
        classes: Allowed labels in order; empty means those that the manifest holds, sorted.
        primary_metric: Chooses the epoch and heads the tables; empty means the usual one of the task.
        name: What tables call the data set; empty means the folder's name.
    """

    folder: str = ""
    modalities: dict[str, str] = field(default_factory=dict)
    task: str = "multiclass"
    classes: list[str] = field(default_factory=list)
    primary_metric: str = ""
    name: str = ""

    summary: ClassVar[str] = "your own folder: a CSV or Parquet manifest and files"
    citation: ClassVar[str] = "yours"
    license: ClassVar[str] = "yours"
    obtain: ClassVar[str] = "write a manifest as docs/bring-your-own-data.md shows, then dataset.folder=DIR"
    card: ClassVar[str] = "cards/folder.md"

    def validate(self) -> None:
        """Checks choices and names; raises `UsageError`."""
        check_choice("dataset", "task", self.task, tuple(_METRIC))
        if not self.modalities:
            raise UsageError(
                "dataset.modalities is empty; name them, e.g. 'dataset.modalities={picture:image,title:text}'."
            )
        for name, kind in self.modalities.items():
            check_choice("dataset", f"modalities.{name}", kind, _KINDS)
            if name in ("id", "split", "label", "group") or not name.isidentifier():
                raise UsageError(f"dataset.modalities: {name!r} cannot name a modality; use letters, digits and _.")

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Reads the manifest and checks every row and file; unchanged files are checked once.

        Raises:
            DataError: Naming up to ten problems and their number.
        """
        self.validate()
        folder = Path(self.folder).expanduser().absolute() if self.folder else data_dir / "folder"
        manifest = next((folder / name for name in _MANIFESTS if (folder / name).is_file()), None)
        if manifest is None:
            raise DataError(f"no {' or '.join(_MANIFESTS)} in {folder}; {self.obtain}")
        columns, rows = _read_manifest(manifest)
        problems = _Problems(manifest)
        self._check_columns(columns, problems)
        problems.raise_if_any()

        ids = [row["id"].strip() for row in rows]
        _check_ids(ids, problems)
        splits = _splits(rows, ids, problems)
        outputs, labels = self._labels(columns, rows, ids, problems)
        files = _Files(folder, cache_dir / "folder")
        modalities, available, values, contents = [], [], {}, []
        for name, kind in self.modalities.items():
            parts = [_part(name, kind, columns, row, files) for row in track(rows, f"{folder.name}: checking {name}")]
            for sample, part in zip(ids, parts, strict=True):
                problems.add_if(part.problem, f"id {sample!r}, {name}")
            shape: tuple[int | None, ...] | None = None
            if kind in ("features", "tabular"):
                shape = _common_shape(name, ids, parts, problems)
            elif kind == "image":
                shape = (None, None, 3)
            modalities.append(ModalitySpec(name, cast(ModalityKind, kind), shape))
            available.append([part.there for part in parts])
            contents.append([part.digest for part in parts])
            values[name] = LazySequence(lambda row, parts=parts: parts[row].read(), len(rows))  # type: ignore[misc]
        present = np.array(available, dtype=np.bool_).T.reshape(len(rows), len(modalities))
        for row in np.flatnonzero(~present.any(axis=1)):
            problems.add(f"id {ids[row]!r}: every modality is empty")
        groups = _groups(columns, rows, splits, problems)
        problems.raise_if_any()
        files.remember()
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=self.name or folder.name,
                    version=self.version,
                    modalities=tuple(modalities),
                    task=TaskSpec(
                        cast(TaskKind, self.task), len(outputs), outputs, self.primary_metric or _METRIC[self.task]
                    ),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(
                        ids, splits, labels, ["|".join(part) for part in zip(*contents, strict=True)]
                    ),
                ),
                ids=tuple(ids),
                splits=splits,
                labels=labels,
                available=present,
                values=values,
                groups=groups,
                card={
                    "samples": len(ids),
                    "present values": dict(zip(self.modalities, present.sum(axis=0).tolist(), strict=True)),
                },
            )
        )

    def _check_columns(self, columns: list[str], problems: _Problems) -> None:
        for column, count in Counter(columns).items():
            problems.add_if(f"column {column!r} appears {count} times" if count > 1 else "")
        for column in ("id", "split"):
            problems.add_if("" if column in columns else f"column {column!r} is missing")
        named = [column for column in columns if column.startswith("label:")]
        if self.task == "multilabel" and not named:
            problems.add("columns 'label:<name>' are missing (one per label, 0 or 1)")
        elif self.task == "regression" and not named and "label" not in columns:
            problems.add("column 'label' (or columns 'label:<name>') is missing")
        elif self.task in ("binary", "multiclass") and "label" not in columns:
            problems.add("column 'label' is missing")
        for name, kind in self.modalities.items():
            spread = kind in ("features", "tabular") and any(column.startswith(f"{name}:") for column in columns)
            problems.add_if("" if name in columns or spread else f"column {name!r} ({kind}) is missing")

    def _labels(
        self, columns: list[str], rows: list[dict[str, str]], ids: list[str], problems: _Problems
    ) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
        """Names of the outputs and the label array."""
        if self.task in ("binary", "multiclass"):
            cells = [row["label"].strip() for row in rows]
            names = list(self.classes) or sorted(set(cells) - {""}, key=_natural)
            if self.task == "binary" and len(names) != 2:
                problems.add(f"a binary task has 2 classes, not {len(names)} ({', '.join(names[:5])})")
            for sample, cell in zip(ids, cells, strict=True):
                if cell not in names:
                    problems.add(f"id {sample!r}: label {cell!r} is not one of {', '.join(names[:10])}")
            return tuple(names), np.array([names.index(cell) if cell in names else 0 for cell in cells], dtype=np.int64)
        chosen = [column for column in columns if column.startswith("label:")] or ["label"]
        labels = np.zeros((len(rows), len(chosen)), dtype=np.float32)
        for index, row in enumerate(rows):
            for output, column in enumerate(chosen):
                value = float(_single(row[column]))
                if not math.isfinite(value):
                    problems.add(f"id {ids[index]!r}: {column} {row[column]!r} is not a number")
                elif self.task == "multilabel" and value not in (0.0, 1.0):
                    problems.add(f"id {ids[index]!r}: {column} {row[column]!r} is not 0 or 1")
                else:
                    labels[index, output] = value
        return tuple(column.partition(":")[2] or column for column in chosen), labels


class _Problems:
    """Everything that is wrong, gathered so that it can be mended at once."""

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest
        self._lines: list[str] = []

    def add(self, line: str) -> None:
        self._lines.append(line)

    def add_if(self, problem: str, where: str = "") -> None:
        if problem:
            self.add(f"{where}: {problem}" if where else problem)

    def raise_if_any(self) -> None:
        if not self._lines:
            return
        more = len(self._lines) - _NAMED
        count = f"{len(self._lines)} problem{'s' if len(self._lines) > 1 else ''}"
        lines = [*self._lines[:_NAMED], *([f"… and {more} more"] if more > 0 else [])]
        raise DataError("\n  ".join([f"{self._manifest}: {count}", *lines]))


@dataclass
class _Part:
    """One cell: a value at hand, or a file that is read on access."""

    there: bool = False
    problem: str = ""
    digest: str = ""
    shape: tuple[int, ...] = ()
    value: Any = None
    path: Path | None = None
    kind: str = ""

    def read(self) -> Any:
        if self.path is None:
            return self.value
        value, problem = _read_file(self.path, self.kind)
        if problem:
            raise DataError(f"{self.path}: {problem}; it was sound when the data set was loaded.")
        return value


class _Files:
    """Files below the folder, each read and checked once as long as size and time stay the same."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self._folder = folder
        self._cache = cache / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
        try:
            self._known: dict[str, list[Any]] = dict(json.loads(self._cache.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            self._known = {}
        self._changed = False

    def part(self, cell: str, kind: str) -> _Part:
        """Checks the file that a cell names."""
        try:
            path = (self._folder / cell).resolve()
            if not path.is_relative_to(self._folder.resolve()):
                return _Part(problem=f"path {cell!r} leaves the folder")
            if not path.is_file():
                return _Part(problem=f"file {cell!r} is missing")
            stat = path.stat()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL byte, links in a circle
            return _Part(problem=f"path {cell[:100]!r} cannot be used ({_reason(error)})")
        key, state = f"{kind}|{cell}", [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(key)
        if known is None or known[:2] != state:
            value, problem = _read_file(path, kind)
            if problem:
                return _Part(problem=f"file {cell!r} {problem}")
            known = [*state, hashlib.sha256(path.read_bytes()).hexdigest(), list(value.shape)]
            self._known[key] = known
            self._changed = True
        return _Part(there=True, digest=known[2], shape=tuple(known[3]), path=path, kind=kind)

    def remember(self) -> None:
        """Keeps what was found for the next load."""
        if self._changed:
            with atomic_write(self._cache) as temporary:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")


def _read_manifest(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows, every cell as text."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            check_parquet(path)
            table = pyarrow.parquet.read_table(path)
            columns = [str(name) for name in table.column_names]
            cells: Iterable[Iterable[Any]] = zip(*(column.to_pylist() for column in table.columns), strict=True)
            rows = [[_as_text(cell) for cell in row] for row in cells]
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                columns, *rows = list(csv.reader(file, strict=True)) or [[]]
                rows = [row for row in rows if row]
    except DataError:
        raise
    except Exception as error:  # pyarrow fails in many ways on damaged files
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise DataError(f"{path}, row {number}: {len(row)} cells, but the header has {len(columns)} columns.")
    if not rows:
        raise DataError(f"{path} holds no samples.")
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def _as_text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _check_ids(ids: list[str], problems: _Problems) -> None:
    for sample, count in Counter(ids).items():
        if not sample:
            problems.add(f"{count} rows have no id")
        elif count > 1:
            problems.add(f"id {sample!r} appears {count} times")


def _splits(rows: list[dict[str, str]], ids: list[str], problems: _Problems) -> dict[Split, IntArray]:
    members: dict[str, list[int]] = {split: [] for split in SPLITS}
    for index, row in enumerate(rows):
        name = row["split"].strip()
        if name in members:
            members[name].append(index)
        else:
            problems.add(f"id {ids[index]!r}: split {name!r} is not one of {', '.join(SPLITS)}")
    for split in SPLITS:
        problems.add_if("" if members[split] else f"split {split!r} is empty")
    return {split: np.array(members[split], dtype=np.int64) for split in SPLITS}


def _groups(
    columns: list[str], rows: list[dict[str, str]], splits: Mapping[Split, IntArray], problems: _Problems
) -> IntArray | None:
    """Near-duplicate groups of the optional column `group`; a group may not lie in two splits."""
    if "group" not in columns:
        return None
    first: dict[str, int] = {}
    cells = [row["group"].strip() or f"\0{index}" for index, row in enumerate(rows)]
    groups = np.array([first.setdefault(cell, index) for index, cell in enumerate(cells)], dtype=np.int64)
    where: dict[str, set[str]] = {}
    for split, members in splits.items():
        for row in members.tolist():
            where.setdefault(cells[row], set()).add(split)
    for cell, found in where.items():
        problems.add_if(f"group {cell!r} lies in the splits {' and '.join(sorted(found))}" if len(found) > 1 else "")
    return groups


def _part(name: str, kind: str, columns: list[str], row: dict[str, str], files: _Files) -> _Part:
    """What one sample has of one modality."""
    if name in columns:
        cell = row[name].strip()
        if not cell:
            return _Part()
        if kind == "text":
            if len(cell) > MAX_CHARACTERS:
                return _Part(problem=f"text of {len(cell):,} characters (at most {MAX_CHARACTERS:,} are read)")
            return _Part(there=True, value=cell, digest=hashlib.sha256(cell.encode()).hexdigest())
        return files.part(cell, kind)
    cells = [row[column].strip() for column in columns if column.startswith(f"{name}:")]
    if not any(cells):
        return _Part()
    vector = np.array([_single(cell) for cell in cells], dtype=np.float32)
    if not np.isfinite(vector).all():
        return _Part(problem="features are NaN, infinite or not numbers")
    return _Part(there=True, value=vector, shape=vector.shape, digest=hashlib.sha256(vector.tobytes()).hexdigest())


def _common_shape(name: str, ids: list[str], parts: list[_Part], problems: _Problems) -> tuple[int | None, ...] | None:
    """Shape of a feature modality: `(D,)` or `(None, D)`; samples of another shape than most are problems."""
    forms = [(len(part.shape), part.shape[-1]) for part in parts if part.there]
    if not forms:
        return None
    (rank, width), _ = Counter(forms).most_common(1)[0]
    usual = [width] if rank == 1 else ["L", width]
    for sample, part in zip(ids, parts, strict=True):
        if part.there and (len(part.shape), part.shape[-1]) != (rank, width):
            problems.add(f"id {sample!r}, {name}: features of shape {list(part.shape)}, others have {usual}")
    return (width,) if rank == 1 else (None, width)


def _read_file(path: Path, kind: str) -> tuple[Any, str]:
    """Value of a file, or what is wrong with it."""
    return _read_image(path) if kind == "image" else _read_features(path)


def _read_image(path: Path) -> tuple[npt.NDArray[np.uint8], str]:
    from PIL import Image, ImageOps

    empty = np.empty((0, 0, 3), dtype=np.uint8)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return empty, f"would decode to {image.width} x {image.height} pixels (at most {MAX_PIXELS:,} are read)"
            return np.array(ImageOps.exif_transpose(image).convert("RGB")), ""
    except Exception as error:  # decoders fail in a dozen ways on damaged files
        return empty, f"is not a readable picture of {', '.join(FORMATS)} ({_reason(error)})"


def _read_features(path: Path) -> tuple[FloatArray, str]:
    empty = np.empty(0, dtype=np.float32)
    try:
        with path.open("rb") as file:
            raw = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header is read as Python's literals, which fail in many ways
        return empty, f"is not a readable .npy array of numbers ({_reason(error)})"
    if raw.dtype.kind not in "fiub":
        return empty, "is not a .npy array of numbers"
    if raw.ndim not in (1, 2) or 0 in raw.shape:
        return empty, f"has shape {list(raw.shape)}, not [D] or [L, D]"
    array = raw.astype(np.float32)
    return (array, "") if np.isfinite(array).all() else (empty, "holds NaN or infinite values")


def _reason(error: Exception) -> str:
    """First line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def _number(cell: str) -> float:
    """The number in a cell, NaN when there is none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _single(cell: str) -> np.float32:
    """The number in a cell as it is kept; infinite when it is too large for that."""
    with np.errstate(over="ignore"):
        return np.float32(_number(cell))


def _natural(name: str) -> tuple[bool, float, str]:
    """Sorts numbers by value, before words."""
    value = _number(name)
    return (math.isnan(value), 0.0 if math.isnan(value) else value, name)
