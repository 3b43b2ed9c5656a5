"""Contracts refuse plugins that break them: each test names a fault and the check that must find it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from harness import registry
from harness.config import MetricConfig
from harness.dataset import DatasetConfig
from harness.errors import HarnessError
from harness.protocol import Condition, Protocol, hash_order
from harness.registry import Registry
from harness.testing.datasets import DatasetContract
from harness.testing.metrics import MetricContract
from harness.testing.protocols import ProtocolContract
from harness.testing.tables import make_table
from harness.types import BoolArray, DataTable, ModalitySpec, Split

HERE = __name__


@dataclass
class Faulty(Protocol):
    """Hides text from half of the samples, in the way that `fault` names.

    Attributes:
        fault: What is wrong with it.
    """

    examples: ClassVar[tuple[str, ...]] = ("faulty-none",)
    summary: ClassVar[str] = "for this test"
    citation: ClassVar[str] = "none"

    fault: str = "none"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        return cls(name.removeprefix("faulty-")) if name.startswith("faulty-") else None

    @property
    def name(self) -> str:
        return "faulty-none" if self.fault == "name" else f"faulty-{self.fault}"

    def describe(self) -> str:
        return "Half of the samples of every split lose text." if self.fault != "describe" else "half"

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        ids = table.split_ids(split)
        hidden = np.zeros((len(ids), len(table.spec.modalities)), dtype=np.bool_)
        count = len(ids) // 2 + (self.fault == "rounds_up" and len(ids) % 2)
        order = hash_order(ids, mask_seed, split, "x")
        if self.fault == "rows":
            order = np.random.default_rng(mask_seed).permutation(len(ids))
        elif self.fault == "all_splits":
            order = hash_order(ids, mask_seed, "", "x")
        elif self.fault == "no_seed":
            order = hash_order(ids, 0, split, "x")
        elif self.fault == "unseeded":
            order = np.random.default_rng().permutation(len(ids))
        elif self.fault == "labels":
            order = np.argsort(table.labels[table.splits[split]], kind="stable")
        elif self.fault == "other_splits":
            order = hash_order(ids, len(table.ids), split, "x")
        hidden[order[:count], 0] = True
        if self.fault == "values":
            _ = table.values["text"][0]
        if self.fault == "everything":
            hidden[order[0]] = True
        return hidden.astype(np.int64) if self.fault == "dtype" else hidden  # type: ignore[return-value]


@dataclass
class FaultyMetric(MetricConfig):
    """For this test."""

    summary: ClassVar[str] = "for this test"
    citation: ClassVar[str] = "none"
    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)
    target: ClassVar[str] = f"{HERE}:score"


FAULT = ""


def score(logits: Any, labels: Any) -> float:
    """Accuracy with the fault that `FAULT` names."""
    if FAULT == "writes":
        logits += 1
    if FAULT == "order" and len(labels):
        return float(logits[0, 0])
    if FAULT == "direction":
        return float((logits.argmax(axis=1) != labels).mean()) if len(labels) else float("nan")
    if FAULT == "zero_of_nothing" and not len(labels):
        return 0.0
    if FAULT == "noise" and len(set(labels.tolist())) < 2:
        return float(np.float64(1) / np.float64(len(set(labels.tolist())) - 1))
    if FAULT == "infinite":
        return float("inf")
    return float((logits.argmax(axis=1) == labels).mean()) if len(labels) else float("nan")


@dataclass
class FaultyData(DatasetConfig):
    """For this test.

    Attributes:
        fault: What is wrong with it.
    """

    summary: ClassVar[str] = "for this test"
    citation: ClassVar[str] = "none"
    license: ClassVar[str] = "CC0"
    obtain: ClassVar[str] = "write it yourself"
    card: ClassVar[str] = "test_contracts_can_fail.py"

    fault: str = ""

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        table = make_table(
            (12, 6, 6), ("text", "size"), name=np.random.bytes(4).hex() if self.fault == "again" else "x"
        )
        text: list[Any] = [f"text {row}" for row in range(24)]
        size = [np.full(3, row, dtype=np.float32) for row in range(24)]
        groups = np.arange(24)
        spec, labels = table.spec, table.labels
        if self.fault == "empty_text":
            text[0] = " "
        elif self.fault == "twice":
            text[20], size[20] = text[0], size[0]
        elif self.fault == "shape":
            spec = replace(spec, modalities=(spec.modalities[0], ModalitySpec("size", "features", (4,))))
        elif self.fault == "nan":
            size[0][1] = np.nan
        elif self.fault == "groups":
            groups[20] = 0
        elif self.fault == "metric":
            spec = replace(spec, task=replace(spec.task, primary_metric="mae"))
        elif self.fault == "unseen":
            labels = np.where(np.arange(24) < 12, 0, 1)
        elif self.fault == "overlap":
            table = replace(table, splits={**table.splits, "test": table.splits["valid"]})
        return replace(table, spec=spec, labels=labels, groups=groups, values={"text": text, "size": size})


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, name, config in (
        ("protocols", "faulty", Faulty),
        ("metrics", "faulty", FaultyMetric),
        ("datasets", "faulty", FaultyData),
    ):
        old = registry.KINDS[kind]
        fresh = Registry[Any](old.kind, old._base, old._builtin)
        fresh.register(name, config, "this test")
        monkeypatch.setattr(registry, kind, fresh)
    monkeypatch.setattr(f"{HERE}.FAULT", "")


def run(contract: Any, tmp_path: Path) -> set[str]:
    """Names of the checks that fail."""
    failed = set()
    for name in dir(contract):
        if name.startswith("test_"):
            arguments = (tmp_path,) if "tmp_path" in inspect.signature(getattr(contract, name)).parameters else ()
            try:
                getattr(contract, name)(*arguments)
            except pytest.skip.Exception:
                continue
            except (AssertionError, HarnessError, ValueError, Warning):
                failed.add(name)
    return failed


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("none", ""),
        ("name", "test_name_is_canonical"),
        ("describe", "test_documented"),
        ("dtype", "test_shape_and_type"),
        ("everything", "test_keeps_a_modality_of_every_sample"),
        ("rounds_up", "test_exact_rate_in_every_split"),
        ("unseeded", "test_same_seed_same_masks"),
        ("no_seed", "test_other_seed_other_masks"),
        ("rows", "test_row_order_does_not_matter"),
        ("other_splits", "test_splits_are_drawn_on_their_own"),
        ("all_splits", "test_splits_have_independent_streams"),
        ("labels", "test_labels_matter_only_where_it_says_so"),
        ("values", "test_shape_and_type"),
    ],
)
def test_faulty_protocols(fault: str, check: str, tmp_path: Path) -> None:
    class Contract(ProtocolContract):
        protocol = f"faulty-{fault}"
        incomplete = 0.5

    # It hides text from samples that have nothing else: found where values lack naturally, with any fault.
    natural = "test_keeps_a_modality_where_values_lack_naturally"
    failed = run(Contract(), tmp_path)
    assert natural in failed
    assert check in failed if check else failed == {natural}


@pytest.mark.parametrize("fault", ["names", "scores", "shape"])
def test_faulty_conditions(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def conditions(self: Faulty, spec: Any) -> list[Condition]:
        columns = 3 if fault == "shape" else 2
        names = ("a", "a" if fault == "names" else "b")
        return [
            Condition(name, lambda table, seed: np.zeros((len(table.splits["test"]), columns), bool)) for name in names
        ]

    monkeypatch.setattr(Faulty, "conditions", conditions)
    monkeypatch.setattr(Faulty, "aggregates", {} if fault == "scores" else {"all": "mean"})

    class Contract(ProtocolContract):
        protocol = "faulty-none"

    failed = run(Contract(), tmp_path)
    assert ("test_shape_and_type" if fault == "shape" else "test_conditions_have_names_and_one_score") in failed


def test_a_changed_draw_is_found(tmp_path: Path) -> None:
    class Contract(ProtocolContract):
        protocol = "both_0.7"
        golden = "0" * 64

    assert run(Contract(), tmp_path) == {"test_golden_fingerprint"}


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("none", ""),
        ("writes", "test_input_is_left_alone"),
        ("order", "test_order_of_samples_does_not_matter"),
        ("direction", "test_direction"),
        ("zero_of_nothing", "test_degenerate_input_has_no_noise"),
        ("noise", "test_degenerate_input_has_no_noise"),
        ("infinite", "test_finite_on_random_input"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_faulty_metrics(fault: str, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Contract(MetricContract):
        metric = "faulty"

    monkeypatch.setattr(f"{HERE}.FAULT", fault)
    failed = run(Contract(), tmp_path)
    assert check in failed if check else not failed


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("none", ""),
        ("again", "test_loads_the_same_again"),
        ("overlap", "test_consistent"),
        ("metric", "test_spec"),
        ("unseen", "test_labels_can_be_learned"),
        ("empty_text", "test_values_fit_the_spec"),
        ("shape", "test_values_fit_the_spec"),
        ("nan", "test_values_fit_the_spec"),
        ("groups", "test_splits_do_not_cut_groups"),
        ("twice", "test_no_sample_is_in_two_splits_under_two_ids"),
    ],
)
def test_faulty_data_sets(fault: str, check: str, tmp_path: Path) -> None:
    class Contract(DatasetContract):
        dataset = "faulty"
        options: ClassVar[dict[str, Any]] = {"fault": fault}

    failed = run(Contract(), tmp_path)
    assert check in failed if check else not failed
