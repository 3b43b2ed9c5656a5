"""tuxpaint_stamps: grouping, languages, pictures on a tiny folder in the package's layout; the real one if at hand."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.datasets import _signals
from harness.datasets import tuxpaint_stamps as module
from harness.datasets.tuxpaint_stamps import TuxpaintStampsConfig
from harness.errors import DataError, DependencyError, UsageError
from harness.types import SPLITS, DataTable

REAL = os.environ.get("HARNESS_TUXPAINT_DIR", "")

pytestmark = pytest.mark.skipif(find_spec("resvg_py") is None, reason="resvg-py (extra demo) is not installed")
soundfile_needed = pytest.mark.skipif(find_spec("soundfile") is None, reason="soundfile (extra audio) is not installed")

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20pt" height="10pt"><rect width="99" height="99" fill="red"/></svg>'
)


class Stamps:
    """Writes a folder of stamps as the package unpacks."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.root = folder / "usr/share/tuxpaint/stamps"
        self.rng = np.random.default_rng(0)
        for index in range(10):
            for place in ("animals/birds", "vehicles", "town"):
                self.add(f"{place}/{chr(97 + index) * 3}{place[0]}", f"{place} called {chr(97 + index) * 2}.")

    def add(
        self, name: str, caption: str, spoken: tuple[str, ...] = ("es", "fr"), sound: bytes = b"", picture: Any = None
    ) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(f"{caption}\nfr.utf8=autre\n", encoding="utf-8")
        if picture is None:
            picture = self.rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        if isinstance(picture, str):
            path.with_suffix(".svg").write_text(picture)
        else:
            Image.fromarray(picture).save(path.with_suffix(".png"))
        for language in spoken:
            content = sound or f"{name} {language}".encode()
            path.with_name(f"{path.name}_desc_{language}.ogg").write_bytes(content)

    def sign(self) -> None:
        """Makes what was written the pinned release."""
        stamps = module._stamps(self.root)
        digests = {stamp.name: {path: module._digest(self.root / path) for path in stamp.files()} for stamp in stamps}
        self.patch.setattr(module, "RELEASE_SHA256", module._content_digest(digests))

    def load(self, **options: Any) -> DataTable:
        self.sign()
        return TuxpaintStampsConfig(folder=str(self.folder), **options).load(Path("unused"), self.folder / "cache")


@pytest.fixture
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stamps:
    return Stamps(tmp_path, monkeypatch)


def _names(table: DataTable) -> set[str]:
    return {sample.split(":")[0] for sample in table.ids}


def _group(table: DataTable, name: str) -> int:
    assert table.groups is not None
    return int(table.groups[table.ids.index(f"{name}:es")])


def test_plain_load(stamps: Stamps) -> None:
    table = stamps.load()
    assert table.spec.task.labels == ("animals", "town", "vehicles")
    assert len(table.ids) == 30
    row = table.ids.index("vehicles/aaav:es")
    assert table.values["text"][row] == "vehicles called aa."
    assert table.spec.task.labels[table.labels[row]] == "vehicles"
    assert [part.kind for part in table.spec.modalities] == ["image", "text", "audio"]
    again = TuxpaintStampsConfig(folder=str(stamps.root)).load(Path(), stamps.folder / "cache")
    assert again.spec == table.spec


def test_a_stamp_is_in_one_split_whatever_is_spoken(stamps: Stamps) -> None:
    stamps.add("animals/silent", "Nobody says this.", spoken=())
    stamps.add("animals/french", "Said in one language.", spoken=("fr",))
    homes: dict[str, str] = {}
    for spoken, count in (("es", 30), ("fr", 31), ("fr+es", 61)):
        table = stamps.load(spoken=spoken)
        assert len(table.ids) == count
        for split in SPLITS:
            for row in table.splits[split]:
                assert homes.setdefault(table.ids[row].split(":")[0], split) == split
    assert "animals/silent" not in homes
    assert stamps.load().card["stamps without a recording, dropped"] == 2


def test_languages_are_checked_and_named_in_one_order(stamps: Stamps) -> None:
    assert stamps.load(spoken="es+fr").spec == stamps.load(spoken="fr+es").spec
    assert stamps.load(spoken="es+fr").spec.name == "tuxpaint_stamps_fr_es"
    assert stamps.load().spec.name == "tuxpaint_stamps"
    with pytest.raises(UsageError, match="spoken='en' is not one of"):
        TuxpaintStampsConfig(spoken="en").validate()
    with pytest.raises(UsageError, match="names a language twice"):
        TuxpaintStampsConfig(spoken="es+es").validate()


def test_left_out(stamps: Stamps) -> None:
    for name in ("symbols/alphabets/x", "sports/ball", "animals/pictureless"):
        stamps.add(name, f"{name}!")
    (stamps.root / "animals/pictureless.png").unlink()
    stamps.add("symbols/music/note", "A note.")
    stamps.add("animals/birds/wren_mirror", "")
    table = stamps.load()
    assert _names(table) & {"symbols/alphabets/x", "sports/ball", "animals/pictureless"} == set()
    assert "animals/birds/wren_mirror" not in _names(table)
    assert table.spec.task.labels[table.labels[table.ids.index("symbols/music/note:es")]] == "music_hobby"


