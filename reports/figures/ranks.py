"""Critical-difference diagram: mean ranks over blocks, and bars over methods that cannot be told apart (Demšar)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.reports.blocks import BlockTest
from harness.reports.figures.style import new, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(test: BlockTest) -> Figure:
    """Best to the left; methods are named from the top to the middle on the left, and back on the right."""
    count = len(test.methods)
    half, bars = math.ceil(count / 2), len(test.groups)
    first, last = 1, max(2, math.ceil(max(test.mean_ranks)))
    line, start = 1.0, 1.0 + 0.6 * bars
    figure, axes = new(6.5, 1.2 + 0.16 * bars + 0.19 * half)
    span = last - first
    left, right = first - 0.05 * span, last + 0.05 * span
    axes.plot([first, last], [0, 0], color="black", linewidth=1)
    for mark in range(first, last + 1):
        axes.plot([mark, mark], [0, -0.25], color="black", linewidth=1)
        axes.text(mark, -0.4, str(mark), ha="center", va="bottom")
    for place, (name, rank) in enumerate(zip(test.methods, test.mean_ranks, strict=True)):
        on_left = place < half
        depth = start + line * (place if on_left else count - 1 - place)
        edge = left if on_left else right
        axes.plot([rank, rank, edge], [0, depth, depth], color="black", linewidth=0.7)
        text = f"{short(name, 30)} ({rank:.2f})"
        axes.text(edge, depth, f"{text} " if on_left else f" {text}", ha="right" if on_left else "left", va="center")
    for number, (best, worst) in enumerate(test.groups):
        ends = [test.mean_ranks[best] - 0.012 * span, test.mean_ranks[worst] + 0.012 * span]
        axes.plot(ends, [0.5 + 0.6 * number] * 2, color="black", linewidth=3.2, solid_capstyle="butt")
    shown = min(test.critical_difference, span)
    axes.plot([first, first + shown], [-2.2, -2.2], color="black", linewidth=1, marker="|")
    axes.text(first, -2.6, f"critical difference {test.critical_difference:.2f}", va="bottom")
    p = "< 0.001" if test.p < 0.001 else f"= {test.p:.3f}"
    summary = f"mean rank over {len(test.blocks)} blocks; Friedman p {p}"
    axes.text(first, -3.7, summary, va="bottom")
    axes.set_ylim(start + line * half, -4.8)
    axes.set_xlim(left, right)
    axes.axis("off")
    return figure
