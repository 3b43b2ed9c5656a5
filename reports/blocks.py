"""Methods over many tables: which of them differ when every data set under a protocol, or every data set, is one block.

The tests are fixed, whatever the results say: Friedman's test over ranks within blocks, Nemenyi's test of every two
methods after it, and Wilcoxon's signed-rank test of every two methods, adjusted by Holm (Demšar, JMLR 7, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from harness.reports.overview import protocol_labels
from harness.reports.statistics import LEVEL, Floats, holm
from harness.reports.table import Table

#: Differences of scores below this are ties: scores are sums of floating-point numbers.
_TIE = 1e-12
#: From so many data sets on each is one block, whatever the number of its protocols.
_DATASETS = 5
#: With fewer blocks the signed-rank test cannot reach the 5 % level.
_SIGNED = 6
#: Up to this many blocks the distribution of signed ranks is counted out, beyond it is practically normal.
_EXACT = 50


@dataclass(frozen=True)
class Duel:
    """Two methods over all blocks.

    Attributes:
        first: Position in `BlockTest.methods` of the one with the better mean rank.
        second: Position of the other one.
        wins: Blocks in which `first` is better.
        ties: Blocks in which both are equal.
        losses: Blocks in which `first` is worse.
        effect: Typical gain of `first` over `second`, in points of the score: the median of the means of all pairs of
            block differences (Hodges and Lehmann); positive where `first` is better, whatever the metric's direction.
            None where the blocks have different metrics, whose points are not the same.
        low: Lower end of its 95 % interval, from the signed-rank test; None for fewer than six blocks, too.
        high: Upper end.
        p: Wilcoxon's signed-rank test, two-sided, zeros split; None where the blocks have different metrics.
        p_holm: Adjusted over all pairs (Holm).
        p_nemenyi: Nemenyi's test, adjusted over all pairs by construction.
    """

    first: int
    second: int
    wins: int
    ties: int
    losses: int
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    p_nemenyi: float


@dataclass(frozen=True)
class BlockTest:
    """Methods over the blocks of one supervision rule, and the numbers of a critical-difference diagram.

    Attributes:
        supervision: What training saw.
        methods: Names, best mean rank first.
        blocks: `data set · protocol`, the protocol as in the overview; from five data sets on `data set`.
        mean_ranks: Mean rank of each method, 1 is best, equal scores share a rank.
        statistic: Friedman's chi-square, corrected for ties.
        p: Its p-value.
        critical_difference: Mean ranks that differ by less cannot be told apart (Nemenyi, 5 %).
        groups: Largest runs of methods within one critical difference, as positions of first and last; single
            methods are left out.
        duels: Every two methods.
        left_out: Methods that lack runs, with how many.
        notes: What a reader must know.
    """

    supervision: str
    methods: list[str]
    blocks: list[str]
    mean_ranks: list[float]
    statistic: float
    p: float
    critical_difference: float
    groups: list[tuple[int, int]]
    duels: list[Duel]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading."""
        return f"{len(self.methods)} methods over {len(self.blocks)} blocks · {self.supervision} supervision"


@dataclass(frozen=True)
class _Cell:
    """One table.

    Attributes:
        dataset: Its data set.
        protocol: Its protocol, with what tells it from the other tables of the data set.
        metric: Its primary metric.
        gains: Train seed -> method -> score, negated where lower is better; only rows that may be ranked.
    """

    dataset: str
    protocol: str
    metric: str
    gains: dict[int, dict[str, float]]


def block_tests(tables: Sequence[Table]) -> list[BlockTest]:
    """One test per supervision rule that has at least three methods in at least two common blocks."""
    found = []
    for supervision in dict.fromkeys(table.key.supervision for table in tables):
        chosen = [table for table in tables if table.key.supervision == supervision]
        names = {row.identity: row.name for table in chosen for row in table.rows}
        test = _test(supervision, [_cell(*pair) for pair in zip(chosen, protocol_labels(chosen), strict=True)], names)
        if test is not None:
            found.append(test)
    return found


def _cell(table: Table, protocol: str) -> _Cell:
    metric, sign = table.key.metric, 1.0 if table.higher_is_better else -1.0
    gains: dict[int, dict[str, float]] = {}
    for row in table.rows:
        for run in () if row.oracle or row.leaks else row.runs:
            if run[metric] is not None:
                gains.setdefault(run["train_seed"], {})[row.identity] = sign * run[metric]
    return _Cell(table.key.dataset, protocol, metric, gains)


