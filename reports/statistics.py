"""Is the difference real: paired bootstrap over seeds and test samples, Student's t for few seeds, exact McNemar, Holm.

Everything compares predictions about the same samples under the same masks.  numpy and scipy only.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
#: Half the width of a normal 95 % interval in standard errors.
NORMAL = 1.959964
#: Two-sided level 0.05 and power 0.8 in standard errors, over the width of a 95 % interval in standard errors.
_DETECTABLE = (NORMAL + 0.841621) / (2 * NORMAL)
#: The normal distribution beyond so many standard errors is less than the smallest number.
_FAR = 37.0
#: Scores of seeds that differ by less are equal: they are sums of floating-point numbers.
_EQUAL = 1e-12
_CHUNK = 500
#: Chunks of one bootstrap, and the most counts that are kept of them (64 MB) for the next table.
_CHUNKS = DRAWS // _CHUNK
_KEPT = 32_000_000
#: Draws beyond zero that are enough to be counted.
_COUNTABLE = 10
#: Numbers of prepared runs held at once (samples x columns), 128 MB of float64.
_PREPARED = 16_000_000


@dataclass(frozen=True)
class Draws:
    """One method in a `bootstrap`.

    Attributes:
        values: `[R]` float64, its seed-averaged score in each draw; NaN where a resample leaves the metric undefined.
        seeds: Number S of its seeds.
        seed_variance: Variance s² / S of its mean that comes from the choice of seeds; 0 where they do not differ.
        drawn_seed_variance: The same as the draws show it, in the mean.  A resample of the test samples adds what each
            seed has of them for itself, which is in s² already.
    """

    values: Floats
    seeds: int
    seed_variance: float
    drawn_seed_variance: float

    def interval(self, score: float) -> tuple[float, float] | None:
        """95 % interval of its score, see `spanned`; None without a finite draw."""
        return spanned(score, self.values, Spread.of(self.values, self))


@dataclass(frozen=True)
class Spread:
    """What the error of a score, or of a difference of two, is made of where several seeds differ.

    The variance between S seeds is itself measured on S numbers only.  Draws of two or three seeds take it for known,
    and a normal tail with it finds differences that are none.

    Attributes:
        samples: Variance from the choice of test samples that the seeds share.  They are many: the normal distribution.
        seeds: Variance from the choice of seeds, which are few: Student's t.
        freedom: Its degrees of freedom (Welch, Biometrika 34, 1947).
    """

    samples: float
    seeds: float
    freedom: float

    @classmethod
    def of(cls, values: Floats, *parts: Draws) -> Spread | None:
        """Of draws that are made of those of `parts`; None where no part has seeds that differ."""
        several = [part for part in parts if part.seed_variance > 0]
        seeds = sum(part.seed_variance for part in several)
        finite = _finite(values)
        if not seeds or not finite.size:
            return None
        # What a seed has of the test samples for itself is in the draws three times, as in every bootstrap of both ways
        # of a table (Owen, Annals of Applied Statistics 1, 2007).
        thrice = sum(2 * part.drawn_seed_variance - part.seed_variance for part in several)
        freedom = seeds**2 / sum(part.seed_variance**2 / (part.seeds - 1) for part in several)
        return cls(max(0.0, float(finite.var()) - thrice), seeds, freedom)

    def reach(self, z: float = NORMAL) -> float:
        """How large an error is as unlikely as a normal one of `z` standard errors: the root of z² samples + t² seeds.

        Here t is as unlikely in Student's distribution as z in the normal one.  The tail of the normal distribution is
        convex in z², so that larger errors are no likelier for any mixture of the two variances than for either alone.
        (Degrees of freedom of their sum, after Satterthwaite, would let too much into the far tail that Holm reads.)
        """
        from scipy.special import ndtr, stdtrit

        t = abs(float(stdtrit(self.freedom, float(ndtr(-z)))))
        return math.hypot(z * math.sqrt(self.samples), t * math.sqrt(self.seeds))

    def p(self, value: float) -> float:
        """Two-sided p-value that the true value is zero."""
        from scipy.optimize import bisect
        from scipy.special import ndtr

        # t is never below z, so `reach` is never below as many standard errors.
        most = min(_FAR, abs(value) / math.sqrt(self.samples + self.seeds))
        z = most if self.reach(most) <= abs(value) else bisect(lambda z: self.reach(z) - abs(value), 0, most, xtol=1e-8)
        return 2 * float(ndtr(-z))


@dataclass(frozen=True)
class Difference:
    """A difference of two scores with its 95 % interval and two-sided p-value, from paired draws."""

    value: float
    low: float
    high: float
    p: float

    @classmethod
    def between(cls, score_a: float, score_b: float, draws_a: Draws, draws_b: Draws) -> Difference:
        """`a - b`, from two methods of one `bootstrap`; p is never below that of Student's t, where seeds differ."""
        draws, value = _finite(draws_a.values - draws_b.values), score_a - score_b
        spread = Spread.of(draws, draws_a, draws_b)
        low, high = spanned(value, draws, spread) or (float("nan"), float("nan"))
        p = bootstrap_p(draws)
        return cls(value, low, high, p if spread is None or math.isnan(value) else max(p, spread.p(value)))


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


