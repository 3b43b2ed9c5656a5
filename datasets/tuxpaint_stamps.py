"""Tux Paint's stamps: picture, caption, and the caption read aloud by a volunteer; the class is the kind of thing.

Reads the Debian package `tuxpaint-stamps-default` as it unpacks.  The split is by stamp, so that a stamp spoken in
several languages is on one side; stamps with the same caption, recording, name or picture stay together too.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from harness.config import digest_of
from harness.dataset import DatasetConfig, LazySequence, check_table, grouped_split, join_groups, table_fingerprint
from harness.datasets._pictures import SAME_PICTURE, THUMB, near_identical, thumbnail
from harness.datasets._signals import read_sound
from harness.errors import DataError, UsageError
from harness.files import atomic_write, ensure_folder, locked
from harness.packages import package_version
from harness.plugin import check_choice
from harness.progress import track
from harness.types import DatasetSpec, DataTable, ModalitySpec, TaskSpec

RELEASE = "2022.06.04-1"
# sha256 over captions, pictures and recordings of the classes and languages below (see `_content_digest`).
RELEASE_SHA256 = "61daf89d27736d7a12295e32f8b3fd87b32928cf69c12ca742c1859ecf4081ad"

_STAMPS = Path("usr/share/tuxpaint/stamps")
_SIDE = 224
_MOST_PIXELS = 20_000_000
_CACHE_FORMAT = 1

#: Languages in which most stamps are spoken, most complete first.
LANGUAGES = ("fr", "ro", "ru", "bg", "ca", "es", "be", "el")

#: Folder -> class; the longest that fits counts, none means the stamp is left out.
_CLASSES = {
    "animals": "animals",
    "clothes": "clothes",
    "food": "food",
    "hobbies": "music_hobby",
    "household": "household",
    "people": "people",
    "plants": "plants",
    "seasonal": "seasonal",
    "space": "space",
    "symbols": "symbols",
    "symbols/alphabets": "",
    "symbols/music": "music_hobby",
    "town": "town",
    "vehicles": "vehicles",
}


@dataclass
class TuxpaintStampsConfig(DatasetConfig):
    """Picture, English caption and spoken caption of a stamp, 12 classes.

    Attributes:
        folder: Where the package was unpacked; empty means `<data folder>/tuxpaint`.
        spoken: Language of the recordings: `fr`, `ro`, `ru`, `bg`, `ca`, `es`, `be` or `el`; several joined by `+` give
            a sample per stamp and language.  In `es`, unlike `ca`, `el` and to a small degree `fr`, what is heard
            between the words does not tell the class.
    """

    folder: str = ""
    spoken: str = "es"

    summary: ClassVar[str] = (
        "picture + caption + spoken caption of a stamp, 12 classes (Debian tuxpaint-stamps-default)"
    )
    citation: ClassVar[str] = "Tux Paint stamps 2022.06.04, Bill Kendrick and the Tux Paint contributors"
    license: ClassVar[str] = "GPL-2"
    obtain: ClassVar[str] = (
        "apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_2022.06.04-1_all.deb DIR "
        "(Debian 12, no root needed), then dataset.folder=DIR"
    )
    card: ClassVar[str] = "cards/tuxpaint_stamps.md"

    def validate(self) -> None:
        """Checks choices; raises `UsageError`."""
        chosen = self.spoken.split("+")
        for language in chosen:
            check_choice("dataset", "spoken", language, LANGUAGES)
        if len(set(chosen)) < len(chosen):
            raise UsageError(f"dataset: spoken={self.spoken!r} names a language twice.")

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Reads the unpacked package; the first call draws all pictures to compare them (about 10 seconds).

        Raises:
            DataError: If the folder is missing, of another release, or a file in it is corrupt.
            DependencyError: If a package of the extras `demo` (SVG) or `audio` (Ogg) is missing.
        """
        self.validate()
        languages = [language for language in LANGUAGES if language in self.spoken.split("+")]
        root = _find(Path(self.folder).expanduser() if self.folder else data_dir / "tuxpaint", self.obtain)
        stamps = _stamps(root)
        digests = {stamp.name: {path: _digest(root / path) for path in stamp.files()} for stamp in stamps}
        if _content_digest(digests) != RELEASE_SHA256:
            raise DataError(f"{root} is not tuxpaint-stamps-default {RELEASE}, or files were changed; {self.obtain}")
        classes = tuple(sorted({stamp.label for stamp in stamps}))
        kinds = np.array([classes.index(stamp.label) for stamp in stamps], dtype=np.int64)
        near = _near_pictures(root, stamps, cache_dir)
        families = join_groups(_marks(stamps, digests, near))
        # All stamps are split, whatever is spoken, so that a stamp is in one split for every choice of languages.
        homes = grouped_split(families, kinds, f"tuxpaint_stamps-{self.version}")

        samples = [
            (row, language)
            for row, stamp in enumerate(stamps)
            for language in languages
            if language in stamp.recordings
        ]
        rows = np.array([row for row, _ in samples], dtype=np.int64)
        ids = tuple(f"{stamps[row].name}:{language}" for row, language in samples)
        splits = {split: np.flatnonzero(np.isin(rows, part)) for split, part in homes.items()}
        renderer = package_version("resvg-py", "0.5")
        contents = [
            "|".join(
                [
                    stamps[row].caption,
                    digests[stamps[row].name][stamps[row].picture],
                    digests[stamps[row].name][stamps[row].recordings[language]],
                    f"{renderer} {_SIDE}",
                ]
            )
            for row, language in samples
        ]

        def picture(index: int) -> npt.NDArray[np.uint8]:
            return _draw(root / stamps[samples[index][0]].picture)

        def clip(index: int) -> npt.NDArray[np.float32]:
            row, language = samples[index]
            return read_sound(root / stamps[row].recordings[language])

        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name="_".join(["tuxpaint_stamps", *(languages if languages != ["es"] else [])]),
                    version=self.version,
                    modalities=(
                        ModalitySpec("image", "image", (_SIDE, _SIDE, 3)),
                        ModalitySpec("text", "text"),
                        ModalitySpec("audio", "audio", (None,)),
                    ),
                    task=TaskSpec("multiclass", len(classes), classes, "accuracy"),
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(ids, splits, kinds[rows], contents),
                ),
                ids=ids,
                splits=splits,
                labels=kinds[rows],
                available=np.ones((len(ids), 3), dtype=np.bool_),
                values={
                    "image": LazySequence(picture, len(ids)),
                    "text": [stamps[row].caption for row in rows],
                    "audio": LazySequence(clip, len(ids)),
                },
                groups=families[rows],
                card={
                    "samples": len(ids),
                    "stamps": len(set(rows.tolist())),
                    "near-duplicate groups": len(set(families[rows].tolist())),
                    "stamps without a recording, dropped": len(stamps) - len(set(rows.tolist())),
                    "classes": dict(sorted(Counter(classes[kind] for kind in kinds[rows]).items())),
                },
            )
        )


