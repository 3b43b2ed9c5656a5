"""`mmimdb`, `hateful_memes`, `food101`: formats, facts of the releases, and every way in which one can be wrong."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets import _released, food101, hateful_memes, mmimdb
from harness.datasets._released import ReleasedConfig
from harness.datasets.food101 import Food101Config
from harness.datasets.hateful_memes import HatefulMemesConfig
from harness.datasets.mmimdb import MmimdbConfig
from harness.errors import DataError, UsageError
from harness.prepare import Preparation
from harness.testing.releases import write_food101, write_hateful_memes, write_mmimdb
from harness.types import DataTable

WRITERS: dict[str, tuple[type[ReleasedConfig], Callable[..., Path]]] = {
    "mmimdb": (MmimdbConfig, write_mmimdb),
    "hateful_memes": (HatefulMemesConfig, write_hateful_memes),
    "food101": (Food101Config, write_food101),
}
ALL = pytest.mark.parametrize("name", list(WRITERS))


class Place:
    """A written folder and what is made of it."""

    def __init__(self, name: str, root: Path) -> None:
        self.config_type, write = WRITERS[name]
        self.folder, self.cache = write(root / "release"), root / "cache"

    def load(self, **options: Any) -> DataTable:
        return self.config_type(folder=str(self.folder), **options).load(Path("nowhere"), self.cache)

    def check(self, **options: Any) -> Preparation:
        return self.config_type(folder=str(self.folder), **options).prepare(Path("nowhere"), self.cache)

    def problems(self, **options: Any) -> list[str]:
        return [str(problem) for problem in self.check(**options).problems]

    def pictures(self) -> list[str]:
        """Paths of all pictures, sorted."""
        found = [path for path in self.folder.rglob("*") if path.suffix in (".png", ".jpg", ".jpeg")]
        return sorted(path.relative_to(self.folder).as_posix() for path in found)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", [name], indirect=True)


EVERY = pytest.mark.parametrize("place", list(WRITERS), indirect=True)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that are decoded for a check from now on."""
    read: list[str] = []
    original = _released._check_picture

    def noted(path: Path) -> Any:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(_released, "_check_picture", noted)
    return read


def test_facts_of_the_releases() -> None:
    films = {name: count for name, (_, count) in mmimdb.RELEASE.items()}
    assert films == {"train": 15_552, "dev": 2_608, "test": 7_799}
    assert sum(films.values()) == 25_959
    assert [count for _, count in hateful_memes.RELEASE.values()] == [8_500, 500, 1_000]
    assert [split for split, _ in hateful_memes.RELEASE.values()] == ["train", "valid", "test"]
    assert [count for _, count in food101.RELEASE.values()] == [67_972, 22_716]
    assert food101.RELEASE["train"][1] - food101.MAP_VALID == 61_127
    assert len(mmimdb.GENRES) == len(set(mmimdb.GENRES)) == 23
    assert mmimdb.GENRES[:3] == ("Drama", "Comedy", "Romance")
    assert mmimdb.GENRES[-3:] == ("Sport", "Short", "Film-Noir")
    assert not set(mmimdb.GENRES) & set(mmimdb.DROPPED)
    assert len(food101.CLASSES) == len(set(food101.CLASSES)) == 101
    assert (food101.CLASSES[0], food101.CLASSES[71], food101.CLASSES[100]) == ("frozen_yogurt", "apple_pie", "baklava")


def test_tasks() -> None:
    tasks = {name: config().task() for name, (config, _) in WRITERS.items()}
    assert [(task.kind, task.num_outputs, task.primary_metric) for task in tasks.values()] == [
        ("multilabel", 23, "f1_micro"),
        ("binary", 2, "auroc"),
        ("multiclass", 101, "accuracy"),
    ]


