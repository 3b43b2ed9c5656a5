import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.errors import UnknownNameError
from harness.reports.build import RENDERERS, build_report, formats
from harness.reports.html import to_html
from harness.reports.latex import to_latex
from harness.reports.leaderboard import Leaderboard
from harness.reports.render import count_text, to_json, to_markdown, to_note, to_terminal
from harness.reports.tabular import to_csv, to_parquet
from harness.testing.records import FakeRun, make_conditions_run, make_record, make_run

HOSTILE = "<script>alert('x')</script>|`_%&$\\"


@pytest.fixture(scope="module")
def runs() -> list[FakeRun]:
    runs = [make_run("redeem", 0.8 + 0.01 * seed, train_seed=seed) for seed in range(3)]
    runs += [make_run("zero_fill", 0.6, reference="floor"), make_run("complete", 0.9, oracle=True)]
    runs += [FakeRun(make_record("broken", status="failed")), make_run("redeem", 0.75, mask="n" * 64)]
    return runs


@pytest.fixture(scope="module")
def board(runs: list[FakeRun]) -> Leaderboard:
    return Leaderboard.build(runs)


class Cells(HTMLParser):
    """Rows of visible cells, and every tag that could reach outside or run."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "onclick")]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self._open = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def parse(page: str) -> Cells:
    cells = Cells()
    cells.feed(page)
    return cells


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\b\d\.\d{4}\b", text)]


def test_all_formats_carry_the_same_numbers(board: Leaderboard) -> None:
    exact = [
        [row.score, row.low, row.high, *row.per_pattern.values()]
        for table in board.tables
        for row in table.rows
        if row.score is not None
    ]
    expected = sorted(round(value, 4) for values in exact for value in values if value is not None)
    assert len(expected) == 24

    over = [row.over_floor for table in board.tables for row in table.rows if row.over_floor is not None]
    assert len(over) == 2
    differences = [round(abs(value), 4) for part in over for value in (part.value, part.low, part.high)]

    board = Leaderboard(board.tables)
    assert sorted(numbers(to_terminal(board))) == expected
    halves = [
        [row.score, (row.high - row.low) / 2, *row.per_pattern.values()]
        for table in board.tables
        for row in table.rows
        if row.score is not None and row.low is not None and row.high is not None
    ]
    assert sorted(numbers(to_latex(board))) == sorted(round(value, 4) for values in halves for value in values)
    piped = "\n".join(line for line in to_markdown(board).splitlines() if line.startswith("|"))
    assert sorted(numbers(piped)) == sorted(expected + differences)
    page = parse(to_html(board))
    shown = [number for row in page.rows if len(row) > 6 for number in numbers(" ".join(row))]
    assert sorted(shown) == sorted(expected + differences)
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    keys = [key for key in lines[0] if key in ("score", "low", "high") or key.startswith("pattern:")]
    assert sorted(round(float(line[key]), 4) for line in lines for key in keys if line[key]) == expected
    names = ("over_floor_value", "over_floor_low", "over_floor_high", "over_floor_p")
    assert [[float(line[name]) for name in names] for line in lines if line[names[0]]] == [
        [part.value, part.low, part.high, part.p] for part in over
    ]
    data = json.loads(to_json(board))
    found = [
        round(value, 4)
        for table in data["tables"]
        for row in table["rows"]
        for value in (row["score"], row["low"], row["high"], *row["per_pattern"].values())
        if value is not None
    ]
    assert sorted(found) == expected


@pytest.fixture(scope="module")
def grids() -> Leaderboard:
    grid = {"both_0": 0.9, "both_0.5": 0.8125, "both_1": 0.45}
    runs = [make_conditions_run("redeem", grid, how="mean", count=160, protocol="grid")]
    runs += [make_conditions_run("map", {"text": 0.55, "image": 0.65}, count=160, protocol="patterns")]
    return Leaderboard.build(runs)


def test_conditions_in_all_formats(grids: Leaderboard) -> None:
    rows = [row for table in grids.tables for row in table.rows]
    values = [
        value
        for row in rows
        for value in (
            row.score,
            row.low,
            row.high,
            row.drop,
            row.area,
            *row.per_condition.values(),
            *row.beside.values(),
        )
    ]
    expected = sorted(round(value, 4) for value in values if value is not None)
    assert len(expected) == 14
    grids = Leaderboard(grids.tables)
    for text in (to_terminal(grids), to_markdown(grids)):
        assert sorted(numbers(text)) == expected
    page = parse(to_html(grids))
    assert sorted(number for row in page.rows if len(row) > 6 for number in numbers(" ".join(row))) == expected
    by_method = {line["method"]: line for line in csv.DictReader(io.StringIO(to_csv(grids)))}
    assert float(by_method["redeem"]["condition:both_0.5"]) == pytest.approx(0.8125)
    assert float(by_method["redeem"]["drop"]) == pytest.approx(0.45)
    assert float(by_method["redeem"]["area"]) == pytest.approx((0.9 / 2 + 0.8125 + 0.45 / 2) / 2)
    assert float(by_method["map"]["mean_of_patterns"]) == pytest.approx(0.6)
    assert by_method["map"]["condition"] == "pooled"
    assert by_method["map"]["drop"] == ""
    text = to_markdown(grids)
    assert "ranked by mean\\_over\\_grid" in text
    assert "3 test conditions, 160 test samples each." in text


def test_many_conditions_do_not_fit_a_terminal() -> None:
    conditions = {f"p{number}": 0.5 + number / 100 for number in range(15)}
    board = Leaderboard.build([make_conditions_run("redeem", conditions)])
    assert "p14" not in to_terminal(board)
    assert "p14" in to_markdown(board)


def test_terminal_table(runs: list[FakeRun]) -> None:
    text = to_terminal(Leaderboard.build(runs))
    assert "openmoji · both_0.7 · observed supervision · masks mmmmmmmm" in text
    redeem = next(line for line in text.splitlines() if re.match(r"\s*1\s+a\s+redeem", line)).split()
    assert redeem[:5] == ["1", "a", "redeem", "3", "0.8100"]
    assert "failed" in next(line for line in text.splitlines() if " broken " in line).split()
    assert "70" in redeem  # (0.81 - 0.6) / (0.9 - 0.6) in percent
    assert "123k" in redeem
    assert "complete: oracle, not ranked; 1 of 3 seeds" in text
    assert "broken: 1 failed; TrainingError: the loss is not finite at step 3." in text
    widths = {len(line) for line in text.splitlines()[1:3]}
    assert len(widths) == 1
    assert max(widths) < 140


@pytest.mark.parametrize("name", list(RENDERERS))
def test_no_runs(name: str) -> None:
    text = RENDERERS[name](Leaderboard.build([]))
    assert text
    if name == "html":
        assert "No runs yet" in text
    assert "No runs yet" in to_terminal(Leaderboard.build([]))


def test_hostile_strings_are_text_everywhere() -> None:
    run = make_run("redeem", 0.8, label=HOSTILE, config={"method": {HOSTILE: HOSTILE}})
    run.record.dataset["name"] = HOSTILE
    run.record.environment = {"host": HOSTILE}
    failed = FakeRun(make_record("broken", status="failed", dataset=HOSTILE))
    failed.record.error = HOSTILE
    failed.record.dataset["fingerprint"] = run.record.dataset["fingerprint"]
    board = Leaderboard.build([run, failed])
    assert "<script>" not in to_markdown(board).replace("\\<", "")
    table = [line for line in to_markdown(board).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "\\_\\%\\&\\$\\textbackslash{}" in to_latex(board)


def test_no_escape_sequence_reaches_the_terminal() -> None:
    text = to_terminal(Leaderboard.build([make_run("\x1b[31mred", 0.8)]))
    assert "\x1b" not in text
    assert "?[31mred" in text


def test_a_spreadsheet_runs_nothing() -> None:
    board = Leaderboard.build([make_run("=cmd", 0.8)])
    assert next(csv.DictReader(io.StringIO(to_csv(board))))["method"] == "'=cmd"


def test_the_best_ranked_score_is_bold_and_no_oracle(board: Leaderboard) -> None:
    assert "**0.8100**" in to_markdown(board)
    assert "**0.9000**" not in to_markdown(board)
    assert "\\textbf{0.8100}" in to_latex(board)
    assert "<b>0.8100</b>" in to_html(board)


def test_an_undefined_pattern_score_is_left_out() -> None:
    run = make_run("redeem", 0.8, config={"method": {"limit": float("inf")}})
    run.record.results[0].per_pattern["text"]["accuracy"] = float("nan")
    board = Leaderboard.build([run])
    assert board.tables[0].patterns == ["text+image", "image"]
    (row,) = json.loads(to_json(board))["tables"][0]["rows"]
    assert sorted(row["per_pattern"]) == ["image", "text+image"]
    assert row["config"]["method"]["limit"] is None
    assert "nan" not in to_html(board)


def test_build_writes_the_chosen_formats(runs: list[FakeRun], tmp_path: Path) -> None:
    board, paths = build_report(runs, tmp_path / "deep" / "out", ["md", "csv"])
    assert [path.name for path in paths] == ["report.md", "report.csv"]
    assert paths[0].read_text() == to_markdown(board) == to_markdown(Leaderboard.build(runs))
    assert sorted(path.name for path in (tmp_path / "deep" / "out").iterdir()) == ["report.csv", "report.md"]


def test_unknown_format() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown report format 'htm'\. Did you mean 'html'"):
        formats(["htm"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (9_999, "9999"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (111_600_000, "112M"),
        (999_999_999, "1G"),
        (2.5e9, "2.5G"),
        (1.5e12, "1.5T"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.fixture(scope="module")
def sweep() -> Leaderboard:
    """Two data sets by two protocols, four methods, three seeds; one cell failed and one lacks a seed."""
    runs = [
        make_run(method, accuracy + 0.01 * seed, train_seed=seed, dataset=dataset, protocol=protocol)
        for method, accuracy in (("redeem", 0.8), ("map", 0.7), ("msp", 0.69), ("zero_fill", 0.6), ("short", 0.65))
        for dataset in ("openmoji", "cdda")
        for protocol in ("both_0.3", "both_0.7")
        for seed in range(3)
        if not (method == "short" and dataset == "cdda" and seed == 2)
        if not (method == "msp" and protocol == "both_0.3" and dataset == "cdda")
    ]
    runs.append(FakeRun(make_record("msp", status="failed", dataset="cdda", protocol="both_0.3")))
    runs.append(make_run("complete", 0.9, dataset="cdda", protocol="both_0.3", oracle=True))
    return Leaderboard.build(runs)


@pytest.mark.parametrize("render", [to_terminal, to_markdown, to_latex])
def test_an_overview_says_what_failed_and_averages_full_rows_only(
    sweep: Leaderboard, render: Callable[[Leaderboard], str]
) -> None:
    text = render(replace(sweep, tables=sweep.tables[:1], block_tests=[])).replace("\\_", "_")
    overview = text[text.index("Overview") :].splitlines()
    found = {
        name: next(line for line in overview if re.match(rf"[| ]*{name} ", line)) for name in ("redeem", "msp", "short")
    }
    assert len(numbers(found["redeem"])) == 5, "four cells and the mean"
    assert numbers(found["redeem"])[-1] == 0.81
    assert len(numbers(found["msp"])) == 3
    assert "failed" in found["msp"]
    assert len(numbers(found["short"])) == 4
    assert "2 of 3 seeds" in found["short"] or "ddagger" in found["short"]


def test_latex_underlines_the_second_and_marks_what_differs(sweep: Leaderboard) -> None:
    table = next(table for table in sweep.tables if table.key.dataset == "openmoji")
    lines = to_latex(Leaderboard([table])).splitlines()
    redeem, second, floor = (
        next(line for line in lines if f"& {name} &" in line) for name in ("redeem", "map", "zero\\_fill")
    )
    assert "\\textbf{0.8100} $\\pm$" in redeem
    assert "^{*}" not in redeem
    assert "\\underline{0.7100} $\\pm$" in second
    assert "$^{*}$" in floor


def test_latex_marks_oracles_and_lost_seeds(sweep: Leaderboard) -> None:
    table = next(table for table in sweep.tables if (table.key.dataset, table.key.protocol) == ("cdda", "both_0.3"))
    lines = to_latex(Leaderboard([table])).splitlines()
    assert "^{\\circ\\ddagger}" in next(line for line in lines if "& complete &" in line)
    assert "\\ddagger}" in next(line for line in lines if "& short &" in line)
    assert "& failed &" in next(line for line in lines if "& msp &" in line)


def test_tests_over_blocks_stand_in_the_report(sweep: Leaderboard) -> None:
    (test,) = sweep.block_tests
    text = to_markdown(sweep)
    assert f"critical difference of mean ranks {test.critical_difference:.2f}" in text
    assert "Left out: msp" in text
    assert "| redeem" in text
    assert "4/0/0" in text
    assert "redeem against map" in text
    assert f"critical difference of mean ranks {test.critical_difference:.2f}" in to_terminal(sweep)


def test_parquet_holds_what_the_csv_holds(sweep: Leaderboard) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(io.BytesIO(to_parquet(sweep))).to_pylist()
    lines = list(csv.DictReader(io.StringIO(to_csv(sweep))))
    assert len(rows) == len(lines) == sum(len(table.rows) for table in sweep.tables)
    for row, line in zip(rows, lines, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == line
    assert {type(row["score"]) for row in rows} == {float, type(None)}


def test_every_number_leads_to_its_records(sweep: Leaderboard) -> None:
    ids = [run["run_id"] for table in sweep.tables for row in table.rows for run in row.runs]
    assert len(ids) == 57
    for render in (to_markdown, to_latex, to_csv, to_json):
        text = render(sweep)
        assert all(run_id[:12] in text for run_id in ids)


def test_a_server_is_linked() -> None:
    board = Leaderboard.build(
        [replace(make_run("redeem", 0.8), link="https://mlflow.example.org/#/experiments/1/runs/2")]
    )
    assert "](<https://mlflow.example.org/#/experiments/1/runs/2>) (seed 0)" in to_markdown(board)
    assert next(csv.DictReader(io.StringIO(to_csv(board))))["links"].endswith("/runs/2")


@pytest.mark.parametrize("render", [to_terminal, to_note, to_markdown, to_latex, to_csv, to_json, to_html])
def test_one_method_on_two_backbones_has_two_names(render: Callable[[Leaderboard], str]) -> None:
    """Everywhere, and in every table of the report; where there is one backbone the name has none."""
    runs = [make_run("redeem", 0.8), make_run("redeem", 0.6, backbone="vilt_b32"), make_run("map", 0.7)]
    runs += [make_run("redeem", 0.5, protocol="both_0.3"), make_run("map", 0.4, protocol="both_0.3")]
    text = render(Leaderboard.build(runs)).replace("\\_", "_")
    assert text.count("redeem on fusion") >= 2
    assert "redeem on vilt_b32" in text
    assert "map on" not in text
    assert " on fusion" not in render(Leaderboard.build(runs[:1]))


def test_published_numbers_stand_below_their_table() -> None:
    same = {"protocol": "text_0.7", "supervision": "complete", "backbone": "vilt_b32"}
    runs = [make_run("redeem", 0.6, dataset="mmimdb", train_seed=seed, **same) for seed in range(2)]
    for seed, run in enumerate(runs):
        run.record.results[0].metrics |= {"f1_micro": 0.54 + seed / 50}
    board = Leaderboard.build(runs)
    for text in (to_terminal(board), to_markdown(board)):
        assert "Published beside ours" in text
        assert "0.5994" in text
        assert "REDEEM (KDD 2025), Table 1" in text.replace("\\", "")
        assert "published with another metric than ours (accuracy, f1" in text.replace("\\", "")
        assert "0.5500 ± 0.0141" in text
    assert "0.5994 & 0.5500 $\\pm$ 0.0141" in to_latex(board)


LATEX_PAGE = (
    "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{textcomp}\n\\usepackage{booktabs}\n"
    "\\begin{document}\n\\input{report.tex}\n\\end{document}\n"
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex, e.g. Debian's texlive-latex-recommended")
def test_latex_compiles(sweep: Leaderboard, grids: Leaderboard, tmp_path: Path) -> None:
    hostile = make_run("redeem", 0.8, label=HOSTILE + "äß–’\N{SNOWMAN}")
    boards = [*sweep.tables, *grids.tables, *Leaderboard.build([hostile]).tables]
    (tmp_path / "report.tex").write_text(to_latex(replace(sweep, tables=boards)))
    (tmp_path / "page.tex").write_text(LATEX_PAGE)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
