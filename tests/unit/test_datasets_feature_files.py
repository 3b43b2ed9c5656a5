"""Feature-file data sets on small files in their official formats: what is read, and what every wrong file says."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness import registry
from harness.cli import main
from harness.config import EncoderConfig
from harness.dataset import DatasetConfig
from harness.datasets import _mmsa
from harness.datasets._feature_files import file_digests, shortened
from harness.datasets.ch_sims import ChSimsConfig
from harness.datasets.cmu_mosei import CmuMoseiConfig
from harness.datasets.cmu_mosi import CmuMosiConfig
from harness.datasets.iemocap import IemocapConfig
from harness.datasets.mer2024 import Mer2024Config
from harness.datasets.msp_improv import MspImprovConfig
from harness.errors import EXIT_DATA, DataError, DependencyError, UsageError
from harness.features import FeatureStore
from harness.testing.feature_files import mmsa, write_iemocap, write_mer2024, write_mmsa, write_msp_improv
from harness.types import SPLITS, DataTable

NAMES = ("iemocap", "msp_improv", "cmu_mosi", "cmu_mosei", "ch_sims", "mer2024")


class Files:
    """A folder with a data set, and a cache."""

    def __init__(self, root: Path, config: type[DatasetConfig], **options: Any) -> None:
        self.folder, self.cache = root / "data", root / "cache"
        self.config, self.options = config, options

    def load(self, **options: Any) -> DataTable:
        config: Any = self.config
        table = config(folder=str(self.folder), **{**self.options, **options}).load(Path("unused"), self.cache)
        assert isinstance(table, DataTable)
        return table

    def fails(self, *words: str, obtain: bool = True, **options: Any) -> None:
        """Loading ends in one line that holds the words and says how to get the data."""
        with pytest.raises(DataError) as caught:
            self.load(**options)
        said(caught.value, *words, *([self.config.obtain] if obtain else []))


def said(error: DataError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert error.exit_code == EXIT_DATA
    for word in words:
        assert word in text, f"{word!r} not in {text!r}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that tests copy."""
    root = tmp_path_factory.mktemp("written")
    write_iemocap(root / "iemocap")
    write_msp_improv(root / "msp_improv")
    write_mer2024(root / "mer2024")
    return {name: root / name for name in ("iemocap", "msp_improv", "mer2024")}


def copied(written: dict[str, Path], name: str, root: Path, config: type[DatasetConfig]) -> Files:
    files = Files(root, config)
    shutil.copytree(written[name], files.folder)
    return files


@pytest.fixture
def iemocap(written: dict[str, Path], tmp_path: Path) -> Files:
    return copied(written, "iemocap", tmp_path, IemocapConfig)


@pytest.fixture
def improv(written: dict[str, Path], tmp_path: Path) -> Files:
    return copied(written, "msp_improv", tmp_path, MspImprovConfig)


@pytest.fixture
def mer(written: dict[str, Path], tmp_path: Path) -> Files:
    return copied(written, "mer2024", tmp_path, Mer2024Config)


class Pickled(Files):
    """A feature file of MMSA, written when it is loaded."""

    def __init__(self, root: Path, config: type[DatasetConfig], file: str, data: dict[str, Any]) -> None:
        super().__init__(root, config)
        self.path, self.data = self.folder / file, data

    def load(self, **options: Any) -> DataTable:
        write_mmsa(self.path, self.data)
        return super().load(**options)


@pytest.fixture
def mosi(tmp_path: Path) -> Pickled:
    data = mmsa(widths=(5, 20, 12), lengths=(50, 50, 50))
    return Pickled(tmp_path, CmuMosiConfig, "aligned_50.pkl", data)


@pytest.fixture
def sims(tmp_path: Path) -> Pickled:
    data = mmsa(widths=(33, 20, 12), lengths=(400, 55, 39), strongest=1.0, measured=True)
    return Pickled(tmp_path, ChSimsConfig, "unaligned_39.pkl", data)


# All of them.


@pytest.mark.parametrize("name", NAMES)
def test_nothing_there(name: str, tmp_path: Path) -> None:
    config = registry.datasets.get(name)()
    assert isinstance(config, DatasetConfig)
    with pytest.raises(DataError) as caught:
        config.load(tmp_path, tmp_path)
    said(caught.value, f"no folder {tmp_path / name}", config.obtain)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError) as caught:
        config.load(tmp_path, tmp_path)
    said(caught.value, str(tmp_path / name), "lacks", config.obtain)