@dataclass(frozen=True)
class _Stamp:
    """One stamp; paths are relative to the folder of all stamps."""

    name: str
    label: str
    caption: str
    text: str
    picture: str
    recordings: Mapping[str, str]

    def files(self) -> list[str]:
        """Every file of it that is read, in a fixed order."""
        return [self.text, self.picture, *self.recordings.values()]


def _find(folder: Path, obtain: str) -> Path:
    for root in (folder / _STAMPS, folder):
        if all((root / part).is_dir() for part in ("animals", "vehicles")):
            return root
    raise DataError(f"no tuxpaint-stamps-default in {folder}; {obtain}")


def _stamps(root: Path) -> list[_Stamp]:
    """Stamps of a known class with a caption and a picture, by name.

    Where there are pixels and a drawing, the pixels: some drawings are letters, which need the system's fonts.
    """
    found = []
    for path in root.rglob("*.txt"):
        name = path.relative_to(root).with_suffix("").as_posix()
        label = _label(name)
        picture = next((name + kind for kind in (".png", ".svg") if (root / (name + kind)).is_file()), "")
        try:
            caption = " ".join(path.read_text(encoding="utf-8").partition("\n")[0].split())
        except ValueError as error:
            raise DataError(f"{path} is corrupt ({error}); unpack the package again.") from error
        if label and picture and caption:
            spoken = {language: f"{name}_desc_{language}.ogg" for language in LANGUAGES}
            recordings = {language: file for language, file in spoken.items() if (root / file).is_file()}
            found.append(_Stamp(name, label, caption, f"{name}.txt", picture, recordings))
    return sorted(found, key=lambda stamp: stamp.name)


