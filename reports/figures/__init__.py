"""Figures for papers, from a leaderboard and the records behind it: SVG, PDF or PNG.

One module a figure; each has a function that returns a matplotlib figure, or None where there is nothing to draw.
Colours are safe for the colour-blind, and markers, dashes and printed numbers tell the same in black and white.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import atomic_write, ensure_folder
from harness.reports.details import Inspected, Show, findings_of
from harness.reports.figures import (
    calibration,
    cost,
    heatmap,
    patterns,
    ranks,
    reconstruction,
    retrieval,
    robustness,
    scores,
)
from harness.reports.leaderboard import Leaderboard
from harness.reports.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FORMATS = ("svg", "pdf", "png")

#: Figures of one table by name.
TABLE_FIGURES: dict[str, Callable[[Table, Sequence[Sequence[Inspected]]], Figure | None]] = {
    "scores": scores.draw,
    "patterns": patterns.draw,
    "robustness": robustness.draw,
    "cost": cost.draw,
    "calibration": calibration.draw,
    "reconstruction": reconstruction.draw,
}


def figures(board: Leaderboard, runs: Sequence[Inspected], show: Show | None = None) -> Iterator[tuple[str, Figure]]:
    """Every figure that the runs allow, with a name for its file.

    Args:
        board: The leaderboard.
        runs: The runs it was built from.
        show: Finds texts and pictures of samples, for examples of retrieval.
    """
    by_id = {run.record.run_id: run for run in runs}
    for test in board.block_tests:
        yield slug("ranks", test.supervision), ranks.draw(test)
    for overview in board.overviews:
        figure = heatmap.draw(overview)
        if figure is not None:
            yield slug("heatmap", overview.supervision), figure
    for number, table in enumerate(board.tables, start=1):
        behind = [[by_id[run["run_id"]] for run in row.runs if run["run_id"] in by_id] for row in table.rows]
        for name, draw in TABLE_FIGURES.items():
            figure = draw(table, behind)
            if figure is not None:
                yield slug(f"{number:02d}", table.key.dataset, table.key.protocol, name), figure
        for row, found in zip(table.rows, map(findings_of, behind), strict=True):
            drawn = retrieval.draw(table, found[0].examples, show) if found else None
            if drawn is not None:
                yield slug(f"{number:02d}", table.key.dataset, table.key.protocol, "retrieval", row.name), drawn


def slug(*parts: str) -> str:
    """A file name without anything that a shell, a URL or LaTeX minds."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.")[:60] or "x" for part in parts)


def write_figures(
    board: Leaderboard, runs: Sequence[Inspected], out: Path, formats: Sequence[str], show: Show | None = None
) -> list[Path]:
    """Writes all figures; the same runs give the same bytes.

    Args:
        board: The leaderboard.
        runs: The runs it was built from.
        out: Folder, created if needed.
        formats: Out of `svg`, `pdf`, `png`.
        show: Finds texts and pictures of samples.

    Returns:
        The files.

    Raises:
        DataError: If the folder cannot be written.
    """
    from harness.reports.figures.style import METADATA, style

    paths: list[Path] = []
    with style():
        for name, figure in figures(board, runs, show):
            ensure_folder(out)
            for ending in formats:
                path = out / f"{name}.{ending}"
                with atomic_write(path) as temporary:
                    figure.savefig(temporary, format=ending, metadata=METADATA[ending])
                paths.append(path)
    return paths
