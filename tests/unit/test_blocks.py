"""Tests over many cells: equal to other people's implementations, and fixed in what they take in."""

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


def test_blocks_are_data_sets_protocols_and_seeds() -> None:
    test = only(sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6}))
    assert test.methods == ["redeem", "map", "zero_fill"]
    assert len(test.blocks) == 12
    assert test.blocks[0] == "cdda · both_0.7 · seed 0"
    assert test.mean_ranks == [1.0, 2.0, 3.0]
    assert test.statistic == pytest.approx(24.0)
    duel = test.duels[0]
    assert (duel.first, duel.second, duel.wins, duel.ties, duel.losses) == (0, 1, 12, 0, 0)
    assert duel.effect == pytest.approx(0.1)
    assert duel.p == pytest.approx(2 / 2**12)
    assert duel.p_holm == pytest.approx(3 * duel.p)
    assert test.groups == []
    assert "cdda, openmoji" in test.notes[1]


def test_wins_are_those_of_the_better_whatever_the_direction() -> None:
    runs = sweep({"redeem": 0.3, "map": 0.2, "zero_fill": 0.1})
    for run in runs:
        run.record.higher_is_better = False
    test = only(runs)
    assert test.methods == ["zero_fill", "map", "redeem"]
    assert test.duels[0].wins == 12
    assert test.duels[0].effect == pytest.approx(0.1)


def test_a_method_that_lacks_a_block_is_left_out_by_name() -> None:
    runs = sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6, "msp": 0.9})
    lost = next(run for run in runs if run.record.method == "msp")
    failed = FakeRun(make_record("msp", status="failed", dataset="openmoji", protocol="both_0.7"))
    test = only([*(run for run in runs if run is not lost), failed])
    assert test.methods == ["redeem", "map", "zero_fill"]
    assert test.left_out == ["msp (1 of 12 blocks missing)"]


def test_seeds_that_one_method_has_alone_are_left_out() -> None:
    more = [make_run("redeem", 0.8, train_seed=seed, dataset="cdda") for seed in (7, 8)]
    test = only(sweep({"redeem": 0.8, "map": 0.7, "zero_fill": 0.6}) + more)
    assert len(test.blocks) == 12
    assert "2 blocks that at most half of the methods finished are left out." in test.notes


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
    assert all((duel.wins, duel.ties, duel.losses) == (0, 12, 0) for duel in test.duels)
    assert any("not to be interpreted" in note for note in test.notes)


def test_masks_tell_blocks_apart() -> None:
    runs = [
        make_run(method, accuracy, mask=mask * 64)
        for method, accuracy in (("redeem", 0.8), ("map", 0.7), ("msp", 0.6))
        for mask in "ab"
    ]
    assert len(set(only(runs).blocks)) == 2
