"""Scores of all rows with their 95 % intervals, best on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.reports.details import Inspected
from harness.reports.figures.style import KINDS, kind, name_rows, new, scored
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(table: Table, behind: Sequence[Sequence[Inspected]]) -> Figure | None:  # noqa: ARG001
    """Circles are methods, the square is the floor, the diamond an oracle; None without scores."""
    rows = scored(table)
    if not rows:
        return None
    figure, axes = new(5.5, 0.6 + 0.2 * len(rows))
    for place, (_, row) in enumerate(rows):
        look = KINDS[kind(row)]
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=look["color"])
        axes.plot([row.score], [place], linestyle="none", **look)
    name_rows(axes, [row.name for _, row in rows])
    axes.grid(axis="x")
    axes.set_xlabel(f"{table.key.metric}, 95 % interval")
    return figure
