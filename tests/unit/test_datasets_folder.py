"""folder: what a manifest may hold, every problem named at once, and the worked example of the docs."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shlex
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.compose import compose
from harness.datasets.folder import FolderConfig
from harness.errors import DataError, UsageError
from harness.types import DataTable

DOC = Path(__file__).parents[2] / "docs" / "bring-your-own-data.md"
COLUMNS = ["id", "split", "label", "photo", "title", "sound"]
KINDS = {"photo": "image", "title": "text", "sound": "features"}


class Shop:
    """A small sound folder that tests damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.columns = list(COLUMNS)
        self.rows: list[list[str]] = []
        for number in range(12):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"{number}.png")
            np.save(folder / f"{number}.npy", np.full(3, number, np.float64))
            split = ("train", "valid", "test")[number // 4]
            self.rows.append(
                [f"i{number}", split, "ab"[number % 2], f"{number}.png", f"item {number}", f"{number}.npy"]
            )

    def set(self, row: int, column: str, value: str) -> None:
        self.rows[row][self.columns.index(column)] = value

    def load(self, cache: Path | None = None, **options: Any) -> DataTable:
        with (self.folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.columns, *self.rows])
        config = FolderConfig(**({"folder": str(self.folder), "modalities": KINDS} | options))
        return config.load(Path("unused"), cache or self.folder.parent / "cache")

    def problems(self, **options: Any) -> list[str]:
        with pytest.raises(DataError) as caught:
            self.load(**options)
        return [line.strip() for line in str(caught.value).splitlines()]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    (tmp_path / "shop").mkdir()
    return Shop(tmp_path / "shop")


def test_sound_folder(shop: Shop) -> None:
    shop.set(3, "photo", "")
    table = shop.load()
    assert table.spec.name == "shop"
    assert table.spec.modality_names == ("photo", "title", "sound")
    assert [modality.shape for modality in table.spec.modalities] == [(None, None, 3), None, (3,)]
    assert table.spec.task.labels == ("a", "b")
    assert table.labels.tolist() == [0, 1] * 6
    assert table.available.sum(axis=0).tolist() == [11, 12, 12]
    assert table.values["photo"][5].tolist() == [[[5, 0, 0]] * 8] * 6
    assert table.values["title"][5] == "item 5"
    np.testing.assert_array_equal(table.values["sound"][5], np.full(3, 5, np.float32))
    assert table.splits["test"].tolist() == [8, 9, 10, 11]
    assert table.groups is None


def test_fingerprint_follows_contents(shop: Shop) -> None:
    first = shop.load().spec.fingerprint
    assert shop.load().spec.fingerprint == first
    Image.new("RGB", (8, 6), (99, 0, 0)).save(shop.folder / "5.png")
    os.utime(shop.folder / "5.png", ns=(1, 1))
    second = shop.load().spec.fingerprint
    shop.set(5, "title", "another title")
    assert len({first, second, shop.load().spec.fingerprint}) == 3


def test_unchanged_files_are_checked_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop.load()
    from harness.datasets import folder

    def never(path: Path, kind: str) -> Any:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_read_file", never)
        assert shop.load().spec == first.spec
    (shop.folder / "2.npy").unlink()
    with pytest.raises(DataError, match=r"2\.npy.*was sound when the data set was loaded"):
        first.values["sound"][2]


def test_same_from_parquet_and_csv(shop: Shop) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shop.set(0, "title", "")
    before = shop.load()
    columns = {name: [row[index] or None for row in shop.rows] for index, name in enumerate(COLUMNS)}
    pq.write_table(pa.table(columns), shop.folder / "manifest.parquet")
    (shop.folder / "manifest.csv").unlink()
    config = FolderConfig(folder=str(shop.folder), modalities=KINDS)
    assert config.load(Path(), shop.folder.parent / "cache").spec == before.spec


def test_numeric_columns_and_sequences(shop: Shop) -> None:
    shop.columns += ["size:width", "size:height", "other"]
    for number, row in enumerate(shop.rows):
        row += [str(number), "0.5", "ignored"]
        np.save(shop.folder / f"{number}.npy", np.ones((number % 3 + 1, 2), np.float32))
    shop.set(4, "size:width", "")
    shop.set(4, "size:height", "")
    table = shop.load(modalities={**KINDS, "size": "tabular"})
    assert [modality.shape for modality in table.spec.modalities[2:]] == [(None, 2), (2,)]
    assert table.values["size"][7].tolist() == [7.0, 0.5]
    assert table.available[4].tolist() == [True, True, True, False]


