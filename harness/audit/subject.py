"""What the audits look at: a run's views, its trained method, and how the runner builds and asks methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.features import FeatureArray
from harness.masking import MaskTable, ObservedDataset
from harness.method import Method
from harness.protocol import Protocol
from harness.record import AuditResult, Severity
from harness.trainer import FitResult
from harness.types import Batch, DataTable, FloatArray, IntArray, Predictions, StepOutput

#: Samples that a probe looks at, and the fewest per condition when many conditions share them.
PROBE = 32
LEAST_PROBE = 8


@dataclass(frozen=True)
class Views:
    """The observed splits of a run; the test split once per test condition."""

    train: ObservedDataset
    valid: ObservedDataset
    tests: Mapping[str, ObservedDataset]

    def parts(self) -> dict[str, ObservedDataset]:
        """All views by a name for people: `train`, `valid`, and `test` or one `test:<condition>` each."""
        several = len(self.tests) > 1
        tests = {f"test:{name}" if several else "test": view for name, view in self.tests.items()}
        return {"train": self.train, "valid": self.valid, **tests}


@dataclass(frozen=True)
class Engine:
    """How the runner handles methods, lent to the audits.

    Attributes:
        build: A new prepared method on the run's device, from these views and the run's seeds.
        step: Loss of a training batch, in train mode, without an optimiser step.
        predict: Logits of a view, in eval mode.
    """

    build: Callable[[Views], Method]
    step: Callable[[Method, Batch], StepOutput]
    predict: Callable[[Method, ObservedDataset], FloatArray]


@dataclass(frozen=True)
class Subject:
    """A run whose training is over.

    Attributes:
        table: The data set.
        protocol: What hides values.
        shown: The mask table that the method was shown.
        views: What the method was given.
        method: The trained method.
        fit: What training left.
        engine: How to build and ask methods.
        supervision: `observed` or `complete`.
        terms: Loss terms that the method declares.
        trains: Whether the method has gradient training.
        predictions: Test predictions by condition, as scored.
        test_looks: How often a test view was predicted before the audits.
        eval_seed: Seed of what is drawn at prediction.
        tolerance: Difference of logits, relative to their size, that arithmetic alone may cause.
    """

    table: DataTable
    protocol: Protocol
    shown: MaskTable
    views: Views
    method: Method
    fit: FitResult
    engine: Engine
    supervision: str = "observed"
    terms: Sequence[str] = ("task",)
    trains: bool = True
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    test_looks: int | None = None
    eval_seed: int = 0
    tolerance: float = 1e-3


def probe_size(parts: int) -> int:
    """Samples per view when several share a probe: many of them cost little more than one."""
    return max(LEAST_PROBE, PROBE // parts)


def guarded(
    name: str, check: Callable[[], AuditResult | list[AuditResult]], severity: Severity = "warning"
) -> list[AuditResult]:
    """Runs a check; one that cannot be run is a failed check, never the end of a run whose results are there."""
    try:
        found = check()
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        return [AuditResult(name, False, f"could not be run: {type(error).__name__}: {reason[:300]}", severity)]
    return found if isinstance(found, list) else [found]


def take(array: FeatureArray, rows: IntArray) -> FeatureArray:
    """A copy in memory of some rows."""
    return FeatureArray(
        np.array(array.tokens[rows]),
        np.array(array.mask[rows]),
        np.array(array.pooled[rows]),
        np.array(array.digest[rows]),
    )


def poison(array: FeatureArray, rows: IntArray) -> FeatureArray:
    """A copy in which some rows are NaN, or an extreme integer, and seem to be real tokens."""
    tokens, mask, pooled, digest = array.tokens.copy(), array.mask.copy(), array.pooled.copy(), array.digest.copy()
    tokens[rows] = np.nan if tokens.dtype.kind == "f" else np.iinfo(tokens.dtype).max
    mask[rows], pooled[rows], digest[rows] = True, np.nan, -1
    return FeatureArray(tokens, mask, pooled, digest)


def poisoned(view: ObservedDataset, features: Mapping[str, FeatureArray]) -> tuple[ObservedDataset, ObservedDataset]:
    """Two copies of a view that differ in hidden values only: as stored, and replaced by NaN or extreme integers."""
    plain = {name: take(features[name], view.rows) for name in view.modalities}
    replaced = {
        name: poison(plain[name], np.flatnonzero(~view.present[:, column]))
        for column, name in enumerate(view.modalities)
    }
    return view.with_features(plain), view.with_features(replaced)


def incomplete_first(view: ObservedDataset) -> IntArray:
    """Row numbers of a view, samples that miss something first."""
    return np.argsort(view.present.all(axis=1), kind="stable")
