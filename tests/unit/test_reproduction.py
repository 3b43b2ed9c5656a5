"""Ours beside the printed number: what is tested, what is refused, what files say."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import t, ttest_ind_from_stats

from harness.record import ConditionResult, RunRecord
from harness.reports.presets import Preset
from harness.reports.published import UNKNOWN, Published
from harness.reports.reproduction import RENDERERS, Line, cells, compare, summary, why_not
from harness.testing.records import make_record

NUMBER = Published(
    method="redeem",
    dataset="openmoji",
    metric="accuracy",
    protocol="both_0.7",
    condition="",
    variant="",
    value=0.60,
    spread=None,
    paper="A paper",
    table="Table 1",
    confidence="high",
    how_read="printed",
    note="",
)
PRESET = Preset("paper/table1/cell", {"method": "redeem"}, (NUMBER,), 5, "a note", "")
SCORES = (0.61, 0.58, 0.62, 0.60, 0.63)


def run(score: float, seed: int = 0, **options: Any) -> RunRecord:
    record = make_record("redeem", train_seed=seed, **options)
    record.results = [ConditionResult(record.protocol["name"], {"accuracy": score, "f1_macro": score / 2})]
    return record


def runs(scores: Sequence[float] = SCORES, **options: Any) -> list[RunRecord]:
    return [run(score, seed, **options) for seed, score in enumerate(scores)]


def one(
    preset: Preset = PRESET, records: Sequence[RunRecord] | None = None, planned: int = 5, problem: str = ""
) -> Line:
    (line,) = compare(preset, runs() if records is None else records, planned, problem)
    return line


def printed(value: float) -> Preset:
    return replace(PRESET, numbers=(replace(NUMBER, value=value),))


def test_the_range_is_where_the_mean_of_as_many_runs_would_fall() -> None:
    line = one()
    mean = sum(SCORES) / 5
    spread = math.sqrt(sum((score - mean) ** 2 for score in SCORES) / 4)
    half = t.ppf(0.975, 4) * spread * math.sqrt(1 / 5 + 1 / 5)
    assert line.ours == pytest.approx(mean)
    assert line.spread == pytest.approx(spread)
    assert (line.low, line.high) == pytest.approx((mean - half, mean + half))
    assert line.difference == pytest.approx(mean - 0.60)
    assert (line.verdict, line.reason, line.seeds, line.planned) == ("agrees", "", [0, 1, 2, 3, 4], 5)


def test_p_and_range_say_the_same() -> None:
    first = one()
    assert first.low is not None
    inside, edge, outside = (one(printed(first.low + step)) for step in (1e-6, 0.0, -1e-6))
    assert (inside.verdict, outside.verdict) == ("agrees", "differs")
    assert edge.p == pytest.approx(0.05)
    assert inside.p is not None
    assert outside.p is not None
    assert outside.p < 0.05 < inside.p


def test_with_as_many_runs_it_is_students_test_with_one_spread() -> None:
    """The paper's runs are taken to vary as ours do: its variance adds nothing to what ours tell."""
    line = one(printed(0.57))
    mean = sum(SCORES) / 5
    statistic = ttest_ind_from_stats(mean, line.spread, 5, 0.57, line.spread, 5).statistic
    assert line.p == pytest.approx(2 * t.sf(abs(statistic), 4))


def test_a_number_from_one_run_has_a_wider_range() -> None:
    many, single = one(), one(replace(PRESET, repetitions=1))
    assert many.high is not None
    assert many.low is not None
    assert single.high is not None
    assert single.low is not None
    assert single.high - single.low == pytest.approx((many.high - many.low) * math.sqrt((1 / 5 + 1) / (2 / 5)))


def test_runs_that_all_score_alike_leave_no_room() -> None:
    same, other = one(records=runs([0.6] * 5)), one(records=runs([0.625] * 5))
    assert (same.verdict, other.verdict) == ("agrees", "differs")
    assert (same.p, other.p, same.spread) == (None, None, 0.0)


def test_one_seed_has_a_difference_and_no_test() -> None:
    line = one(records=runs([0.61]), planned=1)
    assert (line.verdict, line.reason) == ("not compared", "one run has no spread")
    assert line.difference == pytest.approx(0.01)
    assert (line.spread, line.low, line.p) == (None, None, None)


REFUSED = [
    ({"protocol": "concat_both_0.7"}, {}, "the protocol is concat_both_0.7, published is both_0.7"),
    ({"dataset": "openmoji_subgroup"}, {}, "the data set is openmoji_subgroup, published is openmoji"),
    ({}, {"metric": "auroc"}, "the run has no auroc, only accuracy, f1_macro"),
    ({}, {"condition": "text"}, "the run has no test condition text"),
    ({}, {"method": "ragpt"}, "the run is of redeem, the number of ragpt"),
    ({}, {"protocol": UNKNOWN}, "does not state its data set or protocol"),
]


