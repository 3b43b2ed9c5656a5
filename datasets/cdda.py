"""Cataclysm: Dark Days Ahead: the sprite and the description of a game object; the class is what kind of object it is.

Reads the Debian package `cataclysm-dda-data` as it unpacks: `json/**/*.json` and one tileset.  Four leaks are closed
here: one tileset only, objects that share a sprite or a parent or a text stay in one split, and the sheet of letters
(`fallback*.png`) is not used.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.dataset import DatasetConfig, LazySequence, check_table, grouped_split, join_groups, table_fingerprint
from harness.errors import DataError
from harness.plugin import check_choice
from harness.types import DatasetSpec, DataTable, ModalitySpec, TaskSpec

# sha256 over the JSON files and the tileset of cataclysm-dda-data 0.F-3-9 (see `_content_digest`).
RELEASE = "0.F-3-9"
RELEASE_SHA256 = "e4622c14c60da1d049078daf0cb0c238d587e87c34aba2a003b6dab8a405484e"

_GAME = Path("usr/share/games/cataclysm-dda")
_TILESET = Path("gfx/ChestHole16Tileset")
_SIDE = 224
_PAPER = 128  # grey behind transparent sprites, which are drawn for dark and light ground alike
_PER_GROUP = 6
_MIN_CLASS = 30
_TEXTS = {"name": ("name",), "description": ("description",), "name+description": ("name", "description")}

_TYPES = {
    "AMMO": "ammo_material",
    "ARMOR": "clothing_armor",
    "PET_ARMOR": "clothing_armor",
    "TOOL_ARMOR": "clothing_armor",
    "BOOK": "book",
    "furniture": "furniture",
    "GUN": "gun",
    "GUNMOD": "gun_accessory",
    "MAGAZINE": "gun_accessory",
    "MONSTER": "creature",
    "terrain": "terrain",
    "TOOL": "tool",
    "vehicle_part": "vehicle_part",
}
_ITEMS = {
    "AMMO",
    "ARMOR",
    "BOOK",
    "COMESTIBLE",
    "GENERIC",
    "GUN",
    "GUNMOD",
    "MAGAZINE",
    "PET_ARMOR",
    "TOOL",
    "TOOL_ARMOR",
}
_COMESTIBLES = {"FOOD": "food", "DRINK": "drink", "MED": "medicine"}


@dataclass
class CddaConfig(DatasetConfig):
    """Sprite and text of a game object, 14 classes.

    Attributes:
        folder: Where the package was unpacked; empty means `<data folder>/cdda`.
        text: `description`, `name` (harder) or `name+description`.
    """

    folder: str = ""
    text: str = "description"

    summary: ClassVar[str] = "game sprite + description, 14 kinds of object (Debian cataclysm-dda-data)"
    citation: ClassVar[str] = "Cataclysm: Dark Days Ahead 0.F-3, the CleverRaven contributors; ChestHole16 tileset"
    license: ClassVar[str] = "CC BY-SA 3.0"
    obtain: ClassVar[str] = (
        "apt-get download cataclysm-dda-data && dpkg-deb -x cataclysm-dda-data_0.F-3-9_all.deb DIR (Debian 12, no root "
        "needed), then dataset.folder=DIR"
    )
    card: ClassVar[str] = "cards/cdda.md"

    def validate(self) -> None:
        """Checks choices; raises `UsageError`."""
        check_choice("dataset", "text", self.text, tuple(_TEXTS))

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:  # noqa: ARG002
        """Reads the unpacked package.

        Raises:
            DataError: If the folder is missing, of another release, or a file in it is corrupt.
        """
        self.validate()
        game = _find(Path(self.folder).expanduser() if self.folder else data_dir / "cdda", self.obtain)
        sheets = _Sheets(game / _TILESET)
        objects = [item for item in _objects(game / "json") if sheets.has(item.id)]
        texts = {item.id: ". ".join(item.texts[part] for part in _TEXTS[self.text]) for item in objects}
        # Both texts are needed whatever the option, so that all options have the same objects and splits.
        objects = [item for item in objects if all(item.texts.values()) and sheets.digest(item.id)]

        keys = []
        for item in objects:
            family = [f"family|{name}" for name in (item.origin, item.parent) if name]
            words = [f"{part}|{text.lower()}" for part, text in item.texts.items()]
            keys.append([*family, *words, f"sprite|{sheets.digest(item.id)}"])
        group_of = join_groups(keys)
        objects, groups, dropped = _capped(objects, group_of)
        counts = Counter(item.label for item in objects)
        classes = sorted(name for name, count in counts.items() if count >= _MIN_CLASS)
        kept = [row for row, item in enumerate(objects) if item.label in classes]
        objects, groups = [objects[row] for row in kept], groups[kept]
        if not objects:
            raise DataError(f"{game} holds no class of {_MIN_CLASS} objects with a picture; {self.obtain}")

        ids = tuple(item.id for item in objects)
        labels = np.array([classes.index(item.label) for item in objects], dtype=np.int64)
        splits = grouped_split(groups, labels, f"cdda-{self.version}")
        contents = [f"{sheets.digest(item.id)}|{texts[item.id]}" for item in objects]
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name="cdda" if self.text == "description" else f"cdda_{self.text.replace('+', '_')}",
                    version=self.version,
                    modalities=(ModalitySpec("image", "image", (_SIDE, _SIDE, 3)), ModalitySpec("text", "text")),
                    task=TaskSpec("multiclass", len(classes), tuple(classes), "accuracy"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(ids, splits, labels, contents),
                ),
                ids=ids,
                splits=splits,
                labels=labels,
                available=np.ones((len(ids), 2), dtype=np.bool_),
                values={
                    "image": LazySequence(lambda row: sheets.picture(objects[row].id), len(ids)),
                    "text": [texts[sample] for sample in ids],
                },
                groups=groups,
                card={
                    "samples": len(ids),
                    "near-duplicate groups": len(set(groups.tolist())),
                    f"dropped beyond {_PER_GROUP} per group": dropped,
                    "classes": {name: counts[name] for name in classes},
                },
            )
        )


@dataclass(frozen=True)
class _Object:
    """One named and described object of the game; `id` is also the name of its tile."""

    id: str
    origin: str
    parent: str
    label: str
    texts: Mapping[str, str]


def _find(folder: Path, obtain: str) -> Path:
    """The game's folder below where the package was unpacked, after checking that it is the pinned release."""
    for game in (folder / _GAME, folder):
        if (game / "json").is_dir() and (game / _TILESET / "tile_config.json").is_file():
            if _content_digest(game) != RELEASE_SHA256:
                raise DataError(f"{game} is not cataclysm-dda-data {RELEASE}, or files were changed; {obtain}")
            return game
    raise DataError(f"no cataclysm-dda-data in {folder}; {obtain}")


