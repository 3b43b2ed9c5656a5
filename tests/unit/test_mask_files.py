"""Mask tables in other formats: what is written reads back, released files are understood, damage is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError, UsageError
from harness.mask_files import difference, export_csv, import_csv, import_map, import_redeem
from harness.masking import MaskTable
from harness.protocol import parse_protocol
from harness.restricted_pickle import load_frame
from harness.testing.protocols import some_available
from harness.testing.tables import make_table
from harness.types import SPLITS, DataTable

SIZES = (12, 5, 8)
seeds = st.integers(0, 2**31)
names = st.sampled_from(
    ["both_0.7", "text_0.4", "image_1", "shared_0.5", "natural", "patterns", "train:natural,test:both_0..1:0.5"]
)


def draw(name: str, table: DataTable, seed: int = 0) -> MaskTable:
    return MaskTable.build(parse_protocol(name), table, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@settings(deadline=None, max_examples=40)
@given(name=names, seed=seeds, lacking=st.booleans(), shuffled=st.booleans())
def test_csv_reads_back(folder: Path, name: str, seed: int, lacking: bool, shuffled: bool) -> None:
    available = some_available(2, sum(SIZES)) if lacking else None
    ids = ["a,b", 'q"', "ü\n", "None", "", *(f"id{row}" for row in range(20))]
    table = make_table(SIZES, ids=ids, available=available)
    masks = draw(name, table, seed)
    path = export_csv(masks, folder / "x.csv")
    if shuffled and not masks.conditions:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame.sample(frac=1, random_state=seed % 1000).to_csv(path, index=False)
    again = import_csv(path, table)
    assert again.fingerprint == masks.fingerprint
    assert again.ids == masks.ids
    assert again.parts().keys() == (masks.parts().keys())
    saved = MaskTable.load(again.save(folder / "again"))
    assert saved.header() == again.header()


def save_frame(path: Path, columns: dict[str, Any], index: list[int] | None = None) -> Path:
    """A frame as pandas before 3 stored it: texts as objects."""
    frame = pd.DataFrame(
        {name: np.array(values, object) if name == "item_id" else values for name, values in columns.items()}
    )
    frame["item_id"] = frame["item_id"].astype(object)
    frame.columns = pd.Index(list(columns), dtype=object)
    if index is not None:
        frame.index = pd.Index(index)
    frame.to_pickle(path)
    return path


def codes_of(masks: MaskTable, meaning: dict[tuple[bool, bool], int]) -> dict[str, list[int]]:
    """Codes per split out of (text, image) presence."""
    order = [masks.modalities.index(name) for name in ("text", "image")]
    return {
        split: [meaning[bool(row[order[0]]), bool(row[order[1]])] for row in masks.present[split]] for split in SPLITS
    }


@settings(deadline=None, max_examples=25)
@given(missing=st.sampled_from(["both", "text", "image"]), tenths=st.integers(0, 10), seed=seeds, flip=st.booleans())
def test_redeem_tables_are_the_same_masks(folder: Path, missing: str, tenths: int, seed: int, flip: bool) -> None:
    table = make_table(SIZES, ("image", "text") if flip else ("text", "image"))
    masks = draw(f"{missing}_{tenths / 10}", table, seed)
    single = {(True, True): 1, (missing != "text", missing == "text"): 0}
    codes = codes_of(masks, {(False, True): 0, (True, False): 1, (True, True): 2} if missing == "both" else single)
    ids = [name for split in SPLITS for name in masks.ids[split]]
    listed = [code for split in SPLITS for code in codes[split]]
    order = np.random.default_rng(seed).permutation(len(ids))
    path = save_frame(
        folder / "table.pkl",
        {
            "item_id": [ids[row] for row in order],
            "missing_mask_1": [1] * len(ids),
            f"missing_mask_{tenths + 20}": [listed[row] for row in order],
        },
        index=[row % 7 for row in range(len(ids))],
    )
    again = import_redeem(path, table, missing, f"missing_mask_{tenths + 20}")
    assert again.fingerprint == masks.fingerprint


@settings(deadline=None, max_examples=15)
@given(name=st.sampled_from(["both_0.7", "text_0.5", "image_0.9"]), seed=seeds, flip=st.booleans())
def test_map_tables_are_the_same_masks(folder: Path, name: str, seed: int, flip: bool) -> None:
    table = make_table(SIZES, ("image", "text") if flip else ("text", "image"))
    masks = draw(name, table, seed)
    codes = codes_of(masks, {(True, True): 0, (False, True): 1, (True, False): 2})
    files = {}
    for split in SPLITS:
        files[split] = folder / f"{split}.pt"
        torch.save(torch.tensor(codes[split], dtype=torch.float32), files[split])
    assert import_map(files, table).fingerprint == masks.fingerprint
    part = import_map({"test": files["test"]}, table)
    assert part.present["train"].all()
    assert np.array_equal(part.present["test"], masks.present["test"])
    assert "for test;" in part.definition


def test_the_released_draw_written_as_released_is_our_replay(tmp_path: Path) -> None:
    table = make_table((60, 10, 30))
    generator = np.random.RandomState(2024)
    mask = np.full(100, 2)
    text = generator.choice(100, 35, replace=False)
    mask[text] = 0
    mask[generator.choice([row for row in range(100) if row not in set(text.tolist())], 35, replace=False)] = 1
    path = save_frame(tmp_path / "t.pkl", {"item_id": list(table.ids), "missing_mask_7": mask})
    assert import_redeem(path, table, "both").fingerprint == draw("concat_both_0.7", table, 2024).fingerprint


def test_natural_gaps_stay_gaps(tmp_path: Path) -> None:
    available = np.ones((25, 2), dtype=np.bool_)
    available[0, 0] = False
    table = make_table(SIZES, available=available)
    torch.save(torch.zeros(12), tmp_path / "a.pt")
    assert import_map({"train": tmp_path / "a.pt"}, table).fingerprint == draw("natural", table).fingerprint
    torch.save(torch.full((12,), 2.0), tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"leaves 1 samples of split 'train' without any modality, e\.g\. 's0000'"):
        import_map({"train": tmp_path / "a.pt"}, table)
    path = export_csv(draw("natural", make_table(SIZES)), tmp_path / "a.csv")
    with pytest.raises(DataError, match="present that the data set lacks"):
        import_csv(path, table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:3] + lines[4:], r"1 ids of split 'train' are not in the file, e\.g\. \['s0002'\]"),
        (lambda lines: [*lines, lines[1]], "has id 's0000' of split 'train' a second time"),
        (lambda lines: [*lines, "new,test,,1,1"], r"not in the data set, e\.g\. \['new'\]"),
        (lambda lines: [*lines[:-1], lines[-1][:-1] + "2"], "row 26 is .*; expected an id"),
        (lambda lines: [*lines[:-1], lines[-1] + ",1"], "row 26 is"),
        (lambda lines: ["id,split,text,image", *lines[1:]], "has the columns id, split, text, image, expected"),
        (lambda lines: [], "has the columns , expected"),
        (
            lambda lines: [
                "".join((line.rsplit(",", 2)[0], ",0,0")) if line[:5] == "s0003" else line for line in lines
            ],
            "leaves 1 samples of split 'train' without any modality",
        ),
        (lambda lines: [line.replace(",train,,", ",train,x,") for line in lines], "only the test split has conditions"),
        (lambda lines: [line.replace(",test,,", ",test,x,") for line in lines], "two or more"),
    ],
)
def test_damaged_csv_is_refused(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    table = make_table(SIZES)
    path = export_csv(draw("both_0.7", table), tmp_path / "a.csv")
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(DataError, match=message) as caught:
        import_csv(path, table)
    assert "\n" not in str(caught.value)


def test_a_condition_does_not_skip_whole_samples(tmp_path: Path) -> None:
    table = make_table(SIZES)
    path = export_csv(draw("patterns", table), tmp_path / "a.csv")
    path.write_text(path.read_text().replace("s0017,test,text,1,0", "s0017,test,text,0,0"))
    with pytest.raises(DataError, match="under condition 'text'"):
        import_csv(path, table)


def test_bad_redeem_tables_are_refused(tmp_path: Path) -> None:
    table = make_table(SIZES)
    ids, ones = list(table.ids), [1] * 25
    path = tmp_path / "t.pkl"

    def refused(columns: dict[str, Any], message: str, missing: str = "both", column: str = "") -> None:
        save_frame(path, columns)
        with pytest.raises((DataError, UsageError), match=message) as caught:
            import_redeem(path, table, missing, column)
        assert "\n" not in str(caught.value)

    refused({"item_id": ids[1:], "missing_mask_7": ones[1:]}, "1 ids are not in the file")
    refused({"item_id": [*ids, "new"], "missing_mask_7": [*ones, 1]}, "1 ids are not in the data set")
    refused({"item_id": [*ids, ids[0]], "missing_mask_7": [*ones, 1]}, "1 ids are twice")
    refused({"item_id": ids, "missing_mask_7": [*ones[1:], 3]}, r"'s0024' has the code 3; known are 0, 1, 2")
    refused({"item_id": ids, "missing_mask_7": [*ones[1:], 2]}, r"the code 2; known are 0, 1", missing="text")
    refused({"item_id": ids, "missing_mask_7": [*ones[1:], np.nan]}, "has the code nan")
    refused({"item_id": ids, "mask": ones}, "expected item_id and missing_mask_<rate>")
    both = {"item_id": ids, "missing_mask_7": ones, "missing_mask_9": ones}
    refused(both, "several columns of codes; choose one of missing_mask_7, missing_mask_9")
    refused(both, "no column 'missing_mask_8'", column="missing_mask_8")
    with pytest.raises(UsageError, match="one text and one image"):
        import_redeem(path, make_table(SIZES, ("text", "audio")), "both", "missing_mask_7")


def test_bad_map_tables_are_refused(tmp_path: Path) -> None:
    table, path = make_table(SIZES), tmp_path / "a.pt"
    for value, message in [
        (torch.zeros(11), r"holds \[11\], but split 'train' of 'contract' has 12 samples"),
        (torch.zeros(12, 1), r"holds \[12, 1\]"),
        ([0.0] * 12, "holds list"),
        (torch.full((12,), 0.5), "'s0000' has the code 0.5; known are 0, 1, 2"),
        (torch.tensor([0.0] * 11 + [float("nan")]), "'s0011' has the code nan"),
    ]:
        torch.save(value, path)
        with pytest.raises(DataError, match=message) as caught:
            import_map({"train": path}, table)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"no tensor")
    with pytest.raises(DataError, match="cannot be read as a tensor"):
        import_map({"train": path}, table)
    with pytest.raises(DataError, match="cannot be read as a tensor"):
        import_map({"train": tmp_path / "none.pt"}, table)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    table, target = make_table(SIZES), tmp_path / "ran"
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(DataError, match="nothing was run"):
        import_redeem(tmp_path / "t.pkl", table, "both")
    torch.save(Bomb(target), tmp_path / "t.pt")
    with pytest.raises(DataError, match="nothing was run"):
        import_map({"train": tmp_path / "t.pt"}, table)
    frame = pd.DataFrame({"x": np.array([Bomb(target)], object)})
    frame.to_pickle(tmp_path / "t.pkl")
    with pytest.raises(DataError, match="nothing was run"):
        load_frame(tmp_path / "t.pkl")
    assert not target.exists()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damaged_frames_are_refused_or_read(folder: Path, data: st.DataObject) -> None:
    path = save_frame(folder / "f.pkl", {"item_id": ["a", "b", "c"], "missing_mask_7": [0, 1, 2]})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        columns = load_frame(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len({len(column) for column in columns.values()}) <= 1


def test_texts_of_arrow_are_refused_with_a_way_out(tmp_path: Path) -> None:
    frame = pd.DataFrame({"item_id": pd.array(["a"], pd.StringDtype("pyarrow")), "missing_mask_7": [1]})
    frame.to_pickle(tmp_path / "a.pkl")
    with pytest.raises(DataError, match="stored by Arrow; save them as objects, or as CSV"):
        load_frame(tmp_path / "a.pkl")


def test_plain_pickles_are_no_frames(tmp_path: Path) -> None:
    for value in ({"item_id": ["a"]}, [1, 2], np.zeros(3)):
        (tmp_path / "p.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match="holds no frame"):
            load_frame(tmp_path / "p.pkl")


def test_difference_counts_and_names() -> None:
    table = make_table(SIZES)
    low, high = draw("text_0.25", table), draw("text_0.5", table)
    found = difference(low, high)
    assert (found["same"], found["same_dataset"]) == (False, True)
    train = found["parts"]["train"]
    assert (train["shared"], train["differ"], train["changes"]) == (12, 3, {"text+image -> image": 3})
    rows = np.flatnonzero((low.present["train"] != high.present["train"]).any(axis=1))
    assert train["ids"] == [low.ids["train"][row] for row in rows]
    same = difference(low, low)
    assert same["same"]
    assert all(part["differ"] == 0 for part in same["parts"].values())


def test_difference_of_other_data_sets_and_conditions() -> None:
    one, other = draw("natural", make_table((3, 2, 2))), draw("natural", make_table((2, 2, 2), ("image", "text")))
    found = difference(one, replace(other, ids={**other.ids, "train": ("s0000", "new")}))
    assert not found["same_dataset"]
    assert {key: found["parts"]["train"][key] for key in ("shared", "only_first", "only_second", "differ")} == {
        "shared": 1,
        "only_first": 2,
        "only_second": 1,
        "differ": 0,
    }
    parts = difference(one, draw("train:natural,test:patterns", make_table((3, 2, 2))))["parts"]
    assert {part: facts["in"] for part, facts in parts.items()} == {
        "train": "both",
        "valid": "both",
        "test": "first",
        "test:text": "second",
        "test:image": "second",
        "test:text+image": "second",
    }


def test_natural_hides_nothing_and_counts_what_lacks() -> None:
    available = np.ones((25, 2), dtype=np.bool_)
    available[[0, 3, 24], 1] = False
    masks = draw("natural", make_table(SIZES, available=available))
    assert masks.fingerprint == draw("complete", make_table(SIZES, available=available)).fingerprint
    assert masks.counts()["train"] == {"text": 2, "text+image": 10}
    assert masks.remarks == tuple(
        f"{split}: {lacking} of {size} samples lack a modality by nature"
        for split, lacking, size in zip(SPLITS, (2, 0, 1), SIZES, strict=True)
    )
    mixed = draw("train:natural,test:both_0.5", make_table(SIZES, available=available))
    assert np.array_equal(mixed.present["train"], masks.present["train"])
    assert (~mixed.present["test"]).sum() == 4
