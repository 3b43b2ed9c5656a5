"""Scores of predictions: overall, per missing pattern, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import TrainingError
from harness.measures import Score, exact
from harness.metrics import metric_for, metrics_for
from harness.types import Aggregate, Predictions, TaskSpec, iterate_patterns, pattern_name

#: Weights held at once while bootstrapping (samples x resamples), 32 MB of float64.
_CHUNK = 4_000_000


Floats = npt.NDArray[np.float64]
Function = Callable[[npt.NDArray[Any], npt.NDArray[Any]], float]


@dataclass(frozen=True)
class Layout:
    """Which rows of predictions are about one sample, and how rows of several test conditions become one score.

    Attributes:
        sample: `[N]` int64, 0 to `samples` - 1: the sample that each row is about.
        samples: Number of samples.
        groups: Rows of each condition; the score is the mean of theirs.  One group of all rows scores the pool.
    """

    sample: npt.NDArray[np.int64]
    samples: int
    groups: tuple[npt.NDArray[np.int64], ...]

    @classmethod
    def plain(cls, count: int) -> Layout:
        """N rows about N samples."""
        rows = np.arange(count)
        return cls(rows, count, (rows,))

    @classmethod
    def of(cls, predictions: Predictions, how: Aggregate) -> Layout:
        """Rows with the same id are one sample; rows with the same condition one group, or all of them for `pool`."""
        numbers: dict[str, int] = {}
        sample = np.array([numbers.setdefault(name, len(numbers)) for name in predictions.ids], dtype=np.int64)
        groups: dict[str, list[int]] = {}
        for row, condition in enumerate(predictions.condition if how == "mean" else ("",) * len(sample)):
            groups.setdefault(condition, []).append(row)
        return cls(sample, len(numbers), tuple(np.array(rows, dtype=np.int64) for rows in groups.values()))

    def score(self, function: Function, logits: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
        """The score; NaN where the metric is not defined on one of the groups."""
        return float(np.mean([function(logits[rows], labels[rows]) for rows in self.groups]))

    def resampled(
        self, function: Function, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Floats
    ) -> Floats:
        """Scores `[S]` of resamples, given as `weights` `[S, samples]`: how often each sample is drawn."""
        total = np.zeros(len(weights))
        for rows in self.groups:
            # A copy of what is whole and in order already would cost memory and change no number.
            whole = len(rows) == len(self.sample) == self.samples
            counts = weights if whole else weights[:, self.sample[rows]]
            if isinstance(function, Score):
                total += function.resampled(logits[rows], labels[rows], counts)
            else:
                picks = [np.repeat(rows, times.astype(np.int64)) for times in counts]
                total += [float(function(logits[chosen], labels[chosen])) for chosen in picks]
        return total / len(self.groups)

    def resampler(
        self, function: Function, runs: Sequence[npt.NDArray[Any]], labels: npt.NDArray[Any]
    ) -> Callable[[Floats], Floats]:
        """`weights` `[S, samples]` -> `[S, runs]`: what `resampled` gives for the logits of each run, but faster.

        Metrics that follow from sums over samples are scored for all runs in one matrix product.
        """
        parts = function.parts if isinstance(function, Score) else None
        if parts is None:
            return lambda weights: np.stack([self._in_pieces(function, run, labels, weights) for run in runs], axis=1)
        kept, values, single = [], [], False
        for run in runs:
            for rows in self.groups:
                per_row, value = parts(*exact(run[rows], labels[rows]))
                single = per_row.ndim == 1
                kept.append(self._per_sample(per_row[:, None] if single else per_row, rows))
                values.append(value)
        ends = np.cumsum([block.shape[1] for block in kept])[:-1]
        matrix = np.hstack(kept)
        sizes = np.hstack([self._per_sample(np.ones((len(rows), 1)), rows) for rows in self.groups])

        def scores(weights: Floats) -> Floats:
            sums, totals = weights @ matrix, np.tile(weights @ sizes, len(runs))
            if single:
                found = values[0](sums, totals)
            else:
                blocks = np.split(sums, ends, axis=1)
                columns = [value(block, total) for value, block, total in zip(values, blocks, totals.T, strict=True)]
                found = np.stack(columns, axis=1)
            grouped = found.reshape(len(weights), len(runs), len(self.groups))
            return np.asarray(grouped.sum(axis=2) / len(self.groups))

        return scores

    def _per_sample(self, values: Floats, rows: npt.NDArray[np.int64]) -> Floats:
        """`[samples, K]` sums of the values `[n, K]` of the given rows."""
        summed = np.zeros((self.samples, values.shape[1]))
        np.add.at(summed, self.sample[rows], values)
        return summed

    def _in_pieces(
        self, function: Function, logits: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Floats
    ) -> Floats:
        """`resampled`, a few draws at a time where samples have many rows, to bound memory."""
        size = len(weights) if len(logits) == self.samples else max(1, _CHUNK // len(logits))
        parts = [weights[start : start + size] for start in range(0, len(weights), size)]
        return np.concatenate([self.resampled(function, logits, labels, part) for part in parts])


def draw_counts(picks: npt.NDArray[np.int64]) -> Floats:
    """How often each of n samples was drawn, `[S, n]`, from S draws `[S, n]` of their numbers."""
    resamples, count = picks.shape
    cells = picks + np.arange(resamples)[:, None] * count
    return np.bincount(cells.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)


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


def evaluate_aggregate(
    task: TaskSpec, predictions: Predictions, how: Aggregate, names: Sequence[str] | None = None
) -> dict[str, float]:
    """One score per metric over several test conditions: of their pool, or the mean of their scores.

    A mean over conditions of which one is undefined is NaN: an incomplete grid is never averaged.

    Raises:
        TrainingError: If logits are not finite or not of shape `[N, C]`.
    """
    groups = Layout.of(predictions, how).groups
    parts = [evaluate(task, predictions.logits[rows], predictions.labels[rows], names) for rows in groups]
    return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def bootstrap_interval(
    task: TaskSpec,
    metric: str,
    logits: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    seed: int,
    samples: int = 1000,
    level: float = 0.95,
    layout: Layout | None = None,
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
        layout: With several test conditions, which rows are one sample and how their scores become one: a sample
            is drawn with all its rows.

    Raises:
        TrainingError: If logits are not finite or not of shape `[N, C]`.
        UsageError: If the metric is unknown or not defined for the task.
    """
    _check(task, logits, labels)
    function = metric_for(task, metric).implementation()
    layout = layout or Layout.plain(len(labels))
    count = layout.samples
    if count == 0 or np.isnan(layout.score(function, logits, labels)):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(labels))
    parts = []
    for start in range(0, samples, step):
        picks = generator.integers(0, count, (min(step, samples - start), count))
        parts.append(layout.resampled(function, logits, labels, draw_counts(picks)))
    scores = np.concatenate(parts)
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return float("nan"), float("nan")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
