"""Audits of data sets, splits and mask tables: each passes on clean data and catches a defect made on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from harness import audit
from harness.audit import data as data_audits
from harness.audit import near_copies as near_copies_module
from harness.audit.masks import check_columns, check_drawn
from harness.audit.near_copies import NearCopies, fingerprint
from harness.datasets.synthetic import SyntheticConfig
from harness.features import FeatureArray, content_digest
from harness.masking import MaskTable
from harness.protocol import Protocol, parse_protocol
from harness.record import AuditResult
from harness.types import SPLITS, BoolArray, DatasetSpec, DataTable, ModalitySpec, Split, TaskSpec

COUNTS: Mapping[Split, int] = {"train": 20, "valid": 5, "test": 5}
TOTAL = sum(COUNTS.values())
WORDS = ("ocean", "violin", "granite", "meadow", "lantern", "harvest", "copper", "thunder", "velvet", "orchard")


def texts() -> list[str]:
    """Different sentences without any word of a class name."""
    rng = np.random.default_rng(0)
    return [" ".join([*rng.choice(WORDS, 6), f"number {row * 7919}"]) for row in range(TOTAL)]


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """Five coloured boxes."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), tuple(rng.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(5):
        x, y, width, height = rng.integers(0, 70, 4).tolist()
        draw.rectangle((x, y, x + width, y + height), fill=tuple(rng.integers(0, 255, 3).tolist()))
    return np.asarray(image)


def table(
    values: Mapping[str, Any] | None = None, kinds: tuple[str, str] = ("text", "image"), **changes: Any
) -> DataTable:
    """30 samples in canonical order train, valid, test, of two modalities called by their kinds."""
    made = {"text": texts(), "image": [picture(row) for row in range(TOTAL)], **(values or {})}
    starts = np.cumsum([0, *COUNTS.values()])
    task = TaskSpec("multiclass", 3, ("dogs", "cats", "wild birds"), "accuracy")
    modalities = tuple(ModalitySpec(kind, kind) for kind in kinds)  # type: ignore[arg-type]
    return replace(
        DataTable(
            DatasetSpec("tiny", "1", modalities, task, "CC0-1.0", "none", "f" * 64),
            tuple(f"s{row:02d}" for row in range(TOTAL)),
            {split: np.arange(starts[place], starts[place + 1]) for place, split in enumerate(SPLITS)},
            np.arange(TOTAL) % 3,
            np.ones((TOTAL, 2), np.bool_),
            {kind: made[kind] for kind in kinds},
        ),
        **changes,
    )


def features(of: DataTable) -> dict[str, FeatureArray]:
    """Arrays with the digests of the raw values; their tokens do not matter here."""
    return {
        name: FeatureArray(
            np.ones((TOTAL, 1, 1), np.float32),
            np.ones((TOTAL, 1), np.bool_),
            np.ones((TOTAL, 1), np.float32),
            np.array([content_digest(value) for value in of.values[name]]),
        )
        for name in of.spec.modality_names
    }


def audited(
    of: DataTable, protocol: Protocol | str = "both_0.5", masks: MaskTable | None = None, cache: Path | None = None
) -> dict[str, AuditResult]:
    drawn = parse_protocol(protocol) if isinstance(protocol, str) else protocol
    results = audit.audit_before(of, masks or MaskTable.build(drawn, of, 0), drawn, features(of), cache)
    return {result.name: result for result in results}


def failed(results: Mapping[str, AuditResult]) -> set[str]:
    return {name for name, result in results.items() if not result.passed}


def changed(values: list[Any], row: int, value: Any) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


def test_a_clean_table_passes() -> None:
    results = audited(table())
    assert list(results) == [
        "ids",
        "split_overlap",
        "near_duplicates",
        "label_words",
        "data_statistics",
        "masks",
        "mask_columns",
    ]
    assert not failed(results), results


# -- copies over splits ----------------------------------------------------------------------------------------------


def test_a_test_sample_copied_from_training_is_caught() -> None:
    copied = table(
        {"text": changed(texts(), 27, texts()[3]), "image": [picture(3 if row == 27 else row) for row in range(TOTAL)]}
    )
    results = audited(copied)
    assert failed(results) == {"split_overlap", "near_duplicates"}
    assert "'s27'" in results["split_overlap"].detail


def test_a_group_over_two_splits_is_caught() -> None:
    groups = np.arange(TOTAL)
    assert not failed(audited(table(groups=groups)))
    groups[28] = 4
    result = audited(table(groups=groups))["split_overlap"]
    assert not result.passed
    assert "'s28'" in result.detail


