"""One leaderboard in many formats: terminal, Markdown, CSV, JSON, LaTeX; the HTML page is `harness.reports.html`'s.

`columns` decides once what a table shows and how numbers are written; the renderers only arrange it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.reports.leaderboard import Leaderboard
from harness.reports.statistics import Difference
from harness.reports.table import Row, Table

EMPTY = "–"
#: More test conditions than this are left to the files: a terminal has no room for them.
_MANY = 12
#: What holds for every table.
GUIDE = (
    "A row is one method configuration; its score is the mean over the train seeds that finished.",
    "Intervals are 95 % percentile bootstrap: over test samples for one seed, over seeds and test samples for several.",
    "A rank is one more than the number of rows that are significantly better (paired bootstrap over test samples "
    "and seeds, all pairs, 5 % after Holm); oracles, failed runs and failed leak audits have none.",
    "Gap recovered is (score - floor) / (oracle - floor); the floor is zero_fill.",
    "With several test conditions rows are ranked by one score over all of them, which the title names: of the pool of "
    "all conditions' predictions, or the mean over a grid (its area under the curve); every draw takes a test sample "
    "with its predictions under all conditions. Drop is how much worse the last condition is than the first.",
    "Over floor is the difference to it, with its 95 % interval and p-value from the same paired draws, for this "
    "one comparison (not adjusted).",
    "Seconds are means over seeds; memory, bank sizes and parameters are maxima.",
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
        """The text of one cell."""
        value = self.value(row)
        return EMPTY if value is None or value == "" else self.text(value)


def score_text(value: float) -> str:
    """A score: four decimals."""
    return f"{value:.4f}"


def count_text(value: float) -> str:
    """A count: plain below ten thousand, then k and M with three digits."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * (10 if unit == "k" else 1):
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


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
    p = "p < 0.001" if value.p < 0.001 else f"p = {value.p:.3f}"
    return f"{value.value:+.4f} [{value.low:+.4f}, {value.high:+.4f}], {p}"


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
    values = {
        index: column.value(row)
        for index, row in enumerate(table.rows)
        if column.score and row.rank is not None and column.value(row) is not None
    }
    if not values:
        return set()
    best = max(values.values()) if table.higher_is_better else min(values.values())
    return {index for index, value in values.items() if value == best}


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
    return [f"{metric}, {direction}; {data}.{samples}", *table.notes]


def _alignment(shown: Sequence[Column]) -> list[str]:
    """Text columns to the left, numbers to the right."""
    return ["left" if column.key in ("method", "badges") else "right" for column in shown]


def to_terminal(board: Leaderboard) -> str:
    """Plain text tables for a terminal; badges and errors as lines below each."""
    from tabulate import tabulate

    blocks = []
    for table in board.tables:
        *shown, remark = [column for column in columns(table) if not column.wide]
        grid = [[column.header for column in shown], *([column.cell(row) for column in shown] for row in table.rows)]
        # Cells are text already: tabulate aligns them and must not read numbers into them.
        lines = tabulate(
            grid[1:], grid[0], tablefmt="simple", disable_numparse=True, colalign=_alignment(shown)
        ).splitlines()
        remarks = [f"  {row.name}: {remark.cell(row)}" for row in table.rows if row.badges or row.error]
        text = [table.title, *lines, *remarks, *(f"  {note}" for note in table.notes)]
        # Names come from other people's records: an escape sequence must not reach the terminal.
        blocks.append("\n".join("".join(char if char.isprintable() else "?" for char in line) for line in text))
    if not blocks:
        return "No runs yet: start one with `harness run`."
    return "\n\n".join([*blocks, TERMINAL_GUIDE])


def to_markdown(board: Leaderboard) -> str:
    """GitHub-flavoured Markdown; the best of each score column is bold."""
    from tabulate import tabulate

    blocks = ["# Leaderboard"]
    for table in board.tables:
        shown = columns(table)
        headers = [_markdown(column.header) for column in shown]
        grid = [
            [
                f"**{_markdown(column.cell(row))}**"
                if index in best_rows(table, column)
                else _markdown(column.cell(row))
                for column in shown
            ]
            for index, row in enumerate(table.rows)
        ]
        text = tabulate(grid, headers, tablefmt="pipe", disable_numparse=True, colalign=_alignment(shown))
        lines = [f"## {_markdown(table.title)}", "", text, "", *(f"- {_markdown(note)}" for note in notes(table))]
        blocks.append("\n".join(lines))
    if not board.tables:
        blocks.append("No runs yet.")
    else:
        blocks.append("\n".join(["## How to read this", "", *(f"- {_markdown(note)}" for note in GUIDE)]))
    return "\n\n".join(blocks) + "\n"


def _markdown(text: str) -> str:
    return "".join("\\" + char if char in "\\|<>*_[]`" else char for char in text.replace("\n", " "))


def to_csv(board: Leaderboard) -> str:
    """One line per row of every table, unrounded."""
    header = ["dataset", "dataset_fingerprint", "protocol", "condition", "supervision", "mask_fingerprint", "metric"]
    header += ["metric_version"]
    lines: list[dict[str, Any]] = []
    for table in board.tables:
        for row in table.rows:
            line = {name: value for name, value in asdict(table.key).items() if name in header}
            line |= {"status": row.status, "low": row.low, "high": row.high}
            line |= {column.key: column.value(row) for column in columns(table) if column.key != "interval"}
            over = line.pop("over_floor")
            line |= {f"over_floor_{name}": part for name, part in (asdict(over) if over else {}).items()}
            lines.append(line)
    names = list(dict.fromkeys([*header, *(name for line in lines for name in line)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _no_formula(value) for name, value in line.items()} for line in lines])
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" and value else value


def to_json(board: Leaderboard) -> str:
    """Everything, unrounded; values that are not finite become null."""
    return json.dumps(_finite(asdict(board)), indent=2, sort_keys=True, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_latex(board: Leaderboard) -> str:
    """One booktabs table each (needs `\\usepackage{booktabs}`); the best of each score column is bold."""
    blocks = ["% needs \\usepackage{booktabs}"]
    for number, table in enumerate(board.tables, start=1):
        shown = [column for column in columns(table) if not column.wide][:-1]
        spec = "".join("l" if column.key == "method" else "r" for column in shown)
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{_latex(table.title)}}}",
            f"\\label{{tab:harness-{number}}}",
        ]
        lines += [f"\\begin{{tabular}}{{{spec}}}", "\\toprule"]
        lines += [" & ".join(_latex(column.header) for column in shown) + " \\\\", "\\midrule"]
        for index, row in enumerate(table.rows):
            cells = [
                f"\\textbf{{{_latex(column.cell(row))}}}"
                if index in best_rows(table, column)
                else _latex(column.cell(row))
                for column in shown
            ]
            lines.append(" & ".join(cells) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


_LATEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "_": "\\_",
    "%": "\\%",
    "&": "\\&",
    "#": "\\#",
    "$": "\\$",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "–": "--",
    "·": "\\textperiodcentered{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "[": "{[}",
    "]": "{]}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text.replace("\n", " "))


def _html(board: Leaderboard) -> str:
    from harness.reports.html import to_html

    return to_html(board)


RENDERERS: dict[str, Callable[[Leaderboard], str]] = {
    "html": _html,
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
    "tex": to_latex,
}


def formats(names: Sequence[str]) -> list[str]:
    """Checks format names.

    Raises:
        UnknownNameError: With suggestions.
    """
    from harness.errors import UnknownNameError

    for name in names:
        if name not in RENDERERS:
            raise UnknownNameError("report format", name, RENDERERS)
    return list(names)
