"""Metrics equal scikit-learn; scores per pattern and bootstrap intervals."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import pearsonr
from sklearn import metrics as sk

from harness import registry
from harness.config import MetricConfig
from harness.errors import TrainingError, UnknownNameError, UsageError
from harness.metrics import is_higher_better, metric_versions, metrics_for
from harness.scoring import bootstrap_interval, evaluate, evaluate_predictions
from harness.types import Predictions, TaskKind, TaskSpec

Array = npt.NDArray[Any]

PRIMARY = {"binary": "accuracy", "multiclass": "accuracy", "multilabel": "f1_micro", "regression": "mae"}


def make_task(kind: TaskKind, outputs: int, primary: str = "") -> TaskSpec:
    return TaskSpec(kind, outputs, tuple(f"c{index}" for index in range(outputs)), primary or PRIMARY[kind])


def draw(kind: TaskKind, outputs: int, size: int, seed: int, coarse: bool = False) -> tuple[Array, Array]:
    """Random logits and labels; `coarse` logits are small integers, so that there are many ties."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(size, outputs)) * 2
    if coarse:
        logits = np.round(logits / 2)
    if kind in ("binary", "multiclass"):
        labels: Array = generator.integers(0, outputs, size)
    elif kind == "multilabel":
        labels = (generator.random((size, outputs)) < 0.3).astype(np.float32)
    else:
        labels = logits + generator.normal(size=(size, outputs))
    return logits.astype(np.float32), labels if kind != "regression" else labels.astype(np.float32)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def reference(kind: TaskKind, logits: Array, labels: Array) -> Mapping[str, float]:
    """The same metrics by scikit-learn and SciPy; NaN where they are not defined."""
    logits = logits.astype(np.float64)
    if kind == "regression":
        varied = np.ptp(labels, axis=0) > 0
        constant = (np.ptp(logits, axis=0) == 0) & varied
        correlations = [
            pearsonr(logits[:, k], labels[:, k])[0] for k in np.flatnonzero(varied & ~constant) if len(labels) > 1
        ]
        return {
            "mae": sk.mean_absolute_error(labels, logits),
            "rmse": sk.root_mean_squared_error(labels, logits),
            "correlation": np.mean(correlations) if correlations and not constant.any() else np.nan,
        }
    if kind == "multilabel":
        guess: Array = (expit(logits) >= 0.5).astype(int)
        averages, chance, yes = ("micro", "macro", "samples", "weighted"), expit(logits), labels.astype(int)
        loss = np.mean([sk.log_loss(y, p, labels=[0, 1]) for y, p in zip(yes.T, chance.T, strict=True)])
    else:
        guess = logits.argmax(axis=1)
        averages = ("macro", "weighted")
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        chance = odds / np.sort(odds, axis=1).sum(axis=1, keepdims=True)  # equal logits in another order tie
        loss = sk.log_loss(labels, chance, labels=range(logits.shape[1]))
        yes = (labels[:, None] == np.arange(logits.shape[1])).astype(int)
        if kind == "binary":
            chance, yes = (logits[:, 1] - logits[:, 0])[:, None], yes[:, 1:]
    both = [k for k in range(yes.shape[1]) if 0 < yes[:, k].sum() < len(yes)]
    some = [k for k in range(yes.shape[1]) if yes[:, k].sum()]
    values = {f"f1_{name}": sk.f1_score(labels, guess, average=name, zero_division=0) for name in averages}
    values["auroc"] = np.mean([sk.roc_auc_score(yes[:, k], chance[:, k]) for k in both]) if both else np.nan
    values["average_precision"] = (
        np.mean([sk.average_precision_score(yes[:, k], chance[:, k]) for k in some]) if some else np.nan
    )
    values["log_loss"] = loss
    values["ece"] = slow_ece(kind, logits, labels)
    if kind != "multilabel":
        values["accuracy"] = sk.accuracy_score(labels, guess)
        values["uar"] = sk.balanced_accuracy_score(labels, guess)
    return values


def slow_ece(kind: TaskKind, logits: Array, labels: Array) -> float:
    """The definition, sample by sample."""
    if kind == "multilabel":
        yes = expit(logits).ravel()
        confidence, right = np.where(yes >= 0.5, yes, 1 - yes), ((yes >= 0.5) == (labels.ravel() == 1))
    else:
        confidence, right = softmax(logits, axis=1).max(axis=1), logits.argmax(axis=1) == labels
    total = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return float(total)


