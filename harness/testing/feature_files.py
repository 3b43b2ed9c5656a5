"""Small files in the published formats of feature-file data sets: for tests, and to try a run without the real data.

Each sample's features carry a trace of its class, so that a method can learn something.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.types import FloatArray

_PARTS = {"trn": 24, "val": 8, "tst": 8}
_SPLITS = {"train": 24, "valid": 9, "test": 9}
_EMOTIONS = ("neutral", "angry", "happy", "sad", "worried", "surprise")


def write_iemocap(folder: Path, fold: int = 1, parts: Mapping[str, int] = _PARTS) -> None:
    """Writes `A/comparE.h5`, `A/comparE_mean_std.h5`, `V/denseface.h5`, `L/bert_large.h5` and one fold of `target`.

    Args:
        folder: Where they go.
        fold: Number of the fold.
        parts: Utterances of `trn`, `val`, `tst`.
    """
    import h5py

    names, labels = _target(parts, "Ses{dialogue:02d}F_impro01_F{row:03d}")
    audio = _write_mmin(folder, "comparE", names, labels, lengths={"A": (20, 90), "V": (50, 51), "L": (22, 23)})
    train = np.concatenate([audio[name] for name in names["trn"]])
    with h5py.File(folder / "A/comparE_mean_std.h5", "w") as file:
        for number in range(1, 11):
            file[f"{number}/mean"] = train.mean(axis=0) + (number - fold)
            file[f"{number}/std"] = np.where(train.std(axis=0) == 0, 1, train.std(axis=0))
    target = _folder(folder / f"target/{fold}")
    for part in parts:
        np.save(target / f"{part}_label.npy", np.eye(4)[labels[part]])
        rows = [[name.encode(), name[5].encode()] for name in names[part]]
        np.save(target / f"{part}_int2name.npy", np.array(rows))


def write_msp_improv(folder: Path, fold: int = 1, parts: Mapping[str, int] = _PARTS) -> None:
    """Writes `A/comparE_raw.h5`, `V/denseface.h5`, `L/bert_large.h5` and one fold of `target`.

    Args:
        folder: Where they go.
        fold: Number of the fold.
        parts: Utterances of `trn`, `val`, `tst`.
    """
    names, labels = _target(parts, "MSP-IMPROV-S{dialogue:02d}A-F01-P-FM{row:02d}")
    _write_mmin(folder, "comparE_raw", names, labels, lengths={"A": (50, 51), "V": (50, 51), "L": (22, 23)})
    target = _folder(folder / f"target/{fold}")
    for part in parts:
        np.save(target / f"{part}_label.npy", np.array(labels[part]))
        np.save(target / f"{part}_int2name.npy", np.array(names[part]))


def mmsa(
    widths: tuple[int, int, int],
    lengths: tuple[int, int, int],
    strongest: float = 3.0,
    measured: bool = False,
    splits: Mapping[str, int] = _SPLITS,
) -> dict[str, dict[str, Any]]:
    """What MMSA's feature files hold: dicts of arrays, padded behind with zeros.

    Args:
        widths: Of audio, vision and text.
        lengths: Tokens of the longest sequence of each.
        strongest: Largest sentiment.
        measured: Whether the lengths of audio and vision are in it, as in unaligned files.
        splits: Samples of each split.
    """
    generator = np.random.default_rng(7)
    data: dict[str, dict[str, Any]] = {}
    for split, count in splits.items():
        labels = np.arange(count) % 3
        part: dict[str, Any] = {
            "raw_text": np.array([f"words {row}" for row in range(count)], dtype=object),
            "id": [f"{split}{row // 2}$_${row}" for row in range(count)],
            "annotations": [("Negative", "Neutral", "Positive")[label] for label in labels],
            "classification_labels": labels.astype(np.float64),
            "regression_labels": (labels - 1) * strongest * generator.uniform(0.2, 1, count),
        }
        for name, width, longest in zip(("audio", "vision", "text"), widths, lengths, strict=True):
            own = generator.integers(2, longest + 1, count)
            own[0] = longest
            values = generator.normal(size=(count, longest, width)) + labels[:, None, None]
            values[np.arange(longest) >= own[:, None]] = 0
            part[name] = values.astype(np.float32 if name == "text" else np.float64)
            if name != "text" and measured:
                part[f"{name}_lengths"] = own.tolist()
            if name == "text":
                mask = (np.arange(longest) < own[:, None]).astype(np.float32)
                part["text_bert"] = np.stack([mask * 101, mask, mask * 0], axis=1)
        data[split] = part
    return data


def write_mmsa(path: Path, data: Mapping[str, Any], protocol: int = 4) -> None:
    """Writes a feature file of MMSA.

    Args:
        path: Of the file.
        data: See `mmsa`.
        protocol: Of the pickle.
    """
    _folder(path.parent)
    path.write_bytes(pickle.dumps(dict(data), protocol=protocol))


def write_mer2024(folder: Path, count: int = 60, unlabelled: int = 5) -> None:
    """Writes `label-6way.npz` and the vectors of three features below `features`.

    Args:
        folder: Where they go.
        count: Labelled samples.
        unlabelled: Samples of `test1_corpus`, which the toolkit labels `neutral`.
    """
    generator = np.random.default_rng(5)
    train = {f"sample_{row:08d}": {"emo": _EMOTIONS[row % 6]} for row in range(count)}
    test = {f"samplenew_{row:08d}": {"emo": "neutral"} for row in range(unlabelled)}
    np.savez_compressed(_folder(folder) / "label-6way.npz", train_corpus=train, test1_corpus=test)  # type: ignore[arg-type]
    features = {"chinese-hubert-large-UTT": 24, "clip-vit-large-patch14-UTT": 16, "Baichuan2-13B-Base-UTT": 40}
    for feature, width in features.items():
        place = _folder(folder / "features" / feature)
        for name, entry in {**train, **test}.items():
            vector = generator.normal(size=width) + _EMOTIONS.index(entry["emo"])
            np.save(place / f"{name}.npy", vector.astype(np.float32))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _target(parts: Mapping[str, int], form: str) -> tuple[dict[str, list[str]], dict[str, list[int]]]:
    """Names and classes of each part."""
    names = {
        part: [form.format(dialogue=number * 20 + row // 4, row=row) for row in range(count)]
        for number, (part, count) in enumerate(parts.items())
    }
    return names, {part: [row % 4 for row in range(count)] for part, count in parts.items()}


def _write_mmin(
    folder: Path,
    audio: str,
    names: Mapping[str, list[str]],
    labels: Mapping[str, list[int]],
    lengths: Mapping[str, tuple[int, int]],
) -> dict[str, FloatArray]:
    """Writes the three feature files; returns what is in the audio file."""
    import h5py

    generator = np.random.default_rng(3)
    kept: dict[str, FloatArray] = {}
    for place, stem, width in (("A", audio, 130), ("V", "denseface", 342), ("L", "bert_large", 1024)):
        with h5py.File(_folder(folder / place) / f"{stem}.h5", "w") as file:
            for part, ids in names.items():
                for name, label in zip(ids, labels[part], strict=True):
                    value = generator.normal(size=(int(generator.integers(*lengths[place])), width)) + label
                    if place == "A":
                        # Like openSMILE's: far from 0, and one column that never changes.
                        value = value * 50 + 1000
                        value[:, 7] = 1000
                        kept[name] = value.astype(np.float32)
                    file[name] = value.astype(np.float32)
    return kept
