"""Reports from runs: the files that `harness report`, `run` and `sweep` write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.errors import UnknownNameError
from harness.files import atomic_write, ensure_folder
from harness.progress import say
from harness.reports.details import Inspected, Show
from harness.reports.figures import FIGURE_FORMATS, write_figures
from harness.reports.html import to_html
from harness.reports.latex import to_latex
from harness.reports.leaderboard import Leaderboard, RunLike
from harness.reports.render import to_json, to_markdown
from harness.reports.tabular import to_csv, to_parquet

RENDERERS: Mapping[str, Callable[[Leaderboard], str | bytes]] = {
    "html": to_html,
    "md": to_markdown,
    "csv": to_csv,
    "parquet": to_parquet,
    "json": to_json,
    "tex": to_latex,
}
#: Unless asked otherwise figures are SVG, and are left to be asked for where there are more tables than this.
DEFAULT_FIGURES = ("svg",)
MOST_TABLES = 12


def formats(names: Sequence[str]) -> list[str]:
    """Checks format names.

    Raises:
        UnknownNameError: With suggestions.
    """
    for name in names:
        if name not in (*RENDERERS, *FIGURE_FORMATS):
            raise UnknownNameError("report format", name, [*RENDERERS, *FIGURE_FORMATS])
    return list(names)


def build_report(
    runs: Sequence[RunLike], out: Path, names: Sequence[str] = (), show: Show | None = None
) -> tuple[Leaderboard, list[Path]]:
    """Writes `report.<format>` files, and a folder `figures` for the formats of pictures.

    Args:
        runs: Runs, e.g. of `harness.tracking.load_runs`.
        out: Folder, created if needed.
        names: Formats, keys of `RENDERERS`, and for figures `svg`, `pdf`, `png`; none means all of the former, and
            figures as SVG.
        show: Finds texts and pictures of samples, for the page and for examples of retrieval.

    Returns:
        The leaderboard, and the files in the order of `names`, figures last.

    Raises:
        UnknownNameError: For an unknown format.
        DataError: If the folder cannot be written.
    """
    chosen = formats(names or [*RENDERERS, *DEFAULT_FIGURES])
    inspected = [Inspected(run) for run in runs]
    board = Leaderboard.build(inspected)
    ensure_folder(out)
    paths = []
    for name in [name for name in chosen if name in RENDERERS]:
        path = out / f"report.{name}"
        with atomic_write(path) as temporary:
            content = to_html(board, inspected, show) if name == "html" else RENDERERS[name](board)
            temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        paths.append(path)
    drawn = [name for name in chosen if name in FIGURE_FORMATS]
    if not names and len(board.tables) > MOST_TABLES:
        say(f"figures of {len(board.tables)} tables take a while and are left out: ask for them with `--format svg`.")
        drawn = []
    return board, paths + (write_figures(board, inspected, out / "figures", drawn, show) if drawn else [])
