"""Every audit passes on a clean method and catches a method or table that leaks on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import audit
from harness.config import MethodConfig, TrainerConfig
from harness.masking import MaskTable, ObservedDataset
from harness.method import Method, MethodContext
from harness.protocol import parse_protocol
from harness.record import AuditResult
from harness.retrieval import MemoryBank
from harness.testing.data import TinyData, tiny_observed, with_presence
from harness.trainer import FitResult, Trainer
from harness.types import SPLITS, Batch, DataTable, StepOutput


def no_backbone() -> Any:
    raise AssertionError("not used")


class Honest(Method):
    """Linear layers on pooled vectors of what is observed."""

    def __init__(self, data: TinyData) -> None:
        super().__init__(MethodConfig(), MethodContext(data.spec, data.feature_specs, no_backbone))
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleDict(
            {name: torch.nn.Linear(spec.pooled_dim, self.task.num_outputs) for name, spec in data.feature_specs.items()}
        )
        self.memory: dict[str, MemoryBank] = {}

    def predict_step(self, batch: Batch) -> Tensor:
        logits = torch.zeros(len(batch), self.task.num_outputs)
        for name, part in batch.inputs.items():
            logits = logits.index_add(0, part.rows, self.layers[name](part.pooled))
        return logits

    def training_step(self, batch: Batch) -> StepOutput:
        return StepOutput(self.task_loss(self.predict_step(batch), batch.labels))

    def banks(self) -> dict[str, MemoryBank]:
        return self.memory


class Peeking(Honest):
    """Reaches behind the view for values that the protocol hides."""

    view: ObservedDataset

    def predict_step(self, batch: Batch) -> Tensor:
        rows = self.view.rows[[self.view.ids.index(name) for name in batch.ids]]
        pooled = torch.from_numpy(np.nan_to_num(self.view._features["image"].pooled[rows], nan=9.0))
        logits: Tensor = self.layers["image"](pooled)
        return logits


def views(data: TinyData) -> audit.Views:
    return audit.Views(data.train, data.valid, {"test": data.test})


def run_after(
    method: Method, data: TinyData, fit: FitResult | None = None, supervision: str = "observed"
) -> dict[str, AuditResult]:
    trainer = Trainer(TrainerConfig(eval_batch_size=16), device="cpu")

    def predict(of: Method, view: ObservedDataset) -> Any:
        if isinstance(of, Peeking):
            of.view = view
        return trainer.predict(of, view)

    results = audit.audit_after(method, views(data), data.features, fit or FitResult(), supervision, ("task",), predict)
    return {result.name: result for result in results}


@pytest.fixture
def data() -> TinyData:
    return tiny_observed()


def test_an_honest_method_passes(data: TinyData) -> None:
    method = Honest(data)
    method.memory = {"memory": MemoryBank.build(data.train)}
    fit = FitResult(history=[{"loss/task": 0.4}], selection_looks={"valid": 3})
    results = run_after(method, data, fit)
    assert set(results) == {
        "selection_split",
        "loss_terms",
        "bank:memory",
        "self_retrieval:memory",
        "non_interference",
    }
    assert all(result.passed for result in results.values()), results


def test_peeking_at_hidden_values_is_caught(data: TinyData) -> None:
    result = run_after(Peeking(data), data)["non_interference"]
    assert not result.passed
    assert "sees hidden values" in result.detail


def test_peeking_is_caught_under_a_condition_that_hides(data: TinyData) -> None:
    everything = with_presence(data.test, data.features, np.ones_like(data.test.present))
    method = Peeking(data)
    trainer = Trainer(TrainerConfig(eval_batch_size=16), device="cpu")

    def predict(of: Method, view: ObservedDataset) -> Any:
        method.view = view
        return trainer.predict(of, view)

    for conditions, passes in (
        ({"complete": everything, "hiding": data.test}, False),
        ({"complete": everything, "again": everything}, True),
    ):
        of = audit.Views(data.train, data.valid, conditions)
        for leaks in (True, False):
            method.__class__ = Peeking if leaks else Honest
            results = audit.audit_after(method, of, data.features, FitResult(), "observed", ("task",), predict)
            found = next(result for result in results if result.name == "non_interference")
            assert found.passed is (passes or not leaks)
            assert "under 1 of 2 conditions" in found.detail


def test_self_retrieval_is_caught_under_any_condition(data: TinyData) -> None:
    method = Honest(data)
    method.memory = {"memory": MemoryBank.build(data.train, data.test, exclude="row_number")}
    of = audit.Views(data.train, data.valid, {"one": data.test, "two": data.test})
    predict = Trainer(TrainerConfig(eval_batch_size=16), device="cpu").predict
    results = audit.audit_after(method, of, data.features, FitResult(), "observed", ("task",), predict)
    found = {result.name: result for result in results}
    assert "test:one queries find themselves" in found["self_retrieval:memory"].detail
    assert "test:two queries find themselves" in found["self_retrieval:memory"].detail
    assert "not training samples (test:one)" in found["bank:memory"].detail


def test_selection_on_test_is_caught(data: TinyData) -> None:
    fit = FitResult(history=[{"loss/task": 0.4}], selection_looks={"test": 20})
    assert not run_after(Honest(data), data, fit)["selection_split"].passed


def test_a_dead_loss_term_is_caught(data: TinyData) -> None:
    fit = FitResult(history=[{"loss/task": 0.0}, {"loss/task": 0.0}], selection_looks={"valid": 2})
    result = run_after(Honest(data), data, fit)["loss_terms"]
    assert not result.passed
    assert "always zero: task" in result.detail


def test_validation_samples_in_the_bank_are_caught(data: TinyData) -> None:
    method = Honest(data)
    method.memory = {"memory": MemoryBank.build(data.train, data.valid)}
    result = run_after(method, data)["bank:memory"]
    assert not result.passed
    assert "not training samples (valid)" in result.detail


def test_hidden_training_values_in_the_bank_are_caught(data: TinyData) -> None:
    everything = with_presence(data.train, data.features, np.ones_like(data.train.present))
    method = Honest(data)
    method.memory = {"memory": MemoryBank.build(everything)}
    assert not run_after(method, data)["bank:memory"].passed
    assert run_after(method, data, supervision="complete")["bank:memory"].passed


def test_the_released_self_retrieval_of_validation_queries_is_caught(data: TinyData) -> None:
    method = Honest(data)
    method.memory = {"memory": MemoryBank.build(data.train, data.valid, exclude="row_number")}
    result = run_after(method, data)["self_retrieval:memory"]
    assert not result.passed
    assert "valid queries find themselves" in result.detail


def table(data: TinyData) -> DataTable:
    ids, splits, start = [], {}, 0
    for split in SPLITS:
        view = data.views[split]
        ids.extend(view.ids)
        splits[split] = np.arange(start, start + len(view))
        start += len(view)
    labels = np.concatenate([data.views[split].labels for split in SPLITS])
    return DataTable(data.spec, tuple(ids), splits, labels, np.ones((start, 2), np.bool_), {})


def test_before_passes_on_a_clean_table(data: TinyData) -> None:
    clean = table(data)
    protocol = parse_protocol("both_0.5")
    results = audit.audit_before(clean, MaskTable.build(protocol, clean, 0), protocol, data.features)
    assert [result.name for result in results] == ["ids", "split_overlap", "masks"]
    assert all(result.passed for result in results)


def test_a_test_sample_copied_from_training_is_caught(data: TinyData) -> None:
    clean = table(data)
    protocol = parse_protocol("complete")
    for array in data.features.values():
        array.digest[clean.splits["test"][0]] = array.digest[clean.splits["train"][3]]
    results = audit.audit_before(clean, MaskTable.build(protocol, clean, 0), protocol, data.features)
    overlap = next(result for result in results if result.name == "split_overlap")
    assert not overlap.passed
    assert clean.ids[clean.splits["test"][0]] in overlap.detail


def test_a_mask_table_that_the_protocol_does_not_draw_is_caught(data: TinyData) -> None:
    clean = table(data)
    drawn = MaskTable.build(parse_protocol("both_0.5"), clean, 0)
    results = audit.audit_before(clean, drawn, parse_protocol("both_0.3"), data.features)
    assert not next(result for result in results if result.name == "masks").passed
