"""Changed values: names, what is left of a sequence, fingerprints, and that a method is given nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cell import cell_features, observed_views, resolve
from harness.changes import Shortened, parse_change, parse_identity, spread
from harness.compose import compose
from harness.errors import DataError, HarnessError, UsageError
from harness.features import FeatureArray
from harness.mask_files import difference, export_csv
from harness.masking import MaskTable, observe
from harness.protocol import parse_protocol
from harness.runner import run_cell
from harness.testing.tables import make_table
from harness.types import DataTable, Split
from harness.workspace import Workspace

rates = st.integers(0, 100).map(lambda hundredths: hundredths / 100)
seeds = st.integers(0, 2**31)
shapes = st.sampled_from(["frames", "block", "tail"])

KINDS = ("text", "image", "audio", "video", "sensor")


def draw(name: str, table: DataTable, seed: int = 0) -> MaskTable:
    return MaskTable.build(parse_protocol(name), table, seed)


def values_of(change: str, table: DataTable, modality: str, split: Split = "test", seed: int = 0) -> dict[str, Any]:
    small = parse_change(change).apply(table, split, seed)
    return dict(zip(small.ids, list(small.values[modality][0 : len(small.ids)]), strict=True))


# What is left of a sequence


@settings(deadline=None, max_examples=150)
@given(shape=shapes, rate=rates, length=st.integers(0, 40), seed=seeds)
def test_a_part_is_left(shape: str, rate: float, length: int, seed: int) -> None:
    kept = Shortened(shape, rate).kept(length, seed, "train", "x", "a").tolist()
    assert kept == sorted(set(kept))
    assert set(kept) <= set(range(length))
    lost = length - len(kept)
    assert lost in (int(rate * length), int(rate * length) + 1, length - 1, 0)
    assert bool(kept) == bool(length), "something stays"
    if lost:
        gone = sorted(set(range(length)) - set(kept))
        if shape != "frames":
            assert gone == list(range(gone[0], gone[0] + lost)), "one run"
        if shape == "tail":
            assert gone[-1] == length - 1


@settings(deadline=None, max_examples=100)
@given(shape=shapes, pair=st.tuples(rates, rates).map(sorted), length=st.integers(1, 30), seed=seeds)
def test_what_is_left_is_nested(shape: str, pair: list[float], length: int, seed: int) -> None:
    more, less = (set(Shortened(shape, rate).kept(length, seed, "train", "x", "a").tolist()) for rate in pair)
    assert less <= more


def test_the_share_is_right_on_the_whole() -> None:
    lengths = np.random.default_rng(0).integers(2, 9, 1_000)
    for shape in ("frames", "block", "tail"):
        change = Shortened(shape, 0.3)
        kept = sum(len(change.kept(length, 0, "train", "x", str(row))) for row, length in enumerate(lengths))
        assert 1 - kept / lengths.sum() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("shape", ["frames", "block", "tail"])
def test_hidden_elements_are_gone_from_the_raw_value(shape: str) -> None:
    table = make_table(modalities=KINDS, readable=True)
    for name in ("text", "audio", "video", "sensor"):
        left = values_of(f"{shape}_0.5", table, name)
        for row in table.splits["test"]:
            value, rest = table.values[name][int(row)], left[table.ids[row]]
            if name == "text":
                words = iter(value.split())
                assert all(word in words for word in rest.split()), "words in their order"
                assert rest
            elif name == "audio":
                pieces = {value[start : start + 1600].tobytes() for start in range(0, len(value), 1600)}
                # Only the last piece of a clip may be short, so that where pieces begin is known.
                assert rest.dtype == value.dtype
                assert len(rest) <= len(value)
                assert rest[:1600].tobytes() in pieces
            else:
                frames = iter(value.tolist())
                assert all(frame in frames for frame in rest.tolist())
                assert len(rest) >= 1
    lost = [len(table.values["sensor"][int(row)]) for row in table.splits["test"]]
    kept = [len(value) for value in values_of(f"{shape}_0.5", table, "sensor").values()]
    assert sum(kept) < 0.7 * sum(lost)


def test_pictures_and_vectors_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no sequence\. A part of a picture is hidden by corrupt:occlusion_image"):
        draw("frames_image_0.5", make_table(readable=True))
    with pytest.raises(UsageError, match=r"has no sequences \(image is image\)"):
        draw("frames_0.5", make_table(modalities=("image",), readable=True))
    vectors = replace(make_table(modalities=("a", "text")), values={"a": [np.ones(3)] * 90, "text": ["x y"] * 90})
    with pytest.raises(UsageError, match=r"have the shape \[3\], which is no sequence; name another modality"):
        draw("frames_0.5", vectors)
    draw("frames_text_0.5", vectors)


def test_what_is_hidden_is_counted() -> None:
    table = replace(make_table((3, 2, 2), ("text", "a")), values={"text": ["x", "", "a b c d"] + ["a b"] * 4, "a": []})
    remarks = draw("tail_text_1", table).remarks
    assert (
        remarks[0]
        == "train: tail_text_1 hides 3 of 5 words of 'text' in 3 samples, of which 2 have one element that stays"
    )
    assert remarks[1] == "valid: tail_text_1 hides 2 of 4 words of 'text' in 2 samples"
    assert draw("tail_text_0", table).remarks[1] == "valid: tail_text_0 hides 0 of 4 words of 'text' in 2 samples"


# Corruption as a view of a data set


@pytest.mark.parametrize(
    "name",
    [
        "noise_image_3",
        "blur_image_1",
        "typo_text_5",
        "noise_audio_2",
        "noise_sensor_1",
        "mismatch_text_4",
        "frames_0.5",
    ],
)
def test_values_depend_on_the_id_alone(name: str) -> None:
    change, order = parse_change(name), np.random.default_rng(0).permutation(90)
    table, other = (make_table(modalities=KINDS, readable=True, order=order) for order in (None, order))
    for modality in change.modalities(table.spec):
        one, two = (values_of(name, part, modality.name) for part in (table, other))
        assert set(one) == set(two)
        assert all(np.array_equal(one[sample], two[sample]) for sample in one)
        seeded = values_of(name, table, modality.name, seed=1)
        if name != "blur_image_1":
            assert not all(np.array_equal(one[sample], seeded[sample]) for sample in one)


def test_a_changed_view_is_a_data_set_of_its_own() -> None:
    table = make_table(modalities=KINDS, readable=True)
    change = parse_change("noise_image_3")
    small = change.apply(table, "test", 0)
    assert small.spec.modality_names == ("image",)
    assert small.ids == tuple(table.split_ids("test"))
    assert small.available.shape == (30, 1)
    prints = {
        change.apply(table, "test", 1).spec.fingerprint,
        change.apply(table, "valid", 0).spec.fingerprint,
        parse_change("noise_image_2").apply(table, "test", 0).spec.fingerprint,
        small.spec.fingerprint,
        table.spec.fingerprint,
    }
    assert len(prints) == 5


def test_noise_on_features_goes_by_the_training_spread() -> None:
    values = [np.array([row % 2, 100.0 * (row % 2), 5.0], np.float32) for row in range(1000)]
    values[600:] = [np.zeros(3, np.float32)] * 400
    table = replace(make_table((600, 10, 390), ("a", "b")), values={"a": values, "b": values})
    for severity, level in enumerate((0.5, 1, 1.5, 2, 3), start=1):
        noise = np.stack(list(values_of(f"noise_a_{severity}", table, "a").values()))
        assert noise[:, :2].std(axis=0) == pytest.approx([0.5 * level, 50 * level], rel=0.1)
        assert not noise[:, 2].any(), "a constant has no noise"


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 40), seed=seeds)
def test_mismatched_values_are_those_of_others(size: int, seed: int) -> None:
    table = replace(make_table((1, 1, size)), values={"text": [f"t{row}" for row in range(size + 2)], "image": []})
    own = {sample: f"t{row}" for row, sample in enumerate(table.ids)}
    before: set[str] = set()
    for severity in range(1, 6):
        shown = values_of(f"mismatch_text_{severity}", table, "text", seed=seed)
        wrong = {sample for sample in shown if shown[sample] != own[sample]}
        assert len(wrong) == (size * severity // 10 if size > 1 else 0)
        assert before <= wrong
        assert set(shown.values()) <= {own[sample] for sample in shown}, "another sample of the split"
        before = wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corrupt:noise_3", "'noise_3' is no corruption|write <what>_<modality>"),
        ("corrupt:fog_image_3", "is no corruption; write .* What: blur, clipping"),
        ("corrupt:noise_image_6", "write corrupt:noise_image_3"),
        ("corrupt:noise_image_3..2", "range of severities"),
        ("corrupt:noise_image_3..3", "range of severities"),
        ("corrupt:noise_image", "write corrupt:noise_image_3"),
        (
            "corrupt:blur_text_1",
            "'text' of data set 'contract' is of kind text, which has typo, drop, swap, ocr, mismatch",
        ),
        ("corrupt:noise_img_1", "has no modality 'img'. Modalities: text, image"),
        ("train:corrupt:noise_image_3,test:complete", "changes the test only and cannot be a training side"),
        ("patterns+corrupt:noise_image_0..5", "'patterns' cannot be combined with a range of severities"),
        ("frames_0.5+corrupt:noise_image_3", "'frames_0.5' cannot be combined"),
        ("corrupt:noise_image_3+frames_0.5", "cannot be combined"),
        ("nothing+frames_0.5", "unknown protocol 'nothing'"),
        ("frames_2", "lies outside 0 to 1"),
        ("frames_half", "'half' is not a rate"),
        ("tail_img_0.5", "has no modality 'img'"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message) as caught:
        draw(name, make_table(readable=True))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("frames_0.50", "frames_0.5"),
        ("block_front_camera_1.0", "block_front_camera_1"),
        ("complete+tail_0.3", "tail_0.3"),
        ("both_0.70+frames_.5", "both_0.7+frames_0.5"),
        ("shared_0.5+corrupt:blur_image_1..3", "shared_0.5+corrupt:blur_image_1..3"),
        ("patterns+corrupt:blur_image_3", "patterns+corrupt:blur_image_3"),
        ("test:patterns_proper+tail_text_0.30", "train:complete,test:patterns_proper+tail_text_0.3"),
        ("test:frames_0..0.8:0.4", "train:complete,test:frames_0..0.8:0.4"),
        ("test:shared_0.50+frames_text_0..1:0.5", "train:complete,test:shared_0.5+frames_text_0..1:0.5"),
        ("test:both_0.50+corrupt:ocr_text_0..5", "train:complete,test:both_0.5+corrupt:ocr_text_0..5"),
    ],
)
def test_names_are_canonical(name: str, canonical: str) -> None:
    protocol = parse_protocol(name)
    assert protocol.name == canonical
    assert parse_protocol(canonical) == protocol
    assert "\n" not in protocol.describe()


@pytest.mark.parametrize("change", ["corrupt:noise_image_3", "frames_text_0.5"])
def test_a_change_under_every_pattern(change: str) -> None:
    """The conditions and scores of `patterns`, hiding what they hide; what is shown is changed under each of them."""
    table = make_table(readable=True)
    plain, changed = draw("patterns", table), draw(f"patterns+{change}", table)
    assert changed.condition_names == plain.condition_names == ("text", "image", "text+image")
    for part, (ids, present) in plain.parts().items():
        assert changed.parts()[part][0] == ids
        assert np.array_equal(changed.parts()[part][1], present)
    tests = {f"test:{name}" for name in plain.condition_names}
    assert set(changed.changes) == (tests if change.startswith("corrupt") else tests | {"train", "valid"})
    protocol = parse_protocol(f"patterns+{change}")
    assert protocol.aggregates == parse_protocol("patterns").aggregates
    assert "under each of its test conditions" in protocol.describe()
    assert changed.fingerprint != plain.fingerprint
    sides = draw(f"train:both_0.5,test:patterns+{change}", table)
    assert {part for part in sides.changes if part.startswith("test:")} == tests


# Mask tables


def test_changes_are_in_the_fingerprint() -> None:
    table = make_table(readable=True)
    names = (
        "complete",
        "corrupt:noise_image_3",
        "corrupt:noise_image_4",
        "corrupt:blur_image_3",
        "frames_0.5",
        "tail_0.5",
        "test:frames_0.5",
    )
    prints = {draw(name, table, seed).fingerprint for name in names for seed in (0, 1)}
    assert len(prints) == 1 + 2 * 6, "only what is complete does not depend on the seed"
    assert draw("corrupt:noise_image_0", table).fingerprint == draw("complete", table).fingerprint
    assert draw("both_0.5+frames_0", table).fingerprint == draw("both_0.5", table).fingerprint


def test_training_is_clean_under_corruption() -> None:
    masks = draw("both_0.5+corrupt:noise_image_0..2", make_table(readable=True))
    assert masks.changes == {"test:noise_image_1": "noise_image_1 v1", "test:noise_image_2": "noise_image_2 v1"}
    assert list(masks.conditions) == ["noise_image_0", "noise_image_1", "noise_image_2"]
    both = draw("both_0.5", make_table())
    assert all(np.array_equal(rows, both.present["test"]) for rows in masks.conditions.values())
    assert dict(parse_protocol("test:corrupt:noise_image_0..5").aggregates) == {"mean_over_grid": "mean"}


def test_changes_are_saved_and_checked(tmp_path: Path) -> None:
    table = make_table(readable=True)
    masks = draw("both_0.5+frames_text_0.5", table)
    read = MaskTable.load(masks.save(tmp_path / "mine"))
    assert read.changes == masks.changes
    again = draw(f"table:{tmp_path / 'mine'}", table)
    assert again.fingerprint == masks.fingerprint
    side = (tmp_path / "mine.json").read_text()
    for old, new, message in (
        ("frames_text_0.5 v1", "frames_text_0.4 v1", "was changed after it was saved"),
        ('"train": "frames', '"nowhere": "frames', "changes of unknown parts"),
    ):
        (tmp_path / "mine.json").write_text(side.replace(old, new))
        with pytest.raises(DataError, match=message):
            MaskTable.load(tmp_path / "mine")


def test_changes_in_other_files(tmp_path: Path) -> None:
    table = make_table(readable=True)
    one, other = draw("both_0.5", table), draw("both_0.5+frames_text_0.5", table)
    with pytest.raises(UsageError, match=r"which CSV cannot say; share its \.parquet and \.json"):
        export_csv(other, tmp_path / "x.csv")
    found = difference(one, other)
    assert not found["same"]
    assert found["changes"] == {part: ["", "frames_text_0.5 v1"] for part in ("train", "valid", "test")}


def test_other_versions_are_refused() -> None:
    assert parse_identity("noise_image_3 v1") == parse_change("noise_image_3")
    with pytest.raises(DataError, match="here it is version 1"):
        parse_identity("noise_image_3 v2")
    with pytest.raises(DataError, match="not known here"):
        parse_identity("fog_image_3 v1")


def test_an_oracle_is_shown_values_as_they_came() -> None:
    table = make_table(readable=True)
    assert draw("corrupt:noise_image_1..3", table).revealed(table).changes == {}


# What a method is given


def array(tokens: Any) -> FeatureArray:
    tokens = np.asarray(tokens, np.float32)
    return FeatureArray(
        tokens, np.ones(tokens.shape[:2], np.bool_), tokens.mean(axis=1), np.arange(len(tokens), dtype=np.int64)
    )


def test_spread_pads_and_cuts_to_the_length_of_the_data() -> None:
    whole = array(-np.ones((5, 3, 2)))
    for length in (1, 3, 4):
        block = array(np.arange(2 * length * 2).reshape(2, length, 2) + 1)
        found = spread(block, np.array([3, 1]), whole)
        assert found.spec == whole.spec
        assert len(found.tokens) == 5
        rows = np.array([1, 3, 1])
        shorter = min(length, 3)
        assert np.array_equal(found.tokens[rows][:, :shorter], block.tokens[[1, 0, 1]][:, :shorter])
        assert not found.tokens[rows][:, shorter:].any()
        assert found.mask[rows][:, :shorter].all()
        assert not found.mask[rows][:, shorter:].any()
        assert np.array_equal(found.pooled[rows], block.pooled[[1, 0, 1]])
        assert found.digest[rows].tolist() == [1, 0, 1]
        # Samples of other parts are as they came.
        mixed = np.array([0, 3, 4])
        assert np.array_equal(found.tokens[mixed][1, :shorter], block.tokens[0, :shorter])
        assert (found.tokens[mixed][[0, 2]] == -1).all()
        assert found.digest[mixed].tolist() == [0, 0, 4]
        assert found.digest[mixed[:0]].shape == (0,)
        assert found.tokens[:].shape == whole.tokens.shape


def test_values_that_were_not_changed_are_refused() -> None:
    table = make_table(readable=True)
    masks = draw("corrupt:noise_image_3", table)
    features = {name: array(np.zeros((90, 2, 2))) for name in ("text", "image")}
    observe(table, masks, features, "train")
    with pytest.raises(DataError, match="changes values of 'test'; they are not encoded"):
        observe(table, masks, features, "test")


class Sequences(Workspace):
    """A workspace whose data set is `make_table` with two modalities of short sequences."""

    def table(self, config: Any) -> DataTable:
        return make_table(modalities=("a", "b"), readable=True)


def cell_of(tmp_path: Path, *overrides: str) -> Any:
    (config,) = compose(["dataset=synthetic", "device=cpu", "trainer.epochs=1", f"paths.home={tmp_path}", *overrides])
    workspace = Sequences(Workspace(_folders(config)).folders)
    return resolve(config, workspace), workspace


def _folders(config: Any) -> Any:
    from harness.files import Folders

    return Folders.resolve(config.paths)


@pytest.mark.parametrize("supervision", ["observed", "complete"])
def test_hidden_frames_reach_nobody(tmp_path: Path, supervision: str) -> None:
    cell, workspace = cell_of(
        tmp_path, "method=zero_fill", "protocol=any_0.5+frames_a_0.5", f"supervision={supervision}"
    )
    features = cell_features(cell, workspace)
    views = observed_views(cell, features)
    for split, view in views.parts().items():
        left = values_of("frames_a_0.5", cell.table, "a", split)  # type: ignore[arg-type]
        batch = view.batch(np.arange(len(view)))
        part = batch.inputs["a"]
        for place, row in enumerate(part.rows.tolist()):
            value = left[batch.ids[row]]
            assert np.array_equal(part.tokens[place][part.mask[place]], value)
            assert part.pooled[place].numpy() == pytest.approx(value.mean(axis=0), abs=1e-6)
            assert part.mask[place].tolist() == sorted(part.mask[place].tolist(), reverse=True), "a run, then padding"
        whole = cell.table.values["a"]
        if split == "train" and supervision == "complete":
            assert batch.full is not None
            shown = batch.full.inputs["a"]
            rows = cell.table.splits["train"]
            assert shown.mask.sum(dim=1).tolist() == [len(whole[int(row)]) for row in rows]
            plain = view.complete_view().batch(np.arange(len(view))).inputs["a"]
            assert torch.equal(plain.tokens, shown.tokens)
        else:
            assert batch.full is None
        # The other modality is as it came.
        assert torch.equal(
            batch.inputs["b"].pooled, torch.from_numpy(features["b"].pooled[view.rows[batch.inputs["b"].rows]])
        )


@pytest.mark.slow
def test_a_run_over_severities(tmp_path: Path) -> None:
    cell, workspace = cell_of(
        tmp_path, "method=zero_fill", "protocol=corrupt:noise_a_0..5", "tracking.checkpoint=false"
    )
    outcome = run_cell(cell, workspace)
    record = outcome.record
    assert record.status == "finished", record.error
    names = [f"noise_a_{severity}" for severity in range(6)]
    assert [result.condition for result in record.results] == ["mean_over_grid", *names]
    assert not [check for check in record.audits if not check.passed]
    predictions = outcome.predictions()
    condition = np.array(predictions.condition)
    for one, two in pairwise(predictions.logits[condition == name] for name in names):
        assert not np.array_equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("supervision", ["observed", "complete"])
def test_a_run_on_parts_of_sequences(tmp_path: Path, supervision: str) -> None:
    cell, workspace = cell_of(
        tmp_path, "method=knn_impute", "protocol=any_0.5+block_0.5", f"supervision={supervision}",
        "tracking.checkpoint=false",
    )  # fmt: skip
    record = run_cell(cell, workspace).record
    assert record.status == "finished", record.error
    assert not [check for check in record.audits if not check.passed]
    assert any("block_0.5 hides" in line for line in record.protocol["remarks"])