def bootstrap(
    metric: Metric, rows: Sequence[Sequence[Predictions]], *, seed: int = 0, draws: int = 0, how: Aggregate = "pool"
) -> list[Draws]:
    """Hierarchical bootstrap of the seed-averaged score of several methods, paired over samples.

    Each draw resamples the test samples once for all methods and, for each method by itself, S - 1 of its S seeds
    with replacement: so differences between methods are paired over samples and carry the variance of training too.
    (S draws of S seeds would show only (S - 1) / S of it: Rao and Wu, JASA 83, 1988.  A single seed shows none.)
    A sample that several test conditions show is drawn with its predictions under all of them.

    Args:
        metric: `(logits, labels) -> score`; a `Score` evaluates all resamples at once.
        rows: Per method the predictions of its runs (seeds), all about the same samples.
        seed: Of the resampling.
        draws: Number R of draws; 0 takes `DRAWS`, or `PLAIN_DRAWS` for plain functions.
        how: How several test conditions become one score.

    Returns:
        One entry per method.

    Raises:
        DataError: If the predictions are not about the same samples.
    """
    same_samples([run for row in rows for run in row])
    draws = draws or (DRAWS if isinstance(metric, Score) else PLAIN_DRAWS)
    layout = Layout.of(rows[0][0], how)
    count = layout.samples
    values, spreads = np.empty((2, len(rows), draws))
    starts = range(0, draws, _CHUNK)
    scorers = _scorers(metric, layout, rows)
    # Of its own, so that the draws of samples do not depend on the number of rows.
    rng = np.random.default_rng([seed, 1])
    ends = np.cumsum([len(row) for row in rows])[:-1]
    for start in track(starts, "bootstrap"):
        size = min(_CHUNK, draws - start)
        weights = _weights(count, start, size, seed)
        scores = np.hstack([scorer(weights) for scorer in scorers])
        for column, own in enumerate(np.split(scores, ends, axis=1)):
            seeds = own.shape[1]
            chosen = rng.integers(seeds, size=(size, max(1, seeds - 1)))
            values[column, start : start + size] = np.take_along_axis(own, chosen, axis=1).mean(axis=1)
            spreads[column, start : start + size] = _seed_variance(own)
    plain = np.hstack([scorer(np.ones((1, count))) for scorer in scorers])
    result = []
    for made, spread, own in zip(values, spreads, np.split(plain, ends, axis=1), strict=True):
        differ = bool(np.ptp(own) > _EQUAL)
        variances = (_seed_variance(own).item(), float(_finite(spread).mean())) if differ else (0.0, 0.0)
        result.append(Draws(made, own.shape[1], *variances))
    return result


def _seed_variance(scores: Floats) -> Floats:
    """`[R]` from the scores `[R, S]` of S seeds: the variance of their mean that comes from the choice of seeds."""
    seeds = scores.shape[1]
    return np.zeros(len(scores)) if seeds == 1 else np.asarray(scores.var(axis=1, ddof=1) / seeds)


def _weights(count: int, start: int, size: int, seed: int) -> Floats:
    """How often each of `count` samples is drawn, `[size, count]`; tables of one data set share them."""
    if size * count > _KEPT // _CHUNKS:
        return _counted(count, start, size, seed).astype(np.float64)
    return _kept(count, start, size, seed).astype(np.float64)


