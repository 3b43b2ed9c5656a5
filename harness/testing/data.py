"""Tiny generated features with a known signal, as methods receive them; no encoder, mask table or file is involved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.types import (
    SPLITS,
    BoolArray,
    DatasetSpec,
    FeatureSpec,
    IntArray,
    ModalityKind,
    ModalitySpec,
    Split,
    TaskKind,
    TaskSpec,
    iterate_patterns,
)

TASK_KINDS: tuple[TaskKind, ...] = ("binary", "multiclass", "multilabel", "regression")

_OUTPUTS: Mapping[TaskKind, int] = {"binary": 2, "multiclass": 3, "multilabel": 3, "regression": 2}
_METRICS: Mapping[TaskKind, str] = {
    "binary": "accuracy",
    "multiclass": "accuracy",
    "multilabel": "f1_micro",
    "regression": "rmse",
}
# Per modality: name, kind, tokens, token width.  All differ, so that a mixed-up modality cannot go unnoticed.
_MODALITIES: tuple[tuple[str, ModalityKind, int, int], ...] = (
    ("text", "text", 3, 8),
    ("image", "image", 2, 6),
    ("audio", "audio", 4, 5),
    ("sensor", "tabular", 5, 7),
)


@dataclass(frozen=True)
class TinyData:
    """Three observed splits over one set of feature arrays.

    Attributes:
        spec: Identity, modalities and task.
        features: Arrays of every modality, true values of hidden entries included.
        views: The splits as a method may see them.
    """

    spec: DatasetSpec
    features: dict[str, FeatureArray]
    views: dict[Split, ObservedDataset]

    @property
    def train(self) -> ObservedDataset:
        """The training split."""
        return self.views["train"]

    @property
    def valid(self) -> ObservedDataset:
        """The validation split."""
        return self.views["valid"]

    @property
    def test(self) -> ObservedDataset:
        """The test split."""
        return self.views["test"]

    @property
    def feature_specs(self) -> dict[str, FeatureSpec]:
        """Shapes of every modality's features."""
        return {name: array.spec for name, array in self.features.items()}


def tiny_spec(task: TaskKind = "multiclass", modalities: int = 2, name: str = "tiny") -> DatasetSpec:
    """Spec of a generated data set.

    Args:
        task: Task kind.
        modalities: 2 to 4.
        name: Name of the data set.
    """
    outputs = _OUTPUTS[task]
    return DatasetSpec(
        name=name,
        version="1",
        modalities=tuple(ModalitySpec(modality, kind) for modality, kind, _, _ in _MODALITIES[:modalities]),
        task=TaskSpec(task, outputs, tuple(f"c{index}" for index in range(outputs)), _METRICS[task]),
        license="CC0-1.0",
        citation="none: generated",
        fingerprint=f"{name}-{task}-{modalities}",
    )


def tiny_observed(
    task: TaskKind = "multiclass",
    modalities: int = 2,
    *,
    train: int = 48,
    valid: int = 24,
    test: int = 24,
    missing: float = 0.5,
    noise: float = 0.5,
    length: int | None = None,
    supervision: str = "observed",
    shuffle_labels: bool = False,
    seed: int = 0,
) -> TinyData:
    """Draws a data set in which every modality carries the label plus noise.

    In each split `floor(missing * n)` samples are incomplete, dealt over all incomplete patterns in turn.

    Args:
        task: Task kind; 2 classes, 3 classes, 3 labels or 2 targets.
        modalities: 2 to 4: text, image, audio, sensor, of different lengths and widths, some tokens padded.
        train: Training samples.
        valid: Validation samples.
        test: Test samples.
        missing: Share of incomplete samples.
        noise: Standard deviation of the tokens around the label's image, which has unit-scale entries.
        length: Tokens of every modality; by default 3, 2, 4 and 5.
        supervision: `observed` or `complete`.
        shuffle_labels: Makes the labels independent of the features.
        seed: Draws everything.

    Returns:
        Arrays and views; two calls with the same arguments are identical.
    """
    generator = np.random.default_rng(seed)
    spec = tiny_spec(task, modalities)
    counts = {"train": train, "valid": valid, "test": test}
    total = sum(counts.values())
    labels, signal = _draw_labels(generator, task, total)
    features = {
        name: _draw_features(generator, signal, length or own_length, width, noise)
        for name, _, own_length, width in _MODALITIES[:modalities]
    }
    if shuffle_labels:
        labels = labels[generator.permutation(total)]
    views: dict[Split, ObservedDataset] = {}
    start = 0
    for split in SPLITS:
        rows: IntArray = np.arange(start, start + counts[split], dtype=np.int64)
        present = tiny_presence(counts[split], modalities, missing)[generator.permutation(counts[split])]
        views[split] = ObservedDataset(
            spec,
            split,
            [f"{split}-{number:03d}" for number in range(counts[split])],
            features,
            rows,
            present,
            np.ones_like(present),
            labels[rows],
            supervision,
        )
        start += counts[split]
    return TinyData(spec, features, views)


