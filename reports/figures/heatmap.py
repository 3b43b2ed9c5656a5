"""Methods against protocols and data sets: the numbers, shaded from the worst to the best of each column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.reports.figures.style import name_rows, new, short
from harness.reports.overview import Overview

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(overview: Overview) -> Figure | None:
    """Darker is better within a column; a cross is a failed cell, a dot an absent one; None without scores."""
    rows, columns = overview.rows, overview.columns
    if not any(cell is not None and cell.score is not None for row in rows for cell in row.cells):
        return None
    figure, axes = new(2.4 + 0.75 * len(columns), 1.2 + 0.2 * len(rows))
    for place, column in enumerate(columns):
        found = [row.cells[place] for row in rows]
        values = [cell.score for cell in found if cell is not None and cell.score is not None]
        for line, cell in enumerate(found):
            if cell is None or cell.score is None:
                axes.text(place, line, "·" if cell is None else "×", ha="center", va="center", color="#555555")
                continue
            span = max(values) - min(values)
            share = (cell.score - min(values)) / span if span else 0.5
            depth = share if column.higher_is_better else 1.0 - share
            # From white to two thirds of the palette's blue, on which black letters keep a contrast of 7 to 1.
            shade = tuple(1.0 - 0.66 * depth * (1.0 - part) for part in (0.0, 0.447, 0.698))
            axes.add_patch(_cell(place, line, shade))
            text = f"{cell.score:.3f}" + ("" if cell.complete else "*")
            axes.text(place, line, text, ha="center", va="center", fontsize=6.5)
    name_rows(axes, [row.name for row in rows])
    labels = [f"{short(column.dataset, 22)}\n{short(column.protocol, 26)}\n{column.metric}" for column in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=45, ha="left", fontsize=6.5)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    if any(cell is not None and not cell.complete for row in rows for cell in row.cells):
        figure.supxlabel("* fewer seeds than other rows; × failed; · no run", fontsize=6.5)
    return figure


def _cell(x: int, y: int, colour: tuple[float, ...]) -> object:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1.0, 1.0, facecolor=colour, edgecolor="white", linewidth=0.8)
