"""Published numbers beside ours: never in one line where protocol, condition or metric differ."""

from typing import Any

import pytest

from harness.record import RunRecord
from harness.reports.beside import compare_published
from harness.reports.leaderboard import Leaderboard
from harness.reports.published import Published
from harness.reports.table import Table
from harness.testing.records import FakeRun, make_conditions_run, make_run


def number(value: float = 0.8, **changed: Any) -> Published:
    fields = {
        "method": "redeem",
        "dataset": "openmoji",
        "metric": "accuracy",
        "protocol": "both_0.7",
        "condition": "",
        "variant": "",
        "spread": None,
        "paper": "A paper",
        "table": "Table 1",
        "confidence": "high",
        "how_read": "printed",
        "note": "",
    }
    return Published(**(fields | changed), value=value)


def board_of(*runs: FakeRun) -> tuple[Table, list[RunRecord]]:
    (table,) = Leaderboard.build(runs).tables
    return table, [run.record for run in runs]


def refusals(*numbers: Published, **options: Any) -> list[str]:
    table, records = board_of(make_run("redeem", 0.8, **options))
    found, refused = compare_published(table, lambda _: records, numbers)
    assert found == []
    return refused


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.81, "agrees"), (0.70, "ours is higher"), (0.95, "ours is lower"), (0.764, "agrees")]
)
def test_a_verdict_follows_from_our_seeds(value: float, verdict: str) -> None:
    table, records = board_of(*(make_run("redeem", 0.79 + 0.01 * seed, train_seed=seed) for seed in range(3)))
    ((beside,), refused) = compare_published(table, lambda _: records, [number(value)])
    assert refused == []
    assert (beside.published.value, beside.verdict, beside.seeds, beside.repetitions) == (value, verdict, 3, 1)
    assert (beside.ours, beside.spread) == (pytest.approx(0.8), pytest.approx(0.01))
    # One further run: t with two degrees of freedom, 0.01 sqrt(1 + 1/3).
    assert (beside.low, beside.high) == (pytest.approx(0.7503, abs=1e-4), pytest.approx(0.8497, abs=1e-4))


def test_as_many_runs_as_the_paper_made() -> None:
    same = {"supervision": "complete", "backbone": "vilt_b32"}
    table, records = board_of(*(make_run("redeem", 0.79 + 0.01 * seed, train_seed=seed, **same) for seed in range(3)))
    printed = number(0.8, paper="REDEEM (KDD 2025)", table="Table 1")
    ((beside,), _) = compare_published(table, lambda _: records, [printed])
    assert beside.repetitions == 5
    assert beside.high == pytest.approx(0.8 + 4.3027 * 0.01 * (1 / 5 + 1 / 3) ** 0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"supervision": "observed"}, "ours has supervision observed, published is supervision complete"),
        ({"backbone": "fusion"}, "ours has backbone fusion, published is backbone vilt_b32"),
        (
            {"supervision": "observed", "backbone": "fusion"},
            "ours has supervision observed and backbone fusion, "
            "published is supervision complete and backbone vilt_b32",
        ),
    ],
)
def test_the_presets_of_a_table_say_what_it_was_made_with(changed: dict[str, str], says: str) -> None:
    printed = number(paper="REDEEM (KDD 2025)", table="Table 1")
    (line,) = refusals(printed, **({"supervision": "complete", "backbone": "vilt_b32"} | changed))
    assert line == f"redeem: 1 published number is not compared, {says}: REDEEM (KDD 2025)."


def test_one_run_has_no_verdict() -> None:
    table, records = board_of(make_run("redeem", 0.8))
    ((beside,), _) = compare_published(table, lambda _: records, [number(0.8)])
    assert (beside.low, beside.high, beside.verdict) == (None, None, "one run has no spread")


def test_a_part_of_the_release_is_refused() -> None:
    run = make_run("redeem", 0.8)
    run.record.dataset["version"] = "1-subset"
    table, records = board_of(run)
    assert compare_published(table, lambda _: records, [number()])[0] == []
    assert "not the whole release" in compare_published(table, lambda _: records, [number()])[1][0]


def test_f1_micro_is_not_f1_macro() -> None:
    table, records = board_of(make_run("redeem", 0.8))
    table.rows[0].metrics = {"f1_macro": 0.5}
    (line,) = compare_published(table, lambda _: records, [number(metric="f1_micro")])[1]
    assert (
        line
        == "redeem: 1 published number is not compared, published with another metric than ours (f1_macro): f1_micro."
    )


def test_other_protocols_are_counted_not_compared() -> None:
    others = [number(protocol=f"text_0.{rate}") for rate in range(1, 7)]
    (line,) = refusals(*others)
    assert "6 published numbers are not compared, published under another protocol than both_0.7" in line
    assert line.endswith("text_0.1, text_0.2, text_0.3, text_0.4 and 2 more.")


@pytest.mark.parametrize(
    ("published", "says"),
    [
        (number(protocol="unknown"), "the protocol is not stated"),
        (number(variant="K=3"), "another variant of the method: K=3"),
        (number(condition="text"), "under a condition that was not run: text"),
    ],
)
def test_what_else_differs_is_said(published: Published, says: str) -> None:
    (line,) = refusals(published)
    assert says in line


def test_one_fold_is_not_the_data_set() -> None:
    (line,) = refusals(number(dataset="iemocap"), number(dataset="iemo"), dataset="iemocap_fold1")
    assert "1 published number is not compared, published for a whole of which iemocap_fold1 is one fold" in line


def test_changed_options_are_not_the_published_method() -> None:
    (line,) = refusals(number(), changed=["depth=3"])
    assert "run as, another variant" in line


def test_other_methods_and_data_sets_are_nobodys_business() -> None:
    assert refusals(number(method="map"), number(dataset="mmimdb")) == []
    assert refusals(number(), oracle=True) == []


def test_conditions_are_compared_one_by_one() -> None:
    runs = [
        make_conditions_run("redeem", {"text": 0.8, "image": 0.6 + seed / 100}, protocol="patterns", train_seed=seed)
        for seed in range(2)
    ]
    table, records = board_of(*runs)
    numbers = [number(0.6, protocol="patterns", condition="image"), number(0.7, protocol="patterns")]
    (beside,), (line,) = compare_published(table, lambda _: records, numbers)
    assert (beside.condition, beside.ours, beside.verdict) == ("image", pytest.approx(0.605), "agrees")
    assert "without saying which condition, ours is pooled" in line


def test_the_leaderboard_finds_them() -> None:
    protocol = "train:complete,test:patterns_proper"
    runs = [
        make_conditions_run(
            "mmin",
            {"audio": 0.59 + seed / 100, "text": 0.9 + seed / 100},
            protocol=protocol,
            dataset="iemocap",
            supervision="complete",
            train_seed=seed,
        )
        for seed in range(3)
    ]
    for run in runs:
        for result in run.record.results:
            result.metrics["uar"] = result.metrics["accuracy"]
    (table,) = Leaderboard.build(runs).tables
    verdicts = {(one.condition, one.published.value): one.verdict for one in table.published if one.metric == "uar"}
    assert verdicts["audio", 0.59] == "agrees"
    assert verdicts["text", 0.6802] == "ours is higher"
    assert any("under a condition that was not run: video" in line for line in table.refused)
