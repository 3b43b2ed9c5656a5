"""What lies behind a row: summaries of predictions, learning curves, worst samples, bands of curves."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness import measures
from harness.errors import DataError
from harness.findings import Findings
from harness.record import ConditionResult
from harness.reports.details import (
    Inspected,
    condition_bands,
    curve_step,
    inspect,
    learning_curves,
    mean_agreements,
    mean_recoveries,
    summarise,
    worst_samples,
)
from harness.testing.records import (
    FakeRun,
    make_conditions_run,
    make_findings,
    make_predictions,
    make_record,
    make_run,
)
from harness.types import Predictions


def predictions(logits: list[list[float]], labels: object) -> Predictions:
    rows = len(logits)
    return Predictions(
        tuple(f"s{row}" for row in range(rows)),
        np.array(logits, dtype=np.float32),
        np.array(labels),
        np.ones((rows, 2), dtype=np.bool_),
        ("text", "image"),
    )


def test_confusion_counts_true_classes_in_rows() -> None:
    found = summarise(predictions([[2, 1, 0], [2, 1, 0], [0, 1, 2]], [0, 1, 2]), "multiclass")
    assert found.confusion is not None
    assert found.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert found.loss[0] == pytest.approx(math.log(math.e**2 + math.e + 1) - 2)


def test_several_labels_are_counted_one_by_one() -> None:
    found = summarise(predictions([[1, -1], [1, 1], [-1, 1]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), "multilabel")
    assert found.confusion is not None
    # Right yes, wrong yes, wrong no, right no.
    assert found.confusion.tolist() == [[1, 1, 1, 0], [2, 0, 0, 1]]
    assert found.predicted is None


def test_regression_has_errors_only() -> None:
    found = summarise(predictions([[1.0], [2.0]], [[1.5], [2.0]]), "regression")
    assert found.loss.tolist() == [0.5, 0.0]
    assert found.confusion is None
    assert found.reliability is None


@given(st.integers(0, 10_000), st.sampled_from(["multiclass", "multilabel"]))
def test_calibration_error_is_the_metric_ece(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, 3)) * 3
    labels = rng.integers(2, size=(40, 3)).astype(np.float32) if kind == "multilabel" else rng.integers(3, size=40)
    found = summarise(predictions(logits.tolist(), labels), kind).reliability
    assert found is not None
    exact = measures.ece(np.asarray(logits, dtype=np.float32), np.asarray(labels))
    assert found.error == pytest.approx(exact, abs=1e-9)
    assert sum(count for _, _, count in found.points) == labels.size


def test_worst_samples_are_the_hardest_over_all_seeds() -> None:
    first = summarise(predictions([[9, 0], [0, 1], [3, 0]], [1, 1, 1]), "multiclass")
    second = summarise(predictions([[8, 0], [0, 1], [0, 3]], [1, 1, 1]), "multiclass")
    worst = worst_samples([first, second], ["cat", "dog"], count=2)
    assert [sample.sample for sample in worst] == ["s0", "s2"]
    assert worst[0].loss == pytest.approx(np.mean([math.log1p(math.exp(9)), math.log1p(math.exp(8))]))
    assert (worst[0].label, worst[0].predicted, worst[0].wrong) == ("dog", "cat", 2)
    assert worst[1].wrong == 1


def test_a_sample_is_listed_under_its_hardest_condition_only() -> None:
    run = make_conditions_run("redeem", {"text": 0.5, "image": 0.7})
    worst = inspect([Inspected(run)]).worst
    assert len({sample.sample for sample in worst}) == len(worst) > 0
    assert {sample.condition for sample in worst} <= {"text", "image"}


def test_seeds_are_put_together() -> None:
    runs = [Inspected(make_run("redeem", 0.8, train_seed=seed)) for seed in range(3)]
    details = inspect(runs)
    assert details.inspected == 3
    assert details.confusion is not None
    assert details.confusion.sum() == 3 * 200
    assert np.trace(details.confusion) == 3 * 160
    assert details.labels == ["a", "b", "c", "d"]
    assert [len(seed) for seed in details.curves["loss"]] == [5, 5, 5]


def test_predictions_about_other_samples_are_left_out() -> None:
    runs = [make_run("redeem", 0.8), make_run("redeem", 0.8, train_seed=1, count=100)]
    details = inspect([Inspected(run) for run in runs])
    assert details.inspected == 1


def test_a_file_is_read_once() -> None:
    reads = []

    class Counting(FakeRun):
        def predictions(self) -> Predictions:
            reads.append(self.record.run_id)
            return super().predictions()

    made = make_run("redeem", 0.8)
    run = Inspected(Counting(made.record, made.scores))
    run.predictions()
    assert run.summary() is run.summary()
    assert len(reads) == 1


def test_unreadable_predictions_cost_their_part_only() -> None:
    class Lost(FakeRun):
        def predictions(self) -> Predictions:
            raise DataError("gone")

    made = make_run("redeem", 0.8)
    details = inspect([Inspected(Lost(made.record))])
    assert details.confusion is None
    assert details.worst == []
    assert details.curves


def test_learning_curves_keep_one_list_per_seed_and_gaps() -> None:
    records = [make_record("redeem", make_predictions(0.5), train_seed=seed) for seed in range(2)]
    del records[1].history[2]["loss"]
    curves = learning_curves(records)
    assert curves["valid/accuracy"][0] == [0.5, 0.51, 0.52, 0.53, 0.54]
    assert math.isnan(curves["loss"][1][2])
    assert learning_curves([replace(records[0], history=[])]) == {}


@given(st.integers(1, 2000), st.integers(1, 60))
def test_curves_are_thinned_to_a_limit(epochs: int, limit: int) -> None:
    step = curve_step({"loss": [[0.0] * epochs]}, limit)
    assert len(range(0, epochs, step)) <= limit
    assert step == 1 or len(range(0, epochs, step - 1)) > limit


def test_bands_add_samples_and_seeds_in_quadrature() -> None:
    records = []
    for seed, value in enumerate((0.6, 0.7, 0.8)):
        record = make_record("redeem", make_predictions(value), train_seed=seed)
        record.results = [
            ConditionResult("mean_over_grid", {"accuracy": value}, kind="mean"),
            ConditionResult("both_0.5", {"accuracy": value}, {"accuracy": [value - 0.03, value + 0.03]}),
        ]
        records.append(record)
    (band,) = condition_bands(records, "accuracy")
    half = math.sqrt(0.03**2 + stats.t.ppf(0.975, 2) ** 2 * 0.01 / 3)
    assert band.condition == "both_0.5"
    assert (band.score, band.low, band.high) == pytest.approx((0.7, 0.7 - half, 0.7 + half))
    records[1].results.pop()
    assert condition_bands(records, "accuracy") == []


def test_means_over_seeds_need_every_seed() -> None:
    first, second = make_findings("a", 0.6), make_findings("b", 0.8)
    del second.recoveries[1]
    (only,) = mean_recoveries([first, second])
    assert (only.modality, only.cosine, only.error) == ("image", pytest.approx(0.7), pytest.approx(0.3))
    assert only.quantiles == pytest.approx([0.5, 0.6, 0.7, 0.75, 0.8])
    assert [one.use for one in mean_agreements([first, second])] == ["image", "text"]
    assert mean_recoveries([]) == []


def test_findings_that_cannot_be_read_are_told_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    class Damaged(FakeRun):
        def findings(self) -> Findings | None:
            raise DataError("findings.json of run 12: no findings.")

    made = make_run("redeem", 0.8)
    inspected = Inspected(Damaged(made.record, made.scores))
    assert inspected.findings() is None
    assert inspected.findings() is None
    assert capsys.readouterr().err.count("findings.json of run 12") == 1
