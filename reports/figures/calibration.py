"""Reliability diagrams: how sure predictions are, and how often they are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.reports.details import Inspected, inspect
from harness.reports.figures.style import KINDS, kind, new, scored, short
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels: the best rows.
MOST_ROWS = 12
_COLUMNS = 4


def draw(table: Table, behind: Sequence[Sequence[Inspected]]) -> Figure | None:
    """One panel a row, all seeds together; larger dots hold more predictions; None without predictions of classes."""
    found = []
    for index, row in scored(table):
        reliability = inspect(behind[index]).reliability if behind[index] else None
        if reliability is not None:
            found.append((row, reliability))
    if not found:
        return None
    shown = found[:MOST_ROWS]
    columns = min(_COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure, grid = new(
        1.55 * columns + 0.3, 1.65 * lines + 0.3, nrows=lines, ncols=columns, sharex=True, sharey=True, squeeze=False
    )
    for axes, (row, reliability) in zip(grid.flat, shown, strict=False):
        points, colour = reliability.points, KINDS[kind(row)]["color"]
        most = max(count for _, _, count in points)
        axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=0.7)
        axes.plot([sure for sure, _, _ in points], [right for _, right, _ in points], color=colour, linewidth=1)
        axes.scatter(
            [sure for sure, _, _ in points],
            [right for _, right, _ in points],
            s=[4 + 26 * count / most for _, _, count in points],
            color=colour,
        )
        axes.set_title(f"{short(row.name, 22)}\nECE {reliability.error:.3f}", loc="left", fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=6.5)
    for axes in list(grid.flat)[len(shown) :]:
        axes.axis("off")
    left_out = f" (the best {len(shown)} of {len(found)} rows)" if len(found) > len(shown) else ""
    figure.supxlabel(f"confidence{left_out}", fontsize=8)
    figure.supylabel("share right", fontsize=8)
    return figure
