"""Hand-made records and predictions, for tests of trackers, reports and plugins of them.

They look like what `harness.runner` writes; the scores are computed from the predictions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.findings import Agreement, Example, Findings, Neighbour, Recovery
from harness.predictions import pool_conditions
from harness.record import AuditResult, ConditionResult, Cost, RunRecord, Status
from harness.types import Aggregate, Predictions

MODALITIES = ("text", "image")


def make_predictions(
    accuracy: float, count: int = 200, classes: int = 4, seed: int = 0, modalities: Sequence[str] = MODALITIES
) -> Predictions:
    """Predictions with an exact accuracy: `round(accuracy * count)` samples are right.

    The labels and patterns depend on `count`, `classes` and `modalities` only, so that every call with the same
    ones is about the same samples; `seed` decides which samples are right.
    """
    fixed = np.random.default_rng(0)
    labels = fixed.integers(classes, size=count)
    present = np.ones((count, len(modalities)), dtype=np.bool_)
    for row in range(count):
        if len(modalities) > 1 and row % 10 < 7:
            present[row, row % len(modalities)] = False
    order = np.random.default_rng(seed + 1).permutation(count)
    shown = labels.copy()
    wrong = order[round(accuracy * count) :]
    shown[wrong] = (labels[wrong] + 1) % classes
    logits = np.full((count, classes), -1.0, dtype=np.float32)
    logits[np.arange(count), shown] = 2.0
    return Predictions(tuple(f"s{row:05d}" for row in range(count)), logits, labels, present, tuple(modalities))


def make_record(
    method: str = "redeem",
    predictions: Predictions | None = None,
    *,
    status: Status = "finished",
    train_seed: int = 0,
    dataset: str = "openmoji",
    protocol: str = "both_0.7",
    supervision: str = "observed",
    mask: str = "m" * 64,
    backbone: str = "fusion",
    label: str = "",
    preset: str = "clean",
    changed: Sequence[str] = (),
    oracle: bool = False,
    reference: str | None = None,
    audits: Sequence[AuditResult] = (AuditResult("split overlap", True),),
    config: Mapping[str, Any] | None = None,
) -> RunRecord:
    """A record whose accuracy, interval and per-pattern scores come from `predictions`."""
    results = []
    if status == "finished" and predictions is not None:
        right = predictions.logits.argmax(axis=1) == predictions.labels
        patterns = np.array(predictions.patterns())
        rng = np.random.default_rng(0)
        draws = right[rng.integers(len(right), size=(200, len(right)))].mean(axis=1)
        low, high = np.percentile(draws, [2.5, 97.5])
        names = sorted(set(patterns))
        results.append(
            ConditionResult(
                protocol,
                {"accuracy": float(right.mean())},
                {"accuracy": [float(low), float(high)]},
                {name: {"accuracy": float(right[patterns == name].mean())} for name in names},
                {name: int((patterns == name).sum()) for name in names},
            )
        )
    identity = f"{method}|{label}|{preset}|{changed}|{dataset}|{protocol}|{supervision}|{mask}|{backbone}|{train_seed}"
    return RunRecord(
        run_id=hashlib.sha256(identity.encode()).hexdigest(),
        status=status,
        method=method,
        label=label,
        preset=preset,
        changed=list(changed),
        oracle=oracle,
        reference=reference,
        dataset={
            "name": dataset,
            "version": "1",
            "fingerprint": hashlib.sha256(dataset.encode()).hexdigest(),
            "task": {"kind": "multiclass", "num_outputs": 4, "labels": ["a", "b", "c", "d"]},
            "modalities": [{"name": name, "kind": name} for name in MODALITIES],
        },
        protocol={"name": protocol, "supervision": supervision, "mask_seed": 0, "mask_fingerprint": mask},
        seeds={"mask_seed": 0, "train_seed": train_seed, "eval_seed": 0},
        config=dict(config or {"method": {"name": method, "depth": 2}, "protocol": protocol, "train_seed": train_seed}),
        backbone=backbone,
        primary_metric="accuracy",
        metric_versions={"accuracy": "1"},
        results=results,
        valid={"accuracy": 0.7} if results else {},
        history=[{"loss": 1.0 / (epoch + 1), "valid/accuracy": 0.5 + epoch / 100} for epoch in range(5)],
        audits=list(audits),
        cost=Cost(train_seconds=12.5, predict_seconds=0.5, trainable_parameters=123_456, peak_memory_bytes=1 << 28),
        environment={"python": "3.11"},
        error="" if status == "finished" else "TrainingError: the loss is not finite at step 3.",
        started="2026-01-01T00:00:00+00:00",
        finished="2026-01-01T00:01:00+00:00",
    )


@dataclass(frozen=True)
class FakeRun:
    """What `harness.tracking.load_runs` returns, without MLflow."""

    record: RunRecord
    scores: Predictions | None = None
    mlflow_run_id: str = "0" * 32
    experiment_id: str = "1"
    link: str = ""
    found: Findings | None = None

    def predictions(self) -> Predictions:
        """The predictions it was made with."""
        assert self.scores is not None
        return self.scores

    def findings(self) -> Findings | None:
        """The findings it was made with."""
        return self.found


def make_conditions_run(
    method: str, accuracies: Mapping[str, float], *, how: Aggregate = "pool", count: int = 200, **options: Any
) -> FakeRun:
    """A finished run over several test conditions, each with an exact accuracy on the same `count` samples.

    Args:
        method: Its method.
        accuracies: Per condition.
        how: `pool` has the scores `pooled` (first) and `mean_of_patterns`, `mean` only `mean_over_grid`.
        count: Number of samples.
        options: Go to `make_record`.
    """
    seed = 1000 * options.get("train_seed", 0) + len(method)
    parts = {name: make_predictions(accuracy, count, seed=seed) for name, accuracy in accuracies.items()}
    record = make_record(method, next(iter(parts.values())), **options)
    single = {name: make_record(method, part, protocol=name).results[0] for name, part in parts.items()}
    mean = {"accuracy": float(np.mean([result.metrics["accuracy"] for result in single.values()]))}
    names: Mapping[str, Aggregate] = (
        {"pooled": "pool", "mean_of_patterns": "mean"} if how == "pool" else {"mean_over_grid": "mean"}
    )
    # Conditions of one size: the accuracy of the pool is the mean of their accuracies.
    record.results = [
        *(ConditionResult(name, dict(mean), {"accuracy": [0.0, 1.0]}, kind=kind) for name, kind in names.items()),
        *single.values(),
    ]
    record.protocol |= {"conditions": list(parts), "headline": next(iter(names))}
    return FakeRun(record, pool_conditions(parts))


def make_run(method: str, accuracy: float, **options: Any) -> FakeRun:
    """A finished run of `method` with an exact accuracy; `options` go to `make_record`."""
    count = options.pop("count", 200)
    predictions = make_predictions(accuracy, count, seed=1000 * options.get("train_seed", 0) + len(method))
    return FakeRun(make_record(method, predictions, **options), predictions)


def make_findings(run_id: str, cosine: float = 0.8) -> Findings:
    """What `harness inspect` finds in a run over text and image: two recoveries, who was asked, two test samples."""
    sides = (("text", "image"), ("image", "text"))
    spread = [cosine - 0.2, cosine - 0.1, cosine, cosine + 0.05, cosine + 0.1]
    return Findings(
        run_id,
        [Recovery("both_0.7", shown, hidden, 70, cosine, 0.5, 1.0 - cosine, spread) for shown, hidden in sides],
        [Agreement("both_0.7", hidden, 70, 2, 0.5, 0.6, [0.7, 0.3]) for _, hidden in sides],
        [
            Example(
                f"s{number:05d}",
                "both_0.7",
                shown,
                hidden,
                "a",
                "b",
                [Neighbour("t1", "a", 0.9, 0.7, 1.0), Neighbour("t2", "c", 0.8, 0.3, 0.0)],
            )
            for number, (shown, hidden) in enumerate(sides)
        ],
    )
