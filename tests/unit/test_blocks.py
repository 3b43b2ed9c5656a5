"""Tests over many cells: equal to other people's implementations, and fixed in what they take in."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from harness.record import AuditResult
from harness.reports.blocks import (
    BlockTest,
    block_tests,
    cliques,
    critical_difference,
    friedman,
    mean_ranks,
    nemenyi,
    signed_rank,
    typical_difference,
)
from harness.reports.leaderboard import Leaderboard
from harness.reports.sections import EMPTY, duels_section
from harness.reports.table import Row, Table, TableKey
from harness.testing.records import FakeRun, make_record, make_run

SCORES = np.array(
    [
        [0.60, 0.67, 0.68, 0.68],
        [0.56, 0.57, 0.70, 0.86],
        [0.56, 0.60, 0.74, 0.78],
        [0.61, 0.58, 0.70, 0.81],
        [0.49, 0.61, 0.55, 0.65],
        [0.45, 0.63, 0.60, 0.77],
        [0.61, 0.64, 0.50, 0.71],
        [0.60, 0.66, 0.58, 0.71],
        [0.52, 0.59, 0.78, 0.69],
        [0.60, 0.72, 0.65, 0.74],
    ]
)


def test_nemenyi_equals_scikit_posthocs() -> None:
    # posthoc_nemenyi_friedman of scikit-posthocs 0.17.1 on these scores.
    golden = [
        [1.0, 0.225740880, 0.190977952, 5.91880804e-05],
        [0.225740880, 1.0, 0.999767364, 0.0581451317],
        [0.190977952, 0.999767364, 1.0, 0.0724507246],
        [5.91880804e-05, 0.0581451317, 0.0724507246, 1.0],
    ]
    np.testing.assert_allclose(nemenyi(mean_ranks(SCORES), len(SCORES)), golden, rtol=1e-5)


def test_friedman_equals_scipy_and_its_formula() -> None:
    statistic, p = friedman(SCORES)
    assert (statistic, p) == pytest.approx(tuple(stats.friedmanchisquare(*SCORES.T)))
    untied = SCORES[1:]
    blocks, methods = untied.shape
    ranks = mean_ranks(untied)
    by_hand = 12 * blocks / (methods * (methods + 1)) * ((ranks**2).sum() - methods * (methods + 1) ** 2 / 4)
    assert friedman(untied)[0] == pytest.approx(by_hand)
    assert friedman(np.full((5, 3), 0.5)) == (0.0, 1.0)


def test_the_best_score_has_rank_one_and_ties_share() -> None:
    assert mean_ranks(np.array([[0.9, 0.5, 0.5], [0.1 + 0.2, 0.3, 0.1]])).tolist() == [1.25, 2.0, 2.75]


def test_critical_difference_is_demsars() -> None:
    # Demšar 2006, section 3.2.2: four methods, 14 data sets, q = 2.569.
    assert critical_difference(4, 14) == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    ranks = [1.0, 1.0 + critical_difference(4, 14), 3.0, 4.0]
    assert nemenyi(ranks, 14)[0, 1] == pytest.approx(0.05, abs=1e-6)


def test_groups_of_the_diagram_are_the_largest_ones() -> None:
    assert cliques([1.0, 1.5, 2.2, 3.9], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 1.5, 1.9, 3.9], 1.0) == [(0, 2)]
    assert cliques([1.0, 3.0], 1.0) == []


def test_the_typical_difference_is_that_of_hollander_and_wolfe() -> None:
    # Depression scale factors, Hollander and Wolfe 1973; estimate and interval as R's wilcox.test prints them.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert typical_difference(np.subtract(before, after)) == pytest.approx((0.46, 0.01, 0.786))
    assert signed_rank(np.subtract(before, after)) == pytest.approx(0.03906, abs=1e-5)


def test_few_blocks_have_no_interval() -> None:
    assert typical_difference(np.full(5, 0.1)) == (pytest.approx(0.1), None, None)
    assert typical_difference(np.arange(6.0)) == (2.5, 0.0, 5.0)
    assert signed_rank(np.zeros(8)) == 1.0


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for count in (12, 60):
        draws = [typical_difference(rng.normal(0.3, 1.0, count)) for _ in range(400)]
        covered = np.mean([low is not None and high is not None and low <= 0.3 <= high for _, low, high in draws])
        assert 0.92 <= covered <= 0.985


CELLS = [(dataset, protocol) for dataset in ("openmoji", "cdda") for protocol in ("both_0.7", "text_0.7")]


def sweep(methods: dict[str, float], seeds: int = 3) -> list[FakeRun]:
    return [
        make_run(method, accuracy + 0.01 * seed, train_seed=seed, dataset=dataset, protocol=protocol)
        for method, accuracy in methods.items()
        for dataset, protocol in CELLS
        for seed in range(seeds)
    ]


def only(runs: list[FakeRun]) -> BlockTest:
    (test,) = Leaderboard.build(runs).block_tests
    return test


def test_blocks_are_data_sets_under_a_protocol() -> None:
    test = only(sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6}))
    assert test.methods == ["redeem", "map", "zero_fill"]
    assert test.blocks == [f"{dataset} · {protocol}" for dataset, protocol in sorted(CELLS)]
    assert test.mean_ranks == [1.0, 2.0, 3.0]
    assert test.statistic == pytest.approx(8.0)
    duel = test.duels[0]
    assert (duel.first, duel.second, duel.wins, duel.ties, duel.losses) == (0, 1, 4, 0, 0)
    assert duel.effect == pytest.approx(0.1)
    assert duel.p == pytest.approx(2 / 2**4)
    assert duel.p_holm == pytest.approx(3 / 2**3)
    assert test.groups == [(0, 1), (1, 2)]
    assert "share their test samples" in test.notes[1]
    assert "cdda, openmoji and these test samples, not about data sets in general" in test.notes[1]
    assert test.notes[2] == "4 blocks are too few for Wilcoxon's test to find any difference at the 5 % level."


def test_seeds_of_a_protocol_are_averaged_not_counted() -> None:
    few, many = (only(sweep({"redeem": 0.8, "map": 0.7, "msp": 0.69}, seeds)) for seeds in (1, 6))
    assert (few.p, few.critical_difference) == (many.p, many.critical_difference)


#: Five data sets and more, under two protocols.
SEVERAL = [(f"data_{number}", protocol) for number in range(6) for protocol in ("both_0.7", "text_0.7")]


def test_from_five_data_sets_on_each_is_one_block() -> None:
    runs = [
        make_run(method, accuracy - 0.1 * (protocol == "text_0.7"), dataset=dataset, protocol=protocol)
        for method, accuracy in (("redeem", 0.8), ("map", 0.7), ("msp", 0.6))
        for dataset, protocol in SEVERAL
    ]
    test = only(runs)
    assert test.blocks == [f"data_{number}" for number in range(6)]
    assert test.duels[0].effect == pytest.approx(0.1)
    assert test.duels[0].p == pytest.approx(2 / 2**6)
    assert test.notes[1].startswith("The blocks share no test samples")
    assert len(only([run for run in runs if run.record.dataset["name"] < "data_4"]).blocks) == 8


def test_equal_methods_are_seldom_told_apart_where_each_block_is_a_data_set() -> None:
    # What a method owes to the luck of a data set's test samples is the same under all protocols and seeds.
    rng = np.random.default_rng(0)
    methods = ("redeem", "map", "msp", "mmin")
    found = []
    for _ in range(60):
        tables = []
        for number in range(6):
            luck = rng.normal(0.7, 0.012, size=len(methods))
            for protocol in ("both_0.7", "text_0.7", "image_0.7"):
                scores = luck[:, None] + rng.normal(0, 0.012, size=(len(methods), 3))
                tables.append(table_of(f"data_{number}", dict(zip(methods, scores.tolist(), strict=True)), protocol))
        (test,) = block_tests(tables)
        found.append((test.p < 0.05, any(duel.p_nemenyi < 0.05 for duel in test.duels)))
    assert np.mean(found, axis=0).max() <= 0.1


def table_of(
    dataset: str, scores: dict[str, list[float]], protocol: str = "both_0.7", metric: str = "accuracy"
) -> Table:
    """A table of methods, one score a train seed; `rmse` is better where it is lower."""
    rows = [
        Row(
            method, method, "fusion", "finished", runs=[{"train_seed": n, metric: value} for n, value in enumerate(own)]
        )
        for method, own in scores.items()
    ]
    key = TableKey(dataset, dataset, protocol, protocol, "observed", "m" * 64, metric, "1")
    return Table(key, metric != "rmse", [], {}, rows)


def test_points_of_different_metrics_are_never_added_up() -> None:
    share = {"redeem": [0.80], "map": [0.70], "msp": [0.60]}
    error = {"redeem": [9.0], "map": [5.0], "msp": [20.0]}
    (test,) = block_tests([table_of("openmoji", share), table_of("cmu_mosi", error, metric="rmse")])
    assert test.methods == ["map", "redeem", "msp"]
    assert test.mean_ranks == [1.5, 1.5, 3.0]
    assert [(duel.wins, duel.losses) for duel in test.duels] == [(1, 1), (2, 0), (2, 0)]
    assert all((duel.effect, duel.low, duel.high, duel.p, duel.p_holm) == (None,) * 5 for duel in test.duels)
    assert any("different metrics (accuracy, rmse)" in note for note in test.notes)
    assert [row[1:5] for row in duels_section(test).rows] == [[EMPTY] * 4] * 3
    # Under one metric the points are those of its score, turned where lower is better.
    (test,) = block_tests([table_of(name, error, metric="rmse") for name in ("cmu_mosi", "ch_sims")])
    assert test.duels[0].effect == pytest.approx(4.0)


def test_wins_are_those_of_the_better_whatever_the_direction() -> None:
    runs = sweep({"redeem": 0.3, "map": 0.2, "zero_fill": 0.1})
    for run in runs:
        run.record.higher_is_better = False
    test = only(runs)
    assert test.methods == ["zero_fill", "map", "redeem"]
    assert test.duels[0].wins == 4
    assert test.duels[0].effect == pytest.approx(0.1)


def test_a_method_that_lacks_a_run_is_left_out_by_name() -> None:
    runs = sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6, "msp": 0.9})
    lost = next(run for run in runs if run.record.method == "msp")
    failed = FakeRun(make_record("msp", status="failed", dataset="openmoji", protocol="both_0.7"))
    test = only([*(run for run in runs if run is not lost), failed])
    assert test.methods == ["redeem", "map", "zero_fill"]
    assert test.left_out == ["msp (1 of 12 runs missing)"]


def test_seeds_that_one_method_has_alone_are_left_out() -> None:
    more = [make_run("redeem", 0.8, train_seed=seed, dataset="cdda") for seed in (7, 8)]
    test = only(sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6}) + more)
    assert len(test.blocks) == 4
    assert test.duels[0].effect == pytest.approx(0.1), "as without the seeds of one method alone"
    assert "At most half of the methods finished 2 of 14 train seeds: left out." in test.notes


def test_oracles_leaks_and_other_supervision_never_take_part() -> None:
    runs = sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6})
    for dataset, protocol in CELLS:
        leak = [AuditResult("bank", False)]
        runs.append(make_run("complete", 0.9, dataset=dataset, protocol=protocol, oracle=True))
        runs.append(make_run("leaky", 0.9, dataset=dataset, protocol=protocol, audits=leak))
        runs.append(make_run("mmin", 0.9, dataset=dataset, protocol=protocol, supervision="complete"))
    assert only(runs).methods == ["redeem", "map", "zero_fill"]


def test_two_methods_or_one_block_are_no_case_for_friedman() -> None:
    assert Leaderboard.build(sweep({"redeem": 0.8, "map": 0.7})).block_tests == []
    assert Leaderboard.build([make_run(name, 0.5) for name in ("redeem", "map", "msp")]).block_tests == []
    assert block_tests([]) == []


def test_no_difference_is_said() -> None:
    test = only(sweep({"redeem": 0.7, "map": 0.7, "msp": 0.7}))
    assert (test.p, test.groups) == (1.0, [(0, 2)])
    assert all((duel.wins, duel.ties, duel.losses) == (0, 4, 0) for duel in test.duels)
    assert any("not to be interpreted" in note for note in test.notes)


def test_a_method_on_another_backbone_is_another_method() -> None:
    # Whichever tables have both, and how many: the complete one takes part, the other is left out under its own name.
    runs = sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6})
    first = next(run for run in runs if run.record.method == "redeem")
    other = replace(first.record, backbone="vilt_b32", run_id="f" * 64)
    test = only([*runs, replace(first, record=other)])
    assert sorted(test.methods) == ["map", "redeem on fusion", "zero_fill"]
    assert test.left_out == ["redeem on vilt_b32 (11 of 12 runs missing)"]
    # One on each side of the sweep is two methods that lack half of it, not one that has all.
    moved = [
        replace(run, record=replace(run.record, backbone="vilt_b32"))
        if (run.record.method, run.record.protocol["name"]) == ("redeem", "text_0.7")
        else run
        for run in sweep({"redeem": 0.8, "map": 0.7, "msp": 0.65, "zero_fill": 0.6})
    ]
    test = only(moved)
    assert test.methods == ["map", "msp", "zero_fill"]
    assert len(test.left_out) == 2


def test_masks_tell_blocks_apart() -> None:
    runs = [
        make_run(method, accuracy, mask=mask * 64)
        for method, accuracy in (("redeem", 0.8), ("map", 0.7), ("msp", 0.6))
        for mask in "ab"
    ]
    assert len(set(only(runs).blocks)) == 2
