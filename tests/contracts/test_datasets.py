"""Every registered data set keeps the contract; those that are not on this machine are skipped with the reason."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import registry
from harness.dataset import DatasetConfig
from harness.testing.datasets import DatasetContract

#: Test name -> data set and options, beside the defaults of every registered one.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: (name, {}) for name in registry.datasets.names() if name != "folder"},
    **{
        f"synthetic_{task}": ("synthetic", {"task": task, "modalities": count, "sequence_length": length})
        for task, count, length in (("binary", 3, 1), ("multilabel", 4, 5), ("regression", 2, 3))
    },
    "cdda_name": ("cdda", {"text": "name"}),
}

for _test, (_name, _options) in VARIANTS.items():
    globals()[f"Test_{_test}"] = type(f"Test_{_test}", (DatasetContract,), {"dataset": _name, "options": _options})


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