KINDS: list[tuple[TaskKind, int]] = [("binary", 2), ("multiclass", 3), ("multiclass", 12), ("multilabel", 5)]
ALL_KINDS: list[tuple[TaskKind, int]] = [*KINDS, ("regression", 1), ("regression", 3)]


@settings(deadline=None, max_examples=80)
@given(case=st.sampled_from(ALL_KINDS), size=st.integers(1, 60), seed=st.integers(0, 2**31), coarse=st.booleans())
def test_equal_to_scikit_learn(case: tuple[TaskKind, int], size: int, seed: int, coarse: bool) -> None:
    kind, outputs = case
    logits, labels = draw(kind, outputs, size, seed, coarse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's own, on degenerate draws
        expected = reference(kind, logits, labels)
    values = evaluate(make_task(kind, outputs), logits, labels)
    assert set(values) == set(expected), "a metric without reference, or a reference without metric"
    for name, value in values.items():
        if kind == "regression" and size < 3 and name == "correlation":
            continue  # two points correlate by +-1 up to rounding
        if name == "ece" and coarse:
            continue  # confidences on bin edges: see test_ece_by_hand
        assert value == pytest.approx(expected[name], rel=1e-6, abs=1e-7, nan_ok=True), name


@pytest.mark.parametrize(("kind", "outputs"), KINDS)
@pytest.mark.parametrize("case", ["one_class", "constant", "perfect", "confident"])
def test_degenerate_input_equals_scikit_learn(kind: TaskKind, outputs: int, case: str) -> None:
    logits, labels = draw(kind, outputs, 40, 0)
    if case == "one_class":
        labels = np.zeros_like(labels)
    elif case == "constant":
        logits = np.zeros_like(logits)
    elif case == "perfect":
        hot = labels if kind == "multilabel" else np.eye(outputs)[labels]
        logits = (20 * hot - 10).astype(np.float32)
    else:
        logits = logits * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(kind, logits, labels)
    assert evaluate(make_task(kind, outputs), logits, labels) == pytest.approx(
        expected, rel=1e-6, abs=1e-7, nan_ok=True
    )


def test_undefined_is_nan_not_zero() -> None:
    labels = np.zeros(6, dtype=np.int64)
    values = evaluate(make_task("binary", 2), np.random.default_rng(0).normal(size=(6, 2)), labels)
    assert np.isnan(values["auroc"])
    assert np.isnan(values["average_precision"])
    values = evaluate(make_task("multilabel", 2), np.ones((3, 2)), np.zeros((3, 2)))
    assert np.isnan(values["auroc"])
    assert values["f1_micro"] == 0.0
    constant = evaluate(make_task("regression", 1), np.full((5, 1), 0.1), np.arange(5.0)[:, None])
    assert np.isnan(constant["correlation"])
    assert np.isnan(evaluate(make_task("regression", 1), np.arange(5.0)[:, None], np.full((5, 1), 0.1))["correlation"])


@pytest.mark.parametrize(("kind", "outputs"), ALL_KINDS)
def test_no_samples_is_nan(kind: TaskKind, outputs: int) -> None:
    logits, labels = draw(kind, outputs, 0, 0)
    task = make_task(kind, outputs)
    assert all(np.isnan(value) for value in evaluate(task, logits, labels).values())
    assert all(np.isnan(bound) for bound in bootstrap_interval(task, task.primary_metric, logits, labels, 0))


def test_labels_without_both_classes_are_left_out_of_the_macro_average() -> None:
    logits, labels = draw("multilabel", 3, 50, 1)
    labels[:, 1] = 1
    values = evaluate(make_task("multilabel", 3), logits, labels, ["auroc"])
    expected = np.mean([sk.roc_auc_score(labels[:, k], logits[:, k]) for k in (0, 2)])
    assert values["auroc"] == pytest.approx(expected)


def test_ece_by_hand() -> None:
    # Confidence 0.8 (two right of four: gap 0.3) and 0.6 (one right of one: gap 0.4).
    logits = np.log(np.array([[0.8, 0.2]] * 4 + [[0.6, 0.4]]))
    labels = np.array([0, 0, 1, 1, 0])
    assert evaluate(make_task("binary", 2), logits, labels, ["ece"])["ece"] == pytest.approx(0.8 * 0.3 + 0.2 * 0.4)
    yes = np.log(np.array([[0.9 / 0.1, 0.2 / 0.8]]))  # sides taken with 0.9 (right) and 0.8 (wrong)
    value = evaluate(make_task("multilabel", 2), yes, np.array([[1.0, 1.0]]), ["ece"])["ece"]
    assert value == pytest.approx((0.1 + 0.8) / 2)


def test_large_logits_do_not_overflow() -> None:
    labels = np.array([0, 1, 1, 0])
    values = evaluate(make_task("binary", 2), np.array([[1e30, -1e30]] * 4), labels)
    assert values["log_loss"] == pytest.approx(1e30)
    assert values["ece"] == pytest.approx(0.5)
    values = evaluate(make_task("multilabel", 1), np.full((4, 1), 1e30), labels[:, None])
    assert values["log_loss"] == pytest.approx(5e29)


def test_replay_metrics_compute_what_the_released_code_does() -> None:
    logits, labels = draw("binary", 2, 60, 3)
    task = make_task("binary", 2)
    values = evaluate(task, logits, labels, ["auroc", "auroc_official"])
    columns = [sk.roc_auc_score(labels, logits[:, 1]), sk.roc_auc_score(1 - labels, logits[:, 0])]
    assert values["auroc_official"] == pytest.approx(np.mean(columns))
    assert values["auroc_official"] != pytest.approx(values["auroc"])
    logits, labels = draw("multilabel", 4, 60, 3)
    task = make_task("multilabel", 4)
    for average in ("micro", "samples"):
        name = f"f1_{average}_logit05"
        expected = sk.f1_score(labels, logits >= 0.5, average=average, zero_division=0)
        assert evaluate(task, logits, labels, [name])[name] == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "outputs"), ALL_KINDS)
