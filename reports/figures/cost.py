"""Score against cost, with the Pareto front: what nothing is both cheaper and better than."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.reports.details import Inspected
from harness.reports.figures.style import KINDS, kind, new, scored, short
from harness.reports.render import count_text
from harness.reports.table import Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COSTS = {
    "trainable_parameters": "trainable parameters",
    "train_seconds": "training, seconds",
    "predict_seconds": "prediction, seconds",
}


def pareto_front(points: Sequence[tuple[float, float]], *, higher_is_better: bool) -> list[int]:
    """Positions, by cost, of the points `(cost, score)` that no other beats in one without losing in the other."""
    sign = 1.0 if higher_is_better else -1.0
    front: list[int] = []
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -sign * points[index][1]))
    for index in order:
        cost, score = points[index]
        if not front or sign * score > sign * points[front[-1]][1] or (cost, score) == points[front[-1]]:
            front.append(index)
    return front


def draw(table: Table, behind: Sequence[Sequence[Inspected]]) -> Figure | None:  # noqa: ARG001
    """One panel a cost; filled marks lie on the front of all but oracles; None without two rows that cost anything."""
    rows = [row for _, row in scored(table)]
    panels = [
        (name, label)
        for name, label in COSTS.items()
        if sum(name in row.cost for row in rows) > 1 and any(row.cost.get(name, 0) > 0 for row in rows)
    ]
    if not panels:
        return None
    figure, grid = new(3.3 * len(panels), 3.0, ncols=len(panels), sharey=True, squeeze=False)
    for axes, (name, label) in zip(grid[0], panels, strict=True):
        shown = [(row, row.cost[name], float(row.score or 0.0)) for row in rows if name in row.cost]
        smallest = min(cost for _, cost, _ in shown if cost > 0)
        # Zero has a place of its own to the left of the smallest cost.
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.35)
        marks = _marks([cost for _, cost, _ in shown])
        axes.set_xticks(marks, [count_text(mark) if mark >= 1 else f"{mark:g}" for mark in marks], minor=False)
        axes.set_xticks([], minor=True)
        candidates = [entry for entry in shown if not entry[0].oracle]
        front = pareto_front([entry[1:] for entry in candidates], higher_is_better=table.higher_is_better)
        best = [candidates[index] for index in front]
        axes.step(
            [cost for _, cost, _ in best],
            [score for _, _, score in best],
            where="post",
            color="#888888",
            linestyle="--",
            linewidth=0.8,
        )
        for row, cost, score in shown:
            look = KINDS[kind(row)]
            on_front = any(row is entry[0] for entry in best)
            fill = look["color"] if on_front else "white"
            axes.plot([cost], [score], linestyle="none", markerfacecolor=fill, **look)
        _label(axes, [(row, cost, score) for row, cost, score in shown if row.oracle or any(row is e[0] for e in best)])
        axes.set_xlabel(label)
        axes.grid(axis="y")
        axes.margins(x=0.12)
    grid[0][0].set_ylabel(table.key.metric)
    return figure


def _marks(costs: Sequence[float]) -> list[float]:
    """Zero, if anything costs nothing, and powers of ten in the range, or 1, 2 and 5 of them in a narrow one."""
    positive = [cost for cost in costs if cost > 0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    steps = (1,) if high - low > 1.5 else (1, 2, 5)
    powers = range(math.floor(low), math.ceil(high) + 1)
    marks = [step * 10.0**power for power in powers for step in steps]
    inside = [mark for mark in marks if low - 0.05 <= math.log10(mark) <= high + 0.05]
    return ([0.0] if len(positive) < len(costs) else []) + (inside or positive[:1])


def _label(axes: object, points: Sequence[tuple[Row, float, float]]) -> None:
    """Names beside points, alternating above and below."""
    for place, (row, cost, score) in enumerate(sorted(points, key=lambda entry: entry[1])):
        above = place % 2 == 0
        axes.annotate(  # type: ignore[attr-defined]
            short(row.name, 20),
            (cost, score),
            xytext=(3, 4 if above else -4),
            textcoords="offset points",
            va="bottom" if above else "top",
            fontsize=6.5,
        )
