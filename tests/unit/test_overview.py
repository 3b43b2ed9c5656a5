"""Methods over several tables, where a mean is never taken over an incomplete grid."""

import pytest

from harness.reports.leaderboard import Leaderboard
from harness.reports.overview import Overview, OverviewRow
from harness.testing.records import FakeRun, make_record, make_run


def only(runs: list[FakeRun]) -> Overview:
    (overview,) = Leaderboard.build(runs).overviews
    return overview


def row_of(overview: Overview, name: str) -> OverviewRow:
    (row,) = [row for row in overview.rows if row.name == name]
    return row


def two(method: str, first: float, second: float, **options: object) -> list[FakeRun]:
    return [
        make_run(method, first, protocol="both_0.3", **options),
        make_run(method, second, protocol="both_0.7", **options),
    ]


def test_one_table_needs_no_overview() -> None:
    assert Leaderboard.build([make_run("redeem", 0.8), make_run("map", 0.7)]).overviews == []


def test_a_full_grid_has_means() -> None:
    overview = only(two("map", 0.6, 0.4) + two("redeem", 0.9, 0.7))
    assert [(column.dataset, column.protocol) for column in overview.columns] == [
        ("openmoji", "both_0.3"),
        ("openmoji", "both_0.7"),
    ]
    assert [(row.name, row.mean) for row in overview.rows] == [
        ("redeem", pytest.approx(0.8)),
        ("map", pytest.approx(0.5)),
    ]
    assert overview.notes == []


def test_a_missing_cell_a_failed_cell_and_a_lost_seed_have_no_mean() -> None:
    runs = two("whole", 0.6, 0.5) + two("whole", 0.6, 0.5, train_seed=1)
    runs += [make_run("half", 0.9, protocol="both_0.3", train_seed=seed) for seed in (0, 1)]
    runs += [make_run("broken", 0.9, protocol="both_0.3", train_seed=seed) for seed in (0, 1)]
    runs += [FakeRun(make_record("broken", status="failed", protocol="both_0.7"))]
    runs += [*two("short", 0.9, 0.9), make_run("short", 0.9, protocol="both_0.3", train_seed=1)]
    overview = only(runs)
    assert {row.name: row.mean for row in overview.rows} == {
        "whole": pytest.approx(0.55),
        "half": None,
        "broken": None,
        "short": None,
    }
    assert overview.rows[0].name == "whole", "complete rows come first"
    assert row_of(overview, "half").cells[1] is None
    failed = row_of(overview, "broken").cells[1]
    assert failed is not None
    assert (failed.status, failed.score) == ("failed", None)
    short = row_of(overview, "short").cells[1]
    assert short is not None
    assert (short.score, short.seeds, short.wanted, short.complete) == (pytest.approx(0.9), 1, 2, False)
    assert "no cell is missing, failed or short of seeds" in overview.notes[0]


def test_different_metrics_are_never_averaged() -> None:
    runs = two("redeem", 0.9, 0.7)
    runs[1].record.primary_metric = "f1_macro"
    runs[1].record.results[0].metrics["f1_macro"] = 0.7
    overview = only(runs)
    assert not overview.one_metric
    assert overview.rows[0].mean is None
    assert "different metrics" in overview.notes[0]


def test_another_version_of_the_metric_is_another_metric() -> None:
    runs = two("redeem", 0.9, 0.7)
    runs[1].record.metric_versions["accuracy"] = "2"
    assert only(runs).rows[0].mean is None


def test_supervision_rules_have_their_own() -> None:
    board = Leaderboard.build(two("redeem", 0.9, 0.7) + two("mmin", 0.8, 0.6, supervision="complete"))
    assert [(overview.supervision, len(overview.rows)) for overview in board.overviews] == [
        ("complete", 1),
        ("observed", 1),
    ]


def test_masks_tell_columns_apart() -> None:
    overview = only([make_run("redeem", 0.8, mask="a" * 64), make_run("redeem", 0.7, mask="b" * 64)])
    assert [column.protocol for column in overview.columns] == ["both_0.7 · aaaaaaaa", "both_0.7 · bbbbbbbb"]


def test_other_settings_in_another_column_are_said() -> None:
    runs = [
        make_run("redeem", 0.8, protocol=protocol, config={"method": {"depth": depth}})
        for protocol, depth in (("both_0.3", 2), ("both_0.7", 4))
    ]
    assert only(runs).rows[0].differs == ["method.depth"]
    assert only(runs).notes == ["redeem: the columns differ in method.depth."]