def test_multilabel_and_regression(shop: Shop) -> None:
    shop.columns += ["label:x", "label:y"]
    for number, row in enumerate(shop.rows):
        row += [str(number % 2), "1"]
    table = shop.load(task="multilabel")
    assert table.labels.dtype == np.float32
    assert table.labels[1].tolist() == [1.0, 1.0]
    assert table.spec.task.labels == ("x", "y")
    assert table.spec.task.primary_metric == "f1_macro"
    shop.set(2, "label:x", "2")
    assert shop.problems(task="multilabel")[1] == "id 'i2': label:x '2' is not 0 or 1"
    shop.set(3, "label:y", "inf")
    assert shop.problems(task="regression") == [
        f"{shop.folder}/manifest.csv: 1 problem",
        "id 'i3': label:y 'inf' is not a number",
    ]


def test_regression_with_one_column(shop: Shop) -> None:
    for number in range(12):
        shop.set(number, "label", str(number / 2))
    table = shop.load(task="regression")
    assert table.labels.shape == (12, 1)
    assert table.spec.task.labels == ("label",)


def test_given_classes_fix_the_order(shop: Shop) -> None:
    assert shop.load(classes=["b", "a", "c"]).labels[:2].tolist() == [1, 0]
    for number in range(12):
        shop.set(number, "label", str(number))
    assert shop.load().spec.task.labels == tuple(str(number) for number in range(12))


def _cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def test_every_problem_is_named_at_once(shop: Shop) -> None:
    shop.set(1, "id", "i0")
    shop.set(2, "label", "z")
    shop.set(3, "split", "dev")
    (shop.folder / "4.png").unlink()
    _cut(shop.folder / "5.png", 50)
    _cut(shop.folder / "6.npy", 140)
    np.save(shop.folder / "7.npy", np.array([1.0, np.nan, 2.0]))
    np.save(shop.folder / "8.npy", np.ones(4))
    shop.set(9, "photo", "../outside.png")
    lines = shop.problems(classes=["a", "b"])
    assert lines[0] == f"{shop.folder}/manifest.csv: 9 problems"
    for line, expected in zip(
        lines[1:],
        [
            "id 'i0' appears 2 times",
            "id 'i3': split 'dev' is not one of train, valid, test",
            "id 'i2': label 'z' is not one of a, b",
            "id 'i4', photo: file '4.png' is missing",
            "id 'i5', photo: file '5.png' is not a readable picture",
            "id 'i9', photo: path '../outside.png' leaves the folder",
            "id 'i6', sound: file '6.npy' is not a readable .npy array",
            "id 'i7', sound: file '7.npy' holds NaN or infinite values",
            "id 'i8', sound: features of shape [4], others have [3]",
        ],
        strict=True,
    ):
        assert line.startswith(expected)


