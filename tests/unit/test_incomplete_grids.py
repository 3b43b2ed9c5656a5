"""A failed and a missing cell: visible in every format, and no mean over what is left."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.reports.build import RENDERERS
from harness.reports.details import Inspected
from harness.reports.figures import write_figures
from harness.reports.leaderboard import Leaderboard
from harness.reports.render import to_terminal
from harness.testing.records import FakeRun, make_record, make_run

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def runs() -> list[FakeRun]:
    """`redeem` has everything, `map` lost a seed of one cell and all of another, `zero_fill` never ran the other."""
    found = [
        make_run("redeem", 0.8, train_seed=seed, dataset=dataset)
        for seed in SEEDS
        for dataset in ("openmoji", "mmimdb")
    ]
    found += [make_run("zero_fill", 0.6, train_seed=seed, reference="floor") for seed in SEEDS]
    found += [make_run("map", 0.7), FakeRun(make_record("map", status="failed", train_seed=1))]
    return found + [FakeRun(make_record("map", status="failed", train_seed=seed, dataset="mmimdb")) for seed in SEEDS]


@pytest.fixture(scope="module")
def board(runs: list[FakeRun]) -> Leaderboard:
    return Leaderboard.build(runs)


def text_of(renderer: Callable[[Leaderboard], str | bytes], board: Leaderboard) -> str:
    content = renderer(board)
    assert isinstance(content, str)
    return content


def line_of(text: str, start: str) -> str:
    """The first line about a method."""
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_overview_has_a_mean_for_the_complete_row_only(board: Leaderboard) -> None:
    (overview,) = board.overviews
    means = {row.name: row.mean for row in overview.rows}
    assert means == {"redeem": pytest.approx(0.8), "map": None, "zero_fill": None}


def test_terminal(board: Leaderboard) -> None:
    overview = to_terminal(board).partition("Overview")[2]
    # Columns are sorted by data set: mmimdb, openmoji, mean.
    assert re.search(r"failed\s+0\.7000 \(\d\), 1 of 2 seeds\s+–$", line_of(overview, "map"))
    assert re.search(r"–\s+0\.6000 \(\d\)\s+–$", line_of(overview, "zero_fill"))
    assert "map: 2 failed" in to_terminal(board)


def test_markdown(board: Leaderboard) -> None:
    text = text_of(RENDERERS["md"], board)
    overview = text.partition("Overview")[2]
    cells = [cell.strip() for cell in line_of(overview, "| map").strip("|").split("|")]
    assert cells[1] == "failed"
    assert cells[2].endswith("1 of 2 seeds")
    assert cells[3] == "–"
    cells = [cell.strip() for cell in line_of(overview, "| zero").strip("|").split("|")]
    assert (cells[1], cells[3]) == ("–", "–")
    assert "the loss is not finite at step 3" in text


def test_page(board: Leaderboard, runs: list[FakeRun]) -> None:
    from harness.reports.html import to_html

    page = to_html(board, [Inspected(run) for run in runs])
    matrix = page.partition('class="matrix"')[2].partition("</table>")[0]
    rows = {re.sub(r"<[^>]+>", " ", row).split()[0]: row for row in re.findall(r"<tr>(.*?)</tr>", matrix, re.S)[1:]}
    assert "failed</a>" in rows["map"]
    assert 'title="1 of 2 seeds">*' in rows["map"]
    assert rows["map"].endswith("<td>–</td>")
    assert "no run" in rows["zero_fill"]
    assert rows["zero_fill"].endswith("<td>–</td>")
    assert "<td>0.8000</td>" in rows["redeem"]
    assert 'class="failed"' in page


def test_latex(board: Leaderboard) -> None:
    text = text_of(RENDERERS["tex"], board)
    assert re.search(r"^map.* & failed & .*0\.7000.*ddagger.* & -- \\\\$", text, re.M)
    assert re.search(r"^zero\\_fill.* & -- & 0\.6000.* & -- \\\\$", text, re.M)


def test_csv_and_parquet(board: Leaderboard) -> None:
    import pyarrow.parquet as pq

    lines = list(csv.DictReader(io.StringIO(text_of(RENDERERS["csv"], board))))
    failed = next(line for line in lines if (line["method"], line["dataset"]) == ("map", "mmimdb"))
    assert (failed["status"], failed["score"], failed["rank"]) == ("failed", "", "")
    partial = next(line for line in lines if (line["method"], line["dataset"]) == ("map", "openmoji"))
    assert (partial["seeds"], partial["missing_seeds"]) == ("1", "1")
    assert not any((line["method"], line["dataset"]) == ("zero_fill", "mmimdb") for line in lines)
    content = RENDERERS["parquet"](board)
    assert isinstance(content, bytes)
    table = pq.read_table(io.BytesIO(content)).to_pylist()
    assert [(line["method"], line["status"], line["score"]) for line in table if line["status"] == "failed"] == [
        ("map", "failed", None)
    ]


def test_json(board: Leaderboard) -> None:
    (overview,) = json.loads(text_of(RENDERERS["json"], board))["overviews"]
    rows = {row["name"]: row for row in overview["rows"]}
    assert [rows[name]["mean"] for name in ("map", "zero_fill")] == [None, None]
    assert [cell and cell["status"] for cell in rows["map"]["cells"]] == ["failed", "finished"]
    assert rows["map"]["cells"][0]["score"] is None
    assert rows["zero_fill"]["cells"][0] is None


def test_heat_map(board: Leaderboard, runs: list[FakeRun], tmp_path: Path) -> None:
    paths = write_figures(board, [Inspected(run) for run in runs], tmp_path, ["svg"])
    drawn = next(path for path in paths if path.name.startswith("heatmap")).read_text(encoding="utf-8")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"×", "·", "0.700*"} <= set(texts)