def _test(supervision: str, cells: Sequence[_Cell], names: Mapping[str, str]) -> BlockTest | None:
    """The test over the train seeds that most methods have, of the methods that have all of these."""
    everyone = sorted({name for cell in cells for gains in cell.gains.values() for name in gains})
    runs = [(cell, gains) for cell in cells for gains in cell.gains.values()]
    common = [(cell, gains) for cell, gains in runs if 2 * len(gains) > len(everyone)]
    lacking = {name: sum(name not in gains for _, gains in common) for name in everyone}
    methods = [name for name in everyone if not lacking[name]]
    datasets: dict[str, set[str]] = {}
    for cell, _ in common:
        datasets.setdefault(cell.dataset, set()).add(cell.metric)
    whole = len(datasets) >= _DATASETS and all(len(metrics) == 1 for metrics in datasets.values())
    seeds: dict[str, dict[str, list[list[float]]]] = {}
    for cell, gains in common:
        place = f"{cell.dataset} · {cell.protocol}"
        block = seeds.setdefault(cell.dataset if whole else place, {})
        block.setdefault(place, []).append([gains[name] for name in methods])
    if len(methods) < 3 or len(seeds) < 2:
        return None
    blocks = list(seeds)
    # Of the protocols of a block, of the seeds of a protocol.
    scores = np.array([np.mean([np.mean(own, axis=0) for own in parts.values()], axis=0) for parts in seeds.values()])
    ranks = mean_ranks(scores)
    order = sorted(range(len(methods)), key=lambda column: (ranks[column], names[methods[column]]))
    ordered = [float(ranks[column]) for column in order]
    scores = scores[:, order]
    statistic, p = friedman(scores)
    critical = critical_difference(len(methods), len(blocks))
    metrics = sorted(set.union(*datasets.values()))
    return BlockTest(
        supervision,
        [names[methods[column]] for column in order],
        blocks,
        ordered,
        statistic,
        p,
        critical,
        cliques(ordered, critical),
        _duels(scores, ordered, one_metric=len(metrics) == 1),
        [f"{names[name]} ({lacking[name]} of {len(common)} runs missing)" for name in everyone if lacking[name]],
        _notes(sorted(datasets), len(blocks), metrics, (len(runs) - len(common), len(runs)), p),
    )


def _notes(
    datasets: Sequence[str], blocks: int, metrics: Sequence[str], dropped: tuple[int, int], p: float
) -> list[str]:
    """What a reader must know."""
    shared = blocks > len(datasets)
    what = "its mean over train seeds" if shared else "its mean over protocols and train seeds"
    notes = [
        f"A block is one data set{' under one protocol' if shared else ''}: {what}. Train seeds that more than half of "
        "the methods finished count; methods that lack one of these runs are left out.",
        f"Blocks of one data set share their test samples, so they are not independent: the tests speak about "
        f"{', '.join(datasets)} and these test samples, not about data sets in general, and p-values are too small to "
        "be read as such."
        if shared
        else f"The blocks share no test samples: {', '.join(datasets)}.",
    ]
    if dropped[0]:
        notes.append(f"At most half of the methods finished {dropped[0]} of {dropped[1]} train seeds: left out.")
    if len(metrics) > 1:
        notes.append(
            f"The blocks have different metrics ({', '.join(metrics)}): their points are not added up to effects and "
            "signed-rank tests; ranks, wins and losses have no unit."
        )
    elif blocks < _SIGNED:
        notes.append(f"{blocks} blocks are too few for Wilcoxon's test to find any difference at the 5 % level.")
    if p >= LEVEL:
        notes.append("Friedman's test finds no difference: the comparisons of two methods are not to be interpreted.")
    return notes


