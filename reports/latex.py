"""LaTeX: booktabs tables to paste into a paper, each number with a comment that names the records behind it."""

from __future__ import annotations

from collections.abc import Sequence

from harness.reports.leaderboard import Leaderboard
from harness.reports.overview import Overview, OverviewCell
from harness.reports.render import Column, best_rows, columns, record_texts, second_rows
from harness.reports.sections import EMPTY, p_text, score_text
from harness.reports.statistics import LEVEL
from harness.reports.table import Row, Table

_NEEDS = "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}"
_MARKS = (
    "$\\pm$: half the width of the 95\\,\\% bootstrap interval. Bold: best, underlined: second best ranked row. "
    "$^{*}$: differs from the best ranked row (paired bootstrap, 5\\,\\%, Holm). "
    "$^{\\circ}$: not ranked. $^{\\ddagger}$: fewer seeds than other rows."
)
_OVERVIEW_MARKS = (
    "Bold: best, underlined: second best of each column. $^{\\circ}$: not ranked. $^{\\ddagger}$: fewer seeds than "
    "other rows. A mean is given only where no cell is missing, failed or short of seeds."
)
#: Columns that a paper has no room for, or that stand in the score as marks.
_LEFT_OUT = ("interval", "badges", "ties")


def to_latex(board: Leaderboard) -> str:
    """Overviews, one table per group of comparable runs, published numbers beside ours, mean ranks over blocks."""
    blocks = [_NEEDS]
    blocks += [_overview(overview, number) for number, overview in enumerate(board.overviews, start=1)]
    for number, table in enumerate(board.tables, start=1):
        blocks.append(_table(table, number))
        if table.published:
            blocks.append(_published(table, number))
    for number, test in enumerate(board.block_tests, start=1):
        lines = [f"{latex(name)} & {rank:.2f} \\\\" for name, rank in zip(test.methods, test.mean_ranks, strict=True)]
        caption = (
            f"{latex(test.title)}: mean ranks, 1 is best. Friedman $\\chi^2 = {test.statistic:.2f}$, "
            f"{latex(p_text(test.p))}; Nemenyi's critical difference at 5\\,\\% is {test.critical_difference:.2f}."
        )
        blocks.append(_float(caption, f"blocks-{number}", "lr", ["method & mean rank \\\\"], lines))
    return "\n\n".join(blocks) + "\n"


