"""Audio-visual digits: a spoken digit of the Free Spoken Digit Dataset with a handwritten one of scikit-learn.

Speakers and pictures are both disjoint between splits: with the same speakers on both sides speech alone is near
perfect.  Pictures carry noise, because without it they are.
"""

from __future__ import annotations

import gzip
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.dataset import DatasetConfig, LazySequence, check_table, grouped_split, join_groups, table_fingerprint
from harness.datasets._signals import INSTALL_AUDIO, frozen_noise, read_wav
from harness.errors import DataError, UsageError
from harness.packages import package_file
from harness.plugin import check_range
from harness.types import SPLITS, DatasetSpec, DataTable, FloatArray, IntArray, ModalitySpec, Split, TaskSpec

COMMIT = "26eb9aa"
# sha256 over the 3,000 recordings at that commit (see `_content_digest`).
RECORDINGS_SHA256 = "a2e8a660492f28d9eed6270b290d26cbc5c81d6077ce87d3c0ad5adf4d4ee696"
_DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
_CLASSES = 10
_PIXELS = 64  # 8 x 8, row by row
# Pictures of one digit with at least this cosine are near-duplicates and never in two splits.
_SAME_PICTURE = 0.98
_DEFAULT_NOISE = 0.4


@dataclass
class AvDigitsConfig(DatasetConfig):
    """Spoken and handwritten digit, 10 classes; four speakers in train, one in valid, one in test.

    Attributes:
        folder: A checkout of the recordings' repository, or its folder `recordings`; empty means `<data folder>/fsdd`.
        image_noise: Standard deviation of normal noise on the 8 x 8 pixels (0 to 1), frozen per sample; 0 for none.
        fold: Which of the six speakers is in test (0 to 5) and, the next one, in valid.
    """

    folder: str = ""
    image_noise: float = _DEFAULT_NOISE
    fold: int = 0

    summary: ClassVar[str] = "spoken + noisy handwritten digit, new speakers in test (FSDD, scikit-learn)"
    citation: ClassVar[str] = (
        "Jackson et al., Free Spoken Digit Dataset, github.com/Jakobovski/free-spoken-digit-dataset, commit 26eb9aa; "
        "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, as in scikit-learn"
    )
    license: ClassVar[str] = "speech CC BY-SA 4.0; pictures BSD-3-Clause (package scikit-learn), originally UCI"
    obtain: ClassVar[str] = (
        "git clone https://github.com/Jakobovski/free-spoken-digit-dataset DIR && git -C DIR checkout 26eb9aa "
        "(CC BY-SA 4.0), then dataset.folder=DIR"
    )
    card: ClassVar[str] = "cards/av_digits.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("dataset", "fold", self.fold, 0, 5)
        if not (math.isfinite(self.image_noise) and self.image_noise >= 0):
            raise UsageError(f"dataset: image_noise={self.image_noise} is not a finite number of at least 0.")

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:  # noqa: ARG002
        """Pairs the recordings with pictures.

        Raises:
            DependencyError: If scikit-learn, whose package holds the pictures, is not installed.
            DataError: If the recordings are missing or not those of the pinned commit.
        """
        self.validate()
        paths = _recordings(Path(self.folder).expanduser() if self.folder else data_dir / "fsdd", self.obtain)
        pixels, digits = _digits()
        ids = tuple(path.stem for path in paths)
        labels = np.array([int(sample.split("_")[0]) for sample in ids], dtype=np.int64)
        splits = _split_speakers([sample.split("_")[1] for sample in ids], f"av_digits-{self.version}", self.fold)
        families = join_groups(_marks(pixels, digits))
        pictures = _pair(ids, labels, splits, digits, grouped_split(families, digits, f"av_digits-{self.version}"))
        groups = join_groups([[int(families[picture])] for picture in pictures])

        def picture(row: int) -> FloatArray:
            clean: FloatArray = (pixels[pictures[row]] / 16).astype(np.float32)
            if not self.image_noise:
                return clean
            noise: FloatArray = np.float32(self.image_noise) * frozen_noise(f"av_digits|{ids[row]}", _PIXELS)
            return clean + noise

        variant = f"_noise{self.image_noise:g}" if self.image_noise != _DEFAULT_NOISE else ""
        variant += f"_fold{self.fold}" if self.fold else ""
        contents = [
            hashlib.sha256(path.read_bytes()).digest() + f"{self.image_noise}|{pixels[pictures[row]].tolist()}".encode()
            for row, path in enumerate(paths)
        ]
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=f"av_digits{variant}",
                    version=self.version,
                    modalities=(
                        ModalitySpec("image", "features", (_PIXELS,)),
                        ModalitySpec("audio", "audio", (None,)),
                    ),
                    task=TaskSpec("multiclass", _CLASSES, tuple(map(str, range(_CLASSES))), "accuracy"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(ids, splits, labels, contents),
                ),
                ids=ids,
                splits=splits,
                labels=labels,
                available=np.ones((len(ids), 2), dtype=np.bool_),
                values={
                    "image": LazySequence(picture, len(ids)),
                    "audio": LazySequence(lambda row: read_wav(paths[row]), len(ids)),
                },
                groups=groups,
                card={
                    "samples": len(ids),
                    "pictures": len(set(pictures.tolist())),
                    "near-duplicate groups": len(set(groups.tolist())),
                    "speakers": {split: sorted({ids[row].split("_")[1] for row in splits[split]}) for split in SPLITS},
                    "image noise": self.image_noise,
                },
            )
        )