def _content_digest(game: Path) -> str:
    """sha256 over path and content of every file that is read."""
    digest = hashlib.sha256()
    for path in [*sorted((game / "json").rglob("*.json")), *sorted((game / _TILESET).iterdir())]:
        digest.update(path.relative_to(game).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _objects(folder: Path) -> Iterator[_Object]:
    """Objects of a known class with an own name and description, by id."""
    raw: dict[tuple[str, str], dict[str, Any]] = {}
    files: dict[tuple[str, str], str] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is corrupt ({error}); unpack the package again.") from error
        for entry in content if isinstance(content, list) else [content]:
            name = entry.get("id", entry.get("abstract")) if isinstance(entry, dict) else None
            if isinstance(name, str):
                key = (_namespace(entry), name)
                raw.setdefault(key, entry)
                files.setdefault(key, path.relative_to(folder).as_posix())
    for key, entry in sorted(raw.items(), key=lambda pair: pair[0]):
        label = _label(files[key], entry, raw)
        if label and "id" in entry and "name" in entry and "description" in entry:
            space, name = key
            parent = f"{space}|{entry['copy-from']}" if "copy-from" in entry else ""
            texts = {part: _plain(entry[part]) for part in ("name", "description")}
            yield _Object(f"vp_{name}" if space == "vehicle_part" else name, f"{space}|{name}", parent, label, texts)


def _namespace(entry: Mapping[str, Any]) -> str:
    """Ids are unique among all items, and among each other type; a vehicle part may be called like the item it is."""
    kind = str(entry.get("type"))
    return "item" if kind in _ITEMS else kind


def _label(file: str, entry: Mapping[str, Any], raw: Mapping[tuple[str, str], dict[str, Any]]) -> str:
    """Class of an object from its type and file; empty for the catch-all `GENERIC` and whatever has no class."""
    kind = entry.get("type")
    if kind == "COMESTIBLE":
        if file.endswith("/seed.json"):
            return "seed"
        found: Mapping[str, Any] = entry
        while "comestible_type" not in found and "copy-from" in found:
            found = raw.get((_namespace(found), found["copy-from"]), {})
        return _COMESTIBLES.get(str(found.get("comestible_type")), "")
    if kind in ("GENERIC", "TOOL") and file.startswith("items/melee/"):
        return "melee_weapon"
    return _TYPES.get(str(kind), "")


def _plain(value: Any) -> str:
    """Text of a name or description, which may be a dict of singular and plural, without colour tags."""
    if isinstance(value, dict):
        value = value.get("str") or value.get("str_sp") or value.get("str_pl") or ""
    return " ".join(re.sub(r"</?[a-z_]+>", "", str(value)).split())


def _capped(objects: list[_Object], groups: npt.NDArray[np.int64]) -> tuple[list[_Object], npt.NDArray[np.int64], int]:
    """At most `_PER_GROUP` objects of a group, those of the smallest id hash, so that no family outweighs the rest."""
    order = sorted(range(len(objects)), key=lambda row: hashlib.sha256(objects[row].id.encode()).digest())
    taken: Counter[int] = Counter()
    kept = []
    for row in order:
        group = int(groups[row])
        if taken[group] < _PER_GROUP:
            taken[group] += 1
            kept.append(row)
    kept.sort()
    return [objects[row] for row in kept], groups[kept], len(objects) - len(kept)


class _Sheets:
    """Sprites of one tileset, cut from its sheets on access.

    A sprite's number runs over all sheets; `fallback*.png` (letters that stand for objects without a drawing) counts
    in the numbering and is never shown.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._folder / "tile_config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            config["tile_info"][0]["width"], config["tiles-new"][0]["file"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"{path} is corrupt ({error}); unpack the package again.") from error
        return dict(config)

    @cached_property
    def _sheets(self) -> list[tuple[int, npt.NDArray[np.uint8]]]:
        """Number of the first sprite and RGBA sprites `[n, h, w, 4]` of each sheet but the letters."""
        from PIL import Image

        info = self._config["tile_info"][0]
        sheets, first = [], 0
        for sheet in self._config["tiles-new"]:
            width = int(sheet.get("sprite_width", info["width"]))
            height = int(sheet.get("sprite_height", info["height"]))
            path = self._folder / sheet["file"]
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGBA"))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"{path} is missing or corrupt ({error}); unpack the package again.") from error
            rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
            cut = pixels[: rows * height, : columns * width].reshape(rows, height, columns, width, 4)
            if not Path(sheet["file"]).name.startswith("fallback"):
                sheets.append((first, cut.transpose(0, 2, 1, 3, 4).reshape(-1, height, width, 4)))
            first += rows * columns
        return sheets

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Number of the first foreground sprite of each tile id."""
        numbers: dict[str, int] = {}
        for sheet in self._config["tiles-new"]:
            for tile in sheet.get("tiles", ()):
                number = _first_number(tile.get("fg"))
                names = tile["id"] if isinstance(tile["id"], list) else [tile["id"]]
                if number is not None:
                    for name in names:
                        numbers.setdefault(name, number)
        return numbers

    def _sprite(self, tile: str) -> npt.NDArray[np.uint8] | None:
        number = self._numbers.get(tile, -1)
        for first, sprites in self._sheets:
            if first <= number < first + len(sprites):
                sprite: npt.NDArray[np.uint8] = sprites[number - first]
                return sprite
        return None

    def has(self, tile: str) -> bool:
        """Whether the tileset draws this tile."""
        return self._sprite(tile) is not None

    def digest(self, tile: str) -> str:
        """sha256 of what can be seen of a sprite; empty when nothing can."""
        if tile not in self._digests:
            sprite = self._sprite(tile)
            assert sprite is not None
            seen = np.where(sprite[..., 3:] > 0, sprite, 0)
            self._digests[tile] = (
                hashlib.sha256(str(seen.shape).encode() + seen.tobytes()).hexdigest() if seen.any() else ""
            )
        return self._digests[tile]

    def picture(self, tile: str) -> npt.NDArray[np.uint8]:
        """A sprite on a grey square, enlarged without smoothing, `[224, 224, 3]`."""
        from PIL import Image

        sprite = self._sprite(tile)
        assert sprite is not None
        height, width = sprite.shape[:2]
        square = Image.new("RGB", (max(height, width),) * 2, (_PAPER,) * 3)
        drawing = Image.fromarray(np.ascontiguousarray(sprite), "RGBA")
        square.paste(drawing, ((square.width - width) // 2, (square.height - height) // 2), drawing)
        return np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.NEAREST))


def _first_number(foreground: Any) -> int | None:
    """First sprite number of a tile's `fg`: a number, a list of them, or a list of weighted variants."""
    while isinstance(foreground, list | dict):
        if isinstance(foreground, dict):
            foreground = foreground.get("sprite")
        else:
            foreground = foreground[0] if foreground else None
    return foreground if isinstance(foreground, int) and foreground >= 0 else None
