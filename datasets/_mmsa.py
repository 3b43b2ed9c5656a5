"""Feature files of MMSA: one pickle of three splits, each with arrays `[N, T, D]` of audio, vision and text.

The pickle is read as data (`harness.restricted_pickle`), and once: its arrays go to the cache as plain numpy files,
which later loads map into memory.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.dataset import DatasetConfig, LazySequence, check_table, table_fingerprint
from harness.datasets._feature_files import (
    MODALITIES,
    check_files,
    check_keys,
    check_most,
    class_counts,
    file_digests,
    home,
    read,
    shared_between_splits,
    shortened,
)
from harness.errors import DataError
from harness.files import ensure_folder, locked
from harness.plugin import check_choice
from harness.restricted_pickle import load_pickle
from harness.types import SPLITS, BoolArray, DatasetSpec, DataTable, FloatArray, IntArray, ModalitySpec, Split, TaskSpec

_CACHE = "mmsa-1"  # changes whenever the cached files would
_FIELDS = {"audio": "audio", "video": "vision", "text": "text"}
_LABELS = {"classification": "classification_labels", "regression": "regression_labels"}
_CLASSES = ("negative", "neutral", "positive")


@dataclass
class MmsaConfig(DatasetConfig):
    """Base of the data sets in this format.

    Attributes:
        folder: Where the feature file is, or the folder above its `Processed`; empty means `<data folder>/<name>`.
        file: Name of the feature file.
        task: `classification` (negative, neutral, positive) or `regression` (sentiment as a number).
        max_tokens: Longer sequences become the means of so many equal windows; 0 keeps them as long as they are.
        name: Registered name.
        strongest: Largest sentiment; the smallest is its negative.
    """

    folder: str = ""
    file: str = "aligned_50.pkl"
    task: str = "classification"
    max_tokens: int = 50

    name: ClassVar[str]
    strongest: ClassVar[float]

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("dataset", "task", self.task, tuple(_LABELS))
        check_most(self.max_tokens)

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Reads the feature file; the first time it is converted, which takes memory of about its size.

        Raises:
            DataError: Naming the file that is missing, damaged or of another format, and how to get it.
        """
        self.validate()
        folder = home(self.folder, data_dir, self.name, self.obtain)
        if not (folder / self.file).is_file() and (folder / "Processed").is_dir():
            folder /= "Processed"
        check_files(folder, [self.file], self.obtain)
        source = folder / self.file
        digest = file_digests([source], cache_dir)
        splits = _converted(source, cache_dir / _CACHE / digest[:24], self.obtain)

        ids: list[str] = []
        labels: list[npt.NDArray[Any]] = []
        rows: dict[Split, IntArray] = {}
        for split in SPLITS:
            part = splits[split]
            rows[split] = np.arange(len(ids), len(ids) + len(part.ids), dtype=np.int64)
            ids.extend(part.ids)
            labels.append(self._labels(part.labels, f"{source}, split {split!r}"))
        every = np.concatenate(labels)
        place = [(split, row) for split in SPLITS for row in range(len(splits[split].ids))]
        widths = {name: splits["train"].arrays[name].shape[2] for name in MODALITIES}

        def value(modality: str, row: int) -> FloatArray:
            split, own = place[row]
            return shortened(splits[split].sequence(modality, own), self.max_tokens)

        regression = self.task == "regression"
        task = (
            TaskSpec("regression", 1, ("sentiment",), "mae")
            if regression
            else TaskSpec("multiclass", len(_CLASSES), _CLASSES, "accuracy")
        )
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=f"{self.name}_regression" if regression else self.name,
                    version=self.version,
                    modalities=tuple(ModalitySpec(name, "features", (None, widths[name])) for name in MODALITIES),
                    task=task,
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(
                        ids, rows, every, [f"{self.version}|{self.task}|{self.max_tokens}|{digest}"] * len(ids)
                    ),
                ),
                ids=tuple(ids),
                splits=rows,
                labels=every,
                available=np.ones((len(ids), len(MODALITIES)), dtype=np.bool_),
                values={
                    name: LazySequence(lambda row, name=name: value(name, row), len(ids))  # type: ignore[misc]
                    for name in MODALITIES
                },
                card={
                    "samples": len(ids),
                    "file": self.file,
                    **{f"{name} of train": list(splits["train"].arrays[name].shape) for name in MODALITIES},
                    **({} if regression else {"classes": class_counts(every, _CLASSES)}),
                    "videos in two splits": shared_between_splits(
                        {split: [sample.partition("$_$")[0] for sample in splits[split].ids] for split in SPLITS}
                    ),
                    "sequences of zeros only": {
                        name: sum(splits[split].blank[name] for split in SPLITS) for name in MODALITIES
                    },
                    "padding told by": dict(splits["train"].measured),
                    "minus infinity replaced by 0": sum(splits[split].replaced for split in SPLITS),
                },
            )
        )

    def _labels(self, labels: Mapping[str, Sequence[float]], where: str) -> npt.NDArray[Any]:
        """Labels of one split in the harness's types."""
        key = _LABELS[self.task]
        check_keys(where, labels, [key], self.obtain)
        values = np.asarray(labels[key], dtype=np.float64)
        if self.task == "regression":
            if not (np.abs(values) <= self.strongest + 1e-6).all():
                raise DataError(
                    f"{where}: {key} are not all between -{self.strongest:g} and {self.strongest:g}; {self.obtain}"
                )
            return values.astype(np.float32)[:, None]
        if not np.isin(values, range(len(_CLASSES))).all():
            raise DataError(f"{where}: {key} are not all 0, 1 or 2; {self.obtain}")
        return values.astype(np.int64)


