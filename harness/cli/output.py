"""Plain-text and JSON output for people and pipes."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.reports.leaderboard import Leaderboard, RunLike

from harness.progress import printable

#: Width assumed when output goes to a pipe: wide enough that no line of a table is cut into two.
_PIPE_WIDTH = 10_000


def json_text(value: Any) -> str:
    """A value as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    print(json_text(value))


def print_board(board: Leaderboard | None, outcomes: Sequence[RunLike], *, json: bool, table: bool) -> None:
    """Prints the tables of what was run.

    Args:
        board: The tables, if they were made.
        outcomes: What they are made of.
        json: As JSON.
        table: Whether they are wanted for people.
    """
    from harness.reports.leaderboard import Leaderboard
    from harness.reports.render import to_json, to_terminal

    if json:
        print(to_json(board or Leaderboard.build(outcomes)), end="")
    elif table:
        print(to_terminal(board or Leaderboard.build(outcomes)))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints aligned columns; on a terminal the last column is wrapped to the width of the window."""
    cells = [[printable(str(cell)) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = max(24, terminal_width() - indent)
    for row in cells:
        lines = textwrap.wrap(row[-1], room) or [""]
        start = "  ".join(f"{cell:<{width}}" for cell, width in zip(row[:-1], widths[:-1], strict=True))
        print((f"{start}  {lines[0]}" if len(row) > 1 else lines[0]).rstrip())
        for line in lines[1:]:
            print(" " * indent + line)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """Prints name and value pairs, values aligned and wrapped; empty values are left out."""
    shown = [(name, printable(str(value))) for name, value in facts if str(value)]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        lines = [part for line in value.splitlines() for part in textwrap.wrap(line, terminal_width() - width - 2)]
        print(f"{name:<{width}}  {lines[0]}")
        for line in lines[1:]:
            print(" " * (width + 2) + line)


def terminal_width() -> int:
    """Columns of the terminal; practically unlimited when output goes elsewhere, whatever `COLUMNS` says."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