@pytest.mark.parametrize("name", NAMES)
def test_the_command_ends_with_3(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", f"dataset={name}", f"dataset.folder={tmp_path}/none", "method=zero_fill", "protocol=any_0.5"]
    assert main([*arguments, f"paths.home={tmp_path}", "device=cpu"]) == EXIT_DATA
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert f"no folder {tmp_path}/none" in captured.err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (IemocapConfig(fold=11), "between 1 and 10"),
        (IemocapConfig(fold=0), "between 1 and 10"),
        (IemocapConfig(max_tokens=-1), "max_tokens=-1"),
        (MspImprovConfig(fold=13), "between 1 and 12"),
        (CmuMosiConfig(task="binary"), "classification, regression"),
        (CmuMoseiConfig(max_tokens=-2), "max_tokens=-2"),
        (Mer2024Config(fold=6), "between 1 and 5"),
        (Mer2024Config(test="test2"), "fold, test1"),
        (Mer2024Config(audio="../elsewhere"), "name of a folder below features"),
        (Mer2024Config(text=""), "name of a folder below features"),
    ],
)
def test_options_out_of_range(config: DatasetConfig, words: str) -> None:
    with pytest.raises(UsageError, match="dataset") as caught:
        config.validate()
    assert words in str(caught.value)


