"""What a table shows and how numbers are written (`columns`), for every format; terminal, Markdown and JSON.

LaTeX is in `harness.reports.latex`, CSV and Parquet in `tabular`, the page in `html`: they only arrange it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from harness.progress import printable
from harness.reports.leaderboard import Leaderboard
from harness.reports.sections import (
    BLOCK_SECTIONS,
    EMPTY,
    Section,
    blocks_section,
    overview_section,
    p_text,
    published_section,
    score_text,
)
from harness.reports.statistics import Difference
from harness.reports.table import Row, Table

#: More test conditions than this are left to the files: a terminal has no room for them.
_MANY = 12
#: What holds for every table.
GUIDE = (
    "A row is one method configuration; its score is the mean over the train seeds that finished.",
    "Intervals are 95 % percentile bootstrap: over test samples for one seed, over seeds and test samples for several, "
    "where they and the p-values are never surer than Student's t for so few seeds.",
    "A rank is one more than the number of rows that are significantly better (paired bootstrap over test samples "
    "and seeds, all pairs, 5 % after Holm); oracles, failed runs and failed leak audits have none. Rows that share a "
    "tie letter cannot be told apart.",
    "Gap recovered is (score - floor) / (oracle - floor); the floor is zero_fill.",
    "With several test conditions rows are ranked by one score over all of them, which the title names: of the pool of "
    "all conditions' predictions, or the mean over a grid; every draw takes a test sample with its predictions under "
    "all conditions. Drop is how much worse the last condition is than the first. Area is the area under the curve of "
    "the score over the missing rate by trapezoids, divided by the span of rates.",
    "Over floor is the difference to it, with its 95 % interval and p-value from the same paired draws, for this "
    "one comparison (not adjusted).",
    "Seconds are means over seeds; memory, bank sizes and parameters are maxima.",
    "A published number agrees where it lies in the range in which the mean of as many further runs of ours would fall "
    "(Student's t over our seeds, 95 %); numbers under another protocol, condition or metric, or known to be of "
    "another supervision or backbone, are not compared.",
)


TERMINAL_GUIDE = (
    "#: 1 + number of significantly better rows (paired bootstrap over samples and seeds, 5 %, Holm). "
    "gap rec.: (score - zero_fill) / (oracle - zero_fill)."
)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Stable name in CSV.
        header: Heading for people.
        value: The unrounded value, None where there is none.
        text: How a value is written for people.
        wide: Left out of the terminal's narrow table.
        score: Whether the best value of ranked rows is emphasised.
    """

    key: str
    header: str
    value: Callable[[Row], Any]
    text: Callable[[Any], str] = str
    wide: bool = False
    score: bool = False

    def cell(self, row: Row) -> str:
        """The text of one cell; a row without a score says why."""
        value = self.value(row)
        if self.key == "score" and value is None and row.status != "finished":
            return row.status
        return EMPTY if value is None or value == "" else self.text(value)