def recompressed(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Smaller, with other bytes, the same to the eye."""
    return np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))


def test_a_near_copy_of_every_modality_is_a_warning() -> None:
    pictures: list[Any] = [picture(row) for row in range(TOTAL)]
    pictures[27] = recompressed(pictures[3])
    near = table({"image": pictures, "text": changed(texts(), 27, texts()[3].upper() + "!")})
    results = audited(near)
    assert failed(results) == {"near_duplicates"}
    assert results["near_duplicates"].severity == "warning"
    assert "'s27' and 's03'" in results["near_duplicates"].detail


def test_a_picture_that_occurs_twice_with_other_texts_is_told_but_passes() -> None:
    pictures: list[Any] = [picture(row) for row in range(TOTAL)]
    pictures[27] = recompressed(pictures[3])
    result = audited(table({"image": pictures}))["near_duplicates"]
    assert result.passed
    assert "image 1 (10.0%)" in result.detail


def copies_of_the_first(kind: str, values: list[Any]) -> list[int]:
    near = NearCopies(kind, values, np.arange(len(values)), np.array([0]), np.arange(1, len(values)))
    return list(near.rows(0))


def test_pictures_of_other_colours_are_no_near_copies() -> None:
    image = picture(3)
    other = image[..., ::-1].copy()
    assert copies_of_the_first("image", [image, other]) == []
    assert copies_of_the_first("image", [image, recompressed(image)]) == [1]


@given(st.integers(0, 10_000), st.floats(0.3, 3.0))
@settings(max_examples=10, deadline=None)
def test_a_sound_is_known_at_another_level_and_with_a_little_noise(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    time = np.arange(8000) / 16_000
    clip = sum(np.sin(2 * np.pi * (200 + 3000 * rng.random()) * time * (1 + rng.random() * time)) for _ in range(4))
    other = rng.standard_normal(8000)
    noisy = level * (clip + 0.001 * rng.standard_normal(8000))
    assert copies_of_the_first("audio", [clip, noisy, other]) == [1]


@pytest.mark.parametrize("length", [0, 1, 10, 500])
def test_a_fingerprint_of_any_clip_has_the_same_shape(length: int) -> None:
    assert fingerprint(np.ones(length)).shape == (32 * 16,)


def test_other_kinds_are_compared_exactly() -> None:
    near = NearCopies("tabular", [], np.array([1, 2, 1, 3, 1]), np.array([2, 3]), np.array([0, 1, 4]))
    assert [list(near.rows(row)) for row in (2, 3)] == [[0, 4], []]
    assert [near.number(row) for row in (2, 3)] == [2, 0]
    assert [near.holds(2, row) for row in (0, 1, 4)] == [True, False, True]


def test_a_value_that_many_samples_share_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of all captions are alike: 1,000 times 1,000 pairs, of which none is compared."""
    looked: list[int] = []
    texts_of = near_copies_module._texts

    def counted(values: Any, held: Any, train: Any) -> Any:
        looked.extend([len(held), len(train)])
        return texts_of(values, held, train)

    monkeypatch.setattr(near_copies_module, "_texts", counted)
    captions = ["no caption available", *["No caption available!"] * 1000, *["no caption available"] * 1000]
    digest = np.array([content_digest(caption) for caption in captions])
    near = NearCopies("text", captions, digest, np.arange(1001), np.arange(1001, 2001))
    assert looked == [2, 1]
    assert [near.number(row) for row in (0, 1, 1000)] == [1000] * 3


def test_a_shared_caption_does_not_hide_whose_picture_is_copied() -> None:
    pictures: list[Any] = [picture(row) for row in range(TOTAL)]
    pictures[27] = recompressed(pictures[3])
    near = table({"image": pictures, "text": ["no caption available"] * TOTAL})
    detail = audited(near)["near_duplicates"].detail
    assert detail.startswith("1 samples nearly copy a training sample in every modality: 's27' and 's03'")


# -- texts and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "passes", "severity"), [(1, False, "warning"), (8, True, "note"), (31, True, "warning")]
)
def test_class_names_in_the_texts_are_told(every: int, passes: bool, severity: str) -> None:
    names = ("dog", "CATS", "birds")
    told = [f"{text} {names[row % 3]}" if row and row % every == 0 else text for row, text in enumerate(texts())]
    result = audited(table({"text": told}))["label_words"]
    assert (result.passed, result.severity) == (passes, severity)
    assert "own class's name" in result.detail


def test_class_names_in_texts_of_all_classes_are_no_leak() -> None:
    told = [f"{text} dogs and cats and birds" for text in texts()]
    assert audited(table({"text": told}))["label_words"].passed


@pytest.mark.parametrize(("over", "passes"), [("train", True), ("everything", False), ("nothing", True)])
def test_numbers_standardised_over_all_splits_are_caught(over: str, passes: bool) -> None:
    raw = np.random.default_rng(0).gamma(2.0, 3.0, size=(TOTAL, 12))
    rows = raw[:20] if over == "train" else raw
    values = raw if over == "nothing" else (raw - rows.mean(0)) / rows.std(0)
    result = audited(table({"tabular": list(values.astype(np.float32))}, kinds=("text", "tabular")))["data_statistics"]
    assert result.passed is passes
    assert "tabular" in result.detail


