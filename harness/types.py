"""The vocabulary of the harness: modalities, tasks, data sets, batches, predictions.

Importing this module needs numpy only; the tensor containers import torch when they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ModalityKind = Literal["text", "image", "audio", "video", "features", "tabular"]
TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]
Split = Literal["train", "valid", "test"]
#: How scores of several test conditions become one: over the pool of their samples, or as the mean of the scores.
Aggregate = Literal["pool", "mean"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ModalitySpec:
    """One modality of a data set.

    Attributes:
        name: What the data set calls it, e.g. `"image"`; also the key of `Batch.inputs`.
        kind: Decides which frozen encoders apply.
        shape: Shape of one raw value where it is an array; None means any length.
    """

    name: str
    kind: ModalityKind
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class TaskSpec:
    """What is predicted.

    Attributes:
        kind: `binary` and `multiclass` use class indices and `num_outputs` logits (two for binary),
            `multilabel` uses 0/1 rows, `regression` uses float rows.
        num_outputs: Number of logits C.
        labels: Names of the outputs, length C.
        primary_metric: Name in the metric registry; chooses the epoch on `valid` and heads the tables.
    """

    kind: TaskKind
    num_outputs: int
    labels: tuple[str, ...]
    primary_metric: str


@dataclass(frozen=True)
class DatasetSpec:
    """Identity of a data set; `fingerprint` is a sha256 over ids, labels, splits and raw contents."""

    name: str
    version: str
    modalities: tuple[ModalitySpec, ...]
    task: TaskSpec
    license: str
    citation: str
    fingerprint: str

    @property
    def modality_names(self) -> tuple[str, ...]:
        """Modality names in spec order, the column order of every presence matrix."""
        return tuple(modality.name for modality in self.modalities)


@dataclass(frozen=True)
class DataTable:
    """A loaded data set: identities, splits, labels and lazily read raw values.

    Attributes:
        spec: Identity, modalities and task.
        ids: All N sample ids in canonical order, unique.
        splits: Rows (int64) of each split, disjoint.
        labels: `[N]` int64 (binary, multiclass), `[N, C]` float32 (multilabel) or `[N, C]` float32 (regression).
        available: `[N, M]` bool, natural presence of each modality before any protocol hides values.
        values: Per modality a sequence of N raw values: `str` (text), uint8 `[H, W, 3]` (image), float32 arrays
            (features, tabular, audio); read on access, images by several threads at once; `DataError` names a corrupt
            or missing file.
        groups: `[N]` int64 ids of near-duplicate groups that no split boundary may cut, or None.
        card: Free-form facts for `harness prepare` (counts, leak checks).
        bayes_accuracy: For generated data, the best possible accuracy per present-modality tuple.
    """

    spec: DatasetSpec
    ids: tuple[str, ...]
    splits: Mapping[Split, IntArray]
    labels: npt.NDArray[Any]
    available: BoolArray
    values: Mapping[str, Sequence[Any]]
    groups: IntArray | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    bayes_accuracy: Mapping[tuple[str, ...], float] | None = None

    def split_ids(self, split: Split) -> list[str]:
        """Ids of one split in canonical order."""
        return [self.ids[row] for row in self.splits[split]]


@dataclass(frozen=True)
class FeatureSpec:
    """Shape of one modality as methods receive it.

    Attributes:
        length: Tokens per sample L (padded).
        token_shape: Shape of one token: `(D,)` for encoder features, `()` for token ids, `(H, W, 3)` pixels.
        pooled_dim: Width P of the pooled vector.
    """

    length: int
    token_shape: tuple[int, ...]
    pooled_dim: int

    @property
    def dim(self) -> int:
        """Token width D of encoder features."""
        if len(self.token_shape) != 1:
            raise ValueError(f"tokens of shape {self.token_shape} have no single width")
        return self.token_shape[0]


@dataclass
class ModalityBatch:
    """The observed values of one modality in a batch: only the n samples that have it appear.

    Attributes:
        rows: `[n]` int64, positions of these samples in the batch, ascending.
        tokens: `[n, L, *token_shape]`, float for features, integer for token ids and pixels.
        mask: `[n, L]` bool, True for real tokens.
        pooled: `[n, P]` float, sentence or image vector of the frozen encoder.
        digest: `[n]` int64, hash of the raw value; equal digests mean identical content.
    """

    rows: Tensor
    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    digest: Tensor

    def to(self, device: Any, non_blocking: bool = False) -> ModalityBatch:
        """Copies all tensors to `device`."""
        return ModalityBatch(
            *(
                tensor.to(device, non_blocking=non_blocking)
                for tensor in (self.rows, self.tokens, self.mask, self.pooled, self.digest)
            )
        )

    def __len__(self) -> int:
        return int(self.rows.shape[0])


@dataclass
class Batch:
    """What a method receives: B samples, hidden values not included.

    Attributes:
        ids: B sample ids.
        present: `[B, M]` bool in spec order of modalities.
        inputs: Per modality its observed values; every modality is a key, possibly with n = 0 rows.
        labels: `[B]` int64 or `[B, C]` float32.
        full: Only in training batches under `supervision=complete`: the same samples with every naturally
            available value, for methods whose declared protocol allows it.  None otherwise.
    """

    ids: list[str]
    present: Tensor
    inputs: dict[str, ModalityBatch]
    labels: Tensor
    full: Batch | None = None

    def to(self, device: Any, non_blocking: bool = False) -> Batch:
        """Copies all tensors to `device`."""
        return Batch(
            ids=self.ids,
            present=self.present.to(device, non_blocking=non_blocking),
            inputs={name: part.to(device, non_blocking) for name, part in self.inputs.items()},
            labels=self.labels.to(device, non_blocking=non_blocking),
            full=None if self.full is None else self.full.to(device, non_blocking),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Device of the presence matrix and so of the batch."""
        return self.present.device

    def without(self, hidden: Tensor) -> Batch:
        """A copy in which further values are dropped, e.g. for modality dropout or simulated missingness.

        Args:
            hidden: `[B, M]` bool, True where a value is to be dropped; True at absent values has no effect.

        Returns:
            A batch whose `present` is `present & ~hidden` and whose inputs no longer hold the dropped values.
        """
        inputs = {}
        for column, (name, part) in enumerate(self.inputs.items()):
            keep = ~hidden[part.rows, column]
            inputs[name] = ModalityBatch(
                part.rows[keep], part.tokens[keep], part.mask[keep], part.pooled[keep], part.digest[keep]
            )
        return replace(self, present=self.present & ~hidden, inputs=inputs)

    def select(self, rows: Tensor) -> Batch:
        """The sub-batch of the given rows (`[b]` int64, unique), in their order."""
        position = rows.new_full((len(self),), -1)
        position[rows] = rows.new_tensor(range(len(rows)))
        inputs = {}
        for name, part in self.inputs.items():
            new_rows = position[part.rows]
            order = new_rows[new_rows >= 0].argsort()
            keep = (new_rows >= 0).nonzero(as_tuple=True)[0][order]
            inputs[name] = ModalityBatch(
                new_rows[keep], part.tokens[keep], part.mask[keep], part.pooled[keep], part.digest[keep]
            )
        return Batch(
            ids=[self.ids[row] for row in rows.tolist()],
            present=self.present[rows],
            inputs=inputs,
            labels=self.labels[rows],
            full=None if self.full is None else self.full.select(rows),
        )