@dataclass(frozen=True)
class _Part:
    """One split as it lies in the cache.

    Attributes:
        ids: N sample ids.
        labels: Per key of `_LABELS` that the file has, N numbers.
        arrays: Per modality `[N, T, D]`, mapped into memory.
        spans: Per modality `[N, 2]`: first token that is no padding, and one behind the last.
        measured: Per modality what padding was told by: a key of the file, or `zeros`.
        blank: Per modality how many samples have nothing but zeros.
        replaced: How many values of audio were minus infinity.
    """

    ids: list[str]
    labels: dict[str, list[float]]
    arrays: dict[str, npt.NDArray[Any]]
    spans: dict[str, npt.NDArray[Any]]
    measured: dict[str, str]
    blank: dict[str, int]
    replaced: int

    def sequence(self, modality: str, row: int) -> FloatArray:
        """`[L, D]` without padding."""
        start, stop = self.spans[modality][row]
        return np.array(self.arrays[modality][row, start:stop], dtype=np.float32)


def _converted(source: Path, folder: Path, obtain: str) -> dict[Split, _Part]:
    """The splits of a feature file out of the cache, which is filled if need be."""
    with locked(folder):
        if not (folder / "meta.json").is_file():
            _convert(source, folder, obtain)
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return {split: _open(folder, split, meta[split]) for split in SPLITS}
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged ({error}); delete it and run again.") from error


def _open(folder: Path, split: Split, meta: dict[str, Any]) -> _Part:
    mapped = {
        what: {
            name: np.load(folder / f"{split}-{name}-{what}.npy", mmap_mode="r", allow_pickle=False)
            for name in MODALITIES
        }
        for what in ("tokens", "spans")
    }
    return _Part(arrays=mapped["tokens"], spans=mapped["spans"], **meta)


