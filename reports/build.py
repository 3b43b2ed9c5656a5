"""Reports from runs: the files that `harness report`, `run` and `sweep` write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.errors import UnknownNameError
from harness.files import atomic_write, ensure_folder
from harness.reports.details import Inspected, Show
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


def formats(names: Sequence[str]) -> list[str]:
    """Checks format names.

    Raises:
        UnknownNameError: With suggestions.
    """
    for name in names:
        if name not in RENDERERS:
            raise UnknownNameError("report format", name, RENDERERS)
    return list(names)


def build_report(
    runs: Sequence[RunLike], out: Path, names: Sequence[str] = (), show: Show | None = None
) -> tuple[Leaderboard, list[Path]]:
    """Writes `report.<format>` files.

    Args:
        runs: Runs, e.g. of `harness.tracking.load_runs`.
        out: Folder, created if needed.
        names: Formats, keys of `RENDERERS`; none means all of them.
        show: Finds texts and pictures of test samples, for the page.

    Returns:
        The leaderboard, and the files in the order of `names`.

    Raises:
        UnknownNameError: For an unknown format.
        DataError: If the folder cannot be written.
    """
    chosen = formats(names or list(RENDERERS))
    inspected = [Inspected(run) for run in runs]
    board = Leaderboard.build(inspected)
    ensure_folder(out)
    paths = []
    for name in chosen:
        path = out / f"report.{name}"
        with atomic_write(path) as temporary:
            content = to_html(board, inspected, show) if name == "html" else RENDERERS[name](board)
            temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        paths.append(path)
    return board, paths
