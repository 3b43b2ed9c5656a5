"""Figures: what is drawn from which runs, that names are only names, and that files are the same every time."""

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.samples import data_address
from harness.reports.build import build_report
from harness.reports.details import Inspected, Picture
from harness.reports.figures import figures, patterns, slug, write_figures
from harness.reports.figures.cost import pareto_front
from harness.reports.figures.reconstruction import pooled
from harness.reports.figures.style import short, style
from harness.reports.leaderboard import Leaderboard
from harness.testing.records import FakeRun, make_conditions_run, make_findings, make_record, make_run

METHODS = {"redeem": 0.8, "map": 0.7, "zero_fill": 0.6}
#: Would stop matplotlib if it were read as mathematics, and a page if it were read as markup.
HOSTILE = "$\\frac{<b>&amp;_^%"


def grid(method: str, last: float, seed: int = 0) -> FakeRun:
    values = {"both_0": 0.9, "both_0.5": 0.8, "both_1": last}
    return make_conditions_run(
        method, values, how="mean", protocol="train:complete,test:both_0..1:0.5", dataset="mmimdb", train_seed=seed
    )


@pytest.fixture(scope="module")
def runs() -> list[Inspected]:
    found = [make_run(name, score, train_seed=seed) for name, score in METHODS.items() for seed in range(2)]
    found += [make_run("complete", 0.9, oracle=True), FakeRun(make_record("broken", status="failed"))]
    found += [grid(name, score - 0.2, seed) for name, score in METHODS.items() for seed in range(2)]
    return [Inspected(run) for run in found]


@pytest.fixture(scope="module")
def board(runs: list[Inspected]) -> Leaderboard:
    return Leaderboard.build(runs)