def tiny_presence(count: int, modalities: int, missing: float) -> BoolArray:
    """`[count, modalities]` presence: the first `floor(missing * count)` rows take the incomplete patterns in turn."""
    names = [name for name, _, _, _ in _MODALITIES[:modalities]]
    incomplete = [pattern for pattern in iterate_patterns(names) if not all(pattern)]
    present: BoolArray = np.ones((count, modalities), dtype=np.bool_)
    for row in range(int(missing * count)):
        present[row] = incomplete[row % len(incomplete)]
    return present


def with_presence(view: ObservedDataset, features: Mapping[str, FeatureArray], present: BoolArray) -> ObservedDataset:
    """The samples of a view under another presence matrix `[n, M]`, e.g. one pattern for all of them."""
    return ObservedDataset(
        view.spec,
        view.split,
        view.ids,
        features,
        view.rows,
        present,
        np.ones_like(present),
        view.labels,
        view.supervision,
    )


def one_pattern(
    view: ObservedDataset, features: Mapping[str, FeatureArray], pattern: Sequence[bool]
) -> ObservedDataset:
    """All samples of a view with the same modalities present."""
    return with_presence(view, features, np.tile(np.array(pattern, dtype=np.bool_), (len(view), 1)))


def _draw_labels(
    generator: np.random.Generator, task: TaskKind, count: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float32]]:
    """Labels and the `[count, C]` signal that the features carry."""
    outputs = _OUTPUTS[task]
    if task in ("binary", "multiclass"):
        labels = np.arange(count, dtype=np.int64) % outputs
        labels = labels[generator.permutation(count)]
        return labels, (2.0 * np.eye(outputs)[labels] - 1.0).astype(np.float32)
    if task == "multilabel":
        rows = (generator.random((count, outputs)) < 0.5).astype(np.float32)
        return rows, 2.0 * rows - 1.0
    values = generator.standard_normal((count, outputs)).astype(np.float32)
    return values, values


def _draw_features(
    generator: np.random.Generator, signal: npt.NDArray[np.float32], length: int, width: int, noise: float
) -> FeatureArray:
    count, outputs = signal.shape
    loading = generator.standard_normal((outputs, length, width)) / np.sqrt(outputs)
    tokens = np.einsum("nc,clw->nlw", signal, loading) + noise * generator.standard_normal((count, length, width))
    # The last token is padding for every third sample, where there is more than one.
    mask: BoolArray = np.ones((count, length), dtype=np.bool_)
    if length > 1:
        mask[::3, -1] = False
    tokens = (tokens * mask[..., None]).astype(np.float32)
    pooled = (tokens.sum(1) / mask.sum(1, keepdims=True)).astype(np.float32)
    digest: IntArray = generator.integers(1, 2**62, size=(count,), dtype=np.int64)
    return FeatureArray(tokens, mask, pooled, digest)
