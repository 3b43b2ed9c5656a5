"""MER2024 in the files of its organisers' toolkit: a label archive, and a `.npy` vector per sample and feature.

The toolkit writes `test1_corpus` with the label `neutral` for every sample, because the challenge keeps the true ones:
only the labelled part is scored unless a label file says more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.dataset import DatasetConfig, LazySequence, check_table, table_fingerprint
from harness.datasets._feature_files import MODALITIES, NAMED, check_files, check_finite, class_counts, home, read
from harness.errors import DataError, UsageError, first_few
from harness.plugin import check_choice, check_range
from harness.progress import track
from harness.restricted_pickle import load_npy, load_npz
from harness.types import SPLITS, DatasetSpec, DataTable, FloatArray, IntArray, ModalitySpec, Split, TaskSpec

_LABEL_FILE = "label-6way.npz"
#: The order in which the toolkit numbers them.
_CLASSES = ("neutral", "angry", "happy", "sad", "worried", "surprise")
_FOLDS = 5


@dataclass
class Mer2024Config(DatasetConfig):
    """Chinese films and series, six emotions; one vector per sample and modality.

    Attributes:
        folder: With `label-6way.npz` and `features` in it; empty means `<data folder>/mer2024`.
        test: `fold`: a fifth of the labelled part; `test1`: the challenge's test part, if its labels are known.
        fold: 1 to 5: which fifth of the labelled part is held out, for test (the next one is for validation), or for
            validation with `test=test1`.
        audio: Folder below `features` with the vectors of what is heard.
        video: Folder below `features` with the vectors of the face.
        text: Folder below `features` with the vectors of the words.
    """

    folder: str = ""
    test: str = "fold"
    fold: int = 1
    audio: str = "chinese-hubert-large-UTT"
    video: str = "clip-vit-large-patch14-UTT"
    text: str = "Baichuan2-13B-Base-UTT"

    summary: ClassVar[str] = "six emotions in Chinese films and series: audio, face, words, a vector each (EULA)"
    citation: ClassVar[str] = (
        "Lian et al., MER 2024: semi-supervised learning, noise robustness, and open-vocabulary multimodal emotion "
        "recognition, MRAC workshop at ACM Multimedia 2024"
    )
    license: ClassVar[str] = "EULA of the MER2024 organisers: academic research only, no redistribution"
    obtain: ClassVar[str] = (
        "sign the MER2024 EULA and extract features with its toolkit (github.com/zeroQiaoba/MERTools, MER2024), then "
        "dataset.folder=DIR with label-6way.npz and features in it"
    )
    card: ClassVar[str] = "cards/mer2024.md"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("dataset", "test", self.test, ("fold", "test1"))
        check_range("dataset", "fold", self.fold, 1, _FOLDS)
        for modality in MODALITIES:
            name = getattr(self, modality)
            if not name or Path(name).name != name:
                raise UsageError(f"dataset.{modality}={name!r} is not the name of a folder below features.")

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:  # noqa: ARG002
        """Reads labels and checks every vector; vectors are kept on disk.

        Raises:
            DataError: Naming the file that is missing, damaged or of another format, and how to get it.
        """
        self.validate()
        folder = home(self.folder, data_dir, "mer2024", self.obtain)
        check_files(folder, [_LABEL_FILE], self.obtain)
        splits, ids, labels = self._splits(folder / _LABEL_FILE)
        places = {modality: folder / "features" / getattr(self, modality) for modality in MODALITIES}
        digests: list[bytes] = [b""] * len(ids)
        widths = {}
        for modality, place in places.items():
            widths[modality] = self._check(place, ids, digests)
        names = "|".join(place.name for place in places.values())
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=f"mer2024_{'test1_' if self.test == 'test1' else ''}fold{self.fold}",
                    version=self.version,
                    modalities=tuple(ModalitySpec(name, "features", (widths[name],)) for name in MODALITIES),
                    task=TaskSpec("multiclass", len(_CLASSES), _CLASSES, "f1_weighted"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(
                        ids, splits, labels, [f"{self.version}|{names}|".encode() + digest for digest in digests]
                    ),
                ),
                ids=tuple(ids),
                splits=splits,
                labels=labels,
                available=np.ones((len(ids), len(MODALITIES)), dtype=np.bool_),
                values={name: _vectors(place, ids) for name, place in places.items()},
                card={
                    "samples": len(ids),
                    **{f"classes of {split}": class_counts(labels[rows], _CLASSES) for split, rows in splits.items()},
                    "features": {modality: place.name for modality, place in places.items()},
                },
            )
        )

    def _splits(self, path: Path) -> tuple[dict[Split, IntArray], list[str], IntArray]:
        """Rows per split, ids and labels."""
        corpora = ["train_corpus", *(["test1_corpus"] if self.test == "test1" else [])]
        archive = read(lambda file: load_npz(file, corpora), path, self.obtain)
        corpus = _emotions(archive["train_corpus"], f"{path}, train_corpus", self.obtain)
        parts: dict[int, list[str]] = {number: [] for number in range(_FOLDS)}
        for number, name in enumerate(_dealt(corpus)):
            parts[number % _FOLDS].append(name)
        held = parts.pop(self.fold - 1)
        if self.test == "fold":
            valid, test = parts.pop(self.fold % _FOLDS), held
        else:
            others = _emotions(archive["test1_corpus"], f"{path}, test1_corpus", self.obtain)
            if len(set(others.values())) < 2:
                only = _CLASSES[min(others.values())]
                raise DataError(
                    f"{path}: every sample of test1_corpus has the label {only!r}, the toolkit's placeholder; "
                    "use dataset.test=fold."
                )
            both = sorted(set(others) & set(corpus))
            if both:
                raise DataError(
                    f"{path}: {len(both)} samples are in both corpora: {first_few(both, NAMED)}; {self.obtain}"
                )
            valid, test, corpus = held, list(others), {**corpus, **others}
        train = [name for part in parts.values() for name in part]
        ids = [*sorted(train), *sorted(valid), *sorted(test)]
        sizes = np.cumsum([0, len(train), len(valid), len(test)])
        rows = {split: np.arange(sizes[number], sizes[number + 1]) for number, split in enumerate(SPLITS)}
        return rows, ids, np.array([corpus[name] for name in ids], dtype=np.int64)

    def _check(self, place: Path, ids: Sequence[str], digests: list[bytes]) -> int:
        """Reads every vector of one modality, adds to the samples' digests, and returns the width."""
        if not place.is_dir():
            there = sorted(path.name for path in place.parent.iterdir()) if place.parent.is_dir() else []
            raise DataError(
                f"there is no folder {place}; {place.parent.name} holds {first_few(there, NAMED) or 'nothing'}; "
                f"choose others with dataset.audio, .video and .text, or {self.obtain}"
            )
        missing = [name for name in ids if not (place / f"{name}.npy").is_file()]
        if missing:
            raise DataError(
                f"{place} lacks the vectors of {len(missing)} samples: {first_few(missing, NAMED)}; {self.obtain}"
            )
        width = 0
        for row, name in enumerate(track(ids, f"mer2024: checking {place.name}")):
            vector = _vector(place / f"{name}.npy")
            width = width or len(vector)
            if len(vector) != width:
                raise DataError(f"{place}: {name}.npy has {len(vector)} values, {ids[0]}.npy {width}; {self.obtain}")
            digests[row] += hashlib.sha256(vector.tobytes()).digest()
        return width


