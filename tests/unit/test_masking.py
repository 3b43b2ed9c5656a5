"""Mask tables as files, and what a method is allowed to see of a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError, SupervisionError, UsageError
from harness.features import FeatureArray
from harness.masking import MaskTable, ObservedDataset, observe
from harness.protocol import Protocol, parse_protocol
from harness.testing.protocols import some_available
from harness.testing.tables import make_table
from harness.types import SPLITS, BoolArray, DataTable, Split

TRIO = ("text", "image", "audio")


@pytest.fixture
def table() -> DataTable:
    return make_table()


@pytest.fixture
def masks(table: DataTable) -> MaskTable:
    return MaskTable.build(parse_protocol("both_0.7"), table, 3)


def test_round_trip(tmp_path: Path, masks: MaskTable, table: DataTable) -> None:
    parquet = masks.save(tmp_path / "deep" / "both_0.7")
    assert parquet == tmp_path / "deep" / "both_0.7.parquet"
    for path in (parquet, tmp_path / "deep" / "both_0.7.json", tmp_path / "deep" / "both_0.7"):
        loaded = MaskTable.load(path)
        assert loaded.header() == masks.header()
        assert loaded.ids == masks.ids
        assert all(np.array_equal(loaded.present[split], masks.present[split]) for split in SPLITS)
        loaded.check_against(table)


def test_header_tells_what_the_table_is(masks: MaskTable) -> None:
    header = json.loads(json.dumps(masks.header()))
    assert header["protocol"] == "both_0.7"
    assert header["definition"] == parse_protocol("both_0.7").describe()
    assert header["mask_seed"] == 3
    assert header["counts"]["train"] == {"image": 14, "text": 14, "text+image": 12}
    assert header["sha256"] == masks.fingerprint
    assert masks.missing_rates()["train"] == pytest.approx({"text": 0.35, "image": 0.35})


def test_strange_ids_round_trip(tmp_path: Path) -> None:
    ids = ["a\tb", "a", "ü\n", "007", "1e5", "None"]
    masks = MaskTable.build(parse_protocol("text_0.5"), make_table((2, 2, 2), ids=ids), 0)
    assert MaskTable.load(masks.save(tmp_path / "x")).ids == masks.ids


def _flip(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[5, "text"] = not frame.loc[5, "text"]
    return frame


def _move(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[0, "split"] = "test"
    return frame


def _stray(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.tail(1).assign(split="extra")])


def _rename(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[0, "id"] = "somebody else"
    return frame


@pytest.mark.parametrize(
    "change",
    [
        _flip,
        _move,
        _stray,
        _rename,
        lambda frame: frame.drop(index=4),
        lambda frame: pd.concat([frame, frame.tail(1)]),
        lambda frame: frame.rename(columns={"text": "image", "image": "text"}),
        lambda frame: frame.drop(columns="image"),
    ],
    ids=["bit", "split", "stray", "id", "removed", "doubled", "swapped", "column"],
)
def test_changed_tables_are_refused(
    tmp_path: Path, masks: MaskTable, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    parquet = masks.save(tmp_path / "masks")
    change(pd.read_parquet(parquet)).to_parquet(parquet, index=False)
    with pytest.raises(DataError, match="masks") as caught:
        MaskTable.load(parquet)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_damaged_or_missing_files_are_refused(tmp_path: Path, masks: MaskTable) -> None:
    with pytest.raises(DataError, match=r"nothing\.parquet: no such file"):
        MaskTable.load(tmp_path / "nothing")
    parquet = masks.save(tmp_path / "masks")
    parquet.write_bytes(parquet.read_bytes()[:50])
    with pytest.raises(DataError, match="not readable"):
        MaskTable.load(parquet)
    parquet = masks.save(tmp_path / "masks")
    parquet.with_suffix(".json").unlink()
    with pytest.raises(DataError, match=r"masks\.json: no such file"):
        MaskTable.load(parquet)


def test_another_data_set_is_refused(masks: MaskTable, table: DataTable) -> None:
    for other in (make_table((40, 20, 31)), make_table(modalities=("image", "text")), make_table(name="other")):
        with pytest.raises(DataError, match=r"mask table is for contract .*harness mask build"):
            masks.check_against(other)
    ids = list(table.ids)
    ids[0] = "new"
    with pytest.raises(DataError, match=r"other ids than split 'train' \(e\.g\. \['new'\]\)"):
        masks.check_against(replace(table, ids=tuple(ids)))
    available = table.available.copy()
    available[:, 0] = False
    with pytest.raises(DataError, match="present that the data set lacks"):
        masks.check_against(replace(table, available=available))


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_fingerprint_sees_every_bit(data: st.DataObject) -> None:
    masks = MaskTable.build(parse_protocol("any_0.5"), make_table((5, 4, 3), TRIO), 0)
    split: Split = data.draw(st.sampled_from(SPLITS))
    changed = masks.present[split].copy()
    row, column = data.draw(st.integers(0, len(changed) - 1)), data.draw(st.integers(0, 2))
    changed[row, column] ^= True
    assert replace(masks, present={**masks.present, split: changed}).fingerprint != masks.fingerprint


@dataclass
class Careless(Protocol):
    """Hides what it is told to.

    Attributes:
        values: What `hidden` returns.
    """

    values: BoolArray | None = None
    summary: ClassVar[str] = "for this test"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        return None

    @property
    def name(self) -> str:
        return "careless"

    def describe(self) -> str:
        return "anything"

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        assert self.values is not None
        return self.values


def test_careless_protocols_are_refused(table: DataTable) -> None:
    with pytest.raises(UsageError, match=r"leaves 40 samples of split 'train' without any modality, e\.g\. 's0000'"):
        MaskTable.build(Careless(np.ones((40, 2), dtype=np.bool_)), table, 0)
    with pytest.raises(UsageError, match=r"returned bool \[2\] for split 'train', expected bool \[40, 2\]"):
        MaskTable.build(Careless(np.zeros(2, dtype=np.bool_)), table, 0)
    with pytest.raises(UsageError, match="returned int64"):
        MaskTable.build(Careless(np.zeros((40, 2), dtype=np.int64)), table, 0)  # type: ignore[arg-type]


def make_features(table: DataTable, poison: BoolArray | None = None) -> dict[str, FeatureArray]:
    """Features whose every number tells row and modality; NaN (and odd digests) where `poison` `[N, M]` is True."""
    features = {}
    for column, name in enumerate(table.spec.modality_names):
        rows = np.arange(len(table.ids), dtype=np.float32) + 1000 * (column + 1)
        tokens = np.tile(rows[:, None, None], (1, 3, 2)).astype(np.float32)
        pooled = np.tile(rows[:, None], (1, 4))
        mask = np.ones((len(rows), 3), dtype=np.bool_)
        digest = rows.astype(np.int64)
        if poison is not None:
            tokens[poison[:, column]] = np.nan
            pooled[poison[:, column]] = np.nan
            mask[poison[:, column]] = False
            digest[poison[:, column]] = -1
        features[name] = FeatureArray(tokens, mask, pooled, digest)
    return features


def shown(masks: MaskTable, table: DataTable) -> BoolArray:
    """Presence over all rows of the data set."""
    present = np.zeros_like(table.available)
    for split in SPLITS:
        present[table.splits[split]] = masks.present[split]
    return present


@pytest.mark.parametrize("natural", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_hidden_values_are_never_gathered(split: Split, natural: bool) -> None:
    order = np.random.default_rng(1).permutation(90)
    table = make_table(modalities=TRIO, available=some_available(3) if natural else None, order=order)
    masks = MaskTable.build(parse_protocol("any_0.9"), table, 0)
    present = shown(masks, table)
    view = observe(table, masks, make_features(table, poison=~present), split)
    batch = view.batch(np.random.default_rng(0).permutation(len(view)))
    assert batch.full is None
    for column, name in enumerate(TRIO):
        part = batch.inputs[name]
        assert part.rows.tolist() == np.flatnonzero(batch.present[:, column].numpy()).tolist()
        rows = [table.ids.index(batch.ids[row]) for row in part.rows.tolist()]
        assert present[rows, column].all()
        expected = torch.tensor(rows, dtype=torch.float32) + 1000 * (column + 1)
        assert torch.equal(part.tokens, expected[:, None, None].expand(-1, 3, 2))
        assert torch.equal(part.pooled, expected[:, None].expand(-1, 4))
        assert torch.equal(part.digest, expected.long())
        assert part.mask.all()
    rows = [table.ids.index(name) for name in batch.ids]
    assert batch.labels.tolist() == table.labels[rows].tolist()
    assert torch.equal(batch.present, torch.from_numpy(present[rows]))


def test_a_modality_that_nobody_has_is_an_empty_part(table: DataTable) -> None:
    masks = MaskTable.build(parse_protocol("text_1"), table, 0)
    batch = observe(table, masks, make_features(table), "test").batch([4, 2])
    assert list(batch.inputs) == ["text", "image"]
    assert len(batch.inputs["text"]) == 0
    assert batch.inputs["text"].tokens.shape == (0, 3, 2)
    assert batch.inputs["text"].pooled.shape == (0, 4)
    assert batch.inputs["image"].rows.tolist() == [0, 1]


def test_loaders_fetch_whole_batches(table: DataTable, masks: MaskTable) -> None:
    view = observe(table, masks, make_features(table), "train")
    loader = torch.utils.data.DataLoader(view, batch_size=16, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    assert [name for batch in loader for name in batch.ids] == list(view.ids)
    assert view[3].ids == [view.ids[3]]


def test_precision_and_kind_of_tokens(table: DataTable, masks: MaskTable) -> None:
    features = make_features(table)
    features["text"] = replace(features["text"], tokens=np.ones((90, 3), dtype=np.int32))
    features["image"] = replace(features["image"], tokens=features["image"].tokens.astype(np.float16))
    batch = observe(table, masks, features, "train").batch(range(8))
    assert batch.inputs["text"].tokens.dtype == torch.int32
    assert batch.inputs["image"].tokens.dtype == torch.float32


def test_batches_do_not_alias_the_features(table: DataTable, masks: MaskTable) -> None:
    features = make_features(table)
    view = observe(table, masks, features, "train")
    batch = view.batch(range(40))
    for part in batch.inputs.values():
        part.tokens.fill_(0)
        part.pooled.fill_(0)
    batch.labels.fill_(7)
    batch.present.fill_(False)
    again = view.batch(range(40))
    assert again.present.any(dim=1).all()
    assert (again.labels < 2).all()
    assert all(part.tokens.min() >= 1000 for part in again.inputs.values())


@pytest.mark.parametrize("split", SPLITS)
def test_true_values_only_in_training_under_complete_supervision(split: Split, masks: MaskTable) -> None:
    table = make_table()
    view = observe(table, masks, make_features(table), split, "complete")
    batch = view.batch(range(12))
    if split != "train":
        assert batch.full is None
        with pytest.raises(SupervisionError, match=f"hidden values of split '{split}'"):
            view.complete_view()
        return
    assert batch.full is not None
    assert batch.full.present.all()
    assert not batch.present.all()
    assert batch.full.ids == batch.ids
    assert batch.full.full is None
    complete = view.complete_view()
    assert torch.equal(complete.batch(range(12)).present, batch.full.present)
    assert complete.batch([0]).full is None
    with pytest.raises(SupervisionError):
        complete.complete_view()


def test_true_values_of_natural_gaps_do_not_exist() -> None:
    table = make_table(modalities=TRIO, available=some_available(3))
    masks = MaskTable.build(parse_protocol("any_0.5"), table, 0)
    view = observe(table, masks, make_features(table, poison=~table.available), "train", "complete")
    full = view.batch(range(40)).full
    assert full is not None
    assert torch.equal(full.present, torch.from_numpy(table.available[table.splits["train"]]))
    assert all(torch.isfinite(part.tokens).all() for part in full.inputs.values())


def test_complete_view_is_refused_under_observed_supervision(table: DataTable, masks: MaskTable) -> None:
    view = observe(table, masks, make_features(table), "train")
    with pytest.raises(SupervisionError, match="supervision=observed") as caught:
        view.complete_view()
    assert caught.value.exit_code == 4


def test_observe_checks_the_data_set(masks: MaskTable) -> None:
    other = make_table(name="other")
    with pytest.raises(DataError, match="mask table is for contract"):
        observe(other, masks, make_features(other), "train")


def test_subset_is_the_same_view_of_fewer_samples(table: DataTable, masks: MaskTable) -> None:
    view = observe(table, masks, make_features(table), "train", "complete")
    part: ObservedDataset = view.subset([7, 3, 30])
    assert part.ids == tuple(view.ids[row] for row in (7, 3, 30))
    one, two = part.batch([2, 0]), view.batch([30, 7])
    assert one.ids == two.ids
    assert torch.equal(one.present, two.present)
    assert torch.equal(one.labels, two.labels)
    assert all(torch.equal(one.inputs[name].tokens, two.inputs[name].tokens) for name in one.inputs)
    assert one.full is not None
    assert part.feature_specs == view.feature_specs