def _counted(count: int, start: int, size: int, seed: int) -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng([seed, 0, start])
    return draw_counts(rng.integers(count, size=(size, count))).astype(np.uint16)


_kept = lru_cache(maxsize=_CHUNKS)(_counted)


def _scorers(metric: Metric, layout: Layout, rows: Sequence[Sequence[Predictions]]) -> list[Callable[[Floats], Floats]]:
    """Together they score all runs, row by row, under weightings of the samples."""
    runs = [run for row in rows for run in row]
    labels = runs[0].labels
    # What a metric keeps of a sample is at most a few numbers per output and test condition.
    step = max(1, _PREPARED // (3 * runs[0].logits.size))
    batches = [[run.logits for run in runs[start : start + step]] for start in range(0, len(runs), step)]
    if len(batches) == 1:
        return [layout.resampler(metric, batches[0], labels)]
    # Too much to prepare all at once: prepared anew for every chunk of draws.
    return [lambda weights, part=part: layout.resampler(metric, part, labels)(weights) for part in batches]  # type: ignore[misc]


def _finite(values: Floats) -> Floats:
    """The finite values; the array itself where all are."""
    finite = np.isfinite(values)
    return values if finite.all() else values[finite]


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the finite draws; None when there is none."""
    finite = _finite(values)
    if not finite.size:
        return None
    low, high = np.percentile(finite, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def spanned(value: float, draws: Floats, spread: Spread | None) -> tuple[float, float] | None:
    """95 % interval of a score or difference: its percentiles, stretched to Student's interval where seeds differ."""
    span = interval(draws)
    if span is None or spread is None:
        return span
    reach = spread.reach()
    return min(span[0], value - reach), max(span[1], value + reach)


def bootstrap_p(differences: Floats) -> float:
    """Two-sided p-value that the difference is zero: twice the share of draws on the far side of zero.

    One draw is added to either count, so that p is never zero.  Where too few draws lie there to be counted, the tail
    of the normal distribution with their mean and spread takes over: counted shares cannot fall below `2 / (R + 1)`,
    and adjusted over some hundred pairs no difference would ever be significant.
    """
    finite = _finite(differences)
    tail = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    counted = min(1.0, 2 * (tail + 1) / (len(finite) + 1))
    if tail >= _COUNTABLE:
        return counted
    if not len(finite) or finite.min() == finite.max():
        return counted
    normal = math.erfc(abs(float(finite.mean())) / float(finite.std()) / math.sqrt(2))
    return min(counted, max(normal, sys.float_info.min))


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
        Difference.between(score_a, score_b, *draws),
        (len(a), len(b)),
        layout.samples,
        exact,
    )


@dataclass(frozen=True)
class PairTest:
    """Methods `first` and `second` of one `bootstrap` against each other, `first` the better or equal one.

    Attributes:
        first: Its position.
        second: Its position.
        difference: Score of `first` minus score of `second`.
        p_holm: p-value adjusted over all pairs (Holm).
    """

    first: int
    second: int
    difference: Difference
    p_holm: float


def pair_tests(scores: Sequence[float], draws: Sequence[Draws], *, higher_is_better: bool) -> list[PairTest]:
    """Every two methods against each other, p-values adjusted over all pairs by Holm.

    Args:
        scores: One per method.
        draws: One per method, from one `bootstrap`.
        higher_is_better: Direction of the metric.
    """
    found: list[tuple[int, int, Difference]] = []
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            better, worse = (i, j) if scores[i] == scores[j] or (scores[i] > scores[j]) == higher_is_better else (j, i)
            difference = Difference.between(scores[better], scores[worse], draws[better], draws[worse])
            found.append((better, worse, difference))
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
    """Smallest true difference that is found at the 5 % level with a probability of 80 %, from its 95 % interval.

    With few seeds it is somewhat less: 0.64 of the width of Student's interval for two seeds, not 0.71.
    """
    return _DETECTABLE * (high - low)


def curve_area(rates: Sequence[float], scores: Sequence[float]) -> float:
    """Area under the curve of scores over rates by trapezoids, divided by the span of the rates: a mean score."""
    return float(np.trapezoid(scores, rates) / (rates[-1] - rates[0]))
