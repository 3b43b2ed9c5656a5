"""Published numbers beside ours: never in one line where protocol, condition or metric differ."""

from typing import Any

import pytest

from harness.reports.beside import compare_published
from harness.reports.leaderboard import Leaderboard
from harness.reports.published import Published
from harness.reports.table import Table
from harness.testing.records import make_conditions_run, make_run


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


def table_of(**options: Any) -> Table:
    (table,) = Leaderboard.build([make_run("redeem", 0.8, **options)]).tables
    return table


def refusals(table: Table, *numbers: Published) -> list[str]:
    found, refused = compare_published(table, lambda *_: None, numbers)
    assert found == []
    return refused


@pytest.mark.parametrize(
    ("published", "verdict"),
    [
        (number(0.81), "agrees"),
        (number(0.70), "ours is higher"),
        (number(0.95), "ours is lower"),
        (number(0.70, spread=0.05), "agrees"),
        (number(0.60, spread=0.05), "ours is higher"),
    ],
)
def test_a_verdict_follows_from_both_spreads(published: Published, verdict: str) -> None:
    ((beside,), refused) = compare_published(table_of(), lambda *_: (0.75, 0.85), [published])
    assert refused == []
    assert (beside.published, beside.verdict) == (published, verdict)
    assert (beside.ours, beside.low, beside.high, beside.seeds) == (pytest.approx(0.8), 0.75, 0.85, 1)


def test_f1_micro_is_not_f1_macro() -> None:
    table = table_of()
    table.rows[0].metrics = {"f1_macro": 0.5}
    (line,) = refusals(table, number(metric="f1_micro"))
    assert (
        line
        == "redeem: 1 published number is not compared, published with another metric than ours (f1_macro): f1_micro."
    )


def test_other_protocols_are_counted_not_compared() -> None:
    others = [number(protocol=f"text_0.{rate}") for rate in range(1, 7)]
    (line,) = refusals(table_of(), *others)
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
    (line,) = refusals(table_of(), published)
    assert says in line


def test_changed_options_are_not_the_published_method() -> None:
    (line,) = refusals(table_of(changed=["depth=3"]), number())
    assert "run as, another variant" in line


def test_other_methods_and_data_sets_are_nobodys_business() -> None:
    assert refusals(table_of(), number(method="map"), number(dataset="mmimdb")) == []
    assert refusals(table_of(oracle=True), number()) == []


def test_conditions_are_compared_one_by_one() -> None:
    run = make_conditions_run("redeem", {"text": 0.8, "image": 0.6}, protocol="patterns")
    (table,) = Leaderboard.build([run]).tables
    numbers = [number(0.6, protocol="patterns", condition="image"), number(0.7, protocol="patterns")]
    (beside,), (line,) = compare_published(table, lambda *_: (0.5, 0.7), numbers)
    assert (beside.condition, beside.ours, beside.verdict) == ("image", pytest.approx(0.6), "agrees")
    assert "without saying which condition, ours is pooled" in line


def test_the_leaderboard_finds_them_with_intervals_of_any_metric() -> None:
    published = "train:complete,test:patterns_proper"
    runs = [
        make_conditions_run(
            "mmin", {"audio": 0.6, "text": 0.7}, protocol=published, dataset="iemocap", supervision="complete"
        )
    ]
    for result in runs[0].record.results:
        result.metrics["uar"] = 0.6
    (table,) = Leaderboard.build(runs).tables
    assert {(one.condition, one.metric) for one in table.published} >= {("audio", "uar"), ("text", "uar")}
    for one in table.published:
        assert one.low is not None
        assert one.high is not None
        assert 0.4 < one.low < one.high < 0.85
        assert one.published.dataset == "iemocap"
    assert any("with another metric than ours" in line or "under a condition" in line for line in table.refused)