@pytest.mark.parametrize(("length", "most"), [(7, 3), (50, 50), (51, 50), (340, 50), (5, 9), (1, 1), (9, 1)])
def test_long_sequences_become_means_of_equal_windows(length: int, most: int) -> None:
    sequence = np.random.default_rng(length).normal(size=(length, 4)).astype(np.float32)
    short = shortened(sequence, most)
    assert short.dtype == np.float32
    assert len(short) == min(length, most)
    sizes = []
    for window in range(len(short)):
        start, stop = window * length // len(short), (window + 1) * length // len(short)
        sizes.append(stop - start)
        np.testing.assert_allclose(short[window], sequence[start:stop].mean(axis=0), rtol=1e-5, atol=1e-6)
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1
    assert shortened(sequence, 0) is sequence


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = file_digests([path], tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("harness.datasets._feature_files.file_sha256", lambda _: pytest.fail("hashed again"))
        assert file_digests([path], tmp_path / "cache") == first
    for memo in (tmp_path / "cache/feature_files").glob("*.json"):
        memo.write_text("damaged")
    assert file_digests([path], tmp_path / "cache") == first
    path.write_bytes(b"other")
    assert file_digests([path], tmp_path / "cache") != first


# IEMOCAP and MSP-IMPROV.


def test_iemocap_is_read(iemocap: Files) -> None:
    table = iemocap.load()
    assert table.spec.name == "iemocap_fold1"
    assert table.spec.modality_names == ("audio", "video", "text")
    assert table.spec.task.labels == ("happy", "angry", "sad", "neutral")
    assert [len(table.splits[split]) for split in SPLITS] == [24, 8, 8]
    assert table.split_ids("train")[:2] == ["Ses00F_impro01_F000", "Ses00F_impro01_F001"]
    labels = np.load(iemocap.folder / "target/1/trn_label.npy")
    np.testing.assert_array_equal(table.labels[table.splits["train"]], labels.argmax(axis=1))
    with h5py.File(iemocap.folder / "L/bert_large.h5") as file:
        np.testing.assert_array_equal(table.values["text"][3], file[table.ids[3]][()])
    assert table.card["dialogues in two splits"] == 0


def test_audio_of_iemocap_is_standardised_by_the_fold(iemocap: Files) -> None:
    table = iemocap.load(max_tokens=0)
    with (
        h5py.File(iemocap.folder / "A/comparE.h5") as file,
        h5py.File(iemocap.folder / "A/comparE_mean_std.h5") as norm,
    ):
        for row in (0, 30):
            expected = (file[table.ids[row]][()] - norm["1/mean"][()]) / norm["1/std"][()]
            np.testing.assert_allclose(table.values["audio"][row], expected, rtol=1e-4, atol=1e-4)
    frames = np.concatenate([table.values["audio"][int(row)] for row in table.splits["train"]])
    np.testing.assert_allclose(frames.mean(axis=0), 0, atol=1e-3)
    assert np.abs(np.concatenate([table.values["video"][row] for row in range(24)]).mean()) > 0.5  # video is left alone


def test_folds_have_their_own_target_and_statistics(iemocap: Files) -> None:
    first = iemocap.load()
    iemocap.fails("lacks target/2/trn_label.npy", fold=2)
    shutil.copytree(iemocap.folder / "target/1", iemocap.folder / "target/2")
    second = iemocap.load(fold=2)
    assert second.spec.name == "iemocap_fold2"
    assert second.spec.fingerprint != first.spec.fingerprint
    assert not np.allclose(first.values["audio"][0], second.values["audio"][0])
    np.testing.assert_array_equal(first.values["text"][0], second.values["text"][0])


def test_audio_of_improv_is_standardised_by_train_alone(improv: Files) -> None:
    """The released code takes mean and deviation of every utterance, test included."""
    table = improv.load(max_tokens=0)
    train = [table.ids[row] for row in table.splits["train"]]
    with h5py.File(improv.folder / "A/comparE_raw.h5") as file:
        frames = np.concatenate([file[name][()] for name in train]).astype(np.float64)
        every = np.concatenate([value[()] for value in file.values()]).astype(np.float64)
        raw = file[table.ids[-1]][()]
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    assert deviation[7] == 0  # a column that never changes
    deviation[7] = 1
    np.testing.assert_allclose(table.values["audio"][-1], (raw - mean) / deviation, rtol=1e-4, atol=1e-4)
    assert not np.allclose(mean, every.mean(axis=0), rtol=1e-4)
    assert (table.values["audio"][0][:, 7] == 0).all()

    before = table.values["audio"][0]
    with h5py.File(improv.folder / "A/comparE_raw.h5", "a") as file:
        file[table.ids[-1]][...] = 9000
    np.testing.assert_array_equal(improv.load(max_tokens=0).values["audio"][0], before)


def test_improv_is_read(improv: Files) -> None:
    table = improv.load()
    assert table.spec.name == "msp_improv_fold1"
    assert table.spec.task.primary_metric == "f1_macro"
    np.testing.assert_array_equal(table.labels[table.splits["test"]], np.load(improv.folder / "target/1/tst_label.npy"))
    assert table.ids[0] == "MSP-IMPROV-S00A-F01-P-FM00"


def test_names_may_be_objects(improv: Files) -> None:
    """As numpy stores names of different kinds; not by running the pickle."""
    path = improv.folder / "target/1/val_int2name.npy"
    fingerprint = improv.load().spec.fingerprint
    np.save(path, np.load(path).astype(object))
    assert improv.load().spec.fingerprint == fingerprint


def test_fingerprint_follows_contents_and_options(iemocap: Files, tmp_path: Path) -> None:
    spec = iemocap.load().spec
    assert iemocap.load(max_tokens=49).spec.fingerprint != spec.fingerprint
    moved = Files(tmp_path / "elsewhere", IemocapConfig)
    shutil.copytree(iemocap.folder, moved.folder)
    assert moved.load().spec == spec
    with h5py.File(iemocap.folder / "V/denseface.h5", "a") as file:
        file["Ses00F_impro01_F000"][0, 0] += 1
    assert iemocap.load().spec.fingerprint != spec.fingerprint


FIRST = "Ses00F_impro01_F000"


def _edit_h5(path: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with h5py.File(folder / path, "a") as file:
            change(file)

    return edit


def _replace(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        if value is not None:
            file[name] = value

    return change


def _regroup(file: Any) -> None:
    del file[FIRST]
    file.create_group(FIRST)


def _save(path: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / path, change(np.load(folder / path)))


def _write(path: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).write_bytes(content)


STATISTICS = "A/comparE_mean_std.h5"
BROKEN_IEMOCAP: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no video file": (lambda folder: (folder / "V/denseface.h5").unlink(), ["lacks V/denseface.h5"]),
    "no statistics": (lambda folder: (folder / STATISTICS).unlink(), ["lacks A/comparE_mean_std.h5"]),
    "no target": (lambda folder: shutil.rmtree(folder / "target"), ["lacks target/1/trn_label.npy", "and 1 more"]),
    "not HDF5": (
        _write("L/bert_large.h5", b"<html>quota exceeded</html>"),
        ["L/bert_large.h5", "cannot be read as HDF5"],
    ),
    "empty file": (_write("A/comparE.h5", b""), ["A/comparE.h5", "cannot be read as HDF5"]),
    "half a download": (
        lambda folder: (folder / "V/denseface.h5").write_bytes((folder / "V/denseface.h5").read_bytes()[:9000]),
        ["V/denseface.h5", "cannot be read as HDF5", "truncated"],
    ),
    "utterance missing": (
        _edit_h5("V/denseface.h5", _replace(FIRST, None)),
        ["V/denseface.h5 lacks 1 of 40 utterances: " + FIRST],
    ),
    "other width": (
        _edit_h5("A/comparE.h5", _replace(FIRST, np.zeros((4, 88), np.float32))),
        ["A/comparE.h5", repr(FIRST), "[4, 88]", "[T, 130]"],
    ),
    "pooled already": (_edit_h5("V/denseface.h5", _replace(FIRST, np.zeros(342, np.float32))), ["[342]", "[T, 342]"]),
    "no step": (
        _edit_h5("L/bert_large.h5", _replace(FIRST, np.zeros((0, 1024), np.float32))),
        ["[0, 1024]", "at least 1"],
    ),
    "text": (_edit_h5("L/bert_large.h5", _replace(FIRST, "words")), [repr(FIRST), "expected numbers [T, 1024]"]),
    "a group": (_edit_h5("L/bert_large.h5", _regroup), ["expected numbers [T, 1024]"]),
    "fold missing": (_edit_h5(STATISTICS, _replace("1", None)), ["has the keys 10, 2, 3", "expected 1;"]),
    "std missing": (_edit_h5(STATISTICS, _replace("1/std", None)), ["group 1, has the keys mean, expected mean, std"]),
    "std of 0": (_edit_h5(STATISTICS, _replace("1/std", np.zeros(130))), ["std is not positive"]),
    "mean NaN": (_edit_h5(STATISTICS, _replace("1/mean", np.full(130, np.nan))), ["mean is not finite"]),
    "short mean": (_edit_h5(STATISTICS, _replace("1/mean", np.zeros(88))), ["mean has shape [88], expected [130]"]),
    "class numbers": (
        _save("target/1/trn_label.npy", lambda labels: labels.argmax(axis=1)),
        ["[24]", "one-hot rows of 4"],
    ),
    "six classes": (
        _save("target/1/trn_label.npy", lambda labels: np.eye(6)[:24]),
        ["expected one-hot rows of 4 classes"],
    ),
    "two hot": (
        _save("target/1/val_label.npy", lambda labels: labels + np.eye(8, 4)),
        ["val_label.npy, row 0", "one-hot"],
    ),
    "soft": (_save("target/1/val_label.npy", lambda labels: labels * 0.5), ["val_label.npy, row 0", "one-hot"]),
    "a label too few": (
        _save("target/1/tst_label.npy", lambda labels: labels[1:]),
        ["tst_label.npy", "8 names of tst_int2name"],
    ),
    "names are numbers": (
        _save("target/1/trn_int2name.npy", lambda names: np.arange(24)),
        ["trn_int2name.npy", "a name per row"],
    ),
    "names are none": (
        _save("target/1/trn_int2name.npy", lambda names: names[:, :0]),
        ["trn_int2name.npy", "a name per row"],
    ),
    "not npy": (_write("target/1/tst_label.npy", b"nonsense"), ["tst_label.npy", "numpy's format"]),
    "half an npy": (_write("target/1/tst_label.npy", b""), ["tst_label.npy", "numpy's format"]),
}


@pytest.mark.parametrize("name", BROKEN_IEMOCAP)
def test_wrong_files_of_iemocap(name: str, iemocap: Files) -> None:
    change, words = BROKEN_IEMOCAP[name]
    change(iemocap.folder)
    iemocap.fails(*words)


def test_wrong_labels_of_improv(improv: Files) -> None:
    path = improv.folder / "target/1/val_label.npy"
    good = np.load(path)
    for bad, words in (
        (good + 1, "row 3: 4 is not of class numbers 0 to 3"),
        (good - 1.0, "row 0: -1.0 is not of class numbers"),
        (good + 0.5, "row 0: 0.5 is not of class numbers"),
        (np.eye(4)[good], "has shape [8, 4]"),
        (good.astype(str), "type <U"),
    ):
        np.save(path, bad)
        improv.fails("val_label.npy", words)


def test_an_utterance_in_two_parts(improv: Files) -> None:
    names = np.load(improv.folder / "target/1/tst_int2name.npy")
    names[0] = np.load(improv.folder / "target/1/trn_int2name.npy")[5]
    np.save(improv.folder / "target/1/tst_int2name.npy", names)
    improv.fails("duplicate ids", str(names[0]), obtain=False)


def test_an_empty_part(improv: Files) -> None:
    for what in ("label", "int2name"):
        path = improv.folder / f"target/1/val_{what}.npy"
        np.save(path, np.load(path)[:0])
    improv.fails("split 'valid' is empty", obtain=False)


def test_values_that_are_no_numbers_are_named_when_read(iemocap: Files) -> None:
    with h5py.File(iemocap.folder / "V/denseface.h5", "a") as file:
        file[FIRST][2, 3] = np.nan
    table = iemocap.load()
    with pytest.raises(DataError) as caught:
        table.values["video"][0]
    said(caught.value, "V/denseface.h5", repr(FIRST), "NaN or infinite")
    assert np.isfinite(table.values["video"][1]).all()


def test_pickled_names_do_not_run(improv: Files, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    np.save(improv.folder / "target/1/trn_int2name.npy", np.array([Bomb(marker)], dtype=object))
    improv.fails("trn_int2name.npy", "asks for", "nothing was run")
    assert not marker.exists()


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.marker}'",)


def test_without_h5py(iemocap: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    with pytest.raises(DependencyError) as caught:
        iemocap.load()
    said(caught.value, "h5py is not installed", "pip install 'missing-modality-harness[features]'")


# CMU-MOSI, CMU-MOSEI, CH-SIMS.


def test_mosi_is_read(mosi: Pickled) -> None:
    table = mosi.load()
    assert table.spec.name == "cmu_mosi"
    assert table.spec.task.labels == ("negative", "neutral", "positive")
    assert [len(table.splits[split]) for split in SPLITS] == [24, 9, 9]
    assert table.split_ids("valid") == mosi.data["valid"]["id"]
    np.testing.assert_array_equal(table.labels[table.splits["test"]], mosi.data["test"]["classification_labels"])
    own = int(mosi.data["train"]["text_bert"][4, 1].sum())
    assert table.values["text"][4].shape == (own, 12)
    for name, field in (("audio", "audio"), ("video", "vision"), ("text", "text")):
        raw = mosi.data["train"][field][4]
        filled = np.flatnonzero(raw.any(axis=1))
        np.testing.assert_array_equal(table.values[name][4], raw[: filled[-1] + 1].astype(np.float32))


def test_regression(mosi: Pickled, sims: Pickled) -> None:
    table = mosi.load(task="regression")
    assert table.spec.name == "cmu_mosi_regression"
    assert (table.spec.task.kind, table.spec.task.primary_metric) == ("regression", "mae")
    expected = mosi.data["train"]["regression_labels"].astype(np.float32)[:, None]
    np.testing.assert_array_equal(table.labels[table.splits["train"]], expected)
    assert table.spec.fingerprint != mosi.load().spec.fingerprint
    assert np.abs(sims.load(task="regression").labels).max() <= 1


def test_folder_above_processed_and_other_file(mosi: Pickled) -> None:
    spec = mosi.load().spec
    mosi.path = mosi.folder / "Processed/aligned_50.pkl"
    (mosi.folder / "aligned_50.pkl").unlink()
    assert mosi.load().spec == spec
    mosi.fails("lacks mine.pkl", file="mine.pkl")
    shutil.copy(mosi.path, mosi.folder / "Processed/mine.pkl")
    assert mosi.load(file="mine.pkl").spec == spec


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(protocol: int, mosi: Pickled) -> None:
    expected = mosi.load()
    other = Files(mosi.folder.parent, CmuMosiConfig, file="other.pkl")
    write_mmsa(mosi.folder / "other.pkl", mosi.data, protocol)
    table = other.load()
    assert table.ids == expected.ids
    np.testing.assert_array_equal(table.labels, expected.labels)
    np.testing.assert_array_equal(table.values["audio"][5], expected.values["audio"][5])


def test_lengths_of_unaligned_files(sims: Pickled) -> None:
    """Zeros within the length are data (no face in sight), zeros behind it are padding."""
    part = sims.data["train"]
    part["vision"][2, 5:] = 0
    part["vision_lengths"][2] = 30
    part["audio"][3] = 0
    part["audio_lengths"][3] = 12
    part["audio_lengths"][4] = 10_000  # before it was cut to 400
    table = sims.load(max_tokens=0)
    assert table.values["video"][2].shape == (30, 20)
    assert table.values["audio"][3].shape == (12, 33)
    assert len(table.values["audio"][4]) == 400
    assert len(table.values["audio"][5]) == part["audio_lengths"][5]
    assert table.card["sequences of zeros only"] == {"audio": 1, "video": 0, "text": 0}
    assert table.card["padding told by"] == {"audio": "audio_lengths", "video": "vision_lengths", "text": "text_bert"}
    assert len(sims.load().values["audio"][4]) == 50


def test_padding_without_lengths(mosi: Pickled) -> None:
    """Rows of zeros in front or behind; each modality by itself; text by its mask, or by zeros too."""
    part = mosi.data["train"]
    for name in ("audio", "vision", "text"):
        part[name][0] = 1
    part["audio"][0, :7] = 0
    part["audio"][0, 20] = 0
    part["vision"][0, 40:] = 0
    part["vision"][1] = 0
    table = mosi.load()
    assert table.card["padding told by"] == {"audio": "zeros", "video": "zeros", "text": "text_bert"}
    assert table.values["audio"][0].shape == (43, 5)
    assert not table.values["audio"][0][13].any()
    assert table.values["video"][0].shape == (40, 20)
    assert table.values["video"][1].shape == (1, 20)
    assert table.card["sequences of zeros only"]["video"] == 1
    for split in SPLITS:
        del mosi.data[split]["text_bert"]
    part["text"][0, 10:] = 0
    table = mosi.load()
    assert table.card["padding told by"]["text"] == "zeros"
    assert table.values["text"][0].shape == (10, 12)


def test_the_mask_of_a_text_that_bert_filled_up(mosi: Pickled) -> None:
    """BERT's outputs at padding are no zeros: the mask tells."""
    mosi.data["train"]["text"][3] = 1
    own = int(mosi.data["train"]["text_bert"][3, 1].sum())
    assert own < 50
    assert mosi.load().values["text"][3].shape == (own, 12)
    mask = mosi.data["train"]["text_bert"]
    mask[3, 1] = 0
    mask[3, 1, 44:49] = 1
    assert mosi.load().values["text"][3].shape == (5, 12)
    mask[3, 1] = 0
    assert mosi.load().values["text"][3].shape == (1, 12)


def test_padding_in_front_with_lengths(sims: Pickled) -> None:
    part = sims.data["train"]
    part["audio"][2] = 0
    part["audio"][2, -9:] = 1
    part["audio_lengths"][2] = 11
    assert sims.load().values["audio"][2].shape == (11, 33)


def test_minus_infinity_in_audio(mosi: Pickled) -> None:
    mosi.data["train"]["audio"][1, 0, 2:4] = -np.inf
    table = mosi.load()
    assert table.values["audio"][1][0, 2:4].tolist() == [0, 0]
    assert table.card["minus infinity replaced by 0"] == 2


def test_the_pickle_is_read_once(mosi: Pickled, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mosi.load()
    stat = mosi.path.stat()
    with monkeypatch.context() as patch:
        patch.setattr(_mmsa, "load_pickle", lambda _: pytest.fail("read again"))
        patch.setattr("harness.datasets._feature_files.file_sha256", lambda _: pytest.fail("hashed again"))
        os.utime(mosi.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        again = Files(mosi.folder.parent, CmuMosiConfig).load()
        assert again.spec == first.spec
        np.testing.assert_array_equal(again.values["audio"][0], first.values["audio"][0])
    mosi.data["test"]["audio"][0, 0, 0] += 1
    other = mosi.load()
    assert other.spec.fingerprint != first.spec.fingerprint
    row = int(other.splits["test"][0])
    assert other.values["audio"][row][0, 0] == np.float32(mosi.data["test"]["audio"][0, 0, 0])


def test_a_damaged_cache(mosi: Pickled) -> None:
    mosi.load()
    (file,) = mosi.cache.rglob("valid-audio-tokens.npy")
    file.write_bytes(b"")
    mosi.fails(str(file.parent), "delete it and run again", obtain=False)
    shutil.rmtree(file.parent)
    mosi.load()


def test_values_are_mapped_not_held(mosi: Pickled) -> None:
    mosi.load()
    (folder,) = {file.parent for file in mosi.cache.rglob("meta.json")}
    part = _mmsa._converted(mosi.path, folder, "")["train"]
    assert all(isinstance(array, np.memmap) for array in part.arrays.values())
    assert not isinstance(part.sequence("audio", 0), np.memmap)


def _part(split: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Puts a value, or what a function makes of the one there, in place of it."""

    def change(data: dict[str, Any]) -> None:
        data[split][key] = value(data[split][key]) if callable(value) else value

    return change


def _without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]

    return change


BROKEN_MOSI: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "no valid": (_without("valid"), ["has the keys test, train, expected train, valid, test"]),
    "split is a list": (lambda data: data.__setitem__("test", [1]), ["split 'test' is a list, expected a dict with"]),
    "no vision": (_without("test", "vision"), ["split 'test' has the keys", "expected audio, vision, text, id"]),
    "no ids": (_without("train", "id"), ["split 'train' has the keys", "expected audio, vision, text, id"]),
    "no labels": (
        lambda data: [data["valid"].pop(key) for key in ("classification_labels", "regression_labels")],
        ["split 'valid' has the keys", "expected classification_labels, regression_labels"],
    ),
    "no labels of the task": (_without("valid", "classification_labels"), ["expected classification_labels;"]),
    "token ids": (
        _part("train", "text", np.zeros((24, 3, 50), np.int64)),
        ["text is of shape [24, 3, 50] and type int64"],
    ),
    "pooled": (_part("train", "audio", lambda audio: audio.mean(axis=1)), ["audio is of shape [24, 5]", "[N, T, D]"]),
    "a list of arrays": (_part("valid", "vision", list), ["split 'valid': vision is a list"]),
    "rows and ids": (_part("train", "audio", lambda audio: audio[1:]), ["audio has 23 rows for 24 ids"]),
    "other width": (
        _part("test", "audio", lambda audio: audio[:, :, 1:]),
        ["'test' has features of widths [4, 20, 12]"],
    ),
    "labels and ids": (_part("test", "classification_labels", lambda labels: labels[1:]), ["each of 9 ids"]),
    "label 3": (_part("test", "classification_labels", lambda labels: labels + 1), ["not all 0, 1 or 2"]),
    "label words": (_part("test", "classification_labels", lambda labels: ["a"] * 9), ["are no numbers"]),
    "label NaN": (_part("test", "regression_labels", lambda labels: labels * np.nan), ["finite number for each of 9"]),
    "ids are numbers": (_part("test", "id", list(range(9))), ["split 'test': id is no list of names"]),
    "lengths": (_part("train", "audio_lengths", [1, 2]), ["audio_lengths are not one finite number for each of 24"]),
    "NaN": (
        _part("train", "vision", lambda vision: _set(vision, np.nan)),
        ["vision holds NaN", "1 samples", "train0$_$1"],
    ),
    "infinity": (
        _part("train", "audio", lambda audio: _set(audio, np.inf)),
        ["audio holds NaN or infinite", "train0$_$1"],
    ),
    "beyond float32": (_part("train", "audio", lambda audio: _set(audio, 1e300)), ["audio holds NaN or infinite"]),
}


def _set(array: Any, value: float) -> Any:
    array[1, 0, 0] = value
    return array


@pytest.mark.parametrize("name", BROKEN_MOSI)
def test_wrong_feature_files(name: str, mosi: Pickled) -> None:
    change, words = BROKEN_MOSI[name]
    change(mosi.data)
    mosi.fails(str(mosi.path), *words)
    assert not list(mosi.cache.rglob("meta.json")) or name in ("no labels of the task", "label 3")


def test_sentiment_out_of_range(mosi: Pickled, sims: Pickled) -> None:
    mosi.data["valid"]["regression_labels"][0] = 3.4
    mosi.fails("split 'valid': regression_labels are not all between -3 and 3", task="regression")
    mosi.load()
    sims.data["valid"]["regression_labels"][0] = 1.4
    sims.fails("between -1 and 1", task="regression")


def test_files_that_are_no_pickles_of_splits(mosi: Pickled) -> None:
    mosi.folder.mkdir(parents=True)
    plain = Files(mosi.folder.parent, CmuMosiConfig)
    for content, words in (
        (b"", "no whole pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "no whole pickle"),
        (pickle.dumps(mosi.data)[:-5000], "no whole pickle"),
        (pickle.dumps([mosi.data]), "is a list, expected a dict with the keys train, valid, test"),
        (pickle.dumps({"audio": np.zeros(3)}), "has the keys audio, expected train, valid, test"),
    ):
        mosi.path.write_bytes(content)
        plain.fails(str(mosi.path), words)


def test_a_pickle_does_not_run(mosi: Pickled, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    mosi.data["train"]["raw_text"] = Bomb(marker)
    mosi.fails(str(mosi.path), "asks for", "system", "nothing was run")
    assert not marker.exists()


# MER2024.


def test_mer2024_is_read(mer: Files) -> None:
    table = mer.load()
    assert table.spec.name == "mer2024_fold1"
    assert [modality.shape for modality in table.spec.modalities] == [(24,), (16,), (40,)]
    assert table.spec.task.labels == ("neutral", "angry", "happy", "sad", "worried", "surprise")
    assert len(table.ids) == 60
    for row in (0, 59):
        assert table.labels[row] == int(table.ids[row].removeprefix("sample_")) % 6
        path = mer.folder / f"features/Baichuan2-13B-Base-UTT/{table.ids[row]}.npy"
        np.testing.assert_array_equal(table.values["text"][row], np.load(path))


def test_folds_of_mer2024_are_stratified_and_frozen(mer: Files) -> None:
    tables = [mer.load(fold=fold) for fold in range(1, 6)]
    tests = [set(table.split_ids("test")) for table in tables]
    assert len(set.union(*tests)) == sum(map(len, tests)) == 60
    for fold, table in enumerate(tables):
        assert set(table.split_ids("valid")) == tests[(fold + 1) % 5]
        assert set(table.split_ids("train")) == set.union(*tests) - tests[fold] - tests[(fold + 1) % 5]
        for split, share in (("train", 6), ("valid", 2), ("test", 2)):
            counts = np.bincount(table.labels[table.splits[split]], minlength=6)  # type: ignore[index]
            np.testing.assert_array_equal(counts, [share] * 6)
    assert len({table.spec.fingerprint for table in tables}) == 5
    assert tables[0].split_ids("test")[:3] == ["sample_00000002", "sample_00000004", "sample_00000006"]


def test_the_placeholder_labels_of_test1_are_refused(mer: Files) -> None:
    mer.fails("every sample of test1_corpus has the label 'neutral'", "dataset.test=fold", obtain=False, test="test1")


def test_test1_with_labels(mer: Files) -> None:
    _relabel(mer, lambda train, test: [test.update({name: {"emo": "sad"}}) for name in list(test)[:2]])
    table = mer.load(test="test1", fold=2)
    assert table.spec.name == "mer2024_test1_fold2"
    assert len(table.splits["test"]) == 5
    assert set(table.split_ids("valid")) == set(mer.load(fold=2).split_ids("test"))
    assert len(table.splits["train"]) == 48
    assert table.labels[table.splits["test"]].tolist() == [3, 3, 0, 0, 0]


def _relabel(mer: Files, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    path = mer.folder / "label-6way.npz"
    with np.load(path, allow_pickle=True) as archive:
        train, test = archive["train_corpus"].item(), archive["test1_corpus"].item()
    change(train, test)
    np.savez_compressed(path, train_corpus=train, test1_corpus=test)


CLIP = "features/clip-vit-large-patch14-UTT"
BROKEN_MER: dict[str, tuple[Callable[[Files], Any], list[str]]] = {
    "no feature folder": (
        lambda mer: shutil.rmtree(mer.folder / CLIP),
        ["no folder", CLIP, "features holds Baichuan2-13B-Base-UTT, chinese-hubert-large-UTT", "dataset.audio"],
    ),
    "no features": (lambda mer: shutil.rmtree(mer.folder / "features"), ["features holds nothing"]),
    "a vector missing": (
        lambda mer: (mer.folder / CLIP / "sample_00000003.npy").unlink(),
        [CLIP, "lacks the vectors of 1 samples: sample_00000003"],
    ),
    "not an archive": (lambda mer: (mer.folder / "label-6way.npz").write_bytes(b"x"), ["label-6way.npz", "as .npz"]),
    "other keys": (
        lambda mer: np.savez(mer.folder / "label-6way.npz", corpus=np.arange(3)),
        ["has the keys corpus, expected train_corpus"],
    ),
    "a corpus of numbers": (
        lambda mer: np.savez(mer.folder / "label-6way.npz", train_corpus=np.arange(3)),
        ["train_corpus is no dict of samples"],
    ),
    "unknown emotion": (
        lambda mer: _relabel(mer, lambda train, test: train.update(sample_00000001={"emo": "bored"})),
        ["'sample_00000001': emo is 'bored', expected one of neutral, angry"],
    ),
    "no emotion": (
        lambda mer: _relabel(mer, lambda train, test: train.update(sample_00000001="sad")),
        ["'sample_00000001': emo is None"],
    ),
    "a name that leaves the folder": (
        lambda mer: _relabel(mer, lambda train, test: train.update({"../x": {"emo": "sad"}})),
        ["'../x' is not the name of a sample"],
    ),
    "other width": (
        lambda mer: np.save(mer.folder / CLIP / "sample_00000003.npy", np.zeros(7, np.float32)),
        [CLIP, "sample_00000003.npy has 7 values", "16"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_MER)
def test_wrong_files_of_mer2024(name: str, mer: Files) -> None:
    change, words = BROKEN_MER[name]
    change(mer)
    mer.fails(*words)


def test_wrong_vectors_of_mer2024(mer: Files) -> None:
    path = mer.folder / CLIP / "sample_00000003.npy"
    for value, words in (
        (np.zeros((4, 16), np.float32), "has shape [4, 16]"),
        (np.zeros(16, np.int64), "type int64"),
        (np.full(16, np.nan, np.float32), "NaN"),
    ):
        np.save(path, value)
        mer.fails(str(path), words, obtain=False)


def test_a_sample_in_both_corpora(mer: Files) -> None:
    _relabel(mer, lambda train, test: test.update(sample_00000001={"emo": "sad"}))
    mer.fails("1 samples are in both corpora: sample_00000001", test="test1")


def test_a_label_file_does_not_run(mer: Files, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    np.savez(mer.folder / "label-6way.npz", train_corpus=np.array({"a": Bomb(marker)}, dtype=object))
    mer.fails("label-6way.npz", "asks for", "system", "nothing was run")
    assert not marker.exists()


# What methods receive.


def test_features_have_masks(iemocap: Files, sims: Pickled, tmp_path: Path) -> None:
    """Sequences of different length meet as padded tokens with masks."""
    for table in (iemocap.load(), sims.load(), iemocap.load(max_tokens=30)):
        for modality in table.spec.modalities:
            encoder = registry.encoders.get("identity")()
            assert isinstance(encoder, EncoderConfig)
            features = FeatureStore(tmp_path / "features").get(table, modality, "identity", encoder)
            lengths = [len(table.values[modality.name][row]) for row in range(len(table.ids))]
            np.testing.assert_array_equal(features.mask.sum(axis=1), lengths)
            assert features.tokens.shape == (len(lengths), max(lengths), modality.shape[1])  # type: ignore[index]
            assert max(lengths) <= 50
            row = int(np.argmin(lengths))
            np.testing.assert_array_equal(features.tokens[row, : lengths[row]], table.values[modality.name][row])
            assert not features.tokens[row, lengths[row] :].any()