def _label(name: str) -> str:
    parts = name.split("/")[:-1]
    folders = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((_CLASSES[folder] for folder in folders if folder in _CLASSES), "")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _content_digest(digests: Mapping[str, Mapping[str, str]]) -> str:
    """sha256 over path and content of every file that is read."""
    lines = [f"{path} {value}" for files in digests.values() for path, value in files.items()]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _marks(
    stamps: Sequence[_Stamp], digests: Mapping[str, Mapping[str, str]], near: Iterable[tuple[int, int]]
) -> list[list[Hashable]]:
    """What makes two stamps near-duplicates: caption, name without number, a recording in any language, picture."""
    marks: list[list[Hashable]] = []
    for stamp in stamps:
        words = re.findall(r"\w+", stamp.caption.lower())
        name = stamp.name.rpartition("/")[2].lower()
        stem = re.sub(r"[\d_.-]+$", "", name) or name  # "frog-1" is a frog; "001" is no more than itself
        files = [digests[stamp.name][path] for path in (stamp.picture, *stamp.recordings.values())]
        caption = " ".join(word for word in words if word not in ("a", "an", "the"))
        marks.append([("caption", caption), ("name", stamp.label, stem), *(("file", file) for file in files)])
    for pair in near:
        for row in pair:
            marks[row].append(("picture", pair))
    return marks


def _near_pictures(root: Path, stamps: Sequence[_Stamp], cache_dir: Path) -> list[tuple[int, int]]:
    """Pairs of stamps with near-identical pictures, computed once for a release and renderer."""
    key = digest_of(
        {
            "format": _CACHE_FORMAT,
            "release": RELEASE_SHA256,
            "resvg": package_version("resvg-py", "0.5"),
            "side": _SIDE,
            "thumb": [THUMB, SAME_PICTURE],
        },
        16,
    )
    folder = cache_dir / "tuxpaint_stamps"
    ensure_folder(folder)
    path = folder / f"near-{key}.json"
    with locked(path):
        try:
            pairs = [(int(first), int(second)) for first, second in json.loads(path.read_text(encoding="utf-8"))]
            if all(0 <= first < second < len(stamps) for first, second in pairs):
                return pairs
        except (OSError, ValueError, TypeError):
            pass  # not there yet, or damaged: computed now
        drawn = track(range(len(stamps)), "tuxpaint_stamps: comparing pictures")
        pairs = near_identical(np.stack([thumbnail(_draw(root / stamps[row].picture)) for row in drawn]))
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(pairs), encoding="utf-8")
    return pairs


def _draw(path: Path) -> npt.NDArray[np.uint8]:
    """A picture in the middle of a white square, its longer side filling it, `[224, 224, 3]`."""
    from PIL import Image

    try:
        if path.suffix == ".svg":
            import resvg_py

            drawing = path.read_text(encoding="utf-8")
            # Without a resolution, sizes in points or millimetres have no pixels.
            raw = resvg_py.svg_to_bytes(svg_string=drawing, width=_SIDE, height=_SIDE, dpi=96, skip_system_fonts=True)
            source: Path | io.BytesIO = io.BytesIO(bytes(raw))
        else:
            source = path
        with Image.open(source) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise DataError(f"{path} has {opened.width} x {opened.height} pixels, more than {_MOST_PIXELS:,}.")
            image = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is missing or corrupt ({error}); unpack the package again.") from error
    paper = Image.new("RGB", image.size, "white")
    paper.paste(image, mask=image)
    scale = _SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    fitted = paper.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(fitted, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return np.asarray(square)
