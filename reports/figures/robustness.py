"""Score against the missing rate, with 95 % bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.reports.details import Inspected, condition_bands
from harness.reports.figures.style import COLOURS, DASHES, MARKERS, kind, new, scored, short
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More lines cannot be told apart; references come first, then the best methods.
MOST_LINES = 8


def draw(table: Table, behind: Sequence[Sequence[Inspected]]) -> Figure | None:
    """One line a row over a grid of rates; None for protocols without one."""
    if len(table.rates) < 2:
        return None
    rate_of = dict(zip(table.conditions, table.rates, strict=True))
    lines = []
    for index, row in sorted(scored(table), key=lambda item: kind(item[1]) == "method"):
        bands = condition_bands([run.record for run in behind[index]], table.key.metric)
        points = sorted((rate_of[band.condition], band) for band in bands if band.condition in rate_of)
        if len(points) > 1:
            lines.append((index, row, points))
    if not lines:
        return None
    shown = sorted(lines[:MOST_LINES])
    figure, axes = new(5.2, 3.2)
    for place, (_, row, points) in enumerate(shown):
        colour, rates = COLOURS[place % len(COLOURS)], [rate for rate, _ in points]
        axes.fill_between(
            rates,
            [band.low for _, band in points],
            [band.high for _, band in points],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
        axes.plot(
            rates,
            [band.score for _, band in points],
            color=colour,
            marker=MARKERS[place % len(MARKERS)],
            linestyle=DASHES[place % len(DASHES)],
            label=short(row.name, 28),
        )
    left_out = f" ({len(lines) - len(shown)} rows left out)" if len(lines) > len(shown) else ""
    axes.grid(axis="y")
    axes.set_xlabel(f"missing rate{left_out}")
    axes.set_ylabel(f"{table.key.metric}, 95 % band")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