def test_near_duplicates_are_one_group(stamps: Stamps) -> None:
    picture = stamps.rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    stamps.add("animals/robin", "A robin.", picture=picture)
    stamps.add("town/mirrored", "Another picture.", picture=np.ascontiguousarray(picture[:, ::-1]))
    stamps.add("town/caption", "The ROBIN")
    stamps.add("animals/robin-2", "A second bird.")
    stamps.add("vehicles/recorded", "Something heard.", spoken=("es", "be"), sound=b"same sound")
    stamps.add("town/heard", "Something else heard.", spoken=("es", "be"), sound=b"same sound")
    stamps.add("town/001", "Number one.")
    stamps.add("town/002", "Number two.")
    table = stamps.load()
    assert (
        len({_group(table, name) for name in ("animals/robin", "town/mirrored", "town/caption", "animals/robin-2")})
        == 1
    )
    assert _group(table, "vehicles/recorded") == _group(table, "town/heard") != _group(table, "animals/robin")
    assert _group(table, "town/001") != _group(table, "town/002")


def test_pictures(stamps: Stamps) -> None:
    stamps.add("town/drawn", "A drawing in points.", picture=SVG)
    stamps.add("town/both", "A drawing and pixels.", picture=SVG)
    stamps.add("town/both", "A drawing and pixels.", picture=np.full((10, 40, 3), (0, 0, 255), np.uint8))
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, :4] = (0, 128, 0, 255)
    stamps.add("town/clear", "Half of it is clear.", picture=clear)
    table = stamps.load()

    def picture(name: str) -> np.ndarray[Any, Any]:
        value = table.values["image"][table.ids.index(f"town/{name}:es")]
        assert value.shape == (224, 224, 3)
        assert value.dtype == np.uint8
        return np.asarray(value)

    drawn = picture("drawn")  # twice as wide as high, so paper is above and below
    assert drawn[0, 112].tolist() == [255, 255, 255]
    assert drawn[112, 112].tolist() == [255, 0, 0]
    assert picture("both")[112, 112].tolist() == [0, 0, 255]
    assert picture("clear")[112, 50].tolist() == [0, 128, 0]
    assert picture("clear")[112, 180].tolist() == [255, 255, 255]


def test_huge_pictures_are_refused(stamps: Stamps) -> None:
    stamps.patch.setattr(module, "_MOST_PIXELS", 1000)
    with pytest.raises(DataError, match="more than 1,000"):
        stamps.load()


@soundfile_needed
def test_recordings_are_mono_at_16_kilohertz(stamps: Stamps) -> None:
    import soundfile

    time = np.arange(22050) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
    stamps.add("town/tone", "A tone.")
    soundfile.write(
        stamps.root / "town/tone_desc_es.ogg", np.stack([tone, tone], axis=1), 44100, format="OGG", subtype="VORBIS"
    )
    table = stamps.load()
    clip = table.values["audio"][table.ids.index("town/tone:es")]
    assert clip.dtype == np.float32
    assert clip.shape == (8000,)
    spectrum = np.abs(np.fft.rfft(clip))
    assert abs(int(spectrum.argmax()) * 2 - 1000) <= 2  # bins of 2 Hz
    assert 0.4 < np.abs(clip[1000:7000]).max() < 0.6


@soundfile_needed
def test_corrupt_recordings_are_named(stamps: Stamps) -> None:
    table = stamps.load()
    with pytest.raises(DataError, match=r"_desc_es\.ogg is missing or corrupt") as caught:
        table.values["audio"][0]
    assert "\n" not in str(caught.value)


def test_a_missing_sound_package_names_the_extra(stamps: Stamps) -> None:
    stamps.patch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(DependencyError, match=r"pip install 'missing-modality-harness\[audio\]'") as caught:
        _signals.read_sound(stamps.root / "any.ogg")
    assert "\n" not in str(caught.value)


def test_missing_or_other_release_says_how_to_get_it(stamps: Stamps, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tuxpaint-stamps-default in .*nowhere/tuxpaint; apt-get download"):
        TuxpaintStampsConfig().load(tmp_path / "nowhere", tmp_path)
    stamps.sign()
    (stamps.root / "vehicles/aaav.txt").write_text("Another caption.")
    with pytest.raises(DataError, match=r"is not tuxpaint-stamps-default 2022\.06\.04-1.*apt-get download"):
        TuxpaintStampsConfig(folder=str(stamps.folder)).load(tmp_path, tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe broken", None])
def test_corrupt_files_are_named(stamps: Stamps, content: bytes | None) -> None:
    if content is None:
        (stamps.root / "town/aaat.png").write_bytes(b"no picture")
        match = r"aaat\.png is missing or corrupt"
    else:
        (stamps.root / "town/aaat.txt").write_bytes(content)
        match = r"aaat\.txt is corrupt"
    with pytest.raises(DataError, match=match):
        stamps.load()


def test_a_damaged_comparison_is_made_again(stamps: Stamps) -> None:
    before = stamps.load()
    (path,) = (stamps.folder / "cache/tuxpaint_stamps").glob("near-*.json")
    path.write_text("[[1")
    assert stamps.load().spec == before.spec


@pytest.mark.real_data
@soundfile_needed
@pytest.mark.skipif(not REAL, reason="HARNESS_TUXPAINT_DIR does not name the unpacked package tuxpaint-stamps-default")
def test_real_data(tmp_path: Path) -> None:
    table = TuxpaintStampsConfig(folder=REAL).load(Path(), tmp_path)
    assert len(table.ids) == 703
    assert table.spec.task.num_outputs == 12
    assert table.spec.fingerprint == "1c916e963055e2fb9777833f2d239a0a8f57542c3412f07470eaaaecddcdd04f"
    assert {split: len(rows) for split, rows in table.splits.items()} == {"train": 433, "valid": 143, "test": 127}
    for name in ("text", "audio"):
        home: dict[Any, str] = {}
        for split in SPLITS:
            for row in table.splits[split].tolist():
                value = table.values[name][row]
                key = value.lower() if isinstance(value, str) else value.tobytes()
                assert home.setdefault(key, split) == split
    assert all((255 - table.values["image"][row].astype(int)).mean() > 1 for row in range(len(table.ids)))
