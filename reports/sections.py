"""What a report shows beside its tables, as grids of text: overview, tests over blocks, published numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.reports.blocks import BlockTest
from harness.reports.overview import Overview, OverviewCell
from harness.reports.table import Table

EMPTY = "–"
#: More pairs of methods than this are left to the JSON file.
_MANY_DUELS = 45


@dataclass(frozen=True)
class Section:
    """A grid of text under a heading.

    Attributes:
        title: Heading.
        headers: One per column; the first column names the row.
        rows: Cells.
        notes: Lines below.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    notes: list[str]


def score_text(value: float) -> str:
    """A score: four decimals."""
    return f"{value:.4f}"


def p_text(value: float) -> str:
    """A p-value."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def overview_section(overview: Overview) -> Section:
    """Methods by data set and protocol: score, rank in parentheses, seeds where some are missing."""
    heads = [
        f"{column.dataset} {column.protocol}" + ("" if overview.one_metric else f" ({column.metric})")
        for column in overview.columns
    ]
    averaged = any(row.mean is not None for row in overview.rows)
    rows = [
        [
            row.name,
            *(_overview_cell(cell) for cell in row.cells),
            *([EMPTY if row.mean is None else score_text(row.mean)] if averaged else []),
        ]
        for row in overview.rows
    ]
    metric = f" · {overview.columns[0].metric}" if overview.one_metric else ""
    guide = "In parentheses the rank among the rows of the column's own table; rows without one are not ranked."
    return Section(
        overview.title + metric, ["method", *heads, *(["mean"] if averaged else [])], rows, [guide, *overview.notes]
    )


def _overview_cell(cell: OverviewCell | None) -> str:
    if cell is None:
        return EMPTY
    if cell.score is None:
        return cell.status
    rank = f" ({cell.rank})" if cell.rank is not None else ""
    return score_text(cell.score) + rank + ("" if cell.complete else f", {cell.seeds} of {cell.wanted} seeds")


def published_section(table: Table) -> Section | None:
    """Published numbers beside ours, and what was refused; None where nothing is published."""
    if not table.published and not table.refused:
        return None
    rows = []
    for one in table.published:
        spread = f" ± {score_text(one.published.spread)}" if one.published.spread else ""
        ours = score_text(one.ours) + (f" ± {score_text(one.spread)}" if one.spread is not None else "")
        span = EMPTY if one.low is None or one.high is None else f"[{score_text(one.low)}, {score_text(one.high)}]"
        rows.append(
            [
                table.rows[one.row].name,
                " ".join(filter(None, (one.condition, one.metric))),
                score_text(one.published.value) + spread,
                ours,
                str(one.seeds),
                span,
                one.verdict,
                f"{one.published.paper}, {one.published.table} ({one.published.confidence}, {one.published.how_read})",
            ]
        )
    headers = ["method", "metric", "published", "ours ± SD", "seeds", "expected", "verdict", "source"]
    return Section(f"Published beside ours · {table.title}", headers, rows, list(table.refused))


def blocks_section(test: BlockTest) -> Section:
    """Mean ranks, with the groups that Nemenyi's test cannot tell apart as letters."""
    rows = [
        [
            name,
            f"{rank:.2f}",
            "".join(chr(97 + n % 26) for n, (low, high) in enumerate(test.groups) if low <= at <= high),
        ]
        for at, (name, rank) in enumerate(zip(test.methods, test.mean_ranks, strict=True))
    ]
    friedman = (
        f"Friedman's chi-square {test.statistic:.2f}, {p_text(test.p)}; Nemenyi's critical difference of mean ranks "
        f"{test.critical_difference:.2f} (5 %): methods that share a letter lie within it."
    )
    left_out = [f"Left out: {', '.join(test.left_out)}."] if test.left_out else []
    return Section(test.title, ["method", "mean rank", "tie"], rows, [friedman, *left_out, *test.notes])


def wins_section(test: BlockTest) -> Section:
    """Wins, ties and losses of each row's method against each column's."""
    size = len(test.methods)
    cells = [[EMPTY] * size for _ in range(size)]
    for duel in test.duels:
        cells[duel.first][duel.second] = f"{duel.wins}/{duel.ties}/{duel.losses}"
        cells[duel.second][duel.first] = f"{duel.losses}/{duel.ties}/{duel.wins}"
    rows = [[name, *line] for name, line in zip(test.methods, cells, strict=True)]
    note = "Blocks in which the row's method is better, equal and worse than the column's."
    return Section(f"Wins, ties, losses · {test.title}", ["method", *test.methods], rows, [note])


def duels_section(test: BlockTest) -> Section:
    """Every two methods: effect with its interval, and both tests; the best few of many."""
    shown = test.duels[:_MANY_DUELS]
    rows = [
        [
            f"{test.methods[duel.first]} against {test.methods[duel.second]}",
            EMPTY if duel.effect is None else f"{duel.effect:+.4f}",
            EMPTY if duel.low is None or duel.high is None else f"[{duel.low:+.4f}, {duel.high:+.4f}]",
            EMPTY if duel.p is None else p_text(duel.p),
            EMPTY if duel.p_holm is None else p_text(duel.p_holm),
            p_text(duel.p_nemenyi),
        ]
        for duel in shown
    ]
    notes = [
        "The effect is the typical gain over a block (Hodges and Lehmann) with its 95 % interval; p is Wilcoxon's "
        "signed-rank test, alone and adjusted over all pairs (Holm), beside Nemenyi's."
    ]
    if len(test.duels) > len(shown):
        notes.append(f"{len(test.duels) - len(shown)} more pairs stand in report.json.")
    headers = ["methods", "effect", "95 % interval", "Wilcoxon", "Holm", "Nemenyi"]
    return Section(f"Every two methods · {test.title}", headers, rows, notes)


#: In the order of the files; a terminal shows the first.
BLOCK_SECTIONS: tuple[Callable[[BlockTest], Section], ...] = (blocks_section, wins_section, duels_section)