@pytest.mark.parametrize(("options", "change", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_is_not_the_same_is_not_compared(options: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    line = one(replace(PRESET, numbers=(replace(NUMBER, **change),)), runs(**options))
    assert line.verdict == "not compared"
    assert reason in line.reason
    assert (line.difference, line.p) == (None, None)


def test_a_part_of_a_release_is_not_the_release() -> None:
    record = run(0.6)
    record.dataset |= {"version": "1-subset", "splits": {"train": 24, "valid": 8, "test": 8}}
    assert why_not(NUMBER, run(0.6), {}) == ""
    assert why_not(NUMBER, record, {}) == "the folder is not the whole release (24 / 8 / 8 samples)"


def test_options_that_make_another_experiment_of_a_cell_end_the_comparison() -> None:
    cell = replace(PRESET, run={"method": "redeem", "backbone": "vilt_b32", "supervision": "complete"})
    own = runs(backbone="vilt_b32", supervision="complete")
    assert one(cell, own).verdict == "agrees"
    line = one(cell, runs(supervision="complete"))
    assert (line.verdict, line.reason) == ("not compared", "ours has backbone fusion, published is backbone vilt_b32")


def test_an_undefined_score_is_not_averaged() -> None:
    line = one(records=runs([0.6, math.nan, 0.6, 0.6, 0.6]))
    assert (line.verdict, line.reason) == ("not compared", "accuracy is undefined")


def test_several_test_conditions_are_not_one() -> None:
    record = run(0.6)
    record.results.append(ConditionResult("text", {"accuracy": 0.5}))
    assert "no test condition" in why_not(NUMBER, record, {})
    assert why_not(replace(NUMBER, condition="text"), record, {}) == ""
    assert one(replace(PRESET, numbers=(replace(NUMBER, condition="text"),)), [record], 1).ours == 0.5


def test_a_preset_that_says_why_it_differs_is_not_compared() -> None:
    line = one(replace(PRESET, differs="plots are not films"))
    assert (line.verdict, line.reason, line.difference) == ("not compared", "plots are not films", None)
    assert line.ours is not None


def test_missing_and_failed_runs_are_said() -> None:
    broken = make_record("redeem", status="failed", train_seed=4)
    line = one(records=[*runs(SCORES[:4]), broken])
    assert (line.verdict, line.reason) == (
        "failed",
        "1 of 5 runs failed: TrainingError: the loss is not finite at step 3.",
    )
    assert (line.seeds, line.difference) == ([0, 1, 2, 3], None)
    assert one(records=[]).reason == "0 of 5 runs are finished"
    absent = one(records=[], problem="no train.jsonl; get it there")
    assert (absent.verdict, absent.reason, absent.ours) == ("not run", "no train.jsonl; get it there", None)
    part = one(records=runs(SCORES[:2]), problem="no weights")
    assert (part.verdict, part.reason) == ("not compared", "2 of 5 runs are finished: no weights")


def test_a_cell_with_two_numbers_has_two_lines() -> None:
    both = replace(PRESET, numbers=(NUMBER, replace(NUMBER, metric="f1_macro", value=0.3)))
    first, second = compare(both, runs(), 5)
    assert (first.metric, second.metric) == ("accuracy", "f1_macro")
    assert second.ours == pytest.approx(first.ours and first.ours / 2)


def test_all_files_carry_the_same_numbers() -> None:
    lines = [one(), one(printed(0.9)), one(records=[], problem="no data | none")]
    page, table, data = (RENDERERS[form]("redeem/table1", lines, ["mind the gap"]) for form in ("md", "csv", "json"))
    rows = list(csv.DictReader(io.StringIO(table)))
    loaded = json.loads(data)
    for line, row, entry in zip(lines, rows, loaded["lines"], strict=True):
        assert [row["ours"], row["p"]] == ["" if value is None else str(value) for value in (line.ours, line.p)]
        assert (entry["ours"], entry["verdict"], row["verdict"]) == (line.ours, line.verdict, line.verdict)
        assert all(cell.replace("|", "\\|") in page for cell in cells(line))
    assert loaded["summary"] == summary(lines) in page
    assert loaded["notes"] == ["mind the gap"]
    assert "- mind the gap" in page
    assert "- Published: A paper, Table 1 (5 runs, confidence high)" in page
    assert "nan" not in data.lower()


def test_the_summary_counts_and_warns_of_chance() -> None:
    lines = [one()] * 30 + [one(printed(0.9))] * 10 + [one(records=[])]
    assert summary(lines) == (
        "41 published numbers: 30 agree, 10 differ, 1 not run; of 40 tests about 2.0 differ by chance alone."
    )
    assert summary(lines[-1:]) == "1 published number: 1 not run."
