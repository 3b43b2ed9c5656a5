"""Rows as JSON and as the Markdown table between two marks of a page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START, END = "<!-- table: start -->", "<!-- table: end -->"
HEADER = ("what", "released cost", "harness", "ratio", "on the clock", "of the processor", "target", "")


def machine() -> dict[str, Any]:
    """What a reader must know of the machine; no names, no dates."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "gpu": device,
    }


def save(path: Path, conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes everything that was measured so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"conditions": dict(conditions), "rows": list(rows)}, indent=2) + "\n")


def markdown(conditions: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The conditions in a line, then a table per stage."""
    facts = "; ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None)
    lines = [f"Measured with {facts}.", ""]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        lines += [f"### {stage.capitalize()}", "", f"Measured rounds: {own[0]['rounds']}.", ""]
        lines += [_line(HEADER), _line(["---"] * len(HEADER)), *(_line(_cells(row)) for row in own)]
        lines.append("")
    return "\n".join(lines)


def update(page: Path, table: str) -> None:
    """Puts the table between the marks of a page.

    Raises:
        ValueError: If the page does not have both marks.
    """
    text = page.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page} needs the lines {START} and {END}")
    page.write_text(f"{before}{START}\n\n{table}\n{END}{after}")


def _cells(row: Mapping[str, Any]) -> list[str]:
    what = f"{row['what']} ({row['note']})" if row["note"] else row["what"]
    bound = "≤" if row["at_most"] else "≥"
    clock = row["clock"]
    both = {clock: row["ratio"], not clock: row["other_ratio"]} if clock is not None else {}
    ratio = "" if row["ratio"] is None else number(row["ratio"])
    return [
        what,
        "" if row["peer"] is None else quantity(row["peer"], row["unit"]),
        quantity(row["ours"], row["unit"]),
        f"**{ratio}**" if ratio and row["target"] is not None else ratio,
        *("" if both.get(kind) is None else number(both[kind]) for kind in (True, False)),
        "" if row["target"] is None else f"{bound} {number(row['target'])}",
        {True: "met", False: "missed", None: ""}[row["met"]],
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Three digits, as people write them."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """A value with its unit, in the prefix that keeps it readable."""
    if unit == "B":
        for prefix, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e4)):
            if abs(value) >= size:
                return f"{number(value / (1e3 if prefix == 'kB' else size))} {prefix}"
        return f"{number(value)} B"
    if unit == "s":
        for prefix, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
            if value >= size or prefix == "ns":
                return f"{number(value / size)} {prefix}"
    return f"{number(value)} {unit}" if unit != "share" else number(value)