def _float(caption: str, label: str, spec: str, head: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join(
        [
            "\\begin{table}",
            "\\centering",
            "\\small",
            f"\\caption{{{caption}}}",
            f"\\label{{tab:harness-{label}}}",
            f"\\begin{{tabular}}{{{spec}}}",
            "\\toprule",
            *head,
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
    )


def _table(table: Table, number: int) -> str:
    shown = [column for column in columns(table) if not column.wide and column.key not in _LEFT_OUT]
    best = {column.key: best_rows(table, column) for column in shown}
    second = {column.key: second_rows(table, column) for column in shown}
    lines = []
    for index, row in enumerate(table.rows):
        cells = [
            _emphasised(_cell(column, row), index in best[column.key], index in second[column.key])
            + (_marks(row) if column.key == "score" else "")
            for column in shown
        ]
        lines += [f"% {latex(row.name)}: {latex(record_texts(row))}", " & ".join(cells) + " \\\\"]
    spec = "".join("l" if column.key == "method" else "r" for column in shown)
    head = " & ".join(latex(column.header) for column in shown) + " \\\\"
    return _float(f"{latex(table.title)}. {_MARKS}", str(number), spec, [head], lines)


def _cell(column: Column, row: Row) -> str:
    text = latex(column.cell(row))
    if column.key == "score" and row.low is not None and row.high is not None and row.score is not None:
        return f"{text} $\\pm$ {score_text((row.high - row.low) / 2)}"
    return text


def _emphasised(text: str, best: bool, second: bool) -> str:
    """The number bold or underlined; what stands behind `±` stays plain."""
    if not (best or second):
        return text
    number, sign, rest = text.partition(" $\\pm$")
    command = "\\textbf" if best else "\\underline"
    return f"{command}{{{number}}}{sign}{rest}"


def _marks(row: Row) -> str:
    marks = "*" if row.p_best is not None and row.p_best < LEVEL else ""
    if row.score is not None and row.rank is None:
        marks += "\\circ"
    if row.score is not None and row.missing_seeds:
        marks += "\\ddagger"
    return f"$^{{{marks}}}$" if marks else ""


def _overview(overview: Overview, number: int) -> str:
    """Columns grouped by data set; a missing cell is a dash, a failed one says so."""
    spans: list[tuple[str, int]] = []
    for column in overview.columns:
        if spans and spans[-1][0] == column.dataset:
            spans[-1] = (column.dataset, spans[-1][1] + 1)
        else:
            spans.append((column.dataset, 1))
    with_mean = any(row.mean is not None for row in overview.rows)
    top, rules, at = [""], [], 2
    for name, width in spans:
        top.append(f"\\multicolumn{{{width}}}{{c}}{{{latex(name)}}}")
        rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    labels = [column.protocol for column in overview.columns]
    if not overview.one_metric:
        labels = [f"{column.protocol} ({column.metric})" for column in overview.columns]
    head = [
        " & ".join([*top, *([""] if with_mean else [])]) + " \\\\",
        "".join(rules),
        " & ".join(["method", *map(latex, labels), *(["mean"] if with_mean else [])]) + " \\\\",
    ]
    orders = [overview.places(place) for place in range(len(overview.columns))]
    lines = []
    for row in overview.rows:
        cells = [latex(row.name)]
        for place, cell in enumerate(row.cells):
            value = None if cell is None else cell.score
            best, second = ([*orders[place], None, None])[:2]
            ranked = value is not None and cell is not None and cell.rank is not None
            cells.append(_overview_cell(cell, ranked and value == best, ranked and value == second))
        if with_mean:
            cells.append(latex(EMPTY if row.mean is None else score_text(row.mean)))
        lines.append(" & ".join(cells) + " \\\\")
    metric = f" ({latex(overview.columns[0].metric)})" if overview.one_metric else ""
    spec = "l" + "r" * (len(overview.columns) + with_mean)
    return _float(f"{latex(overview.title)}{metric}. {_OVERVIEW_MARKS}", f"overview-{number}", spec, head, lines)


def _overview_cell(cell: OverviewCell | None, best: bool, second: bool) -> str:
    if cell is None:
        return latex(EMPTY)
    if cell.score is None:
        return latex(cell.status)
    text = _emphasised(score_text(cell.score), best, second)
    marks = ("\\circ" if cell.rank is None else "") + ("" if cell.complete else "\\ddagger")
    return f"{text}$^{{{marks}}}$" if marks else text


def _published(table: Table, number: int) -> str:
    lines = []
    for one in table.published:
        row, spread = table.rows[one.row], one.published.spread
        stated = score_text(one.published.value) + (f" $\\pm$ {score_text(spread)}" if spread else "")
        ours = score_text(one.ours) + (f" $\\pm$ {score_text(one.spread)}" if one.spread is not None else "")
        span = EMPTY if one.low is None or one.high is None else f"[{score_text(one.low)}, {score_text(one.high)}]"
        source = f"{one.published.paper}, {one.published.table} ({one.published.confidence})"
        cells = [row.name, " ".join(filter(None, (one.condition, one.metric)))]
        last = [span, one.verdict, source]
        lines.append(" & ".join([*map(latex, cells), stated, ours, *map(latex, last)]) + " \\\\")
    head = ["method & metric & published & ours $\\pm$ SD & expected & verdict & source \\\\"]
    caption = f"Published beside ours: {latex(table.title)}."
    return _float(caption, f"published-{number}", "llrrrll", head, lines)


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
    "`": "\\textasciigrave{}",
    "'": "\\textquotesingle{}",
    '"': "\\textquotedbl{}",
    "…": "\\ldots{}",
}


def latex(text: str) -> str:
    """Text that LaTeX prints as it is; what it has no letter for becomes a question mark."""
    return "".join(
        _LATEX.get(char, char if char.isascii() and char.isprintable() else "?") for char in text.replace("\n", " ")
    )
