"""Reports from runs: the files of `harness report` and the table that `harness run` and the demo print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.files import atomic_write, ensure_folder
from harness.reports.details import Inspected, Show
from harness.reports.html import to_html
from harness.reports.leaderboard import Leaderboard, RunLike
from harness.reports.render import RENDERERS, formats, to_terminal

DEFAULT_FORMATS = tuple(RENDERERS)


def build_report(
    runs: Sequence[RunLike], out: Path, names: Sequence[str] = DEFAULT_FORMATS, show: Show | None = None
) -> list[Path]:
    """Writes `report.<format>` files.

    Args:
        runs: Runs, e.g. of `harness.tracking.load_runs`.
        out: Folder, created if needed.
        names: Formats out of `html`, `md`, `csv`, `json`, `tex`.
        show: Finds texts and pictures of test samples, for the page.

    Returns:
        The files, in the order of `names`.

    Raises:
        UnknownNameError: For an unknown format.
        DataError: If the folder cannot be written.
    """
    chosen = formats(names)
    inspected = [Inspected(run) for run in runs]
    board = Leaderboard.build(inspected)
    ensure_folder(out)
    paths = []
    for name in chosen:
        path = out / f"report.{name}"
        with atomic_write(path) as temporary:
            text = to_html(board, inspected, show) if name == "html" else RENDERERS[name](board)
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def comparison_table(runs: Sequence[RunLike]) -> str:
    """The runs as tables for the terminal: score, 95 % interval, scores per pattern, gap recovered, cost."""
    return to_terminal(Leaderboard.build(runs))
