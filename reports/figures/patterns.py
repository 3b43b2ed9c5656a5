"""Scores by missing pattern: one panel a pattern, one bar a row, so that nothing hangs on colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.reports.details import Inspected
from harness.reports.figures.style import KINDS, kind, name_rows, new, scored, short
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More panels do not fit a page.
MOST_PATTERNS = 8


def draw(table: Table, behind: Sequence[Sequence[Inspected]]) -> Figure | None:  # noqa: ARG001
    """Bars per pattern, or per test condition where a protocol tests each; None for fewer than two."""
    conditions = bool(table.conditions) and not table.rates
    names = table.conditions if conditions else table.patterns
    counts = table.condition_counts if conditions else table.pattern_counts
    rows = [row for _, row in scored(table)]
    values = [row.per_condition if conditions else row.per_pattern for row in rows]
    if not 2 <= len(names) <= MOST_PATTERNS or not any(values):
        return None
    figure, panels = new(1.8 + 1.15 * len(names), 0.8 + 0.2 * len(rows), ncols=len(names), sharex=True)
    # The panels share one axis: from zero, or the lowest score where some are below it, to room for the numbers.
    low = min(0.0, *(value for scores in values for value in scores.values()))
    span = max(0.0, *(value for scores in values for value in scores.values())) - low
    for number, (axes, name) in enumerate(zip(panels, names, strict=True)):
        for place, (row, scores) in enumerate(zip(rows, values, strict=True)):
            if name not in scores:
                continue
            hatch = {"oracle": "//", "floor": "..", "method": ""}[kind(row)]
            colour = KINDS[kind(row)]["color"]
            axes.barh(place, scores[name], 0.7, facecolor=f"{colour}66", edgecolor=colour, linewidth=0.6, hatch=hatch)
            axes.text(max(scores[name], 0.0), place, f" {scores[name]:.2f}", va="center", fontsize=6.5)
        name_rows(axes, [row.name for row in rows])
        if number:
            axes.set_yticks([])
        axes.set_xlim(low, low + 1.28 * span if span else 1.0)
        count = f"\nn = {counts[name]}" if name in counts else ""
        axes.set_title(short(name, 16) + count, loc="left")
        axes.tick_params(axis="x", labelsize=6.5)
    figure.supxlabel(table.key.metric, fontsize=8)
    return figure
