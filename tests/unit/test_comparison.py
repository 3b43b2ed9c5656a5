"""Paired comparisons: who is better, by how much, and what must never be paired."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from harness import tracking
from harness.cli import main
from harness.cli.store import Store
from harness.errors import DataError, UsageError
from harness.measures import accuracy
from harness.record import AuditResult
from harness.reports.comparison import PairedCell, pair, select
from harness.reports.statistics import compare
from harness.testing.records import FakeRun, make_conditions_run, make_run


def runs_of(method: str, scores: Sequence[float], **options: Any) -> list[FakeRun]:
    return [make_run(method, score, train_seed=seed, **options) for seed, score in enumerate(scores)]


def only(a: Sequence[FakeRun], b: Sequence[FakeRun]) -> PairedCell:
    (cell,) = pair(a, b)
    return cell


def test_difference_is_that_of_the_statistics() -> None:
    a, b = runs_of("redeem", (0.8, 0.9, 0.7)), runs_of("map", (0.6, 0.9, 0.75))
    cell = only(a, b)
    expected = compare(accuracy, [run.predictions() for run in a], [run.predictions() for run in b])
    assert cell.difference == expected.difference
    assert cell.difference.value == pytest.approx(0.05)
    assert (cell.score_a, cell.score_b) == (pytest.approx(0.8), pytest.approx(0.75))
    assert cell.seeds == (0, 1, 2)
    assert cell.wins == (1, 1, 1)
    assert cell.p_holm == cell.difference.p
    width = cell.difference.high - cell.difference.low
    assert cell.detectable == pytest.approx(2.8016 * width / 3.9199, rel=1e-4)


def test_patterns_add_up_to_the_whole() -> None:
    cell = only([make_run("redeem", 0.9)], [make_run("map", 0.5)])
    assert {part.name for part in cell.parts} == {"text", "image", "text+image"}
    assert sum(part.count for part in cell.parts) == cell.samples == 200
    assert sum(part.count * part.difference.value for part in cell.parts) == pytest.approx(200 * 0.4)
    assert all(part.p_holm >= part.difference.p for part in cell.parts)
    assert cell.mcnemar is not None


def test_unshared_seeds_are_left_out() -> None:
    cell = only(runs_of("redeem", (0.8, 0.8, 0.8)), runs_of("map", (0.7,)))
    assert cell.seeds == (0,)


def test_one_method_on_two_backbones_is_named_by_them() -> None:
    on_vilt = make_run("redeem", 0.6, backbone="vilt_b32")
    cell = only([make_run("redeem", 0.8)], [on_vilt])
    assert (cell.name_a, cell.name_b) == ("redeem on fusion", "redeem on vilt_b32")
    assert only([on_vilt], [make_run("map", 0.7)]).name_a == "redeem"


def test_several_cells_are_adjusted_together() -> None:
    a = [make_run("redeem", 0.80), make_run("redeem", 0.8, protocol="text_0.7")]
    b = [make_run("map", 0.74), make_run("map", 0.74, protocol="text_0.7")]
    cells = pair(a, b)
    assert [cell.key.protocol for cell in cells] == ["both_0.7", "text_0.7"]
    assert all(cell.p_holm == pytest.approx(min(1.0, 2 * cell.difference.p)) for cell in cells)


def test_conditions_are_the_parts_of_a_grid() -> None:
    a = make_conditions_run("redeem", {"easy": 0.9, "hard": 0.6}, how="mean")
    b = make_conditions_run("map", {"easy": 0.8, "hard": 0.6}, how="mean")
    cell = only([a], [b])
    assert cell.difference.value == pytest.approx(0.05)
    assert [(part.name, pytest.approx(part.difference.value)) for part in cell.parts] == [("easy", 0.1), ("hard", 0.0)]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"mask": "n" * 64}, "different masks (mmmm"),
        ({"supervision": "complete"}, "different supervision rules (observed and complete)"),
        ({"protocol": "text_0.7"}, "different protocols (both_0.7 and text_0.7)"),
        ({"dataset": "cdda"}, "different data sets (openmoji and cdda)"),
        ({"train_seed": 4}, "train seeds are [0] and [4]"),
    ],
)
def test_what_differs_is_never_paired(other: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        pair([make_run("redeem", 0.8)], [make_run("map", 0.7, **other)])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_versions_of_data_and_metric_are_never_paired() -> None:
    newer = make_run("map", 0.8)
    newer.record.metric_versions["accuracy"] = "2"
    with pytest.raises(UsageError, match="different versions of the metric"):
        pair([make_run("redeem", 0.8)], [newer])
    older = make_run("redeem", 0.8)
    older.record.metric_versions["accuracy"] = "2"
    with pytest.raises(DataError, match="accuracy version 2, installed is 1"):
        pair([older], [newer])
    elsewhere = make_run("map", 0.8)
    elsewhere.record.dataset["fingerprint"] = "0" * 64
    with pytest.raises(UsageError, match="different versions of the data set"):
        pair([make_run("redeem", 0.8)], [elsewhere])


def test_oracles_and_leaks_are_noted() -> None:
    leaky = make_run("map", 0.7, audits=[AuditResult("bank", False)])
    cell = only([make_run("complete", 0.8, oracle=True)], [leaky])
    assert "A is an oracle" in cell.notes[0]
    assert "a leak check of run" in cell.notes[1]


def test_variants_are_told_apart() -> None:
    plain = make_run("redeem", 0.8, config={"method": {"name": "redeem", "generator": "mean"}})
    variant = make_run(
        "redeem", 0.7, config={"method": {"name": "redeem", "generator": "padding"}}, changed=["generator=padding"]
    )
    runs = [plain, variant]
    assert select(runs, "redeem") == [plain]
    assert select(runs, "redeem:generator=padding") == [variant]
    assert select(runs, variant.record.run_id[:10]) == [variant]
    with pytest.raises(UsageError, match="no finished run of 'redeem:generator=none'"):
        select(runs, "redeem:generator=none")
    with pytest.raises(UsageError, match="METHOD:option=value"):
        select(runs, "redeem:generator")
    with pytest.raises(UsageError, match="no finished run has an id"):
        select(runs, "00000000")
    with pytest.raises(UsageError, match="2 variants of redeem"):
        pair(runs, [make_run("map", 0.7)])
    with pytest.raises(UsageError, match="both sides name run"):
        pair([plain], [plain])


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = runs_of("redeem", (0.8, 0.9)) + runs_of("map", (0.6, 0.7))
    monkeypatch.setattr(Store, "exists", lambda self: True)
    monkeypatch.setattr(tracking, "load_runs", lambda uri, filters: runs)
    assert main(["compare", "redeem", "map", "protocol=both_0.7"]) == 0
    text = capsys.readouterr().out
    assert "2 better, 0 equal, 0 worse" in text
    assert "+0.2000" in text
    assert main(["compare", "redeem", "map", "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert cell["difference"]["value"] == pytest.approx(0.2)
    assert main(["compare", "redeem", "map", "method=redeem"]) == 2
    assert "unknown filter 'method'" in capsys.readouterr().err
