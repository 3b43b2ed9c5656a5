"""Methods over many cells: which of them differ when every data set, protocol and train seed is one block.

The tests are fixed, whatever the results say: Friedman's test over ranks within blocks, Nemenyi's test of every two
methods after it, and Wilcoxon's signed-rank test of every two methods, adjusted by Holm (Demšar, JMLR 7, 2006).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from harness.reports.statistics import LEVEL, Floats, holm
from harness.reports.table import Table

#: Differences of scores below this are ties: scores are sums of floating-point numbers.
_TIE = 1e-12
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
        low: Lower end of its 95 % interval, from the signed-rank test; None for fewer than six blocks.
        high: Upper end.
        p: Wilcoxon's signed-rank test, two-sided, zeros split.
        p_holm: Adjusted over all pairs (Holm).
        p_nemenyi: Nemenyi's test, adjusted over all pairs by construction.
    """

    first: int
    second: int
    wins: int
    ties: int
    losses: int
    effect: float
    low: float | None
    high: float | None
    p: float
    p_holm: float
    p_nemenyi: float


@dataclass(frozen=True)
class BlockTest:
    """Methods over the blocks of one supervision rule, and the numbers of a critical-difference diagram.

    Attributes:
        supervision: What training saw.
        methods: Names, best mean rank first.
        blocks: `data set · protocol · seed`, with as much as tells them apart.
        mean_ranks: Mean rank of each method, 1 is best, equal scores share a rank.
        statistic: Friedman's chi-square, corrected for ties.
        p: Its p-value.
        critical_difference: Mean ranks that differ by less cannot be told apart (Nemenyi, 5 %).
        groups: Largest runs of methods within one critical difference, as positions of first and last; single
            methods are left out.
        duels: Every two methods.
        left_out: Methods that lack blocks, with how many.
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


def block_tests(tables: Sequence[Table]) -> list[BlockTest]:
    """One test per supervision rule that has at least three methods in at least two common blocks."""
    found = []
    for supervision in dict.fromkeys(table.key.supervision for table in tables):
        chosen = [table for table in tables if table.key.supervision == supervision]
        test = _test(supervision, gains(chosen), {table.key.dataset for table in chosen})
        if test is not None:
            found.append(test)
    return found


def gains(tables: Sequence[Table]) -> dict[str, dict[str, float]]:
    """Block -> method -> score of its run, negated where lower is better; only rows that may be ranked."""
    blocks: dict[str, dict[str, float]] = {}
    twins: dict[tuple[str, str], set[str]] = {}
    for table in tables:
        twins.setdefault((table.key.dataset, table.key.protocol), set()).add(_full(table))
    for table in tables:
        key = table.key
        masks = f" · {_full(table)}" if len(twins[key.dataset, key.protocol]) > 1 else ""
        for row in table.rows:
            if row.oracle or row.leaks:
                continue
            for run in row.runs:
                if run[key.metric] is not None:
                    block = f"{key.dataset} · {key.protocol}{masks} · seed {run['train_seed']}"
                    blocks.setdefault(block, {})[row.name] = run[key.metric] * (1.0 if table.higher_is_better else -1.0)
    return blocks


def _full(table: Table) -> str:
    key = table.key
    return f"{key.condition} {key.metric} {key.metric_version} {key.mask_fingerprint[:8]} {key.dataset_fingerprint[:8]}"


def _test(supervision: str, blocks: Mapping[str, Mapping[str, float]], datasets: set[str]) -> BlockTest | None:
    """The test over the blocks that most methods have, of the methods that have all of these."""
    everyone = sorted({name for scores in blocks.values() for name in scores})
    common = [block for block, scores in blocks.items() if 2 * len(scores) > len(everyone)]
    lacking = {name: sum(name not in blocks[block] for block in common) for name in everyone}
    methods = [name for name in everyone if not lacking[name]]
    if len(methods) < 3 or len(common) < 2:
        return None
    scores = np.array([[blocks[block][name] for name in methods] for block in common])
    ranks = mean_ranks(scores)
    order = sorted(range(len(methods)), key=lambda column: (ranks[column], methods[column]))
    scores, methods = scores[:, order], [methods[column] for column in order]
    ordered = [float(ranks[column]) for column in order]
    statistic, p = friedman(scores)
    critical = critical_difference(len(methods), len(common))
    left_out = [f"{name} ({lacking[name]} of {len(common)} blocks missing)" for name in everyone if lacking[name]]
    notes = [
        "A block is one data set, protocol and train seed that more than half of the methods finished; methods that "
        "lack one are left out.",
        f"Blocks of one data set share their test samples: the tests speak about {', '.join(sorted(datasets))}, not "
        "about data sets in general.",
    ]
    if len(blocks) > len(common):
        notes.append(f"{len(blocks) - len(common)} blocks that at most half of the methods finished are left out.")
    if p >= LEVEL:
        notes.append("Friedman's test finds no difference: the comparisons of two methods are not to be interpreted.")
    duels = _duels(scores, ordered)
    return BlockTest(
        supervision,
        methods,
        common,
        ordered,
        statistic,
        p,
        critical,
        cliques(ordered, critical),
        duels,
        left_out,
        notes,
    )


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


def _duels(scores: Floats, ranks: Sequence[float]) -> list[Duel]:
    after = nemenyi(ranks, len(scores))
    pairs = list(combinations(range(scores.shape[1]), 2))
    differences = [scores[:, i] - scores[:, j] for i, j in pairs]
    p_values = [signed_rank(values) for values in differences]
    duels = []
    for (i, j), values, p, adjusted in zip(pairs, differences, p_values, holm(p_values), strict=True):
        wins, losses = int((values > _TIE).sum()), int((values < -_TIE).sum())
        effect, low, high = typical_difference(values)
        ties = len(values) - wins - losses
        duels.append(Duel(i, j, wins, ties, losses, effect, low, high, p, adjusted, float(after[i, j])))
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
