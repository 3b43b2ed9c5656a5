"""Several test conditions of one training: masks as files, views, predictions, scores, audits, names in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pytest

from harness import audit
from harness.errors import DataError, UsageError
from harness.features import FeatureArray
from harness.masking import MaskTable, observe
from harness.measures import accuracy, auroc, f1_macro
from harness.mlflow_store import describe
from harness.predictions import load_predictions, pool_conditions, save_predictions, split_conditions
from harness.protocol import Condition, Protocol, parse_protocol
from harness.record import ConditionResult, RunRecord
from harness.reports.statistics import bootstrap, compare, mcnemar
from harness.scoring import Layout, bootstrap_interval, evaluate, evaluate_aggregate
from harness.testing.protocols import some_available
from harness.testing.records import make_conditions_run, make_predictions, make_record
from harness.testing.tables import make_table
from harness.types import SPLITS, Aggregate, BoolArray, DatasetSpec, DataTable, Predictions, Split, TaskSpec

TRIO = ("text", "image", "audio")
NAMES = ["patterns", "train:both_0.7,test:text_0..0.9:0.3"]
TASK = TaskSpec("multiclass", 4, ("a", "b", "c", "d"), "accuracy")
HOW: tuple[Aggregate, ...] = ("pool", "mean")


def masks_of(name: str, table: DataTable | None = None) -> MaskTable:
    return MaskTable.build(parse_protocol(name), table or make_table(), 3)


# Mask tables


def test_tables_with_one_condition_are_as_they_were(tmp_path: Path) -> None:
    masks = masks_of("both_0.7")
    assert masks.conditions == {}
    assert masks.condition_names == ("both_0.7",)
    assert list(masks.parts()) == list(SPLITS)
    frame = pd.read_parquet(masks.save(tmp_path / "masks"))
    assert list(frame.columns) == ["id", "split", "text", "image"]
    assert "conditions" not in masks.header()


@pytest.mark.parametrize("name", NAMES)
def test_files_of_several_conditions(name: str, tmp_path: Path) -> None:
    table = make_table(available=some_available(2)) if name == "patterns" else make_table()
    masks = masks_of(name, table)
    loaded = MaskTable.load(masks.save(tmp_path / "masks"))
    assert loaded.header() == masks.header() == json.loads(json.dumps(masks.header()))
    assert list(loaded.conditions) == masks.header()["conditions"] == list(masks.condition_names)
    assert all(np.array_equal(loaded.conditions[part], masks.conditions[part]) for part in masks.conditions)
    assert loaded.ids == masks.ids
    loaded.check_against(table)


def _flip(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[len(frame) - 3, "text"] = not frame.loc[len(frame) - 3, "text"]
    return frame


def _swap(frame: pd.DataFrame) -> pd.DataFrame:
    names = {"text": "image", "image": "text"}
    return frame.assign(**{"condition:": frame["condition:"].replace(names)})


@pytest.mark.parametrize(
    "change",
    [
        _flip,
        _swap,
        lambda frame: frame.drop(index=len(frame) - 1),
        lambda frame: frame[frame["condition:"] != "image"],
        lambda frame: frame.drop(columns="condition:"),
        lambda frame: frame.assign(**{"condition:": "text"}),
    ],
    ids=["bit", "swapped", "row", "condition", "column", "same"],
)
def test_changed_conditions_are_refused(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    parquet = masks_of("patterns").save(tmp_path / "masks")
    change(pd.read_parquet(parquet)).to_parquet(parquet, index=False)
    with pytest.raises(DataError, match="masks") as caught:
        MaskTable.load(parquet)
    assert "\n" not in str(caught.value)


def test_fingerprint_sees_conditions() -> None:
    masks = masks_of("patterns")
    flipped = masks.conditions["text"].copy()
    flipped[4, 1] ^= True
    others = [
        {**masks.conditions, "text": flipped},
        {name: rows for name, rows in masks.conditions.items() if name != "text"},
        {name.upper(): rows for name, rows in masks.conditions.items()},
        dict(reversed(masks.conditions.items())),
    ]
    prints = {replace(masks, conditions=conditions).fingerprint for conditions in others}
    assert len({masks.fingerprint, *prints}) == len(others) + 1


def test_the_data_set_must_have_what_a_condition_shows() -> None:
    masks = masks_of("patterns")
    available = np.ones((90, 2), dtype=np.bool_)
    available[-1, 0] = False
    with pytest.raises(DataError, match="split 'test' present that the data set lacks"):
        masks.check_against(replace(make_table(), available=available))


def features(table: DataTable) -> dict[str, FeatureArray]:
    count = len(table.ids)
    return {
        name: FeatureArray(
            np.ones((count, 1, 2), np.float32), np.ones((count, 1), np.bool_), np.ones((count, 2), np.float32),
            np.arange(count),
        )
        for name in table.spec.modality_names
    }  # fmt: skip


def test_views_of_conditions_leave_skipped_samples_out() -> None:
    table = make_table(modalities=TRIO, available=some_available(3))
    masks = masks_of("patterns", table)
    for name, rows in masks.conditions.items():
        view = observe(table, masks, features(table), "test", condition=name)
        kept = rows.any(axis=1)
        assert view.ids == tuple(np.array(masks.ids["test"])[kept])
        assert np.array_equal(view.present, rows[kept])
        assert view.labels.tolist() == table.labels[table.splits["test"]][kept].tolist()
    assert len(observe(table, masks, features(table), "train")) == 40
    for name in ("", "both_0.7", "patterns"):
        with pytest.raises(DataError, match=r"no condition '.*' of split 'test'; its test conditions: text, image"):
            observe(table, masks, features(table), "test", condition=name)
    with pytest.raises(DataError, match="no condition 'text' of split 'train'"):
        observe(table, masks, features(table), "train", condition="text")


def test_an_oracle_sees_the_same_samples_with_nothing_hidden() -> None:
    table = make_table(modalities=TRIO, available=some_available(3))
    for name in ("patterns", "any_0.5"):
        masks = masks_of(name, table)
        revealed = masks.revealed(table)
        assert revealed.condition_names == masks.condition_names
        for (split, rows), (_, shown) in zip(masks.parts().values(), revealed.parts().values(), strict=True):
            available = table.available[table.splits[split]]
            assert np.array_equal(shown.any(axis=1), rows.any(axis=1))
            assert np.array_equal(shown[rows.any(axis=1)], available[rows.any(axis=1)])
    assert masks.revealed(table).fingerprint == masks_of("complete", table).fingerprint


@dataclass
class Careless(Protocol):
    """Has the conditions that it is told to.

    Attributes:
        names: Their names.
        loses: Whether they hide everything.
        scored: Whether there is a score over all of them.
    """

    names: tuple[str, ...] = ("a", "b")
    loses: bool = False
    scored: bool = True
    summary: ClassVar[str] = "for this test"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        return None

    @property
    def name(self) -> str:
        return "careless"

    @property
    def aggregates(self) -> dict[str, Aggregate]:
        return {"all": "mean"} if self.scored else {}

    def describe(self) -> str:
        return "anything"

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        return np.full((len(table.splits[split]), 2), self.loses and split == "test")

    def conditions(self, spec: DatasetSpec) -> list[Condition]:
        return [Condition(name, lambda table, seed: self.hidden(table, "test", seed)) for name in self.names]


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Careless(("a", "a")), r"test conditions \['a', 'a'\].*must be unique"),
        (Careless(("a", "all")), r"test conditions \['a', 'all'\] and scores \['all'\].*must be unique"),
        (Careless(scored=False), "several conditions need a score over all"),
        (Careless(()), r"test conditions \[\]"),
        (Careless(loses=True), "leaves 30 samples of split 'test' under condition 'a' without any modality"),
        (Careless(("a",), loses=True), "leaves 30 samples of split 'test' without any modality"),
    ],
)
def test_careless_conditions_are_refused(protocol: Careless, message: str) -> None:
    for available in (None, some_available(2)):
        with pytest.raises(UsageError, match=message):
            MaskTable.build(protocol, make_table(available=available), 0)


# Predictions


def parts_of(accuracies: dict[str, float], count: int = 60) -> dict[str, Predictions]:
    return {name: make_predictions(value, count, seed=seed) for seed, (name, value) in enumerate(accuracies.items())}


def test_predictions_of_several_conditions_round_trip(tmp_path: Path) -> None:
    pooled = pool_conditions(parts_of({"text": 0.5, "text+image": 0.9}))
    save_predictions(pooled, tmp_path / "p.parquet")
    assert list(pd.read_parquet(tmp_path / "p.parquet").columns[:3]) == ["id", "condition", "pattern"]
    loaded = load_predictions(tmp_path / "p.parquet")
    assert loaded.condition == ("text",) * 60 + ("text+image",) * 60
    parts = split_conditions(loaded)
    assert list(parts) == ["text", "text+image"]
    for name, part in parts_of({"text": 0.5, "text+image": 0.9}).items():
        assert parts[name].ids == part.ids
        assert np.array_equal(parts[name].logits, part.logits)
        assert np.array_equal(parts[name].labels, part.labels)
        assert np.array_equal(parts[name].present, part.present)


def test_old_prediction_files_stay_readable(tmp_path: Path) -> None:
    old = make_predictions(0.8)
    assert old.condition == ()
    save_predictions(old, tmp_path / "p.parquet")
    assert "condition" not in pd.read_parquet(tmp_path / "p.parquet")
    loaded = load_predictions(tmp_path / "p.parquet")
    assert loaded.condition == ()
    assert list(split_conditions(loaded)) == [""]
    # And may be compared with new ones about the same samples.
    assert compare(accuracy, [loaded], [pool_conditions({"both_0.7": make_predictions(0.6)})]).samples == 200


def test_old_records_stay_readable() -> None:
    record = make_record(predictions=make_predictions(0.8))
    data = json.loads(record.to_json())
    data["schema_version"] = 1
    for result in data["results"]:
        del result["kind"]
    old = RunRecord.from_json(json.dumps(data))
    assert old.results == record.results
    assert old.results[0].kind == "condition"


# Scores


def test_pool_and_mean_are_told_apart() -> None:
    parts = {"a": make_predictions(1.0, 100), "b": make_predictions(0.0, 50)}
    pooled = pool_conditions(parts)
    assert evaluate_aggregate(TASK, pooled, "pool", ["accuracy"]) == {"accuracy": pytest.approx(2 / 3)}
    assert evaluate_aggregate(TASK, pooled, "mean", ["accuracy"]) == {"accuracy": pytest.approx(0.5)}
    every = evaluate_aggregate(TASK, pooled, "mean")
    assert list(every) == list(evaluate(TASK, pooled.logits, pooled.labels))


def test_an_undefined_condition_leaves_the_mean_undefined() -> None:
    task = TaskSpec("binary", 2, ("no", "yes"), "auroc")
    good = make_predictions(0.8, 40, classes=2)
    single = replace(good, labels=np.zeros(40, dtype=np.int64))
    pooled = pool_conditions({"good": good, "single": single})
    assert np.isnan(evaluate_aggregate(task, pooled, "mean", ["auroc"])["auroc"])
    layout = Layout.of(pooled, "mean")
    bounds = bootstrap_interval(task, "auroc", pooled.logits, pooled.labels, 0, samples=20, layout=layout)
    assert all(np.isnan(bounds))


def with_gaps() -> Predictions:
    """Two conditions, of which the second skips samples."""
    parts = parts_of({"a": 0.8, "b": 0.5}, 50)
    rows = [row for row in range(50) if row % 4]
    short = parts["b"]
    parts["b"] = replace(
        short, ids=tuple(short.ids[row] for row in rows), logits=short.logits[rows], labels=short.labels[rows],
        present=short.present[rows],
    )  # fmt: skip
    return pool_conditions(parts)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "plain"])
def test_intervals_draw_samples_with_all_their_predictions(
    how: Aggregate, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled = with_gaps()
    function: Any = {"accuracy": accuracy, "f1_macro": f1_macro}.get(
        metric, lambda logits, labels: accuracy(logits, labels)
    )
    names = list(dict.fromkeys(pooled.ids))
    generator, scores = np.random.default_rng(5), []
    for _ in range(200):
        drawn = [names[pick] for pick in generator.integers(0, 50, 50)]
        groups = []
        for wanted in (["a", "b"],) if how == "pool" else (["a"], ["b"]):
            rows = [
                row
                for name in drawn
                for row in range(len(pooled.ids))
                if pooled.ids[row] == name and pooled.condition[row] in wanted
            ]
            groups.append(function(pooled.logits[rows], pooled.labels[rows]))
        scores.append(np.mean(groups))
    expected = tuple(np.quantile(scores, [0.025, 0.975]))

    class Config:
        def implementation(self) -> Any:
            return function

    monkeypatch.setattr("harness.scoring.metric_for", lambda task, name: Config())
    layout = Layout.of(pooled, how)
    assert (layout.samples, len(layout.groups)) == (50, 1 if how == "pool" else 2)
    found = bootstrap_interval(TASK, metric, pooled.logits, pooled.labels, 5, samples=200, layout=layout)
    assert found == pytest.approx(expected)
    monkeypatch.setattr("harness.scoring._CHUNK", 500)
    cut = bootstrap_interval(TASK, metric, pooled.logits, pooled.labels, 5, samples=200, layout=layout)
    assert cut == pytest.approx(found), "depends on how the work is cut"


def test_repeating_a_sample_under_more_conditions_adds_no_certainty() -> None:
    one = make_predictions(0.8, 100)
    pooled = pool_conditions(dict.fromkeys("abcde", one))
    single = bootstrap(accuracy, [[one]], draws=2000)[0].values
    for how in HOW:
        several = bootstrap(accuracy, [[pooled]], draws=2000, how=how)[0].values
        assert several == pytest.approx(single), "conditions were drawn as if they were other samples"
    rows = replace(pooled, ids=tuple(f"{row}" for row in range(500)), condition=())
    assert bootstrap(accuracy, [[rows]], draws=2000)[0].values.std() < 0.6 * single.std()


@pytest.mark.parametrize("how", HOW)
def test_paired_draws_over_conditions(how: Aggregate, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (pool_conditions(parts_of({"x": value, "y": value - 0.2}, 200)) for value in (0.8, 0.7))
    result = compare(accuracy, [a], [b], how=how)
    assert (result.score_a, result.score_b, result.samples) == (pytest.approx(0.7), pytest.approx(0.6), 200)
    assert result.difference.p < 0.01
    assert result.mcnemar is None, "its pairs would not be independent"
    whole = [row.values for metric in (accuracy, auroc) for row in bootstrap(metric, [[a], [b]], draws=300, how=how)]
    monkeypatch.setattr("harness.reports.statistics._PREPARED", 1000)
    monkeypatch.setattr("harness.scoring._CHUNK", 1000)
    pieces = [row.values for metric in (accuracy, auroc) for row in bootstrap(metric, [[a], [b]], draws=300, how=how)]
    np.testing.assert_allclose(pieces, whole)


def test_one_condition_is_compared_as_before() -> None:
    a, b = make_predictions(0.8, seed=1), make_predictions(0.7, seed=2)
    named = [pool_conditions({"both_0.7": run}) for run in (a, b)]
    assert compare(accuracy, [named[0]], [named[1]]) == compare(accuracy, [a], [b])
    right = [run.logits.argmax(axis=1) == run.labels for run in (a, b)]
    assert compare(accuracy, [a], [b]).mcnemar == mcnemar(*right)


def test_other_conditions_are_refused() -> None:
    part = make_predictions(0.8, 40)
    runs = [pool_conditions({"a": part, name: part}) for name in ("b", "c")]
    with pytest.raises(DataError, match="not about the same test samples"):
        bootstrap(accuracy, [[runs[0]], [runs[1]]], draws=10)


# Audits


def test_the_mask_audit_covers_all_conditions() -> None:
    table = make_table(modalities=TRIO, available=some_available(3))
    protocol = parse_protocol("patterns")
    masks = MaskTable.build(protocol, table, 0)
    result = {check.name: check for check in audit.audit_before(table, masks, protocol, features(table))}["masks"]
    assert result.passed
    assert "test (7 conditions)" in result.detail
    skipped = sum(int((~rows.any(axis=1)).sum()) for rows in masks.conditions.values())
    assert f"{skipped} times a condition skipped a sample" in result.detail
    changed = {**masks.conditions, "audio": masks.conditions["text"]}
    tampered = replace(masks, conditions=changed)
    results = {check.name: check for check in audit.audit_before(table, tampered, protocol, features(table))}
    assert not results["masks"].passed


# MLflow


def test_names_and_note_in_mlflow() -> None:
    from harness.mlflow_store import _final_metrics

    run = make_conditions_run("redeem", {"text": 0.5, "text+image": 0.9})
    metrics = _final_metrics(run.record)
    assert metrics["test/pooled/accuracy"] == pytest.approx(0.7)
    assert metrics["test/mean_of_patterns/accuracy"] == pytest.approx(0.7)
    assert metrics["test/text/accuracy"] == pytest.approx(0.5)
    assert metrics["test/text+image/accuracy"] == pytest.approx(0.9)
    assert "test/accuracy" not in metrics
    note = describe(run.record)
    assert "accuracy (pooled): **0.7000**" in note
    assert "accuracy (text): **0.5000**" in note


def test_results_say_what_they_are() -> None:
    kinds = [result.kind for result in make_conditions_run("redeem", {"a": 0.5, "b": 0.9}).record.results]
    assert kinds == ["pool", "mean", "condition", "condition"]
    assert ConditionResult("x", {}).kind == "condition"
