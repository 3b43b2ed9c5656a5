"""How close recovered embeddings come to those of the true values, per pattern and hidden modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.findings import Recovery
from harness.reports.details import Inspected, findings_of, mean_recoveries
from harness.reports.figures.style import KINDS, kind, name_rows, new, scored, short
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More panels do not fit a page.
MOST_PANELS = 6


def draw(table: Table, behind: Sequence[Sequence[Inspected]]) -> Figure | None:
    """One panel per pattern and hidden modality, one line a row; None where no run was inspected.

    The mark is the mean cosine, the line spans 5 to 95 % of the test samples, the bar across is the mean cosine with
    the true embeddings of other samples; the number is the error beside answering the mean embedding.  All are means
    over seeds and, by their numbers of samples, over test conditions.
    """
    rows = []
    for index, row in scored(table):
        found = mean_recoveries(findings_of(behind[index]))
        if found:
            rows.append((row, pooled(found)))
    panels = list(dict.fromkeys(key for _, found in rows for key in found))[:MOST_PANELS]
    if not panels:
        return None
    figure, grid = new(
        1.8 + 1.9 * len(panels), 1.0 + 0.24 * len(rows), ncols=len(panels), sharex=True, sharey=True, squeeze=False
    )
    for axes, (pattern, modality) in zip(grid[0], panels, strict=True):
        for place, (row, means) in enumerate(rows):
            one = means.get((pattern, modality))
            if one is None:
                continue
            look = KINDS[kind(row)]
            axes.plot([one.quantiles[0], one.quantiles[-1]], [place, place], color=look["color"], linewidth=1)
            axes.plot([one.cosine], [place], linestyle="none", **look)
            if one.others is not None:
                axes.plot([one.others, one.others], [place - 0.32, place + 0.32], color="#555555", linewidth=1.2)
            if one.error is not None:
                axes.annotate(
                    f"{one.error:.2f}",
                    (1.0, place),
                    xycoords=("axes fraction", "data"),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.5,
                )
        axes.set_title(f"{short(modality, 16)} from\n{short(pattern, 22)}", loc="left")
        axes.axvline(0, color="#888888", linewidth=0.6)
        axes.grid(axis="x")
    name_rows(grid[0][0], [row.name for row, _ in rows])
    figure.supxlabel(
        "cosine with the true embedding; | with those of other samples; number: error, 1 is the mean", fontsize=7
    )
    return figure


def pooled(found: Sequence[Recovery]) -> dict[tuple[str, str], Recovery]:
    """One recovery per pattern and modality: means over test conditions, by their numbers of samples."""
    groups: dict[tuple[str, str], list[Recovery]] = {}
    for one in found:
        groups.setdefault((one.pattern, one.modality), []).append(one)
    result = {}
    for (pattern, modality), group in groups.items():
        counts = [float(one.count) for one in group]
        result[pattern, modality] = Recovery(
            "",
            pattern,
            modality,
            sum(one.count for one in group),
            float(np.average([one.cosine for one in group], weights=counts)),
            _mean([one.others for one in group], counts),
            _mean([one.error for one in group], counts),
            [float(value) for value in np.average([one.quantiles for one in group], axis=0, weights=counts)],
        )
    return result


def _mean(values: Sequence[float | None], counts: Sequence[float]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.average(known, weights=counts)) if len(known) == len(values) else None
