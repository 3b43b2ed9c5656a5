"""Feature files as MMIN's authors laid them out, and its successors read them: HDF5 per modality, npy per fold.

```
<folder>/A/comparE.h5 or comparE_raw.h5     a data set per utterance: [T, 130]
<folder>/A/comparE_mean_std.h5              IEMOCAP: per fold `mean` and `std` [130] of its training part
<folder>/V/denseface.h5                     [T, 342]
<folder>/L/bert_large.h5                    [T, 1024]
<folder>/target/<fold>/{trn,val,tst}_label.npy, {trn,val,tst}_int2name.npy
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from harness.dataset import DatasetConfig, LazySequence, check_table, table_fingerprint
from harness.datasets._feature_files import (
    MODALITIES,
    NAMED,
    check_files,
    check_finite,
    check_keys,
    check_most,
    class_counts,
    file_digests,
    home,
    read,
    shortened,
)
from harness.errors import DataError, DependencyError, first_few
from harness.plugin import check_range
from harness.restricted_pickle import load_npy
from harness.types import SPLITS, DatasetSpec, DataTable, FloatArray, IntArray, ModalitySpec, Split, TaskSpec

_PARTS: dict[Split, str] = {"train": "trn", "valid": "val", "test": "tst"}
_WIDTHS = {"audio": 130, "video": 342, "text": 1024}
INSTALL = "pip install 'missing-modality-harness[features]'"


@dataclass
class MminLayoutConfig(DatasetConfig):
    """Base of the data sets in this layout.

    Attributes:
        folder: The feature folder, with `A`, `V`, `L` and `target` in it; empty means `<data folder>/<name>`.
        fold: Which of the official folds, from 1.
        max_tokens: Longer sequences become the means of so many equal windows; 0 keeps them as long as they are.
        name: Registered name.
        folds: Number of official folds.
        audio: Name of the audio file without its suffix.
        mean_std: File of audio statistics per fold; empty where they are computed from the training part.
        one_hot: Whether the label files hold rows 0/1 rather than class numbers.
        classes: Names of the classes.
        primary_metric: Chooses the epoch and heads the tables.
    """

    folder: str = ""
    fold: int = 1
    max_tokens: int = 50

    name: ClassVar[str]
    folds: ClassVar[int]
    audio: ClassVar[str]
    mean_std: ClassVar[str] = ""
    one_hot: ClassVar[bool]
    classes: ClassVar[tuple[str, ...]]
    primary_metric: ClassVar[str] = "f1_macro"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("dataset", "fold", self.fold, 1, self.folds)
        check_most(self.max_tokens)

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Opens the files and checks what they hold for every utterance; features are read on access.

        Raises:
            DependencyError: If h5py is missing, naming the command that installs it.
            DataError: Naming the file that is missing, damaged or of another layout, and how to get it.
        """
        self.validate()
        folder = home(self.folder, data_dir, self.name, self.obtain)
        files = {"audio": f"A/{self.audio}.h5", "video": "V/denseface.h5", "text": "L/bert_large.h5"}
        targets = [
            f"target/{self.fold}/{part}_{what}.npy" for part in _PARTS.values() for what in ("label", "int2name")
        ]
        inputs = [*files.values(), *([self.mean_std] if self.mean_std else [])]
        check_files(folder, [*inputs, *targets], self.obtain)

        ids: list[str] = []
        labels: list[IntArray] = []
        splits: dict[Split, IntArray] = {}
        for split in SPLITS:
            names, classes = self._target(folder / f"target/{self.fold}", _PARTS[split])
            splits[split] = np.arange(len(ids), len(ids) + len(names), dtype=np.int64)
            ids.extend(names)
            labels.append(classes)
        every = np.concatenate(labels)
        readers = {
            modality: _Features(folder / file, _WIDTHS[modality], self.obtain) for modality, file in files.items()
        }
        for reader in readers.values():
            reader.check(ids)
        mean, deviation = self._statistics(folder, readers["audio"], [ids[row] for row in splits["train"]])
        digest = file_digests([folder / file for file in inputs], cache_dir)

        def value(modality: str, row: int) -> FloatArray:
            sequence = readers[modality].read(ids[row])
            if modality == "audio":
                sequence = (sequence - mean) / deviation
            return shortened(sequence, self.max_tokens)

        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=f"{self.name}_fold{self.fold}",
                    version=self.version,
                    modalities=tuple(ModalitySpec(name, "features", (None, _WIDTHS[name])) for name in MODALITIES),
                    task=TaskSpec("multiclass", len(self.classes), self.classes, self.primary_metric),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(
                        ids, splits, every, [f"{self.version}|{self.fold}|{self.max_tokens}|{digest}"] * len(ids)
                    ),
                ),
                ids=tuple(ids),
                splits=splits,
                labels=every,
                available=np.ones((len(ids), len(MODALITIES)), dtype=np.bool_),
                values={
                    name: LazySequence(lambda row, name=name: value(name, row), len(ids))  # type: ignore[misc]
                    for name in MODALITIES
                },
                card={
                    "samples": len(ids),
                    "fold": f"{self.fold} of {self.folds}",
                    **{
                        f"classes of {split}": class_counts(part, self.classes)
                        for split, part in zip(SPLITS, labels, strict=True)
                    },
                    **self._facts({split: [ids[row] for row in rows] for split, rows in splits.items()}),
                },
            )
        )

    def _facts(self, ids: Mapping[Split, Sequence[str]]) -> dict[str, Any]:  # noqa: ARG002
        """More of the card, by split."""
        return {}

    def _target(self, folder: Path, part: str) -> tuple[list[str], IntArray]:
        """Utterance ids and classes of one part of a fold."""
        label_file, name_file = folder / f"{part}_label.npy", folder / f"{part}_int2name.npy"
        raw, names = read(load_npy, label_file, self.obtain), read(load_npy, name_file, self.obtain)
        if names.ndim == 2 and names.shape[1]:
            names = names[:, 0]
        if names.ndim != 1 or not all(isinstance(name, str | bytes) for name in names.tolist()):
            raise DataError(
                f"{name_file} has shape {list(names.shape)} and type {names.dtype}, expected a name per row; "
                f"{self.obtain}"
            )
        ids = [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist()]
        count = len(self.classes)
        expected = f"one-hot rows of {count} classes" if self.one_hot else f"class numbers 0 to {count - 1}"
        if raw.dtype.kind not in "biuf" or raw.shape != ((len(ids), count) if self.one_hot else (len(ids),)):
            raise DataError(
                f"{label_file} has shape {list(raw.shape)} and type {raw.dtype}, expected {expected} "
                f"for the {len(ids)} names of {name_file.name}; {self.obtain}"
            )
        if self.one_hot:
            good = np.isin(raw, (0, 1)).all(axis=1) & (raw.sum(axis=1) == 1)
            classes = raw.argmax(axis=1).astype(np.int64)
        else:
            good = np.isin(raw, range(count))
            classes = np.where(good, raw, 0).astype(np.int64)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise DataError(f"{label_file}, row {row}: {raw[row].tolist()} is not of {expected}; {self.obtain}")
        return ids, classes

    def _statistics(self, folder: Path, audio: _Features, train: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation `[130]` of the training part's audio frames."""
        if not self.mean_std:
            return _moments(audio.every(train))
        path, fold = folder / self.mean_std, str(self.fold)
        with _opened(path, self.obtain) as file:
            check_keys(str(path), file, [fold], self.obtain)
            check_keys(f"{path}, group {fold},", file[fold], ["mean", "std"], self.obtain)
            mean, deviation = (np.asarray(file[fold][key][()], dtype=np.float32) for key in ("mean", "std"))
        for key, part in (("mean", mean), ("std", deviation)):
            if part.shape != (_WIDTHS["audio"],):
                raise DataError(
                    f"{path}, group {fold}: {key} has shape {list(part.shape)}, expected "
                    f"[{_WIDTHS['audio']}]; {self.obtain}"
                )
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
            raise DataError(f"{path}, group {fold}: mean is not finite or std is not positive; {self.obtain}")
        return mean, deviation


class _Features:
    """One HDF5 file with an array per utterance; opened anew for every reading, so that processes share no handle."""

    def __init__(self, path: Path, width: int, obtain: str) -> None:
        self._path, self._width, self._obtain = path, width, obtain

    def check(self, ids: Sequence[str]) -> None:
        """Checks that every utterance has an array `[T, width]` of numbers."""
        with _opened(self._path, self._obtain) as file:
            missing = [sample for sample in ids if sample not in file]
            if missing:
                raise DataError(
                    f"{self._path} lacks {len(missing)} of {len(ids)} utterances: {first_few(missing, NAMED)}; "
                    f"{self._obtain}"
                )
            for sample in ids:
                entry = file[sample]
                shape: tuple[int, ...] = getattr(entry, "shape", ())
                dtype = getattr(entry, "dtype", np.dtype(object))
                if len(shape) != 2 or shape[1] != self._width or not shape[0] or dtype.kind not in "iuf":
                    raise DataError(
                        f"{self._path}, utterance {sample!r}: shape {list(shape)} of type {dtype}, expected numbers "
                        f"[T, {self._width}] with T at least 1; {self._obtain}"
                    )

    def read(self, sample: str) -> FloatArray:
        """`[T, width]` of one utterance."""
        (value,) = self.every([sample])
        return value

    def every(self, samples: Sequence[str]) -> Iterator[FloatArray]:
        """The arrays of several utterances, one at a time."""
        with _opened(self._path, self._obtain) as file:
            for sample in samples:
                value = np.asarray(file[sample][()], dtype=np.float32)
                yield check_finite(value, f"{self._path}, utterance {sample!r},")


def _moments(sequences: Iterator[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation over all frames; a deviation of 0 becomes 1.

    Sums are of differences from the first frame, so that a constant column has a deviation of exactly 0.
    """
    count, origin = 0, np.zeros(0)
    total = squares = np.zeros(0)
    for sequence in sequences:
        wide = sequence.astype(np.float64)
        if not count:
            origin, total, squares = wide[0].copy(), np.zeros(wide.shape[1]), np.zeros(wide.shape[1])
        wide -= origin
        count += len(wide)
        total = total + wide.sum(axis=0)
        squares = squares + (wide * wide).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    return (origin + mean).astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise DependencyError(f"h5py is not installed; get it with: {INSTALL}") from error
    module: ModuleType = h5py
    return module


@contextmanager
def _opened(path: Path, obtain: str) -> Iterator[Any]:
    """An HDF5 file; what HDF5 finds wrong while it is read is an error of one line."""
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no HDF5 file"])[0][:120]
        raise DataError(f"{path} cannot be read as HDF5 ({reason}); {obtain}") from error
