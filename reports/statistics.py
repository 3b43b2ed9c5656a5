"""Is the difference real: paired bootstrap over seeds and test samples, exact McNemar, Holm.

Everything compares predictions about the same samples under the same masks.  numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.measures import Score, accuracy
from harness.progress import track
from harness.scoring import Layout, draw_counts
from harness.types import Aggregate, Predictions

Metric = Callable[[npt.NDArray[np.float32], npt.NDArray[Any]], float]
Floats = npt.NDArray[np.float64]

#: Draws of metrics that score many resamples at once, and of plain functions, which are called for each.
DRAWS = 10_000
PLAIN_DRAWS = 2_000
#: Level of every test, fixed before any result is seen.
LEVEL = 0.05
#: Two-sided level 0.05 and power 0.8 in standard errors, over the width of a 95 % interval in standard errors.
_DETECTABLE = (1.959964 + 0.841621) / (2 * 1.959964)
_CHUNK = 500
#: Weights of pooled rows held at once (resamples x rows), 32 MB of float64.
_CELLS = 4_000_000


@dataclass(frozen=True)
class Difference:
    """A difference of two scores with its 95 % interval and two-sided p-value, from paired draws."""

    value: float
    low: float
    high: float
    p: float

    @classmethod
    def between(cls, score_a: float, score_b: float, draws_a: Floats, draws_b: Floats) -> Difference:
        """`a - b`, from the columns of one `bootstrap`."""
        draws = draws_a - draws_b
        low, high = interval(draws) or (float("nan"), float("nan"))
        return cls(score_a - score_b, low, high, bootstrap_p(draws))


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same test samples.

    Attributes:
        score_a: Mean over the seeds of method a.
        score_b: Mean over the seeds of method b.
        difference: `score_a - score_b`.
        seeds: Number of runs of a and of b.
        samples: Number of test samples.
        mcnemar: Exact McNemar p-value; only for the accuracy of one run each.
    """

    score_a: float
    score_b: float
    difference: Difference
    seeds: tuple[int, int]
    samples: int
    mcnemar: float | None


def same_samples(runs: Sequence[Predictions]) -> None:
    """Checks that all predictions are about the same samples in the same order, under the same conditions.

    Raises:
        DataError: If ids, labels or conditions differ.
    """
    for run in runs[1:]:
        # Old files note no condition; they hold a single one.
        other = bool(run.condition and runs[0].condition) and run.condition != runs[0].condition
        if other or run.ids != runs[0].ids or not np.array_equal(run.labels, runs[0].labels):
            raise DataError("these predictions are not about the same test samples; they cannot be compared in pairs.")