def mean_ranks(scores: Floats) -> Floats:
    """Mean rank of each column over the rows of `[blocks, methods]`, where the largest score has rank 1."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(-_rounded(scores), axis=1).mean(axis=0))


def _rounded(scores: Floats) -> Floats:
    """Scores without the noise of floating-point sums, so that equal ones tie."""
    return np.round(scores / _TIE) * _TIE


def friedman(scores: Floats) -> tuple[float, float]:
    """Friedman's chi-square with correction for ties, and its p-value, for `[blocks, methods]` with 3 methods or more.

    Where every block is one big tie the methods do not differ: (0, 1).
    """
    from scipy.stats import friedmanchisquare

    rounded = _rounded(scores)
    if (rounded == rounded[:, :1]).all():
        return 0.0, 1.0
    statistic, p = friedmanchisquare(*rounded.T)
    return float(statistic), float(p)


def critical_difference(methods: int, blocks: int, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of mean ranks."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - level, methods, math.inf)) / math.sqrt(2) * _rank_error(methods, blocks)


def nemenyi(ranks: Sequence[float], blocks: int) -> Floats:
    """`[methods, methods]` p-values of Nemenyi's test from mean ranks; 1 on the diagonal."""
    from scipy.stats import studentized_range

    values = np.asarray(ranks, dtype=np.float64)
    apart = np.abs(values[:, None] - values) / _rank_error(len(values), blocks)
    result = np.ones(apart.shape)
    upper = np.triu_indices(len(values), 1)
    result[upper] = studentized_range.sf(apart[upper] * math.sqrt(2), len(values), math.inf)
    return np.minimum(result, result.T)


def _rank_error(methods: int, blocks: int) -> float:
    """Standard error of a difference of two mean ranks where nothing differs."""
    return math.sqrt(methods * (methods + 1) / (6 * blocks))


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """Largest runs of two methods or more whose ascending mean ranks lie within the critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(at for at in range(first, len(ranks)) if ranks[at] - ranks[first] < critical)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def _duels(scores: Floats, ranks: Sequence[float], *, one_metric: bool) -> list[Duel]:
    """Every two columns of `[blocks, methods]`; without effects and signed ranks where metrics are mixed."""
    after = nemenyi(ranks, len(scores))
    pairs = list(combinations(range(scores.shape[1]), 2))
    differences = [scores[:, i] - scores[:, j] for i, j in pairs]
    p_values = [signed_rank(values) for values in differences]
    adjusted = holm(p_values)
    duels = []
    for at, ((i, j), values) in enumerate(zip(pairs, differences, strict=True)):
        wins, losses = int((values > _TIE).sum()), int((values < -_TIE).sum())
        duel = Duel(i, j, wins, len(values) - wins - losses, losses, None, None, None, None, None, float(after[i, j]))
        if one_metric:
            effect, low, high = typical_difference(values)
            duel = replace(duel, effect=effect, low=low, high=high, p=p_values[at], p_holm=adjusted[at])
        duels.append(duel)
    return duels


def signed_rank(differences: Floats) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test; the ranks of zeros are split evenly between both sides."""
    from scipy.stats import wilcoxon

    rounded = _rounded(differences)
    return float(wilcoxon(rounded, zero_method="zsplit").pvalue) if rounded.any() else 1.0


def typical_difference(differences: Floats) -> tuple[float, float | None, float | None]:
    """Hodges and Lehmann's estimate of the typical difference with its 95 % interval.

    The interval holds the shifts that the signed-rank test does not reject; five differences or fewer have none.
    """
    count = len(differences)
    first, second = np.triu_indices(count)
    walsh = np.sort((differences[first] + differences[second]) / 2)
    cut = _signed_rank_cut(count)
    low, high = (None, None) if cut is None else (float(walsh[cut]), float(walsh[-1 - cut]))
    return float(np.median(walsh)), low, high


def _signed_rank_cut(count: int) -> int | None:
    """How many of the sorted pair means lie outside the 95 % interval at either end; None if there is none.

    That is the largest c with P(W < c) <= 2.5 % for the sum W of the positive ranks of `count` differences.
    """
    if count > _EXACT:
        mean, variance = count * (count + 1) / 4, count * (count + 1) * (2 * count + 1) / 24
        return math.floor(mean - 1.959964 * math.sqrt(variance))
    ways: npt.NDArray[np.float64] = np.ones(1)
    for rank in range(1, count + 1):
        grown = np.zeros(len(ways) + rank)
        grown[: len(ways)] += ways
        grown[rank:] += ways
        ways = grown / 2
    below = np.concatenate([[0.0], ways.cumsum()])
    cut = int(np.flatnonzero(below <= LEVEL / 2)[-1])
    return cut - 1 if cut else None