@EVERY
def test_sizes_splits_and_values(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    table = place.load()
    assert [len(table.splits[split]) for split in ("train", "valid", "test")] == [24, 8, 8]
    assert "not the whole release" in capsys.readouterr().err
    assert table.spec.version == "1-subset"
    assert table.available.all()
    assert table.values["image"][0].shape[2] == 3
    assert table.card["whole release"] is False


@EVERY
def test_pictures_are_read_on_access(place: Place) -> None:
    table = place.load()
    values = table.values["image"]
    (place.folder / place.pictures()[0]).write_bytes(b"gone bad")
    (broken,) = [row for row, sample in enumerate(table.ids) if sample == Path(place.pictures()[0]).stem]
    with pytest.raises(DataError, match="it was sound when it was checked"):
        values[broken]
    assert values[(broken + 1) % 40].size
    (place.folder / place.pictures()[0]).unlink()
    with pytest.raises(DataError, match="it was there when it was checked"):
        values[broken]


@of("mmimdb")
def test_genres_and_texts(place: Place) -> None:
    films = json.loads((place.folder / "split.json").read_text())
    table = place.load()
    assert list(table.ids) == films["train"] + films["dev"] + films["test"]
    chosen = {field: place.load(text_field=field) for field in ("first_plot", "all_plots")}
    for row, film in enumerate(table.ids):
        content = json.loads((place.folder / "dataset" / f"{film}.json").read_text())
        expected = [float(genre in content["genres"]) for genre in mmimdb.GENRES]
        assert table.labels[row].tolist() == expected
        assert table.values["text"][row] == content.get("plot outline", content["plot"][0])
        assert chosen["first_plot"].values["text"][row] == content["plot"][0]
        assert chosen["all_plots"].values["text"][row] == " ".join(content["plot"])
    assert chosen["all_plots"].spec.name == "mmimdb_all_plots"
    assert len({table.spec.fingerprint, *(other.spec.fingerprint for other in chosen.values())}) == 3
    with pytest.raises(UsageError, match="text_field"):
        MmimdbConfig(text_field="longest").validate()


@of("mmimdb")
def test_a_blank_outline_is_none(place: Place) -> None:
    film = place.load().ids[0]
    path = place.folder / "dataset" / f"{film}.json"
    path.write_text(json.dumps({"genres": ["Drama"], "plot": ["The plot."], "plot outline": " "}))
    assert place.load().values["text"][0] == "The plot."


@of("mmimdb")
def test_films_without_labels_or_text_are_remarked_on(place: Place) -> None:
    film = place.load().ids[1]
    path = place.folder / "dataset" / f"{film}.json"
    path.write_text(json.dumps({"genres": ["News", "Adult"]}))
    checked = place.check()
    assert not checked.problems
    assert checked.remarks["1 films have the genre Adult, which is not one of the 23"] == (film,)
    assert checked.remarks["1 films have none of the 23 genres"] == (film,)
    assert checked.remarks["1 samples have no text; their text counts as absent"] == (film,)
    table = place.load()
    assert table.available[1].tolist() == [True, False]
    assert not table.labels[1].any()


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("mmimdb", {"dataset/*.json": "labels", "dataset/*.jpeg": "images"}),
        ("mmimdb", {"dataset/*.json": "meta_data", "dataset/*.jpeg": "image", "split.json": "meta_data"}),
        ("mmimdb", {"*": "mmimdb"}),
        ("hateful_memes", {"*.jsonl": "metadata", "img/*.png": "image"}),
        ("hateful_memes", {"*": "data"}),
        ("food101", {"texts/*.csv": "meta_data", "images/*/*/*.jpg": "image"}),
        ("food101", {"texts/*.csv": "", "images/*/*/*.jpg": "images"}),
    ],
)
def test_other_layouts_are_the_same_data_set(name: str, moves: dict[str, str], tmp_path: Path) -> None:
    place = Place(name, tmp_path)
    before = place.load()
    picture = before.values["image"][3]
    for pattern, target in moves.items():
        files = list(place.folder.glob(pattern))
        assert files
        (place.folder / target).mkdir(exist_ok=True)
        for file in files:
            file.rename(place.folder / target / file.name)
    after = place.load()
    assert after.spec == before.spec
    assert np.array_equal(after.values["image"][3], picture)