@pytest.fixture(scope="module")
def drawn(board: Leaderboard, runs: list[Inspected], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Figure name -> SVG text."""
    out = tmp_path_factory.mktemp("figures")
    paths = write_figures(board, runs, out, ["svg"])
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_each_board_gets_the_figures_that_its_runs_allow(drawn: dict[str, str]) -> None:
    emoji, movies = "openmoji-both-0.7", "mmimdb-train-complete-test-both-0..1-0.5"
    names = {name.partition("-")[2] if name[:2].isdigit() else name for name in drawn}
    assert names == {
        *("ranks-observed", "heatmap-observed"),
        *(f"{emoji}-{name}" for name in ("scores", "patterns", "cost", "calibration")),
        *(f"{movies}-{name}" for name in ("scores", "robustness", "cost", "calibration")),
    }


def test_curves_have_a_band_a_marker_and_a_name_for_every_row(drawn: dict[str, str]) -> None:
    svg = next(svg for name, svg in drawn.items() if name.endswith("robustness"))
    assert set(METHODS) <= set(texts(svg))
    assert len(re.findall(r'id="(?:FillBetween)?PolyCollection', svg)) == 3
    assert "missing rate" in texts(svg)


def test_the_heat_map_prints_its_numbers_and_marks_what_is_missing(drawn: dict[str, str]) -> None:
    words = texts(drawn["heatmap-observed"])
    assert "0.800" in words
    assert "×" in words  # broken failed on openmoji
    assert "·" in words  # complete has no run on mmimdb


def test_bars_print_their_values(board: Leaderboard, drawn: dict[str, str]) -> None:
    words = {word.strip() for word in texts(next(svg for name, svg in drawn.items() if name.endswith("patterns")))}
    table = next(table for table in board.tables if table.key.dataset == "openmoji")
    assert {"text+image", "text", "image"} <= words
    assert {f"{value:.2f}" for row in table.rows for value in row.per_pattern.values()} <= words


def test_ranks_name_every_method_with_its_mean_rank(board: Leaderboard, drawn: dict[str, str]) -> None:
    (test,) = board.block_tests
    words = " ".join(texts(drawn["ranks-observed"]))
    for name, rank in zip(test.methods, test.mean_ranks, strict=True):
        assert f"{name} ({rank:.2f})" in words
    assert f"critical difference {test.critical_difference:.2f}" in words


def test_calibration_says_the_error(drawn: dict[str, str]) -> None:
    svg = next(svg for name, svg in drawn.items() if name.endswith("0.7-calibration"))
    # Every logit vector of these predictions is (2, -1, -1, -1): one confidence, right in 80 % of cases.
    confidence = math.exp(2) / (math.exp(2) + 3 * math.exp(-1))
    assert f"ECE {confidence - 0.8:.3f}" in texts(svg)


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_the_same_runs_give_the_same_bytes(
    board: Leaderboard, runs: list[Inspected], tmp_path: Path, ending: str, start: bytes
) -> None:
    one_table = Leaderboard(board.tables[:1])
    first = write_figures(one_table, runs, tmp_path / "a", [ending])
    second = write_figures(one_table, runs, tmp_path / "b", [ending])
    assert len(first) == 4
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.read_bytes().startswith(start)


def test_hostile_names_are_letters(tmp_path: Path) -> None:
    run = make_run("redeem", 0.8, label=HOSTILE, dataset="../" + HOSTILE)
    other = make_run("map\x1b[31m", 0.7, dataset="../" + HOSTILE)
    inspected = [Inspected(run), Inspected(other)]
    paths = write_figures(Leaderboard.build(inspected), inspected, tmp_path / "out", ["svg"])
    assert paths
    assert all(path.parent == tmp_path / "out" and re.fullmatch(r"[A-Za-z0-9.-]+", path.name) for path in paths)
    svg = next(path for path in paths if "scores" in path.name).read_text(encoding="utf-8")
    assert "$\\frac{&lt;b&gt;&amp;amp;" in svg
    assert "\x1b" not in svg


def inspected_run(cosine: float) -> Inspected:
    run = make_run("redeem", 0.8, label=HOSTILE)
    return Inspected(replace(run, found=make_findings(run.record.run_id, cosine)))


def test_recovery_is_drawn_per_hidden_modality_with_its_error(tmp_path: Path) -> None:
    runs = [inspected_run(0.8), Inspected(make_run("map", 0.7))]
    paths = write_figures(Leaderboard.build(runs), runs, tmp_path, ["svg"])
    words = texts(next(path for path in paths if "reconstruction" in path.name).read_text(encoding="utf-8"))
    assert {"image from", "text from", "0.20"} <= {word.strip() for word in words}
    # A row that nobody inspected has no line.
    assert "map" not in words


def test_means_over_conditions_count_samples() -> None:
    one = make_findings("a", 0.6).recoveries[0]
    found = pooled([one, replace(one, condition="both_0.3", count=30, cosine=0.8, others=None)])
    assert found["text", "image"].cosine == pytest.approx((70 * 0.6 + 30 * 0.8) / 100)
    assert found["text", "image"].count == 100
    assert found["text", "image"].others is None


def test_examples_of_retrieval_show_pictures_labels_and_weights(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)

    def show(dataset: str, fingerprint: str, ids: Sequence[str]) -> dict[str, Picture]:
        return {name: Picture(HOSTILE, data_address(pixels)) for name in ids if name != "t2"}

    runs = [inspected_run(0.8)]
    board = Leaderboard.build(runs)
    paths = write_figures(board, runs, tmp_path / "a", ["svg"], show)
    svg = next(path for path in paths if "retrieval" in path.name).read_text(encoding="utf-8")
    words = " ".join(texts(svg))
    # Two test samples and their nearer neighbour have a picture.
    assert svg.count("<image") == 4
    assert "✓ a" in words
    assert "✗ c" in words
    assert "weight 0.700" in words
    assert "asks for image" in words
    plain = write_figures(board, runs, tmp_path / "b", ["svg"])
    assert "t1" in texts(next(path for path in plain if "retrieval" in path.name).read_text(encoding="utf-8"))


def test_nothing_to_draw() -> None:
    assert list(figures(Leaderboard.build([]), [])) == []
    failed = [Inspected(FakeRun(make_record("broken", status="failed")))]
    with style():
        assert list(figures(Leaderboard.build(failed), failed)) == []


def test_a_report_has_a_folder_of_figures(runs: list[Inspected], tmp_path: Path) -> None:
    some = [run.run for run in runs[:2]]
    _, paths = build_report(some, tmp_path / "out", ["csv", "svg"])
    assert paths[0] == tmp_path / "out" / "report.csv"
    assert {path.parent.name for path in paths[1:]} == {"figures"}
    assert not any("figures" in str(path) for path in build_report(some, tmp_path / "two", ["csv"])[1])


points = st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=12)


@given(points, st.booleans())
def test_the_front_is_what_nothing_beats(found: list[tuple[float, float]], higher: bool) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        better = one[1] >= other[1] if higher else one[1] <= other[1]
        return one != other and one[0] <= other[0] and better

    expected = {index for index, point in enumerate(found) if not any(beats(other, point) for other in found)}
    front = pareto_front(found, higher_is_better=higher)
    assert set(front) == expected
    assert [found[index][0] for index in front] == sorted(found[index][0] for index in front)


def test_patterns_have_one_axis_on_which_negative_scores_are_seen() -> None:
    runs = [make_run("redeem", 0.8), make_run("map", 0.7)]
    table = Leaderboard.build(runs).tables[0]
    table.rows[0].per_pattern = {"text+image": 0.5, "text": -0.25, "image": 0.25}
    table.rows[1].per_pattern = {"text+image": 0.4, "text": 0.1, "image": 0.1}
    figure = patterns.draw(table, [[], []])
    assert figure is not None
    # From the lowest score of all panels, with room for the numbers right of the highest.
    assert [axes.get_xlim() for axes in figure.axes] == [(-0.25, pytest.approx(-0.25 + 1.28 * 0.75))] * 3


def test_names() -> None:
    assert slug("a/b c", "ü", "") == "a-b-c-x-x"
    assert short("redeem (paper, tuned, width=32) on vilt_b32") == "redeem (paper, tu…=32) on vilt_b32", (
        "both ends tell"
    )
    assert len(short("a" * 50)) == 34
    assert short("a\x00b\n") == "a?b?"


def test_drawing_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from harness.testing.records import make_run;"
        "from harness.reports.build import build_report;"
        f"build_report([make_run('redeem', 0.8), make_run('map', 0.7)], Path({str(tmp_path)!r}), ['svg', 'html']);"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
