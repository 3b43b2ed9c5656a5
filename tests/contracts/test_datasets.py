"""Every registered data set keeps the contract; those that are not on this machine are skipped with the reason."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from harness import registry
from harness.dataset import DatasetConfig
from harness.testing.datasets import DatasetContract
from harness.testing.feature_files import mmsa, write_iemocap, write_mer2024, write_mmsa, write_msp_improv
from harness.testing.releases import write_food101, write_hateful_memes, write_mmimdb


def write_mosi(folder: Path) -> None:
    write_mmsa(folder / "aligned_50.pkl", mmsa(widths=(5, 20, 24), lengths=(50, 50, 50)))


def write_mosei(folder: Path) -> None:
    write_mmsa(folder / "Processed/aligned_50.pkl", mmsa(widths=(74, 35, 24), lengths=(50, 50, 50)), protocol=5)


def write_sims(folder: Path) -> None:
    data = mmsa(widths=(33, 40, 24), lengths=(400, 55, 39), strongest=1.0, measured=True)
    write_mmsa(folder / "unaligned_39.pkl", data, protocol=2)


#: Data sets that nobody may hand on, and what writes small files in their official format where a user would put them.
WRITERS: Mapping[str, Callable[[Path], None]] = {
    "iemocap": write_iemocap,
    "msp_improv": write_msp_improv,
    "cmu_mosi": write_mosi,
    "cmu_mosei": write_mosei,
    "ch_sims": write_sims,
    "mer2024": write_mer2024,
}

#: Test name -> data set and options, beside the defaults of every registered one.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in registry.datasets.names() if name not in ("folder", *WRITERS)},
    **{
        f"synthetic_{task}": ("synthetic", {"task": task, "modalities": count, "sequence_length": length})
        for task, count, length in (("binary", 3, 1), ("multilabel", 4, 5), ("regression", 2, 3))
    },
    "cdda_name": ("cdda", {"text": "name"}),
}

for _test, (_name, _options) in VARIANTS.items():
    globals()[f"Test_{_test}"] = type(f"Test_{_test}", (DatasetContract,), {"dataset": _name, "options": _options})


class FeatureFileContract(DatasetContract):
    """A data folder with small files in the official format, and default options: never skipped."""

    @pytest.fixture(autouse=True)
    def _home(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        home = tmp_path_factory.getbasetemp() / "feature_files"
        monkeypatch.setenv("HARNESS_HOME", str(home))
        if not (home / "data" / self.dataset).is_dir():
            WRITERS[self.dataset](home / "data" / self.dataset)


for _test, _name, _options in (
    *((name, name, {}) for name in WRITERS),
    ("cmu_mosi_regression", "cmu_mosi", {"task": "regression"}),
    ("ch_sims_regression", "ch_sims", {"task": "regression", "max_tokens": 0}),
    ("iemocap_short", "iemocap", {"max_tokens": 5}),
):
    globals()[f"Test_{_test}"] = type(f"Test_{_test}", (FeatureFileContract,), {"dataset": _name, "options": _options})


def test_small_files_are_written_for_registered_data_sets() -> None:
    assert set(WRITERS) <= set(registry.datasets.names())


class Test_folder(DatasetContract):
    """A small folder with pictures, text, columns of numbers and gaps."""

    dataset = "folder"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder = tmp_path_factory.getbasetemp() / "folder_data_set"
        if not self.folder.is_dir():
            write_folder(self.folder)

    def config(self) -> DatasetConfig:
        modalities = {"picture": "image", "title": "text", "size": "tabular"}
        config = registry.datasets.get("folder")(folder=str(self.folder), modalities=modalities)  # type: ignore[call-arg]
        assert isinstance(config, DatasetConfig)
        return config


#: Downloaded data sets: they are not on machines that run tests, so the real loaders run on small folders.
RELEASES: Mapping[str, tuple[str, Any, Mapping[str, Any]]] = {
    "mmimdb_written": ("mmimdb", write_mmimdb, {}),
    "mmimdb_all_plots_written": ("mmimdb", write_mmimdb, {"text_field": "all_plots"}),
    "hateful_memes_written": ("hateful_memes", write_hateful_memes, {}),
    "food101_written": ("food101", write_food101, {}),
    "food101_own_valid_written": ("food101", write_food101, {"valid": "own", "first_row": "drop"}),
}


class ReleaseContract(DatasetContract):
    """A data set whose folder is written first."""

    write: ClassVar[Any]

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HARNESS_HOME", str(tmp_path_factory.getbasetemp() / "release_home"))
        self.folder = tmp_path_factory.getbasetemp() / f"release_{self.dataset}"
        if not self.folder.is_dir():
            type(self).write(self.folder)

    def config(self) -> DatasetConfig:
        config = registry.datasets.get(self.dataset)(folder=str(self.folder), **self.options)  # type: ignore[call-arg]
        assert isinstance(config, DatasetConfig)
        return config


for _test, (_name, _write, _options) in RELEASES.items():
    _members = {"dataset": _name, "options": _options, "write": staticmethod(_write)}
    globals()[f"Test_{_test}"] = type(f"Test_{_test}", (ReleaseContract,), _members)


def write_folder(folder: Path) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label", "group", "picture", "title", "size:width", "size:height"])
        for row in range(24):
            split = ("train", "train", "valid", "test")[row // 6]
            picture = f"{row}.png" if row % 5 else ""
            if picture:
                Image.fromarray(generator.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(folder / picture)
            title = f"thing number {row}" if row % 7 else ""
            writer.writerow([f"id{row}", split, "ab"[row % 2], row // 2, picture, title, row, row / 3])