def _resampled(layout: Layout, metric: Metric, run: Predictions, weights: Floats) -> Floats:
    """`[S]` scores of S resamples, given as counts `[S, samples]`; in pieces where samples have many rows."""
    size = len(weights) if len(run.ids) == layout.samples else max(1, _CELLS // len(run.ids))
    parts = [weights[start : start + size] for start in range(0, len(weights), size)]
    return np.concatenate([layout.resampled(metric, run.logits, run.labels, part) for part in parts])


def bootstrap(
    metric: Metric, rows: Sequence[Sequence[Predictions]], *, seed: int = 0, draws: int = 0, how: Aggregate = "pool"
) -> Floats:
    """Hierarchical bootstrap of the seed-averaged score of several methods, paired over samples.

    Each draw resamples the test samples once for all methods and, for each method by itself, its seeds: so
    differences between columns are paired over samples and carry the variance of training too (a little too
    little of it with few seeds, as every bootstrap: S seeds show (S - 1) / S of their variance).
    A sample that several test conditions show is drawn with its predictions under all of them.

    Args:
        metric: `(logits, labels) -> score`; a `Score` evaluates all resamples at once.
        rows: Per method the predictions of its runs (seeds), all about the same samples.
        seed: Of the resampling.
        draws: Number R of draws; 0 takes `DRAWS`, or `PLAIN_DRAWS` for plain functions.
        how: How several test conditions become one score.

    Returns:
        `[R, rows]` float64; NaN where a resample leaves the metric undefined.

    Raises:
        DataError: If the predictions are not about the same samples.
    """
    same_samples([run for row in rows for run in row])
    rng = np.random.default_rng(seed)
    draws = draws or (DRAWS if isinstance(metric, Score) else PLAIN_DRAWS)
    layout = Layout.of(rows[0][0], how)
    count = layout.samples
    result = np.empty((draws, len(rows)))
    starts = range(0, draws, _CHUNK)
    for start in track(starts, "bootstrap"):
        size = min(_CHUNK, draws - start)
        picks = rng.integers(count, size=(size, count))
        weights = draw_counts(picks)
        for column, row in enumerate(rows):
            scores = np.stack([_resampled(layout, metric, run, weights) for run in row], axis=1)
            chosen = rng.integers(len(row), size=(size, len(row)))
            result[start : start + size, column] = np.take_along_axis(scores, chosen, axis=1).mean(axis=1)
    return result


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the finite draws; None when there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return None
    low, high = np.percentile(finite, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value that the difference is zero: twice the share of draws on the far side of zero.

    One draw is added to either count, so that p is never zero: it cannot fall below `2 / (R + 1)`.
    """
    finite = differences[np.isfinite(differences)]
    tail = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(finite) + 1))


def mcnemar(right_a: npt.NDArray[np.bool_], right_b: npt.NDArray[np.bool_]) -> float:
    """Exact McNemar test: p-value that a and b err equally often, from the samples on which one alone is right."""
    from scipy.stats import binomtest

    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that keep the family-wise error below the level they are read at."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare(
    metric: Metric, a: Sequence[Predictions], b: Sequence[Predictions], *, seed: int = 0, how: Aggregate = "pool"
) -> Comparison:
    """Compares two methods, each with the predictions of one or more seeds; `how` is as in `bootstrap`.

    Raises:
        DataError: If the predictions are not about the same samples.
    """
    draws = bootstrap(metric, [a, b], seed=seed, how=how)
    layout = Layout.of(a[0], how)
    score_a, score_b = (
        float(np.mean([layout.score(metric, run.logits, run.labels) for run in runs])) for runs in (a, b)
    )
    exact = None
    if metric is accuracy and len(a) == len(b) == 1 and layout.samples == len(a[0].ids):
        exact = mcnemar(*(runs[0].logits.argmax(axis=1) == runs[0].labels for runs in (a, b)))
    return Comparison(
        score_a,
        score_b,
        Difference.between(score_a, score_b, draws[:, 0], draws[:, 1]),
        (len(a), len(b)),
        layout.samples,
        exact,
    )


@dataclass(frozen=True)
class PairTest:
    """Columns `first` and `second` of one `bootstrap` against each other, `first` the better or equal one.

    Attributes:
        first: Column.
        second: Column.
        difference: Score of `first` minus score of `second`.
        p_holm: p-value adjusted over all pairs (Holm).
    """

    first: int
    second: int
    difference: Difference
    p_holm: float


def pair_tests(scores: Sequence[float], draws: Floats, *, higher_is_better: bool) -> list[PairTest]:
    """Every two methods against each other, p-values adjusted over all pairs by Holm.

    Args:
        scores: One per method.
        draws: `[R, methods]` from `bootstrap`.
        higher_is_better: Direction of the metric.
    """
    columns = np.ascontiguousarray(draws.T)
    found: list[tuple[int, int, Difference]] = []
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            better, worse = (i, j) if scores[i] == scores[j] or (scores[i] > scores[j]) == higher_is_better else (j, i)
            found.append(
                (better, worse, Difference.between(scores[better], scores[worse], columns[better], columns[worse]))
            )
    adjusted = holm([difference.p for _, _, difference in found])
    return [PairTest(*pair, p_holm=p) for pair, p in zip(found, adjusted, strict=True)]


def ranks(count: int, tests: Sequence[PairTest], level: float = LEVEL) -> list[int]:
    """Rank of each of `count` methods: one more than the number of methods that are significantly better.

    Equal ranks are ties: nothing says which of the two is better.
    """
    result = [1] * count
    for test in tests:
        if test.p_holm < level:
            result[test.second] += 1
    return result


def tie_letters(count: int, tests: Sequence[PairTest], level: float = LEVEL) -> list[str]:
    """Letters of the tie groups of each of `count` methods: two share a letter unless they differ significantly.

    The groups are the largest sets without a significant difference (insert and absorb, Piepho 2004), lettered
    in the order of the methods.
    """
    groups: list[frozenset[int]] = [frozenset(range(count))]
    for test in tests:
        if test.p_holm >= level:
            continue
        apart = {test.first, test.second}
        split = [group - {one} for group in groups if apart <= group for one in apart]
        groups = [group for group in groups if not apart <= group]
        for group in sorted(set(split), key=len, reverse=True):
            if not any(group <= other for other in groups):
                groups.append(group)
    groups.sort(key=sorted)
    return [
        "".join(_letter(number) for number, group in enumerate(groups) if member in group) for member in range(count)
    ]


def _letter(number: int) -> str:
    """`a` to `z`, then `(27)`, `(28)`, …"""
    return chr(ord("a") + number) if number < 26 else f"({number + 1})"


def detectable(low: float, high: float) -> float:
    """Smallest true difference that is found at the 5 % level with a probability of 80 %, from its 95 % interval."""
    return _DETECTABLE * (high - low)


def curve_area(rates: Sequence[float], scores: Sequence[float]) -> float:
    """Area under the curve of scores over rates by trapezoids, divided by the span of the rates: a mean score."""
    return float(np.trapezoid(scores, rates) / (rates[-1] - rates[0]))