def test_metrics_of_a_task(kind: TaskKind, outputs: int) -> None:
    task = make_task(kind, outputs)
    names = metrics_for(task)
    assert names[0] == task.primary_metric
    assert len(set(names)) == len(names)
    assert not [name for name in names if "official" in name or "logit05" in name]
    assert set(metric_versions(task)) == set(names)
    assert set(metrics_for(task, replay=True)) >= set(names)
    assert kind == "regression" or not is_higher_better("log_loss")


def test_replay_metrics_are_asked_for() -> None:
    assert "auroc_official" in metrics_for(make_task("binary", 2), replay=True)
    assert "f1_micro_logit05" in metrics_for(make_task("multilabel", 2), replay=True)


def test_wrong_primary_metric() -> None:
    with pytest.raises(UsageError, match="metric 'mae' is not defined for binary tasks"):
        metrics_for(make_task("binary", 2, "mae"))
    with pytest.raises(UnknownNameError, match="Did you mean 'accuracy'"):
        metrics_for(make_task("binary", 2, "acuracy"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(value: float) -> None:
    logits, labels = draw("binary", 2, 10, 0)
    logits[[3, 7], 1] = value
    with pytest.raises(TrainingError, match=r"logits of 2 of 10 samples are NaN or infinite \(first: row 3\)"):
        evaluate(make_task("binary", 2), logits, labels)


def test_logits_of_the_wrong_shape() -> None:
    logits, labels = draw("binary", 3, 10, 0)
    with pytest.raises(TrainingError, match=r"shape \[10, 3\], expected \[10, 2\]"):
        evaluate(make_task("binary", 2), logits, labels)


def test_scores_per_pattern() -> None:
    logits, labels = draw("multiclass", 3, 12, 0)
    present = np.array([[1, 1], [1, 0], [0, 1]] * 4, dtype=np.bool_)
    predictions = Predictions(tuple(map(str, range(12))), logits, labels, present, ("text", "image"))
    task = make_task("multiclass", 3)
    overall, per_pattern, counts = evaluate_predictions(task, predictions)
    assert overall == evaluate(task, logits, labels)
    assert counts == {"text": 4, "image": 4, "text+image": 4}
    assert list(per_pattern) == list(counts), "fewest modalities first"
    for pattern, scores in per_pattern.items():
        rows = [row for row, name in enumerate(predictions.patterns()) if name == pattern]
        assert scores == pytest.approx(evaluate(task, logits[rows], labels[rows]), nan_ok=True)


CASES = [
    (kind, outputs, name) for kind, outputs in ALL_KINDS for name in metrics_for(make_task(kind, outputs), replay=True)
]


@pytest.mark.parametrize(("kind", "outputs", "metric"), CASES)
def test_interval_is_the_bootstrap_of_the_metric(kind: TaskKind, outputs: int, metric: str) -> None:
    """Scoring all resamples at once gives what scoring each by itself gives."""
    logits, labels = draw(kind, outputs, 25, 0)
    task = make_task(kind, outputs)
    rows = np.random.default_rng(11).integers(0, 25, (60, 25))
    scores = [evaluate(task, logits[chosen], labels[chosen], [metric])[metric] for chosen in rows]
    expected = np.nanquantile(scores, [0.05, 0.95])
    assert bootstrap_interval(task, metric, logits, labels, 11, samples=60, level=0.9) == pytest.approx(
        tuple(expected), rel=1e-9
    )


def test_interval_depends_on_the_seed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = draw("binary", 2, 300, 0)
    task = make_task("binary", 2)
    first = bootstrap_interval(task, "accuracy", logits, labels, 1)
    assert first == bootstrap_interval(task, "accuracy", logits, labels, 1)
    assert first != bootstrap_interval(task, "accuracy", logits, labels, 2)
    monkeypatch.setattr("harness.scoring._CHUNK", 1001)
    assert first == bootstrap_interval(task, "accuracy", logits, labels, 1), "depends on how the work is cut"


def test_interval_covers_as_theory_says() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 1000)
    right = generator.random(1000) < 0.8
    logits = np.eye(2)[np.where(right, labels, 1 - labels)]
    low, high = bootstrap_interval(make_task("binary", 2), "accuracy", logits, labels, 0, samples=4000)
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 1000)
    assert low == pytest.approx(right.mean() - half, abs=0.003)
    assert high == pytest.approx(right.mean() + half, abs=0.003)