def count_text(value: float) -> str:
    """A count: plain below ten thousand, then k, M, G or T with three digits."""
    if value < 10_000:
        return f"{value:.0f}"
    # Rounded before the unit is chosen: 999 500 is 1M.
    shown = float(f"{value:.3g}")
    size, unit = next((size, unit) for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")) if shown >= size)
    return f"{shown / size:.3g}{unit}"


def seconds_text(value: float) -> str:
    """Seconds with a sensible number of digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def percent_text(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.0f} %"


def interval_text(value: tuple[float, float]) -> str:
    """An interval."""
    return f"[{score_text(value[0])}, {score_text(value[1])}]"


def difference_text(value: Difference) -> str:
    """A tested difference."""
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}], {p_text(value.p)}"


def record_texts(row: Row) -> str:
    """Which records stand behind a row: run ids with their seeds."""
    return ", ".join(f"{run['run_id'][:12]} (seed {run['train_seed']})" for run in row.runs)


def _cost(name: str, scale: float = 1.0) -> Callable[[Row], float | None]:
    def value(row: Row) -> float | None:
        return row.cost[name] / scale if name in row.cost else None

    return value


def _of(values: Callable[[Row], dict[str, float]], name: str) -> Callable[[Row], float | None]:
    return lambda row: values(row).get(name)


def _is_grid(table: Table) -> bool:
    """Whether the conditions have an order, from the least missing to the most."""
    return any(row.drop is not None for row in table.rows)


def columns(table: Table) -> list[Column]:
    """The columns of a table, in order."""
    megabyte = float(1 << 20)
    return [
        Column("rank", "#", lambda row: row.rank),
        Column("ties", "tie", lambda row: row.ties),
        Column("method", "method", lambda row: row.name),
        Column("backbone", "backbone", lambda row: row.backbone, wide=True),
        Column("seeds", "seeds", lambda row: len(row.seeds)),
        Column("score", table.key.metric, lambda row: row.score, score_text, score=True),
        Column(
            "interval",
            "95 % interval",
            lambda row: None if row.low is None or row.high is None else (row.low, row.high),
            interval_text,
        ),
        *(Column(name, name, _of(lambda row: row.beside, name), score_text, score=True) for name in table.beside),
        *([Column("drop", "drop", lambda row: row.drop, score_text)] if _is_grid(table) else []),
        *([Column("area", "area", lambda row: row.area, score_text, score=True)] if table.rates else []),
        *(
            Column(
                f"condition:{name}",
                name,
                _of(lambda row: row.per_condition, name),
                score_text,
                wide=len(table.conditions) > _MANY,
                score=True,
            )
            for name in table.conditions
        ),
        *(
            Column(f"pattern:{name}", name, _of(lambda row: row.per_pattern, name), score_text, score=True)
            for name in table.patterns
        ),
        Column("gap_recovered", "gap rec.", lambda row: row.gap_recovered, percent_text),
        Column("p_best", "p to best", lambda row: row.p_best, p_text, wide=True),
        Column("over_floor", "over floor", lambda row: row.over_floor, difference_text, wide=True),
        Column("trainable_parameters", "params", _cost("trainable_parameters"), count_text),
        Column("train_seconds", "train s", _cost("train_seconds"), seconds_text),
        Column("predict_seconds", "predict s", _cost("predict_seconds"), seconds_text, wide=True),
        Column("peak_memory_mb", "peak MB", _cost("peak_memory_bytes", megabyte), count_text),
        Column("bank_items", "bank items", _cost("bank_items"), count_text, wide=True),
        Column("bank_mb", "bank MB", _cost("bank_bytes", megabyte), seconds_text, wide=True),
        Column("badges", "notes", lambda row: "; ".join([*map(str, row.badges), *([row.error] if row.error else [])])),
    ]


def best_rows(table: Table, column: Column) -> set[int]:
    """Positions of the rows with the best value of a score column, among ranked rows."""
    return _places(table, column, 0)


def second_rows(table: Table, column: Column) -> set[int]:
    """Positions of the rows with the second best value of a score column, among ranked rows."""
    return _places(table, column, 1)


def _places(table: Table, column: Column, place: int) -> set[int]:
    values = {
        index: column.value(row)
        for index, row in enumerate(table.rows)
        if column.score and row.rank is not None and column.value(row) is not None
    }
    ordered = sorted(set(values.values()), reverse=table.higher_is_better)
    return {index for index, value in values.items() if ordered[place : place + 1] == [value]}


def notes(table: Table) -> list[str]:
    """What a reader of the table must know."""
    counts = ", ".join(
        f"{name} {table.pattern_counts[name]}" for name in table.patterns if name in table.pattern_counts
    )
    data = f"data {table.key.dataset_fingerprint[:12]}, masks {table.key.mask_fingerprint[:12]}"
    direction = "higher is better" if table.higher_is_better else "lower is better"
    samples = f" Test samples per pattern: {counts}." if counts else ""
    if table.conditions:
        sizes = sorted(set(table.condition_counts.values()))
        each = f", {sizes[0]} test samples each" if len(sizes) == 1 else ""
        listed = "".join(f" {name} {count}," for name, count in table.condition_counts.items()) if not each else ""
        samples = f" {len(table.conditions)} test conditions{each or (':' + listed.rstrip(',') if listed else '')}."
    metric = f"{table.key.metric} v{table.key.metric_version}" if table.key.metric_version else table.key.metric
    power = []
    if table.pairs:
        least = float(np.median([pair.detectable for pair in table.pairs]))
        power = [
            f"With these seeds and samples a true difference of {least:.4f} between two rows would be found 4 times "
            "out of 5 (5 % level, one comparison, median over pairs)."
        ]
    return [f"{metric}, {direction}; {data}.{samples}", *power, *table.notes]


def _alignment(shown: Sequence[Column]) -> list[str]:
    """Text columns to the left, numbers to the right."""
    return ["left" if column.key in ("method", "badges") else "right" for column in shown]


def to_terminal(board: Leaderboard) -> str:
    """Plain text tables for a terminal; badges and errors as lines below each."""
    blocks = []
    for table in board.tables:
        *shown, remark = [column for column in columns(table) if not column.wide]
        remarks = [
            f"{row.name}: {remark.cell(row)}"
            for row in table.rows
            if row.error or any(badge.kind != "supervision" for badge in row.badges)
        ]
        cells = [[column.cell(row) for column in shown] for row in table.rows]
        section = Section(table.title, [column.header for column in shown], cells, [*remarks, *table.notes])
        blocks.append(_plain(section, _alignment(shown)))
        published = published_section(table)
        if published is not None:
            blocks.append(_plain(published))
    if not blocks:
        return "No runs yet: start one with `harness run`."
    blocks += [_plain(overview_section(overview)) for overview in board.overviews]
    blocks += [_plain(blocks_section(test)) for test in board.block_tests]
    return "\n\n".join([*blocks, TERMINAL_GUIDE])


def _plain(section: Section, align: Sequence[str] | None = None) -> str:
    from tabulate import tabulate

    # Cells are text already: tabulate aligns them and must not read numbers into them.
    align = align or _left_first(section)
    grid = tabulate(section.rows, section.headers, tablefmt="simple", disable_numparse=True, colalign=align)
    text = [section.title, *(grid.splitlines() if section.rows else []), *(f"  {note}" for note in section.notes)]
    # Names come from other people's records: an escape sequence must not reach the terminal.
    return "\n".join(printable(line.replace("\n", " ")) for line in text)


def _left_first(section: Section) -> list[str] | None:
    return ["left", *["right"] * (len(section.headers) - 1)] if section.rows else None


def to_markdown(board: Leaderboard) -> str:
    """GitHub-flavoured Markdown; the best of each score column is bold; run ids below each table."""
    blocks = ["# Leaderboard"]
    blocks += [_pipes(overview_section(overview)) for overview in board.overviews]
    for table in board.tables:
        shown = columns(table)
        best = [best_rows(table, column) for column in shown]
        rows = [
            [
                f"**{_markdown(column.cell(row))}**" if index in bold else _markdown(column.cell(row))
                for column, bold in zip(shown, best, strict=True)
            ]
            for index, row in enumerate(table.rows)
        ]
        records = [f"Records of {_markdown(row.name)}: {_linked(row)}" for row in table.rows]
        section = Section(table.title, [column.header for column in shown], rows, notes(table))
        blocks.append("\n".join([_pipes(section, _alignment(shown), raw=True), *(f"- {line}" for line in records)]))
        published = published_section(table)
        if published is not None:
            blocks.append(_pipes(published, depth=3))
    for test in board.block_tests:
        blocks += [_pipes(section(test), depth=3 if number else 2) for number, section in enumerate(BLOCK_SECTIONS)]
    if not board.tables:
        blocks.append("No runs yet.")
    else:
        blocks.append("\n".join(["## How to read this", "", *(f"- {_markdown(note)}" for note in GUIDE)]))
    return "\n\n".join(blocks) + "\n"


#: Columns of a note: what fits beside MLflow's other facts of a run.
_NOTE_COLUMNS = ("rank", "ties", "method", "seeds", "score", "interval", "gap_recovered")


def to_note(board: Leaderboard, length: int = 6000) -> str:
    """The tables in few columns, as Markdown for places with little room.

    Args:
        board: The tables.
        length: Characters; what does not fit is left out as whole tables, and said.
    """
    blocks: list[str] = []
    for number, table in enumerate(board.tables):
        shown = [column for column in columns(table) if column.key in _NOTE_COLUMNS]
        rows = [[_markdown(column.cell(row)) for column in shown] for row in table.rows]
        section = Section(table.title, [column.header for column in shown], rows, [])
        block = _pipes(section, _alignment(shown), depth=3, raw=True)
        if sum(map(len, blocks)) + len(block) > length:
            left = len(board.tables) - number
            blocks.append(f"{left} more table{'s' * (left != 1)} in the artifact report/report.md")
            break
        blocks.append(block)
    return "\n\n".join(blocks)


def _pipes(section: Section, align: Sequence[str] | None = None, *, depth: int = 2, raw: bool = False) -> str:
    """A section as Markdown; `raw` cells are Markdown already."""
    from tabulate import tabulate

    rows = section.rows if raw else [[_markdown(cell) for cell in row] for row in section.rows]
    headers = [_markdown(header) for header in section.headers]
    align = align or _left_first(section)
    grid = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
    lines = [f"{'#' * depth} {_markdown(section.title)}", "", *([grid, ""] if rows else [])]
    return "\n".join([*lines, *(f"- {_markdown(note)}" for note in section.notes)])


def _linked(row: Row) -> str:
    """Run ids with their seeds, each a link where a server shows the run."""
    parts = []
    for run in row.runs:
        name = f"`{_plain_code(run['run_id'][:12])}`"
        parts.append(
            (f"[{name}](<{_plain_code(run['link'])}>)" if run["link"] else name) + f" (seed {run['train_seed']})"
        )
    return ", ".join(parts)


def _markdown(text: str) -> str:
    return "".join("\\" + char if char in "\\|<>*_[]`~$&" else char for char in printable(text.replace("\n", " ")))


def _plain_code(text: str) -> str:
    """Text where nothing can be escaped, between backticks or in the address of a link."""
    return re.sub(r"[^\w:/#.?=&%@-]", "?", text, flags=re.ASCII)


def to_json(board: Leaderboard) -> str:
    """Everything, unrounded, one line per row; values that are not finite become null."""
    return _lines(board, 4) + "\n"


def _lines(value: Any, levels: int, indent: str = "") -> str:
    """JSON with one line per entry down to some level and everything below it in one: quick, and still to be read."""
    if is_dataclass(value):
        value = vars(value)
    inner = f"{indent}  "
    if levels and value and isinstance(value, dict):
        entries = [
            f"{json.dumps(str(name))}: {_lines(part, levels - 1, inner)}" for name, part in sorted(value.items())
        ]
        return "{\n" + ",\n".join(f"{inner}{entry}" for entry in entries) + f"\n{indent}}}"
    if levels and value and isinstance(value, (list, tuple)):
        return "[\n" + ",\n".join(f"{inner}{_lines(part, levels - 1, inner)}" for part in value) + f"\n{indent}]"
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, default=_plain_data)
    except ValueError:
        return json.dumps(_finite(value), sort_keys=True, allow_nan=False, default=str)


def _plain_data(value: Any) -> Any:
    return vars(value) if is_dataclass(value) else str(value)


def _finite(value: Any) -> Any:
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
