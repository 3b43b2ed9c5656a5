"""Scores of predictions: overall, per missing pattern, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import TrainingError
from harness.measures import Score
from harness.metrics import metric_for, metrics_for
from harness.types import Predictions, TaskSpec, iterate_patterns, pattern_name

#: Weights held at once while bootstrapping (samples x resamples), 32 MB of float64.
_CHUNK = 4_000_000


def evaluate(
    task: TaskSpec, logits: npt.NDArray[Any], labels: npt.NDArray[Any], names: Sequence[str] | None = None
) -> dict[str, float]:
    """Scores of logits against labels; NaN where a metric is not defined on these samples.

    Args:
        task: What the columns mean.
        logits: `[N, C]`; for regression the predicted values.
        labels: `[N]` class indices or `[N, C]` rows.
        names: Which metrics; None means `metrics_for(task)`.

    Raises:
        TrainingError: If logits are not finite or not of shape `[N, C]`.
        UsageError: If a metric is unknown or not defined for the task.
    """
    _check(task, logits, labels)
    chosen = metrics_for(task) if names is None else names
    return {name: float(metric_for(task, name).implementation()(logits, labels)) for name in chosen}


def evaluate_predictions(
    task: TaskSpec, predictions: Predictions, names: Sequence[str] | None = None
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, int]]:
    """Scores over all samples and per missing pattern.

    Returns:
        Metric -> value; pattern -> metric -> value; pattern -> number of samples.  Patterns that occur come
        fewest modalities first.

    Raises:
        TrainingError: If logits are not finite or not of shape `[N, C]`.
    """
    overall = evaluate(task, predictions.logits, predictions.labels, names)
    present = np.asarray(predictions.present, dtype=np.bool_)
    per_pattern: dict[str, dict[str, float]] = {}
    counts: dict[str, int] = {}
    for pattern in [*iterate_patterns(predictions.modalities), (False,) * len(predictions.modalities)]:
        rows = np.flatnonzero((present == np.array(pattern)).all(axis=1))
        if rows.size:
            name = pattern_name(pattern, predictions.modalities)
            per_pattern[name] = evaluate(task, predictions.logits[rows], predictions.labels[rows], names)
            counts[name] = int(rows.size)
    return overall, per_pattern, counts


def bootstrap_interval(
    task: TaskSpec,
    metric: str,
    logits: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    seed: int,
    samples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of one metric over test samples (Efron 1979).

    Resamples on which the metric is not defined are left out; without a score there is no interval (NaN, NaN).
    Repeated samples favour average precision, so with few positives its interval lies too high.
    Built-in metrics score all resamples at once; a plugin's plain function is called once for each.

    Args:
        task: What the columns mean.
        metric: Registered name.
        logits: `[N, C]`.
        labels: `[N]` or `[N, C]`.
        seed: Decides the resamples; the same for the same N whatever the metric.
        samples: Number of resamples.
        level: Coverage, between 0 and 1.

    Raises:
        TrainingError: If logits are not finite or not of shape `[N, C]`.
        UsageError: If the metric is unknown or not defined for the task.
    """
    _check(task, logits, labels)
    function = metric_for(task, metric).implementation()
    count = len(labels)
    if count == 0 or np.isnan(function(logits, labels)):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // count)
    scores = np.concatenate(
        [
            _resampled(function, logits, labels, generator.integers(0, count, (min(step, samples - start), count)))
            for start in range(0, samples, step)
        ]
    )
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    function: Callable[..., Any], logits: npt.NDArray[Any], labels: npt.NDArray[Any], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Scores `[S]` of the resamples given by `rows` `[S, N]`."""
    if not isinstance(function, Score):
        return np.array([float(function(logits[chosen], labels[chosen])) for chosen in rows])
    resamples, count = rows.shape
    cells = rows + np.arange(resamples)[:, None] * count
    weights = np.bincount(cells.ravel(), minlength=resamples * count).reshape(resamples, count)
    return function.resampled(logits, labels, weights.astype(np.float64))


def _check(task: TaskSpec, logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    if logits.shape != (len(labels), task.num_outputs):
        raise TrainingError(
            f"logits have shape {list(logits.shape)}, expected [{len(labels)}, {task.num_outputs}] "
            "(samples, outputs); mend the method's predict_step."
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if bad.size:
        raise TrainingError(
            f"logits of {bad.size} of {len(labels)} samples are NaN or infinite (first: row {bad[0]}); "
            "lower trainer.lr, set trainer.grad_clip, or look at these samples."
        )