def _recordings(folder: Path, obtain: str) -> list[Path]:
    """The recordings by name, after checking that they are those of the pinned commit."""
    for place in (folder / "recordings", folder):
        paths = sorted(place.glob("[0-9]_*_*.wav"))
        if paths:
            if _content_digest(paths) != RECORDINGS_SHA256:
                raise DataError(
                    f"{place} does not hold the recordings of commit {COMMIT} ({len(paths)} found), or files were "
                    f"changed; {obtain}"
                )
            return paths
    raise DataError(f"no recordings of the Free Spoken Digit Dataset in {folder}; {obtain}")


def _content_digest(paths: Iterable[Path]) -> str:
    """sha256 over name and content of every recording."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _digits() -> tuple[IntArray, IntArray]:
    """Pixels `[N, 64]`, 0 to 16, and digits `[N]`, from scikit-learn's file; scikit-learn is not imported."""
    relative = "datasets/data/digits.csv.gz"
    path = package_file("scikit-learn", "", "sklearn", relative, _DIGITS_SHA256, INSTALL_AUDIO)
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",").astype(np.int64)
    return table[:, :-1], table[:, -1]


def _split_speakers(speakers: list[str], salt: str, fold: int) -> dict[Split, IntArray]:
    """Rows per split: speakers in order of their hash, `fold` tells who is in test and, the next one, in valid."""
    order = sorted(set(speakers), key=lambda speaker: hashlib.sha256(f"{salt}|{speaker}".encode()).digest())
    test, valid = order[fold % len(order)], order[(fold + 1) % len(order)]
    home: dict[str, Split] = {test: "test", valid: "valid"}
    rows: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for row, speaker in enumerate(speakers):
        rows[home.get(speaker, "train")].append(row)
    return {split: np.array(rows[split], dtype=np.int64) for split in SPLITS}


def _marks(pixels: IntArray, digits: IntArray) -> list[list[tuple[int, int]]]:
    """Pairs of near-identical pictures of one digit, per picture; of integers, so the products are exact."""
    values = pixels.astype(np.float64)
    lengths = np.sqrt((values * values).sum(axis=1))
    alike = values @ values.T / lengths[:, None] / lengths >= _SAME_PICTURE
    first, second = np.nonzero(np.triu(alike & (digits[:, None] == digits), k=1))
    marks: list[list[tuple[int, int]]] = [[] for _ in pixels]
    for pair in zip(first.tolist(), second.tolist(), strict=True):
        for row in pair:
            marks[row].append(pair)
    return marks


def _pair(
    ids: tuple[str, ...],
    labels: IntArray,
    splits: dict[Split, IntArray],
    digits: IntArray,
    picture_splits: dict[Split, IntArray],
) -> IntArray:
    """A picture of the same digit and split for every recording, both in order of their hash, reused in turn."""
    pictures = np.full(len(ids), -1, dtype=np.int64)
    for split in SPLITS:
        pools = defaultdict(list)
        for picture in sorted(picture_splits[split].tolist(), key=lambda row: _order(f"picture {row}")):
            pools[int(digits[picture])].append(picture)
        turns: dict[int, int] = defaultdict(int)
        for row in sorted(splits[split].tolist(), key=lambda row: _order(ids[row])):
            pool = pools[int(labels[row])]
            pictures[row] = pool[turns[int(labels[row])] % len(pool)]
            turns[int(labels[row])] += 1
    return pictures


def _order(name: str) -> bytes:
    return hashlib.sha256(f"av_digits|{name}".encode()).digest()
