"""cdda: the four leaks are closed, on a tiny folder in the package's layout; and the real one if it is at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets import cdda
from harness.datasets.cdda import CddaConfig
from harness.errors import DataError, UsageError
from harness.types import SPLITS, DataTable

REAL = os.environ.get("HARNESS_CDDA_DIR", "")
SIDE = 16


class Game:
    """Writes a game folder as the package unpacks."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.game = root / "usr/share/games/cataclysm-dda"
        self.tileset = self.game / "gfx/ChestHole16Tileset"
        self.entries: dict[str, list[Any]] = {}
        self.sprites: list[np.ndarray[Any, Any]] = []
        self.tiles: list[dict[str, Any]] = []
        rng = np.random.default_rng(0)
        for index in range(12):
            for kind, id_, file in (("BOOK", "book", "items/book.json"), ("terrain", "t_ground", "terrain.json")):
                self.add(file, {"type": kind, "id": f"{id_}{index}"}, sprite=self.sprite(rng))

    def sprite(self, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        pixels = rng.integers(0, 256, size=(SIDE, SIDE, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        return pixels

    def add(self, file: str, entry: dict[str, Any], sprite: Any = None, tile: str = "", foreground: Any = None) -> None:
        name = entry.get("id", entry.get("abstract"))
        defaults = {"name": {"str": f"name of {name}"}, "description": f"What <color_red>{name}</color> is."}
        self.entries.setdefault(file, []).append(({} if "abstract" in entry else defaults) | entry)
        if sprite is not None:
            self.sprites.append(sprite)
            foreground = len(self.sprites) - 1
        if foreground is not None:
            self.tiles.append({"id": tile or name, "fg": foreground})

    def write(self) -> None:
        for file, entries in self.entries.items():
            path = self.game / "json" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(entries))
        self.tileset.mkdir(parents=True, exist_ok=True)
        columns = 8
        rows = -(-len(self.sprites) // columns)
        sheet = np.zeros((rows * SIDE, columns * SIDE, 4), np.uint8)
        for number, sprite in enumerate(self.sprites):
            top, left = number // columns * SIDE, number % columns * SIDE
            sheet[top : top + SIDE, left : left + SIDE] = sprite
        Image.fromarray(sheet).save(self.tileset / "tiles.png")
        letters = np.full((SIDE, 4 * SIDE, 4), 200, np.uint8)
        Image.fromarray(letters).save(self.tileset / "fallback.png")
        big = np.zeros((40, 32, 4), np.uint8)
        big[10:] = 255
        Image.fromarray(big).save(self.tileset / "tree.png")
        self.first_letter = rows * columns
        self.first_tree = self.first_letter + 4
        config = {
            "tile_info": [{"width": SIDE, "height": SIDE}],
            "tiles-new": [
                {"file": "tiles.png", "tiles": self.tiles},
                {"file": "fallback.png", "tiles": []},
                {"file": "tree.png", "sprite_width": 32, "sprite_height": 40, "tiles": []},
            ],
        }
        (self.tileset / "tile_config.json").write_text(json.dumps(config))
        self.patch.setattr(cdda, "RELEASE_SHA256", cdda._content_digest(self.game))

    def load(self, **options: Any) -> DataTable:
        self.write()
        return CddaConfig(folder=str(self.root), **options).load(Path("unused"), Path("unused"))


@pytest.fixture
def game(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Game:
    monkeypatch.setattr(cdda, "_MIN_CLASS", 5)
    return Game(tmp_path, monkeypatch)


def _split_of(table: DataTable, sample: str) -> str:
    row = table.ids.index(sample)
    return next(split for split in SPLITS if row in table.splits[split])


def _group_of(table: DataTable, sample: str) -> int:
    assert table.groups is not None
    return int(table.groups[table.ids.index(sample)])


def test_plain_load(game: Game) -> None:
    table = game.load()
    assert table.spec.task.labels == ("book", "terrain")
    assert len(table.ids) == 24
    row = table.ids.index("book3")
    assert table.values["text"][row] == "What book3 is."
    picture = table.values["image"][row]
    assert picture.shape == (224, 224, 3)
    np.testing.assert_array_equal(picture[::14, ::14], game.sprites[6][..., :3])
    assert CddaConfig(folder=str(game.game)).load(Path(), Path()).spec == table.spec


def test_text_options(game: Game) -> None:
    tables = {text: game.load(text=text) for text in ("name", "description", "name+description")}
    assert tables["name"].values["text"][0] == "name of book0"
    assert tables["name+description"].values["text"][0] == "name of book0. What book0 is."
    assert len({table.spec.name for table in tables.values()}) == 3
    with pytest.raises(UsageError, match="text='title' is not one of"):
        CddaConfig(text="title").validate()


def test_leak_1_other_tilesets_are_not_read(game: Game) -> None:
    before = game.load().spec.fingerprint
    other = game.game / "gfx/UltimateCataclysm"
    other.mkdir()
    Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(other / "tiles.png")
    (other / "tile_config.json").write_text(
        json.dumps({"tile_info": [{}], "tiles-new": [{"file": "tiles.png", "tiles": [{"id": "undrawn", "fg": 0}]}]})
    )
    game.add("items/book.json", {"type": "BOOK", "id": "undrawn"})
    table = game.load()
    assert "undrawn" not in table.ids
    assert table.spec.fingerprint == before


def test_leak_2_same_sprite_same_group(game: Game) -> None:
    twin = game.sprites[0].copy()
    game.add("items/book.json", {"type": "BOOK", "id": "twin"}, sprite=twin)
    game.add("items/book.json", {"type": "BOOK", "id": "shared"}, foreground=[{"weight": 1, "sprite": [0, 3]}])
    table = game.load()
    assert len({_group_of(table, sample) for sample in ("book0", "twin", "shared")}) == 1
    assert len({_split_of(table, sample) for sample in ("book0", "twin", "shared")}) == 1


def test_leak_2_invisible_colours_do_not_tell_sprites_apart(game: Game) -> None:
    first = np.zeros((SIDE, SIDE, 4), np.uint8)
    first[4:8, 4:8] = 255
    second = first.copy()
    second[0, 0, :3] = 9  # alpha 0
    for name, sprite in (("one", first), ("two", second)):
        game.add("items/book.json", {"type": "BOOK", "id": name}, sprite=sprite)
    game.add("items/book.json", {"type": "BOOK", "id": "blank"}, sprite=np.zeros((SIDE, SIDE, 4), np.uint8))
    table = game.load()
    assert _group_of(table, "one") == _group_of(table, "two")
    assert "blank" not in table.ids


def test_leak_3_children_and_equal_texts_same_group(game: Game) -> None:
    rng = np.random.default_rng(1)
    game.add("items/book.json", {"type": "BOOK", "id": "child", "copy-from": "book0"}, sprite=game.sprite(rng))
    game.add(
        "items/book.json", {"type": "BOOK", "id": "echo", "description": "what BOOK1 is."}, sprite=game.sprite(rng)
    )
    game.add("items/book.json", {"type": "BOOK", "id": "named", "name": "name of book2"}, sprite=game.sprite(rng))
    game.add("items/book.json", {"type": "BOOK", "abstract": "base"})
    for name in ("left", "right"):
        game.add("items/book.json", {"type": "BOOK", "id": name, "copy-from": "base"}, sprite=game.sprite(rng))
    table = game.load()
    for pair in (("child", "book0"), ("echo", "book1"), ("named", "book2"), ("left", "right")):
        assert _group_of(table, pair[0]) == _group_of(table, pair[1])
        assert _split_of(table, pair[0]) == _split_of(table, pair[1])
    assert _group_of(table, "book0") != _group_of(table, "book1")


def test_leak_4_letters_are_not_pictures(game: Game) -> None:
    game.write()
    game.add("items/book.json", {"type": "BOOK", "id": "letter"}, foreground=game.first_letter)
    game.add("terrain.json", {"type": "terrain", "id": "t_tree"}, foreground=game.first_tree)
    table = game.load()
    assert "letter" not in table.ids
    tree = table.values["image"][table.ids.index("t_tree")]
    assert tree[0, 0].tolist() == [128, 128, 128]
    assert tree[200, 112].tolist() == [255, 255, 255]


def test_groups_are_capped(game: Game) -> None:
    for index in range(20):
        game.add("items/book.json", {"type": "BOOK", "id": f"same{index:02d}"}, foreground=0)
    table = game.load()
    assert table.groups is not None
    assert np.unique(table.groups, return_counts=True)[1].max() == 6
    assert table.card["dropped beyond 6 per group"] == 15


def test_classes(game: Game) -> None:
    rng = np.random.default_rng(2)
    expected = {}
    for index in range(6):
        for label, file, entry in (
            ("vehicle_part", "vehicleparts/a.json", {"type": "vehicle_part", "id": f"book{index}"}),
            (
                "seed",
                "items/comestibles/seed.json",
                {"type": "COMESTIBLE", "id": f"s{index}", "comestible_type": "FOOD"},
            ),
            (
                "drink",
                "items/comestibles/d.json",
                {"type": "COMESTIBLE", "id": f"d{index}", "comestible_type": "DRINK"},
            ),
            (
                "food",
                "items/comestibles/d.json",
                {"type": "COMESTIBLE", "id": f"f{index}", "copy-from": f"base{index}"},
            ),
            ("melee_weapon", "items/melee/m.json", {"type": "GENERIC", "id": f"m{index}"}),
            ("", "items/generic.json", {"type": "GENERIC", "id": f"g{index}"}),
            ("", "bionics.json", {"type": "bionic", "id": f"bio{index}"}),
        ):
            sample = ("vp_" if label == "vehicle_part" else "") + entry["id"]
            game.add(file, {**entry, "name": f"{label} {index}", "description": f"{sample}!"}, game.sprite(rng), sample)
            expected[sample] = label
        base = {"type": "COMESTIBLE", "abstract": f"base{index}", "comestible_type": "FOOD"}
        game.add("items/comestibles/a.json", base)
    table = game.load()
    found = {sample: table.spec.task.labels[label] for sample, label in zip(table.ids, table.labels, strict=True)}
    assert {sample: found.get(sample, "") for sample in expected} == expected


def test_small_classes_are_dropped(game: Game) -> None:
    game.add("items/gun.json", {"type": "GUN", "id": "gun"}, sprite=game.sprite(np.random.default_rng(3)))
    assert "gun" not in game.load().ids


def test_missing_or_other_release_says_how_to_get_it(game: Game, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cataclysm-dda-data in .*nowhere/cdda; apt-get download"):
        CddaConfig().load(tmp_path / "nowhere", tmp_path)
    game.write()
    (game.game / "json/terrain.json").write_text("[]")
    with pytest.raises(DataError, match=r"is not cataclysm-dda-data 0\.F-3-9.*apt-get download"):
        CddaConfig(folder=str(tmp_path)).load(tmp_path, tmp_path)


@pytest.mark.parametrize(
    "file", ["json/terrain.json", "gfx/ChestHole16Tileset/tile_config.json", "gfx/ChestHole16Tileset/tree.png"]
)
def test_corrupt_files_are_named(game: Game, file: str) -> None:
    game.write()
    (game.game / file).write_text("{")
    game.patch.setattr(cdda, "RELEASE_SHA256", cdda._content_digest(game.game))
    with pytest.raises(DataError, match=rf"{Path(file).name} is .*corrupt") as caught:
        CddaConfig(folder=str(game.root)).load(Path(), Path())
    assert "\n" not in str(caught.value)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="HARNESS_CDDA_DIR does not name the unpacked package cataclysm-dda-data")
def test_real_data() -> None:
    table = CddaConfig(folder=REAL).load(Path(), Path())
    assert len(table.ids) == 2911
    assert table.spec.task.num_outputs == 14
    assert table.spec.fingerprint == "8a4351518f22fa9c171891e885b5f209613689dc34970b2c84a10d90b54f969d"
    for column, part in enumerate(("image", "text")):
        home: dict[Any, str] = {}
        for split in SPLITS:
            for row in table.splits[split].tolist():
                value = table.values[part][row]
                key = value.lower() if column else value.tobytes()
                assert home.setdefault(key, split) == split
    for split in SPLITS:
        assert set(table.labels[table.splits[split]].tolist()) == set(range(14))