def _convert(source: Path, folder: Path, obtain: str) -> None:
    """Checks a feature file and writes its parts as plain numpy files; at once, so that a killed run leaves none."""
    data = read(load_pickle, source, obtain)
    _check_dict(data, str(source), SPLITS, obtain)
    ensure_folder(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        meta, widths = {}, {}
        for split in SPLITS:
            where = f"{source}, split {split!r}"
            meta[split], widths[split] = _convert_split(data[split], where, temporary / split, obtain)
        for split in SPLITS:
            if widths[split] != widths["train"]:
                raise DataError(
                    f"{source}: split {split!r} has features of widths {widths[split]}, 'train' {widths['train']} "
                    f"({', '.join(MODALITIES)}); {obtain}"
                )
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(folder)
    except OSError as error:
        raise DataError(f"cannot write the cache {folder} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert_split(part: Any, where: str, target: Path, obtain: str) -> tuple[dict[str, Any], list[int]]:
    """Writes the arrays of one split; returns what goes into `meta.json`, and the widths of its features."""
    _check_dict(part, where, [*_FIELDS.values(), "id"], obtain)
    if not set(_LABELS.values()) & set(part):
        check_keys(where, part, list(_LABELS.values()), obtain)
    ids = _ids(part["id"], where, obtain)
    labels = {key: _numbers(part[key], len(ids), f"{where}: {key}", obtain) for key in _LABELS.values() if key in part}
    measured, blank, widths, replaced = {}, {}, [], 0
    for name, field in _FIELDS.items():
        raw = part.pop(field)
        if not isinstance(raw, np.ndarray) or raw.dtype.kind != "f" or raw.ndim != 3 or 0 in raw.shape:
            array = isinstance(raw, np.ndarray)
            found = f"of shape {list(raw.shape)} and type {raw.dtype}" if array else f"a {type(raw).__name__}"
            raise DataError(f"{where}: {field} is {found}, expected real numbers [N, T, D]; {obtain}")
        if len(raw) != len(ids):
            raise DataError(f"{where}: {field} has {len(raw)} rows for {len(ids)} ids; {obtain}")
        with np.errstate(over="ignore"):
            tokens = raw.astype(np.float32)
        if name == "audio":
            # Silence as its logarithm; MMSA's own loader puts 0 there.
            silent = tokens == -np.inf
            replaced = int(silent.sum())
            tokens[silent] = 0
        bad = np.flatnonzero(~np.isfinite(tokens).all(axis=(1, 2)))
        if bad.size:
            raise DataError(
                f"{where}: {field} holds NaN or infinite values in {bad.size} samples, e.g. {ids[int(bad[0])]!r}; "
                f"{obtain}"
            )
        filled: BoolArray = np.any(tokens, axis=2)
        spans, measured[name] = _spans(part, field, filled, where, obtain)
        blank[name] = int((~filled.any(axis=1)).sum())
        np.save(target.with_name(f"{target.name}-{name}-tokens.npy"), tokens, allow_pickle=False)
        np.save(target.with_name(f"{target.name}-{name}-spans.npy"), spans, allow_pickle=False)
        widths.append(tokens.shape[2])
    return {"ids": ids, "labels": labels, "measured": measured, "blank": blank, "replaced": replaced}, widths


def _check_dict(value: Any, where: str, keys: Sequence[str], obtain: str) -> None:
    if not isinstance(value, dict):
        raise DataError(
            f"{where} is a {type(value).__name__}, expected a dict with the keys {', '.join(keys)}; {obtain}"
        )
    check_keys(where, value, keys, obtain)


def _ids(raw: Any, where: str, obtain: str) -> list[str]:
    names = raw.tolist() if isinstance(raw, np.ndarray) else raw
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise DataError(f"{where}: id is no list of names; {obtain}")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]


def _numbers(raw: Any, count: int, where: str, obtain: str) -> list[float]:
    """`count` finite numbers out of an array `[N]` or `[N, 1]` or a list."""
    try:
        numbers = np.asarray(raw, dtype=np.float64).reshape(-1)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} are no numbers; {obtain}") from error
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise DataError(f"{where} are not one finite number for each of {count} ids; {obtain}")
    return [float(number) for number in numbers]


def _spans(part: Mapping[str, Any], field: str, filled: BoolArray, where: str, obtain: str) -> tuple[IntArray, str]:
    """First token of each sample that is no padding, and one behind the last, `[N, 2]`; and what told them.

    The file's mask of the text, else its lengths, else padding is rows of zeros in front or behind.  Each modality is
    measured by itself: the length of another one would say something of a value that is hidden.

    Args:
        part: What the split holds beside this modality.
        field: The modality's key.
        filled: `[N, T]`, False for rows of zeros.
        where: Names the split in messages.
        obtain: How to get the file.
    """
    count, longest = filled.shape
    masks: Any = part.get("text_bert")
    key = f"{field}_lengths"
    numbers = isinstance(masks, np.ndarray) and masks.dtype.kind in "biuf"
    if field == "text" and numbers and masks.shape == (count, 3, longest):
        return np.stack(_ends(masks[:, 1].astype(np.bool_)), axis=1), "text_bert"
    first, last = _ends(filled)
    if field == "text" or key not in part:
        return np.stack([first, last], axis=1), "zeros"
    lengths = np.asarray(_numbers(part[key], count, f"{where}: {key}", obtain)).clip(1, longest).astype(np.int64)
    # Zeros within a length are no padding (no face in sight); the filled end tells on which side padding is.
    behind, before = last <= lengths, first >= longest - lengths
    first = np.where(behind, 0, np.where(before, longest - lengths, first))
    last = np.where(behind, lengths, np.where(before, longest, last))
    return np.stack([first, last], axis=1), key


def _ends(filled: BoolArray) -> tuple[IntArray, IntArray]:
    """First True of each row of `[N, T]`, and one behind the last; 0 and 1 for a row without any."""
    last = np.where(filled.any(axis=1), filled.shape[1] - filled[:, ::-1].argmax(axis=1), 1)
    return filled.argmax(axis=1).astype(np.int64), last.astype(np.int64)