def test_undefined_scores_have_no_interval() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 2))
    low, high = bootstrap_interval(make_task("binary", 2), "auroc", logits, np.zeros(6, dtype=np.int64), 0)
    assert np.isnan(low)
    assert np.isnan(high)
    low, high = bootstrap_interval(make_task("binary", 2), "auroc", logits, np.array([0, 0, 0, 0, 0, 1]), 0)
    assert 0.0 <= low <= high <= 1.0, "resamples without a positive are left out"


def test_intervals_are_fast() -> None:
    logits, labels = draw("multiclass", 8, 1000, 0)
    task = make_task("multiclass", 8)
    for metric in metrics_for(task):
        started = time.perf_counter()
        bootstrap_interval(task, metric, logits, labels, 0)
        assert time.perf_counter() - started < 5, f"{metric} takes seconds (it took 0.3 s where it was written)"


def brier(logits: Array, labels: Array) -> float:
    """A plugin's metric: a plain function."""
    return float(((softmax(logits, axis=1) - np.eye(logits.shape[1])[labels]) ** 2).sum(axis=1).mean())


class Brier(MetricConfig):
    """Brier score."""

    target = f"{__name__}:brier"
    summary = "mean squared error of probabilities"
    citation = "Brier 1950"
    version = "7"
    tasks = ("binary", "multiclass")
    higher_is_better = False


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with an entry point of group `harness.metrics`."""
    from importlib.metadata import EntryPoint

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint("brier", f"{__name__}:Brier", group)] if group == "harness.metrics" else []

    fresh = registry.Registry[Any]("metric", "harness.config:MetricConfig", "harness.metrics:BUILTIN")
    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "metrics", fresh)


@pytest.mark.usefixtures("_plugin")
def test_metrics_of_other_packages_are_computed() -> None:
    task = make_task("multiclass", 3)
    logits, labels = draw("multiclass", 3, 30, 0)
    assert "brier" in metrics_for(task)
    assert "brier" not in metrics_for(make_task("multilabel", 3))
    assert metric_versions(task)["brier"] == "7"
    assert not is_higher_better("brier")
    assert evaluate(task, logits, labels)["brier"] == pytest.approx(brier(logits, labels))
    low, high = bootstrap_interval(task, "brier", logits, labels, 0, samples=50)
    assert low < brier(logits, labels) < high