def test_what_depends_on_the_data_set_alone_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audited(table(), cache=tmp_path)

    def never(*_: Any) -> list[AuditResult]:
        raise AssertionError("looked again")

    monkeypatch.setattr(data_audits, "_look", never)
    assert audited(table(), cache=tmp_path) == first
    other = table()
    other = replace(other, spec=replace(other.spec, fingerprint="e" * 64))
    assert "looked again" in audited(other, cache=tmp_path)["data"].detail


def test_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    first = audited(table(), cache=tmp_path)
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert audited(table(), cache=tmp_path) == first
    assert file.read_text() != "{"


# -- mask tables -----------------------------------------------------------------------------------------------------


@dataclass
class Leaky(Protocol):
    """A family of one protocol whose masks have a defect."""

    summary: ClassVar[str] = "a protocol with a defect"
    rule: str = ""
    called: str = "both_0.5"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        return None

    @property
    def name(self) -> str:
        return self.called

    def describe(self) -> str:
        return self.rule

    def hidden(self, table: DataTable, split: Split, mask_seed: int) -> BoolArray:
        count, width = len(table.splits[split]), len(table.spec.modalities)
        hidden = np.zeros((count, width), np.bool_)
        if self.rule == "by position":
            hidden[: count // 2, 0] = True
            hidden[count // 2 :, 1] = True
        elif self.rule == "image never":
            hidden[[int(name[1:]) % 2 == 0 for name in table.split_ids(split)], 0] = True
        elif self.rule == "one draw for both":
            hidden[[int(name[1:]) % 2 == 0 for name in table.split_ids(split)], :2] = True
        return hidden


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        (Leaky(rule="by position"), "binds masks to positions"),
        (Leaky(rule="image never"), "should hide image, but never does"),
        (Leaky(rule="image never", called="image_0.5"), "should hide image, but never does"),
        (Leaky(rule="image never", called="text_0.5"), ""),
        (Leaky(rule="nothing", called="complete"), ""),
        (Leaky(rule="nothing", called="both_0.01"), ""),
    ],
)
def test_defects_of_masks_are_caught(protocol: Leaky, told: str) -> None:
    result = audited(table(), protocol)["masks"]
    assert result.passed is not bool(told)
    assert told in result.detail


def three(of: DataTable) -> DataTable:
    """With a third modality, so that two can go missing together."""
    return replace(
        of,
        spec=replace(of.spec, modalities=(*of.spec.modalities, ModalitySpec("video", "video"))),
        available=np.ones((TOTAL, 3), np.bool_),
        values={**of.values, "video": [np.full((2, 2), row) for row in range(TOTAL)]},
    )


def test_masks_that_are_equal_across_modalities_are_caught() -> None:
    result = audited(three(table()), Leaky(rule="one draw for both", called="shared_0.5"))["mask_columns"]
    assert not result.passed
    assert result.severity == "warning"
    assert "text and image (train)" in result.detail
    assert audited(three(table()), "shared_0.5")["mask_columns"].passed


def test_a_mask_table_that_the_protocol_does_not_draw_is_caught() -> None:
    drawn = MaskTable.build(parse_protocol("both_0.5"), table(), 0)
    assert "not what both_0.3 draws" in audited(table(), "both_0.3", drawn)["masks"].detail


@pytest.mark.parametrize(
    "name", ["text_0.5", "any_0.4", "shared_0.3", "patterns", "train:complete,test:both_0.0..1.0:0.5"]
)
def test_real_protocols_pass(name: str) -> None:
    assert not failed(audited(table(), name))


def test_an_id_in_two_splits_is_caught() -> None:
    drawn = MaskTable.build(parse_protocol("complete"), table(), 0)
    drawn = replace(drawn, ids={**drawn.ids, "test": ("s00", *drawn.ids["test"][1:])})
    result = audited(table(), "complete", drawn)["ids"]
    assert not result.passed
    assert "'s00' in train and test" in result.detail


@pytest.mark.parametrize("name", ["both_0.7", "any_0.5", "patterns", "a_0.9", "train:both_0.3,test:both_0.7"])
def test_masks_of_thousands_of_samples_are_looked_at_as_those_of_few(name: str, tmp_path: Path) -> None:
    """The number of ways to hide 5,600 of 8,000 values fits no float."""
    large = SyntheticConfig(samples=10_000).load(tmp_path, tmp_path)
    protocol = parse_protocol(name)
    masks = MaskTable.build(protocol, large, 0)
    assert check_drawn(large, masks, protocol).passed
    assert check_columns(large, masks).passed


def test_one_draw_for_all_of_thousands_of_samples_is_caught(tmp_path: Path) -> None:
    large = SyntheticConfig(samples=10_000, modalities=3).load(tmp_path, tmp_path)
    leaky = Leaky(rule="one draw for both", called="shared_0.5")
    assert not check_columns(large, MaskTable.build(leaky, large, 0)).passed