def _emotions(corpus: Any, where: str, obtain: str) -> dict[str, int]:
    """Class of each sample of a corpus, which maps names to dicts with the key `emo`."""
    if not isinstance(corpus, dict) or not corpus:
        raise DataError(f"{where} is no dict of samples; {obtain}")
    found = {}
    for name, entry in corpus.items():
        emotion = entry.get("emo") if isinstance(entry, dict) else None
        if emotion not in _CLASSES:
            raise DataError(f"{where}, {name!r}: emo is {emotion!r}, expected one of {', '.join(_CLASSES)}; {obtain}")
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{where}: {name!r} is not the name of a sample; {obtain}")
        found[name] = _CLASSES.index(emotion)
    return found


def _dealt(corpus: Mapping[str, int]) -> list[str]:
    """Samples class by class in the order of their hash: every fifth of them is a stratified, frozen fold."""
    return sorted(corpus, key=lambda name: (corpus[name], hashlib.sha256(f"mer2024|{name}".encode()).digest()))


def _vectors(place: Path, ids: Sequence[str]) -> LazySequence:
    return LazySequence(lambda row: _vector(place / f"{ids[row]}.npy"), len(ids))


def _vector(path: Path) -> FloatArray:
    """`[D]` float32 of one sample."""
    raw = load_npy(path)
    if raw.dtype.kind != "f" or raw.ndim != 1 or not raw.size:
        raise DataError(
            f"{path} has shape {list(raw.shape)} and type {raw.dtype}, expected real numbers [D]; "
            "extract features of level UTTERANCE."
        )
    return check_finite(raw.astype(np.float32), str(path))