@of("hateful_memes")
def test_memes(place: Place) -> None:
    first = json.loads((place.folder / "train.jsonl").read_text().splitlines()[0])
    table = place.load()
    assert table.ids[0] == f"{first['id']:05d}"
    assert (int(table.labels[0]), table.values["text"][0]) == (first["label"], first["text"])
    # The second phase calls dev `dev_seen`, and other releases write ids as text.
    (place.folder / "dev.jsonl").rename(place.folder / "dev_seen.jsonl")
    lines = [json.loads(line) for line in (place.folder / "test_seen.jsonl").read_text().splitlines()]
    text = "\n".join(json.dumps(line | {"id": f"{line['id']:05d}"}) for line in lines)
    (place.folder / "test_seen.jsonl").write_text(text)
    assert place.load().spec == table.spec


@of("food101")
def test_lists_have_no_header(place: Place) -> None:
    with (place.folder / "texts" / "train_titles.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    whole, dropped = place.load(), place.load(first_row="drop")
    assert whole.ids[0] == Path(rows[0][0]).stem
    assert whole.values["text"][0] == rows[0][1]
    assert food101.CLASSES[whole.labels[0]] == rows[0][2]
    assert list(dropped.ids) == [
        sample for sample in whole.ids if sample not in (whole.ids[0], whole.split_ids("test")[0])
    ]
    assert dropped.spec.name == "food101_first_row_dropped"


@of("food101")
def test_valid_is_the_split_of_map_or_an_own_one_and_never_test(place: Place) -> None:
    listed = json.loads((place.folder / "split.json").read_text())
    table = place.load()
    assert table.split_ids("valid") == [Path(file).stem for file in listed["val"]]
    own = place.load(valid="own")
    assert own.split_ids("test") == table.split_ids("test")
    assert set(own.split_ids("valid")) <= {Path(file).stem for file in listed["train"] + listed["val"]}
    assert own.spec.fingerprint != table.spec.fingerprint
    (place.folder / "split.json").unlink()
    assert place.load().spec == own.spec
    assert "split.json: is missing" in place.problems(valid="map")[0]


def test_own_split_is_a_tenth_of_each_class_and_keeps_titles_together(tmp_path: Path) -> None:
    place = Place("food101", tmp_path)
    shutil.rmtree(place.folder)
    write_food101(place.folder, train=192, valid=8, test=8, side=(2, 2), split_file=False)
    path = place.folder / "texts" / "train_titles.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    for row in range(0, 40, 2):  # pairs of rows of one title
        rows[row + 1][1] = rows[row][1].upper()
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = place.load()
    assert len(table.splits["valid"]) == 20
    assert set(np.bincount(table.labels[table.splits["valid"]]).tolist()) <= {0, 4, 5, 6}
    valid = set(table.split_ids("valid"))
    for row in range(0, 40, 2):
        assert len({Path(rows[row][0]).stem, Path(rows[row + 1][0]).stem} & valid) != 1


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_line(path: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = path.read_text().splitlines()
    content = json.loads(lines[number - 1])
    change(content)
    lines[number - 1] = json.dumps(content)
    path.write_text("\n".join(lines))


def cut(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def film(folder: Path, suffix: str) -> Path:
    """The file of the first film."""
    return folder / "dataset" / f"{json.loads((folder / 'split.json').read_text())['train'][0]}.{suffix}"


def bomb(path: Path) -> None:
    """A PNG of 200 bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b""))


DAMAGE: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "no film file": ("mmimdb", lambda f: film(f, "json").unlink(), ".json", "is missing"),
    "truncated film": ("mmimdb", lambda f: cut(film(f, "json")), ".json", "is not whole JSON"),
    "film is a list": (
        "mmimdb",
        lambda f: film(f, "json").write_text("[]"),
        ".json",
        "is not the description of a film",
    ),
    "no genres": ("mmimdb", lambda f: edit_json(film(f, "json"), genres=None), ".json", "has no label"),
    "empty genres": ("mmimdb", lambda f: edit_json(film(f, "json"), genres=[]), ".json", "has no label"),
    "genres are a text": ("mmimdb", lambda f: edit_json(film(f, "json"), genres="Drama"), ".json", "has no label"),
    "plot is a text": ("mmimdb", lambda f: edit_json(film(f, "json"), plot="x"), ".json", "'plot' must be a list"),
    "truncated split": ("mmimdb", lambda f: cut(f / "split.json"), "split.json", "is not whole JSON"),
    "no dev": ("mmimdb", lambda f: edit_json(f / "split.json", dev=None), "split.json", "has no list 'dev'"),
    "odd id": (
        "mmimdb",
        lambda f: edit_json(f / "split.json", dev=["../x"]),
        "split.json",
        "'../x' in 'dev' is not the id",
    ),
    "poster missing": ("mmimdb", lambda f: film(f, "jpeg").unlink(), ".jpeg", "is missing"),
    "poster truncated": (
        "mmimdb",
        lambda f: cut(film(f, "jpeg")),
        ".jpeg",
        "cannot be decoded",
    ),
    "poster empty": ("mmimdb", lambda f: film(f, "jpeg").write_bytes(b""), ".jpeg", "is empty"),
    "poster is a page": ("mmimdb", lambda f: film(f, "jpeg").write_text("<html>404"), ".jpeg", "is not a picture"),
    "bomb": ("mmimdb", lambda f: bomb(film(f, "jpeg")), ".jpeg", "far too many pixels"),
    "huge": (
        "mmimdb",
        lambda f: Image.new("1", (9_000, 8_000)).save(film(f, "jpeg"), "PNG"),
        ".jpeg",
        "would decode to 9000 x 8000 pixels",
    ),
    "vector drawing": (
        "mmimdb",
        lambda f: film(f, "jpeg").write_text("%!PS-Adobe-3.0 EPSF"),
        ".jpeg",
        "is not a picture",
    ),
    "meme truncated": ("hateful_memes", lambda f: cut(next((f / "img").iterdir())), "img/", "cannot be decoded"),
    "line truncated": ("hateful_memes", lambda f: cut(f / "dev.jsonl"), "dev.jsonl, line", "is not whole JSON"),
    "no label": (
        "hateful_memes",
        lambda f: edit_line(f / "test_seen.jsonl", 3, lambda meme: meme.pop("label")),
        "test_seen.jsonl, line 3",
        "has no label",
    ),
    "label 2": (
        "hateful_memes",
        lambda f: edit_line(f / "train.jsonl", 2, lambda meme: meme.update(label=2)),
        "train.jsonl, line 2",
        "label 2 is neither 0 nor 1",
    ),
    "label true": (
        "hateful_memes",
        lambda f: edit_line(f / "train.jsonl", 2, lambda meme: meme.update(label=True)),
        "train.jsonl, line 2",
        "label True is neither 0 nor 1",
    ),
    "no text": (
        "hateful_memes",
        lambda f: edit_line(f / "train.jsonl", 2, lambda meme: meme.pop("text")),
        "train.jsonl, line 2",
        "has no text",
    ),
    "odd number": (
        "hateful_memes",
        lambda f: edit_line(f / "train.jsonl", 2, lambda meme: meme.update(id="x1")),
        "train.jsonl, line 2",
        "id 'x1' is not a number",
    ),
    "not a meme": (
        "hateful_memes",
        lambda f: (f / "dev.jsonl").write_text("3\n"),
        "dev.jsonl, line 1",
        "is not a meme",
    ),
    "not utf-8": (
        "hateful_memes",
        lambda f: (f / "dev.jsonl").write_bytes(b"\xff\xfe{"),
        "dev.jsonl",
        "cannot be read",
    ),
    "leaves the folder": (
        "hateful_memes",
        lambda f: edit_line(f / "train.jsonl", 1, lambda meme: meme.update(img="../../secret.png")),
        "train.jsonl, line 1",
        "is not a path in the folder",
    ),
    "same id twice": (
        "hateful_memes",
        lambda f: (f / "dev.jsonl").write_text((f / "train.jsonl").read_text().splitlines()[0]),
        "sample 0",
        "is in train and valid",
    ),
    "no samples": (
        "hateful_memes",
        lambda f: (f / "dev.jsonl").write_text(""),
        "release",
        "no samples for the split 'valid'",
    ),
    "header": (
        "food101",
        lambda f: prepend(f / "texts" / "test_titles.csv", "image,title,food\n"),
        "texts/test_titles.csv, row 1",
        "class 'food' is none of the 101 (the lists have no header)",
    ),
    "two columns": (
        "food101",
        lambda f: prepend(f / "texts" / "train_titles.csv", "a.jpg,sushi\n"),
        "texts/train_titles.csv, row 1",
        "has 2 columns, not 3",
    ),
    "no class": (
        "food101",
        lambda f: prepend(f / "texts" / "train_titles.csv", "a.jpg,A title,\n"),
        "texts/train_titles.csv, row 1",
        "has no label",
    ),
    "picture elsewhere": (
        "food101",
        lambda f: prepend(f / "texts" / "train_titles.csv", "../a.jpg,A title,sushi\n"),
        "texts/train_titles.csv, row 1",
        "is not the name of a picture",
    ),
    "list not utf-8": (
        "food101",
        lambda f: (f / "texts" / "test_titles.csv").write_bytes(b"a.jpg,\xff,sushi\n"),
        "texts/test_titles.csv",
        "cannot be read after row 0",
    ),
    "truncated split of MAP": ("food101", lambda f: cut(f / "split.json"), "split.json", "is not whole JSON"),
    "no val": ("food101", lambda f: edit_json(f / "split.json", val=None), "split.json", "has no list 'val'"),
    "val unlisted": ("food101", lambda f: edit_json(f / "split.json", val=[]), "split.json", "is in none of its lists"),
    "train in test": (
        "food101",
        lambda f: edit_json(f / "split.json", val=[], test=json.loads((f / "split.json").read_text())["val"]),
        "split.json",
        "is in its list 'test'",
    ),
    "truncated order": (
        "food101",
        lambda f: (f / "class_idx.json").write_text('{"su'),
        "class_idx.json",
        "is not whole JSON",
    ),
    "dish missing": ("food101", lambda f: next(f.glob("images/*/*/*.jpg")).unlink(), "images/", "is missing"),
}


def prepend(path: Path, line: str) -> None:
    path.write_text(line + path.read_text())


@pytest.mark.parametrize("case", list(DAMAGE))
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    name, damage, where, what = DAMAGE[case]
    place = Place(name, tmp_path)
    damage(place.folder)
    checked = place.check()
    assert any(where in problem.where and what in problem.what for problem in checked.problems), checked.problems
    assert all(str(problem) in checked.report.read_text() for problem in checked.problems)
    assert not checked.index.exists()
    with pytest.raises(DataError) as error:
        place.load()
    assert str(checked.problems[0]) in str(error.value)
    assert str(checked.report) in str(error.value)
    assert "\n" not in str(error.value)


@EVERY
def test_all_problems_are_named_at_once_and_gone_when_mended(place: Place) -> None:
    pictures = place.pictures()
    whole = {picture: (place.folder / picture).read_bytes() for picture in pictures[:30]}
    for picture in whole:
        (place.folder / picture).write_bytes(b"\xff\xd8\xff broken")
    checked = place.check()
    assert sorted(problem.where for problem in checked.problems) == pictures[:30]
    assert set(checked.report.read_text().splitlines()) >= {f"  {problem}" for problem in checked.problems}
    with pytest.raises(DataError, match=r"has 30 problems: .*; and 25 more; all are in"):
        place.load()
    for picture, raw in whole.items():
        (place.folder / picture).write_bytes(raw)
    assert not place.check().problems
    assert place.check().index.is_file()
    assert len(place.load().ids) == 40


@EVERY
def test_damaged_pictures_can_count_as_absent(place: Place) -> None:
    bad = place.pictures()[:2]
    (place.folder / bad[0]).unlink()
    (place.folder / bad[1]).write_bytes(b"x")
    assert len(place.problems()) == 2
    table = place.load(damaged="absent")
    assert table.available.sum(axis=0).tolist() == [38, 40]
    remark = "2 pictures are missing or damaged and count as absent"
    assert [line.partition(":")[0] for line in sorted(place.check(damaged="absent").remarks[remark])] == bad
    with pytest.raises(UsageError, match="damaged"):
        place.load(damaged="ignore")


@EVERY
@pytest.mark.parametrize("damaged", ["refuse", "absent"])
def test_a_file_that_cannot_be_read_now_is_no_damage(
    place: Place, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = place.folder / place.pictures()[0]
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == shut:
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        assert place.problems(damaged=damaged) == [f"{place.pictures()[0]}: cannot be read (Permission denied)"]
    # Mended with the size and time as they were.
    assert place.load(damaged=damaged).available.all()


@of("hateful_memes")
def test_a_sample_of_nothing_is_a_problem(place: Place) -> None:
    edit_line(place.folder / "train.jsonl", 1, lambda meme: meme.update(text=" "))
    sample = place.load().ids[0]
    (place.folder / "img" / f"{sample}.png").unlink()
    assert place.problems(damaged="absent") == [f"sample {sample}: has neither a picture nor a text"]


@EVERY
def test_duplicates_across_splits_are_named_and_kept(place: Place) -> None:
    table = place.load()
    config = place.config_type(folder=str(place.folder))
    files = {Path(picture).stem: picture for picture in place.pictures()}
    train, twin, test = (table.split_ids(split)[row] for split, row in (("train", 0), ("train", 1), ("test", 0)))
    for other in (twin, test):
        shutil.copyfile(place.folder / files[train], place.folder / files[other])
    checked = config.prepare(Path("nowhere"), place.cache)
    assert not checked.problems
    (about,) = checked.remarks["1 pictures are in more than one split under different ids"]
    assert f"train {files[train]} = train {files[twin]} = test {files[test]}" == about
    assert about in checked.report.read_text()
    again = place.load()
    assert again.groups is not None
    groups = dict(zip(again.ids, again.groups.tolist(), strict=True))
    assert groups[train] == groups[twin] != groups[test]
    assert len(set(groups.values())) == 39


@of("hateful_memes")
def test_the_same_meme_in_two_splits_is_named(place: Place) -> None:
    first = json.loads((place.folder / "train.jsonl").read_text().splitlines()[0])
    edit_line(place.folder / "test_seen.jsonl", 1, lambda meme: meme.update(img=first["img"], text=first["text"]))
    assert "1 samples (picture and text) are in more than one split under different ids" in place.check().remarks


@EVERY
def test_unchanged_files_are_read_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = place.load()
    read = count_reads(monkeypatch)
    assert place.load().spec == before.spec
    assert not place.check().problems
    assert read == []
    changed = place.pictures()[5]
    Image.new("RGB", (4, 4), (1, 2, 3)).save(place.folder / changed)
    assert place.load().spec.fingerprint != before.spec.fingerprint
    assert read == [Path(changed).name]


@EVERY
@pytest.mark.parametrize("part", [".parquet", ".json", "report"])
def test_a_damaged_index_is_made_again(place: Place, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = place.load()
    index = place.check().index
    if part == "report":
        place.check().report.unlink()
    else:
        cut(index.with_suffix(part))
    read = count_reads(monkeypatch)
    after = place.load()
    assert after.spec == before.spec
    assert np.array_equal(after.labels, before.labels)
    assert read == []


@EVERY
def test_a_torn_journal_costs_its_last_picture(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.load()
    journal = place.check().index.parent / "pictures.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    place.check().report.unlink()
    read = count_reads(monkeypatch)
    place.load()
    assert len(read) == 1
    assert len([line for line in journal.read_text().splitlines() if line]) == 40


def test_text_that_is_no_unicode_is_replaced(tmp_path: Path) -> None:
    place = Place("hateful_memes", tmp_path)
    path = place.folder / "train.jsonl"
    path.write_text(path.read_text().replace('"text": "', '"text": "\\ud800 ', 1))
    assert place.load().values["text"][0].startswith("? ")


def test_counts_of_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        hateful_memes, "RELEASE", {"train": ("train", 24), "dev": ("valid", 8), "test_seen": ("test", 8)}
    )
    place = Place("hateful_memes", tmp_path)
    checked = place.check()
    assert checked.official
    assert not checked.count_problems()
    assert place.load().spec.version == "1"
    assert "not the whole release" not in capsys.readouterr().err


WRONG: dict[str, tuple[type[ReleasedConfig], dict[str, str], str]] = {
    "empty": (MmimdbConfig, {}, "no split.json"),
    "not unpacked": (MmimdbConfig, {"mmimdb.tar.gz": ""}, "it holds mmimdb.tar.gz, which must be unpacked first"),
    "processed": (MmimdbConfig, {"multimodal_imdb.hdf5": ""}, "it holds multimodal_imdb.hdf5"),
    "no test_seen": (
        HatefulMemesConfig,
        {"train.jsonl": "", "dev.jsonl": "", "test.jsonl": ""},
        r"no test_seen.jsonl in .*test.jsonl has no labels and cannot replace it",
    ),
    "no dev": (HatefulMemesConfig, {"train.jsonl": "", "test_seen.jsonl": ""}, "no dev.jsonl or dev_seen.jsonl"),
    "nothing": (HatefulMemesConfig, {"hateful_memes.zip": ""}, "no train.jsonl .*hateful_memes.zip"),
    "other Food-101": (Food101Config, {"meta/classes.txt": "apple_pie"}, "ETH Zurich"),
    "one list": (Food101Config, {"texts/train_titles.csv": ""}, "no train_titles.csv and test_titles.csv"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_folder_is_told_from_a_damaged_one(case: str, tmp_path: Path) -> None:
    config, files, message = WRONG[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        config(folder=str(tmp_path)).load(Path("nowhere"), tmp_path / "cache")
    assert config.obtain in str(error.value)
    assert not (tmp_path / "cache").exists()


#: Checks a folder slowly, one picture an entry in the journal, and notes every picture that it reads.
SLOW = """
import sys, time
from pathlib import Path
from harness.datasets import _released
from harness.datasets.hateful_memes import HatefulMemesConfig
folder, cache, log = sys.argv[1:]
original = _released._check_picture
def slow(path):
    time.sleep(0.03)
    with open(log, "a") as file:
        file.write(path.name + "\\n")
    return original(path)
_released._check_picture, _released._CHUNK = slow, 1
assert not HatefulMemesConfig(folder=folder).prepare(Path("nowhere"), Path(cache)).problems
"""


def start(place: Place, log: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SLOW, str(place.folder), str(place.cache), str(log)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def wait_for(log: Path, lines: int) -> None:
    end = time.monotonic() + 60
    while not log.is_file() or log.read_text().count("\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.01)


@of("hateful_memes")
def test_a_killed_check_goes_on_where_it_stopped(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(place, tmp_path / "log")
    wait_for(tmp_path / "log", 10)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = (tmp_path / "log").read_text().splitlines()
    assert len(done) < 40
    assert not list(place.cache.rglob("index-*"))
    read = count_reads(monkeypatch)
    table = place.load()
    # At most the picture it was killed at is read again.
    assert 40 - len(done) <= len(read) <= 41 - len(done)
    assert set(read) >= {Path(picture).name for picture in place.pictures()} - set(done)
    fresh = place.config_type(folder=str(place.folder)).load(Path("nowhere"), tmp_path / "other cache")
    assert table.spec == fresh.spec


@of("hateful_memes")
def test_two_checks_at_once_read_every_picture_once(place: Place, tmp_path: Path) -> None:
    first = start(place, tmp_path / "log")
    wait_for(tmp_path / "log", 2)
    second = start(place, tmp_path / "log")
    errors = [process.communicate(timeout=60)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "another process is checking" in errors[1]
    assert sorted((tmp_path / "log").read_text().splitlines()) == [Path(name).name for name in place.pictures()]