@dataclass
class StepOutput:
    """What a training step returns.

    Attributes:
        loss: Scalar to minimise.
        terms: Named scalars that make up the loss (unweighted), logged every epoch and audited for being alive.
        logged: Named scalars that are no losses (weights, rates), logged every epoch as they are.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    logged: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Predictions:
    """Scores of one split under one test condition, or under several one after the other.

    Attributes:
        ids: N sample ids; an id occurs once per condition that shows the sample.
        logits: `[N, C]` float32 before softmax or sigmoid; for regression the predicted values.
        labels: `[N]` int64 or `[N, C]` float32.
        present: `[N, M]` bool, what the method was shown.
        modalities: Names of the M columns.
        condition: N names of test conditions; empty where there is only one and nobody noted its name.
    """

    ids: tuple[str, ...]
    logits: FloatArray
    labels: npt.NDArray[Any]
    present: BoolArray
    modalities: tuple[str, ...]
    condition: tuple[str, ...] = ()

    def patterns(self) -> list[str]:
        """Pattern name of each sample: its present modalities joined by `+`, in spec order."""
        return pattern_names(self.present, self.modalities)


def pattern_names(present: BoolArray, modalities: Sequence[str]) -> list[str]:
    """Pattern name of each row of `[N, M]`."""
    rows = list(map(tuple, present.tolist()))
    # Few patterns and many samples: each is named once.
    names = {row: pattern_name(row, modalities) for row in set(rows)}
    return [names[row] for row in rows]


def pattern_name(present: Sequence[bool] | BoolArray, modalities: Sequence[str]) -> str:
    """Name of a missing pattern, e.g. `"text+image"`; `"none"` when nothing is present."""
    return "+".join(name for name, there in zip(modalities, present, strict=True) if there) or "none"


def iterate_patterns(modalities: Sequence[str]) -> Iterator[tuple[bool, ...]]:
    """All non-empty patterns, fewest modalities first, spec order within."""
    count = len(modalities)
    masks = [tuple(bool(code >> column & 1) for column in range(count)) for code in range(1, 2**count)]
    yield from sorted(masks, key=lambda mask: (sum(mask), [not there for there in mask]))
