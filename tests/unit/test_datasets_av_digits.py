"""av_digits: speakers and pictures are disjoint, noise is frozen; on tiny recordings, and the real ones if at hand."""

from __future__ import annotations

import os
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.datasets import av_digits
from harness.datasets._signals import frozen_noise, read_wav
from harness.datasets.av_digits import AvDigitsConfig
from harness.errors import DataError, UsageError
from harness.types import SPLITS, DataTable

REAL = os.environ.get("HARNESS_FSDD_DIR", "")
SPEAKERS = ("ann", "ben", "cat", "dan", "eve", "fay")

pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn (extra audio) is not installed")


def _write(path: Path, samples: np.ndarray[Any, Any], rate: int = 8000, width: int = 2, channels: int = 1) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for speaker in SPEAKERS:
        for digit in range(10):
            for take in range(2):
                sound = rng.integers(-9999, 9999, 800, dtype=np.int16)
                _write(folder / f"{digit}_{speaker}_{take}.wav", sound)
    digest = av_digits._content_digest(sorted(folder.glob("*.wav")))
    monkeypatch.setattr(av_digits, "RECORDINGS_SHA256", digest)
    return tmp_path


def _load(folder: Path, **options: Any) -> DataTable:
    return AvDigitsConfig(folder=str(folder), **options).load(Path("unused"), Path("unused"))


def _speakers(table: DataTable, split: Any) -> set[str]:
    return {table.ids[row].split("_")[1] for row in table.splits[split]}


def test_plain_load(recordings: Path) -> None:
    table = _load(recordings)
    assert len(table.ids) == 120
    row = table.ids.index("7_cat_1")
    assert table.labels[row] == 7
    assert table.values["audio"][row].shape == (1600,)
    assert table.values["image"][row].shape == (64,)
    assert table.values["image"][row].dtype == np.float32
    assert _load(recordings / "recordings").spec == table.spec


def test_each_speaker_is_in_test_once(recordings: Path) -> None:
    tested = []
    for fold in range(6):
        table = _load(recordings, fold=fold)
        parts = [_speakers(table, split) for split in SPLITS]
        assert [len(part) for part in parts] == [4, 1, 1]
        assert len(set.union(*parts)) == 6
        tested += list(parts[2])
        assert table.spec.name == (f"av_digits_fold{fold}" if fold else "av_digits")
    assert sorted(tested) == list(SPEAKERS)


def test_pictures_show_the_digit_and_stay_in_one_split(recordings: Path) -> None:
    pixels, digits = av_digits._digits()
    home: dict[int, str] = {}
    families: dict[int, str] = {}
    table = _load(recordings, image_noise=0.0)
    assert table.groups is not None
    for split in SPLITS:
        for row in table.splits[split].tolist():
            (match,) = np.flatnonzero((pixels == np.rint(table.values["image"][row] * 16)).all(axis=1))
            assert digits[match] == table.labels[row]
            assert home.setdefault(int(match), split) == split
            assert families.setdefault(int(table.groups[row]), split) == split
    assert len(home) == 120  # a picture is used again only when its split has no other


def test_pictures_are_reused_in_turn() -> None:
    ids = tuple(f"3_ann_{take}" for take in range(7))
    rows = {split: np.arange(7) if split == "train" else np.empty(0, np.int64) for split in SPLITS}
    shown = {split: np.arange(3) if split == "train" else np.empty(0, np.int64) for split in SPLITS}
    pictures = av_digits._pair(ids, np.full(7, 3), rows, np.full(3, 3), shown)  # type: ignore[arg-type]
    assert sorted(np.bincount(pictures).tolist()) == [2, 2, 3]


def test_noise_is_frozen_per_sample(recordings: Path) -> None:
    clean, noisy = _load(recordings, image_noise=0.0), _load(recordings)
    assert clean.spec.name == "av_digits_noise0"
    assert clean.spec.fingerprint != noisy.spec.fingerprint
    added = np.stack([noisy.values["image"][row] - clean.values["image"][row] for row in range(120)])
    np.testing.assert_array_equal(added[5], _load(recordings).values["image"][5] - clean.values["image"][5])
    assert abs(added.std() - 0.4) < 0.02
    assert abs(added.mean()) < 0.02
    assert len(np.unique(added.round(4), axis=0)) == 120
    np.testing.assert_array_equal(noisy.values["audio"][3], clean.values["audio"][3])


def test_frozen_noise_is_what_it_was() -> None:
    np.testing.assert_allclose(frozen_noise("a name", 3), [-1.3184649, -0.1873232, 0.2865509], atol=1e-6)
    np.testing.assert_array_equal(frozen_noise("a name", 3), frozen_noise("a name", 5)[:3])
    many = frozen_noise("another", 20000)
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03
    assert abs((many**4).mean() - 3) < 0.3


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match=r"fold=6 must be between 0 and 5"):
        AvDigitsConfig(fold=6).validate()
    with pytest.raises(UsageError, match=r"image_noise=-0\.1 is not"):
        AvDigitsConfig(image_noise=-0.1).validate()


def test_missing_or_other_recordings_say_how_to_get_them(recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no recordings .*nowhere/fsdd; git clone .* checkout 26eb9aa"):
        AvDigitsConfig().load(tmp_path / "nowhere", tmp_path)
    (recordings / "recordings/0_ann_0.wav").unlink()
    with pytest.raises(DataError, match=r"commit 26eb9aa \(119 found\).*git clone"):
        _load(recordings)


@pytest.mark.parametrize(
    ("content", "match"), [(b"RIFF", "is missing or corrupt"), ("wide", "is not a 16-bit WAV"), ("empty", "with sound")]
)
def test_other_sounds_are_refused(tmp_path: Path, content: bytes | str, match: str) -> None:
    path = tmp_path / "a.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        _write(path, np.zeros(10 if content == "wide" else 0, np.uint8), width=1 if content == "wide" else 2)
    with pytest.raises(DataError, match=match) as caught:
        read_wav(path)
    assert "\n" not in str(caught.value)


def test_channels_are_averaged_and_rates_changed(tmp_path: Path) -> None:
    tone = (8000 * np.sin(2 * np.pi * 500 * np.arange(4410) / 44100)).astype("<i2")
    _write(tmp_path / "stereo.wav", np.stack([tone, np.zeros_like(tone)], axis=1), rate=44100, channels=2)
    clip = read_wav(tmp_path / "stereo.wav")
    assert clip.shape == (1600,)
    np.testing.assert_allclose(np.abs(clip[200:1400]).max(), 8000 / 32768 / 2, rtol=0.02)


@pytest.mark.real_data
@pytest.mark.skipif(not REAL, reason="HARNESS_FSDD_DIR does not name the recordings of FSDD")
def test_real_data() -> None:
    table = _load(Path(REAL))
    assert {split: len(rows) for split, rows in table.splits.items()} == {"train": 2000, "valid": 500, "test": 500}
    assert _speakers(table, "test") == {"george"}
    assert table.spec.fingerprint == "c37fe612a4ecae62b91223d4ab25da1dc5bdf77db7590826e430ff2baef789c7"
