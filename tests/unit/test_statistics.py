from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.errors import DataError
from harness.measures import accuracy, auroc, f1_macro, f1_samples, log_loss, uar
from harness.reports.statistics import (
    DRAWS,
    Difference,
    Draws,
    PairTest,
    Spread,
    bootstrap,
    bootstrap_p,
    compare,
    curve_area,
    detectable,
    holm,
    interval,
    mcnemar,
    pair_tests,
    ranks,
    tie_letters,
)
from harness.scoring import Layout
from harness.testing.records import make_predictions
from harness.types import Predictions


def plain(logits: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy as a plugin would write it: no resampling of its own."""
    return float((logits.argmax(axis=1) == labels).mean())


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_mcnemar_is_the_binomial_test_on_discordant_pairs() -> None:
    right_a = np.array([True] * 10 + [False] * 2 + [True] * 50)
    right_b = np.array([False] * 10 + [True] * 2 + [True] * 50)
    assert mcnemar(right_a, right_b) == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert mcnemar(right_a, right_a) == 1.0


def test_bootstrap_interval_agrees_with_scipy() -> None:
    run = make_predictions(0.8, 400)
    low, high = bootstrap(accuracy, [[run]])[0].interval(0.8) or (0.0, 0.0)
    right = (run.logits.argmax(axis=1) == run.labels).astype(float)
    other = stats.bootstrap((right,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.004)


def test_a_plain_function_gives_the_same_draws() -> None:
    runs = [[make_predictions(0.8, 60, seed=seed) for seed in range(3)], [make_predictions(0.6, 60)]]
    for ours, quick in zip(bootstrap(plain, runs, draws=600), bootstrap(accuracy, runs, draws=600), strict=True):
        np.testing.assert_allclose(ours.values, quick.values)
        assert ours.seed_variance == pytest.approx(quick.seed_variance)


def test_a_metric_that_is_no_mean_over_samples() -> None:
    draws = bootstrap(f1_macro, [[make_predictions(0.8, 300, seed=1)], [make_predictions(0.6, 300, seed=2)]])
    assert [row.values.shape for row in draws] == [(DRAWS,), (DRAWS,)]
    assert [row.values.mean() for row in draws] == pytest.approx([0.8, 0.6], abs=0.02)


def test_several_seeds_widen_the_interval_by_the_variance_of_training() -> None:
    steady = [make_predictions(0.8, 400, seed=0)] * 5
    shaky = [make_predictions(0.8 + step, 400, seed=0) for step in (-0.15, -0.1, 0.0, 0.1, 0.15)]
    draws = bootstrap(accuracy, [steady, shaky])
    widths = [np.subtract(*(row.interval(0.8) or (0, 0))[::-1]) for row in draws]
    expected = 2 * 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert widths[0] == pytest.approx(expected, rel=0.08)
    assert widths[1] > 1.8 * widths[0]
    assert draws[0].interval(0.8) == interval(draws[0].values), "seeds that do not differ need no Student's t"


def test_pairing_sees_what_unpaired_intervals_hide() -> None:
    # b errs wherever a errs and on 12 samples more: overlapping intervals, yet a is surely better.
    a, b = make_predictions(0.80, 400, seed=3), make_predictions(0.77, 400, seed=3)
    result = compare(accuracy, [a], [b])
    assert result.difference.value == pytest.approx(0.03)
    assert result.difference.low > 0
    assert result.difference.p < 0.001
    assert result.mcnemar == pytest.approx(2 * 0.5**12)
    assert (result.seeds, result.samples) == ((1, 1), 400)
    unpaired = compare(accuracy, [make_predictions(0.80, 400, seed=3)], [make_predictions(0.77, 400, seed=9)])
    assert unpaired.difference.low < 0 < unpaired.difference.high
    assert unpaired.difference.p > 0.05


def test_no_difference_is_no_difference() -> None:
    run = make_predictions(0.8)
    result = compare(accuracy, [run], [run])
    assert (result.difference, result.mcnemar) == (Difference(0.0, 0.0, 0.0, 1.0), 1.0)
    assert compare(accuracy, [run, run], [run]).mcnemar is None


def test_p_is_uniform_enough_under_no_difference() -> None:
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        differences = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=300)
        draws = differences[rng.integers(300, size=(1000, 300))].mean(axis=1)
        rejected += bootstrap_p(draws) < 0.05
    assert 2 <= rejected <= 20


def test_undefined_draws_are_left_out() -> None:
    draws = np.array([np.nan, 0.2, 0.4, np.nan])
    assert interval(draws) == pytest.approx((0.205, 0.395))
    assert interval(np.array([np.nan])) is None


def test_ranks_tie_what_cannot_be_told_apart() -> None:
    accuracies = [0.9, 0.895, 0.7, 0.5]
    runs = [[make_predictions(value, 400, seed=seed)] for seed, value in enumerate(accuracies)]
    draws = bootstrap(accuracy, runs)
    tests = pair_tests(accuracies, draws, higher_is_better=True)
    assert ranks(4, tests) == [1, 1, 3, 4]
    assert tie_letters(4, tests) == ["a", "a", "b", "c"]
    assert [(test.first, test.second) for test in tests] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert all(test.difference.value > 0 for test in tests)
    assert [test.p_holm for test in tests] == holm([test.difference.p for test in tests])
    errors, turned = [1 - value for value in accuracies], [replace(row, values=1 - row.values) for row in draws]
    assert ranks(4, pair_tests(errors, turned, higher_is_better=False)) == [1, 1, 3, 4]
    assert (ranks(1, []), tie_letters(1, []), tie_letters(0, [])) == ([1], ["a"], [])


def differing(*pairs: tuple[int, int]) -> list[PairTest]:
    nothing = Difference(0.1, 0.05, 0.15, 0.001)
    return [PairTest(first, second, nothing, 0.01) for first, second in pairs]


def test_tie_groups_may_overlap() -> None:
    # The first and the last differ, and nobody else: the middle one belongs to both groups.
    assert tie_letters(3, differing((0, 2))) == ["a", "ab", "b"]
    # Not an interval: 0 ties with 2, but not with 1, which lies between them.
    assert tie_letters(3, differing((0, 1))) == ["a", "b", "ab"]


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] < pair[1])))
def test_two_share_a_letter_unless_they_differ(pairs: set[tuple[int, int]]) -> None:
    letters = tie_letters(8, differing(*sorted(pairs)))
    for i in range(8):
        for j in range(i + 1, 8):
            assert bool(set(letters[i]) & set(letters[j])) == ((i, j) not in pairs)


def test_the_area_under_a_curve_is_that_of_its_trapezoids() -> None:
    assert curve_area([0.0, 0.5, 1.0], [0.9, 0.8, 0.4]) == pytest.approx((0.85 + 0.6) / 2)
    assert curve_area([0.3, 0.7], [0.5, 0.5]) == pytest.approx(0.5)
    assert curve_area([0.0, 0.1, 1.0], [1.0, 0.0, 0.0]) == pytest.approx(0.05)


def test_detectable_is_found_four_times_out_of_five() -> None:
    error = 0.02
    found = stats.norm.sf(1.959964 - detectable(-1.959964 * error, 1.959964 * error) / error)
    assert found == pytest.approx(0.8, abs=1e-5)


def test_other_samples_are_refused() -> None:
    with pytest.raises(DataError, match="not about the same test samples"):
        compare(accuracy, [make_predictions(0.8, 100)], [make_predictions(0.8, 101)])


def test_seeds_carry_their_whole_variance() -> None:
    # Every sample is right or wrong alike, so only the choice of seeds moves the score: s² / S, not s² / S (S - 1) / S.
    for right in ([1.0, 0.0, 0.0], [1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]):
        (draws,) = bootstrap(accuracy, [[make_predictions(value, 50) for value in right]])
        assert draws.seed_variance == pytest.approx(np.var(right, ddof=1) / len(right))
        assert draws.values.var() == pytest.approx(draws.seed_variance, rel=0.05)
    (single,) = bootstrap(accuracy, [[make_predictions(1.0, 50)]])
    assert (single.values.var(), single.seed_variance) == (0.0, 0.0)


def training(rng: np.random.Generator, seeds: int, samples: float, methods: int = 2) -> tuple[list[float], list[Draws]]:
    """Methods that do not differ: train seeds of spread 1 around 0, and test samples that move their mean.

    Args:
        rng: Draws everything.
        seeds: Number of train seeds of each method.
        samples: Standard deviation that the choice of test samples gives a score, for each method by itself.
        methods: Number of methods.
    """
    scores = rng.normal(size=(methods, seeds))
    chosen = rng.integers(seeds, size=(methods, 1000, max(1, seeds - 1)))
    drawn = np.take_along_axis(scores[:, None, :], chosen, axis=2).mean(axis=2)
    off = rng.normal(0, samples, size=(methods, 1))
    values = drawn + off + rng.normal(0, samples, size=(methods, 1000))
    means, spreads = scores.mean(axis=1) + off[:, 0], scores.var(axis=1, ddof=1) / seeds
    return means.tolist(), [Draws(row, seeds, spread, spread) for row, spread in zip(values, spreads, strict=True)]


@pytest.mark.parametrize("samples", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_do_not_make_differences(seeds: int, samples: float) -> None:
    # As on very large test sets, where nothing but training moves a score. Percentiles and a normal tail alone find
    # differences in 33, 14 and 9 % of the pairs of 2, 3 and 5 seeds, and cover the truth in 50, 76 and 87 %.
    rng = np.random.default_rng(seeds)
    wrong, covered = [], []
    for _ in range(300):
        scores, draws = training(rng, seeds, samples)
        difference = Difference.between(*scores, *draws)
        wrong.append(difference.p < 0.05)
        assert (difference.p < 0.05) == (not difference.low <= 0 <= difference.high)
        spans = [row.interval(score) or (np.nan, np.nan) for row, score in zip(draws, scores, strict=True)]
        covered += [low <= 0 <= high for low, high in spans]
    assert np.mean(wrong) < 0.07
    assert np.mean(covered) > 0.935


def test_the_tail_that_holm_reads_holds_too() -> None:
    # 10 methods make 45 pairs, and Holm reads the smallest of their p-values at 0.05 / 45.
    rng = np.random.default_rng(0)
    for seeds in (2, 3):
        for samples in (0.0, 0.3):
            found = [
                any(
                    test.p_holm < 0.05 for test in pair_tests(*training(rng, seeds, samples, 10), higher_is_better=True)
                )
                for _ in range(40)
            ]
            assert np.mean(found) <= 0.1


def test_one_source_of_error_is_students_or_the_normal_test() -> None:
    few, many = Spread(0.0, 0.04, 2.0), Spread(0.04, 1e-16, 2.0)
    for value in (0.1, -0.5, 2.0):
        assert few.p(value) == pytest.approx(2 * stats.t.sf(abs(value) / 0.2, 2))
        assert many.p(value) == pytest.approx(2 * stats.norm.sf(abs(value) / 0.2))
    assert few.reach(1.959964) == pytest.approx(0.2 * stats.t.ppf(0.975, 2))
    assert many.reach(1.959964) == pytest.approx(0.2 * 1.959964)
    # Two methods of three seeds each are Welch's test.
    a, b = np.array([0.5, 0.6, 0.8]), np.array([0.1, 0.15, 0.17])
    parts = [Draws(np.zeros(2), 3, runs.var(ddof=1) / 3, 0.0) for runs in (a, b)]
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert Spread(0.0, sum(part.seed_variance for part in parts), welch.df).p(a.mean() - b.mean()) == pytest.approx(
        welch.pvalue
    )
    found = Spread.of(np.zeros(2), *parts)
    assert found is not None
    assert found.freedom == pytest.approx(welch.df)


def test_a_difference_is_as_sure_as_its_seeds() -> None:
    # 0.80 and 0.801 against 0.70 and 0.701 is sure; 0.76 and 0.84 are two seeds too few to say.
    def runs(*accuracies: float) -> list[Predictions]:
        return [make_predictions(value, 2000, seed=1) for value in accuracies]

    assert compare(accuracy, runs(0.80, 0.801), runs(0.70, 0.701)).difference.p < 0.05
    unsure = compare(accuracy, runs(0.76, 0.84), runs(0.70, 0.701)).difference
    assert unsure.p > 0.2
    assert unsure.low < 0 < unsure.high


def test_what_a_seed_has_of_the_samples_for_itself_counts_once() -> None:
    # Every seed is right on samples of its own by chance, and nothing else varies: the variance of a mean of S seeds
    # over n samples is p (1 - p) / (n S). The draws have it three times, between seeds, over samples and in both.
    rng = np.random.default_rng(0)
    once = 0.8 * 0.2 / (400 * 5)
    base, spreads = make_predictions(1.0, 400), []
    for _ in range(20):
        right = np.where(rng.random((5, 400, 1)) < 0.8, 1, -1).astype(np.float32)
        runs = [replace(base, logits=signs * base.logits) for signs in right]
        (draws,) = bootstrap(accuracy, [runs], draws=500)
        spread = Spread.of(draws.values, draws)
        assert spread is not None
        spreads.append((draws.values.var(), spread.samples + spread.seeds))
    assert np.mean(spreads, axis=0) == pytest.approx([3 * once, once], rel=0.25)


def test_many_pairs_can_still_differ() -> None:
    # 30 methods make 435 pairs: counted shares of 10,000 draws stop at 0.0002, which Holm takes to 0.087.
    accuracies = [0.95, *[0.5] * 29]
    runs = [[make_predictions(value, 400, seed=seed)] for seed, value in enumerate(accuracies)]
    places = ranks(30, pair_tests(accuracies, bootstrap(accuracy, runs), higher_is_better=True))
    assert places[0] == 1
    assert set(places[1:]) == {2}


def test_small_p_values_are_those_of_the_normal_tail() -> None:
    rng = np.random.default_rng(0)
    assert bootstrap_p(rng.normal(5.0, 1.0, 10_000)) == pytest.approx(2 * stats.norm.sf(5.0), rel=0.5)
    assert bootstrap_p(rng.normal(2.0, 1.0, 10_000)) == pytest.approx(2 * stats.norm.sf(2.0), rel=0.1)
    assert bootstrap_p(np.full(1000, 0.1)) == pytest.approx(2 / 1001)


def test_methods_scored_together_score_as_alone() -> None:
    runs = [[make_predictions(0.8 - row / 20, 60, seed=seed) for seed in range(row + 1)] for row in range(3)]
    for metric in (accuracy, uar, f1_macro, f1_samples, log_loss, auroc):
        layout = Layout.plain(60)
        weights = np.random.default_rng(0).integers(0, 3, size=(7, 60)).astype(np.float64)
        flat = [run for row in runs for run in row]
        together = layout.resampler(metric, [run.logits for run in flat], flat[0].labels)(weights)
        alone = [layout.resampled(metric, run.logits, run.labels, weights) for run in flat]
        np.testing.assert_allclose(together, np.stack(alone, axis=1), rtol=1e-12)
