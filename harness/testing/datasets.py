"""Contract of data sets: ids, splits, labels and values are what the spec says, every time they are loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from harness import registry
from harness.config import PathsConfig
from harness.dataset import DatasetConfig, check_table
from harness.errors import DataError, DependencyError
from harness.features import content_digest
from harness.files import Folders
from harness.metrics import metrics_for
from harness.types import SPLITS, DataTable

_LOADED: dict[tuple[str, str], DataTable] = {}


class DatasetContract:
    """What every data set keeps; derive a test class and set `dataset`.

    Data and caches are where runs look for them (`HARNESS_HOME`).  A data set whose packages or files are not on
    this machine is skipped with the reason that `load` gives.

    Attributes:
        dataset: Registered name.
        options: Options of its config.
        checked_values: How many raw values per modality are read.
    """

    dataset: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    checked_values: ClassVar[int] = 25

    def config(self) -> DatasetConfig:
        """The config under test."""
        config = registry.datasets.get(self.dataset)(**self.options)
        assert isinstance(config, DatasetConfig)
        return config

    def table(self) -> DataTable:
        """The loaded data set, once per session."""
        key = (self.dataset, json.dumps(dict(self.options), sort_keys=True, default=str))
        try:
            if key not in _LOADED:
                _LOADED[key] = _load_now(self.config())
            return _LOADED[key]
        except DataError as error:
            if isinstance(error, DependencyError) or _says_how_to_obtain(self.config(), error):
                pytest.skip(str(error))
            raise

    def test_documented(self) -> None:
        """Summary, citation, licence, card and, for real data, how to obtain them are there."""
        config = self.config()
        assert config.summary, "set `summary`"
        assert config.citation, "set `citation`"
        assert config.license, "set `license`"
        assert config.obtain or not config.real, "set `obtain`"
        assert config.card, "set `card`"
        assert config.card_path().is_file(), f"write {config.card_path()}"

    def test_consistent(self) -> None:
        """Ids are unique, splits disjoint and not empty, labels fit the task, no sample is without modality."""
        table = self.table()
        check_table(table)
        assert set(table.splits) == set(SPLITS)
        assert len(table.labels) == len(table.ids)

    def test_spec(self) -> None:
        """Name, licence, fingerprint and task of the spec are whole, and the primary metric suits the task."""
        spec = self.table().spec
        assert spec.name
        assert spec.version
        assert spec.license
        assert len(spec.fingerprint) >= 16
        assert len(set(spec.modality_names)) == len(spec.modalities) >= 1
        assert set(self.table().values) == set(spec.modality_names)
        assert len(spec.task.labels) == spec.task.num_outputs
        assert metrics_for(spec.task)[0] == spec.task.primary_metric

    def test_labels_can_be_learned(self) -> None:
        """Labels have the task's type, and every class of valid and test occurs in train."""
        table = self.table()
        if table.spec.task.kind in ("binary", "multiclass"):
            assert table.labels.dtype == np.int64
            assert table.labels.ndim == 1
            train = set(table.labels[table.splits["train"]].tolist())
            assert set(table.labels[np.concatenate([table.splits["valid"], table.splits["test"]])].tolist()) <= train
        else:
            assert table.labels.dtype == np.float32
            assert table.labels.shape == (len(table.ids), table.spec.task.num_outputs)
            if table.spec.task.kind == "multilabel":
                assert set(np.unique(table.labels).tolist()) <= {0.0, 1.0}

    def test_values_fit_the_spec(self) -> None:
        """Raw values have the type and shape that their modality declares."""
        table = self.table()
        for column, modality in enumerate(table.spec.modalities):
            values = table.values[modality.name]
            assert len(values) == len(table.ids)
            rows = np.flatnonzero(table.available[:, column])
            for row in rows[:: max(1, len(rows) // self.checked_values)]:
                value = values[int(row)]
                where = f"{modality.name} of {table.ids[row]!r}"
                if modality.kind == "text":
                    assert isinstance(value, str), where
                    assert value.strip(), f"{where} is empty text; mark it as not available"
                    continue
                assert isinstance(value, np.ndarray), where
                if modality.kind == "image":
                    assert value.dtype == np.uint8, where
                    assert value.ndim == 3, where
                    assert value.shape[2] == 3, where
                else:
                    assert value.dtype == np.float32, where
                    assert np.isfinite(value).all(), where
                if modality.shape is not None:
                    assert len(value.shape) == len(modality.shape), where
                    for size, declared in zip(value.shape, modality.shape, strict=True):
                        assert declared in (None, size), f"{where}: shape {value.shape}, declared {modality.shape}"

    def test_splits_do_not_cut_groups(self) -> None:
        """Samples of one near-duplicate group lie in one split."""
        table = self.table()
        if table.groups is None:
            pytest.skip("the data set declares no groups")
        assert len(table.groups) == len(table.ids)
        home: dict[int, str] = {}
        for split in SPLITS:
            for row in table.splits[split]:
                assert home.setdefault(int(table.groups[row]), split) == split, f"group of {table.ids[row]!r} is cut"

    def test_no_sample_is_in_two_splits_under_two_ids(self) -> None:
        """No two samples of different splits have the same raw values in all their modalities."""
        table = self.table()
        home: dict[tuple[int | None, ...], tuple[str, str]] = {}
        names = table.spec.modality_names
        for split in SPLITS:
            for row in table.splits[split].tolist():
                there = table.available[row]
                content = tuple(
                    content_digest(table.values[name][row]) if there[column] else None
                    for column, name in enumerate(names)
                )
                other, first = home.setdefault(content, (split, table.ids[row]))
                assert other == split, f"{first!r} of {other} and {table.ids[row]!r} of {split} are the same sample"

    def test_loads_the_same_again(self) -> None:
        """A second load, out of caches, has the same fingerprint, ids, splits and labels."""
        first, second = self.table(), _load_now(self.config())
        assert first.spec == second.spec
        assert first.ids == second.ids
        assert all(np.array_equal(first.splits[split], second.splits[split]) for split in SPLITS)
        assert np.array_equal(first.labels, second.labels)

    def test_missing_data_say_how_to_obtain_them(self, tmp_path: Path) -> None:
        """With an empty data folder `load` works (data from packages) or ends in a line that holds `obtain`."""
        config = self.config()
        problem: DataError | None = None
        try:
            check_table(config.load(tmp_path, Folders.resolve(PathsConfig()).cache / "datasets"))
        except DataError as error:
            problem = error
        if isinstance(problem, DependencyError):
            assert "pip install" in str(problem)
        elif problem is not None:
            assert _says_how_to_obtain(config, problem), f"{problem} does not say: {config.obtain}"
            assert "\n" not in str(problem)


def _says_how_to_obtain(config: DatasetConfig, error: DataError) -> bool:
    return bool(config.obtain) and config.obtain.rstrip(".") in str(error)


def _load_now(config: DatasetConfig) -> DataTable:
    folders = Folders.resolve(PathsConfig())
    return config.load(folders.data, folders.cache / "datasets")