def test_small_files_that_claim_much_are_refused(shop: Shop) -> None:
    """A picture of 2.5 gigapixels in a few kilobytes, an array of exabytes in its header, a text like a book."""
    bomb = zlib.compress(bytes(10))
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", bomb), (b"IEND", b""))
    (shop.folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 9_000, 9_000, 8, 2, 0, 0, 0)), *chunks[1:])
    (shop.folder / "5.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks))
    with (shop.folder / "6.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**18)})
    shop.set(7, "title", "x" * 131_073)
    with pytest.raises(DataError, match="larger than field limit"):
        shop.load()
    shop.set(7, "title", "x" * 131_072)
    lines = shop.problems()
    assert "id 'i4', photo: file '4.png' is not a readable picture" in lines[1]
    assert "(Image size (2500000000 pixels)" in lines[1]
    assert "id 'i5', photo: file '5.png' would decode to 9000 x 9000 pixels" in lines[2]
    assert "id 'i6', sound: file '6.npy' is not a readable .npy array" in lines[3]
    assert len(lines) == 4


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_many_problems_are_counted(shop: Shop) -> None:
    for number in range(12):
        shop.set(number, "label", "")
    lines = shop.problems(classes=["a", "b"])
    assert len(lines) == 12
    assert lines[0].endswith("12 problems")
    assert lines[-1] == "… and 2 more"


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ("no test", {}, "split 'test' is empty"),
        ("no values", {}, "id 'i0': every modality is empty"),
        ("no ids", {}, "1 rows have no id"),
        ("", {"task": "binary", "classes": ["a", "b", "c"]}, "a binary task has 2 classes, not 3 (a, b, c)"),
        ("", {"task": "multilabel"}, "columns 'label:<name>' are missing (one per label, 0 or 1)"),
        ("", {"modalities": {"smell": "features"}}, "column 'smell' (features) is missing"),
        ("no label", {}, "column 'label' is missing"),
        ("twice", {}, "column 'label' appears 2 times"),
        ("group", {}, "group 'g' lies in the splits train and valid"),
        ("numbers", {"modalities": {"n": "tabular"}}, "id 'i0', n: features are NaN, infinite or not numbers"),
    ],
)
def test_single_problems(shop: Shop, change: str, options: dict[str, Any], expected: str) -> None:
    if change == "no test":
        shop.rows = shop.rows[:8]
    elif change == "no values":
        for column in KINDS:
            shop.set(0, column, "")
    elif change == "no ids":
        shop.set(0, "id", " ")
    elif change == "no label":
        shop.columns[2] = "klass"
    elif change == "twice":
        shop.columns[3] = "label"
        options = {"modalities": {"title": "text"}}
    elif change == "group":
        shop.columns.append("group")
        for number, row in enumerate(shop.rows):
            row.append("g" if number in (3, 4) else "")
    elif change == "numbers":
        shop.columns.append("n:1")
        for number, row in enumerate(shop.rows):
            row.append("x" if number == 0 else "1")
    assert expected in shop.problems(**options)[1:]


def test_pickled_objects_are_never_loaded(shop: Shop) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (shop.folder / "exploded",)

    np.save(shop.folder / "0.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (shop.folder / "1.npy").write_bytes(pickle.dumps(Bomb()))
    lines = shop.problems()
    assert len(lines) == 3
    assert not (shop.folder / "exploded").exists()


def test_links_out_of_the_folder_are_refused(shop: Shop) -> None:
    secret = shop.folder.parent / "secret.png"
    Image.new("RGB", (2, 2)).save(secret)
    (shop.folder / "link.png").symlink_to(secret)
    shop.set(0, "photo", "link.png")
    shop.set(1, "photo", str(secret))
    lines = shop.problems()
    assert lines[1] == "id 'i0', photo: path 'link.png' leaves the folder"
    assert lines[2] == f"id 'i1', photo: path {str(secret)!r} leaves the folder"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.csv", b"id,split,label,title\na,train,x\n", "row 2: 3 cells, but the header has 4 columns"),
        ("manifest.csv", b'id,"split\n', "cannot be read: unexpected end of data"),
        ("manifest.csv", b"id,split\n\xff\xfe,train\n", "cannot be read: .*utf-8"),
        ("manifest.csv", b"", "holds no samples"),
        ("manifest.csv", b"id,split,label,title\n", "holds no samples"),
        ("manifest.parquet", b"PAR1 and then nothing", "cannot be read"),
    ],
)
def test_unreadable_manifest(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        FolderConfig(folder=str(tmp_path), modalities={"title": "text"}).load(tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_manifest_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.csv or manifest\.parquet in .*bring-your-own-data"):
        FolderConfig(modalities={"title": "text"}).load(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "modalities is empty"),
        ({"modalities": {"a": "smell"}}, "modalities.a='smell' is not one of"),
        ({"modalities": {"id": "text"}}, "'id' cannot name a modality"),
        ({"modalities": {"a b": "text"}}, "'a b' cannot name a modality"),
        ({"modalities": {"a": "text"}, "task": "ranking"}, "task='ranking' is not one of"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FolderConfig(**options).validate()


def test_worked_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOC.read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (listing,) = re.findall(r"```csv\n(.*?)```", text, re.S)
    (command,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, str(DOC), "exec"), {"__name__": "example"})
    assert (tmp_path / "shop/manifest.csv").read_text(encoding="utf-8").startswith(listing)

    program, verb, *overrides = shlex.split(command)
    assert (program, verb) == ("harness", "run")
    (config,) = compose(overrides)
    table = config.dataset.load(tmp_path, tmp_path)
    assert table.spec.name == "shop"
    assert {split: len(rows) for split, rows in table.splits.items()} == {"train": 36, "valid": 12, "test": 12}
    assert table.spec.task.labels == ("fruit", "plant", "tool")
    assert table.available.sum(axis=0).tolist() == [54, 54]
