"""Splits, groups and checks that every data set shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.dataset import check_table, grouped_split, join_groups, table_fingerprint
from harness.datasets.synthetic import SyntheticConfig
from harness.errors import DataError
from harness.types import SPLITS


def test_join_groups_is_transitive() -> None:
    assert join_groups([["a"], ["b"], ["a", "c"], [], ["c", "d"], ["d"]]).tolist() == [0, 1, 0, 3, 0, 0]


def test_grouped_split_keeps_groups_whole_and_shares_exact() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 300, size=1000)
    labels = groups % 5
    splits = grouped_split(groups, labels, "salt")
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(1000))
    homes = [set(groups[splits[split]].tolist()) for split in SPLITS]
    assert len(set.union(*homes)) == sum(map(len, homes))
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        for label in range(5):
            found = (labels[splits[split]] == label).sum()
            assert abs(found - share * (labels == label).sum()) <= 3


def test_grouped_split_is_frozen() -> None:
    splits = grouped_split(np.arange(12), np.arange(12) % 2, "salt")
    assert {split: rows.tolist() for split, rows in splits.items()} == {
        "train": [0, 1, 3, 4, 5, 6, 8, 9],
        "valid": [7, 10],
        "test": [2, 11],
    }
    assert any(
        splits[split].tolist() != rows.tolist()
        for split, rows in grouped_split(np.arange(12), np.arange(12) % 2, "other").items()
    )


def test_fingerprint_covers_everything() -> None:
    ids = ["a", "b", "c"]
    splits: dict[Any, Any] = {"train": np.array([0]), "valid": np.array([1]), "test": np.array([2])}
    labels = np.array([0, 1, 0])
    contents = ["x", "y", "z"]
    swapped = {**splits, "valid": np.array([2]), "test": np.array([1])}
    found = {
        table_fingerprint(ids, splits, labels, contents),
        table_fingerprint(["a", "b", "d"], splits, labels, contents),
        table_fingerprint(ids, swapped, labels, contents),
        table_fingerprint(ids, splits, np.array([0, 1, 1]), contents),
        table_fingerprint(ids, splits, labels, ["x", "y", "w"]),
    }
    assert len(found) == 5
    assert table_fingerprint(ids, splits, labels, [b"x", b"y", b"z"]) in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("twice", "duplicate ids 's000000'"),
        ("empty", "split 'valid' is empty"),
        ("overlap", "lie in two splits"),
        ("label", "label 9 of id 's000003' is outside 0 to 3"),
        ("rows", "one row per id"),
        ("absent", "id 's000005' has no modality"),
    ],
)
def test_check_table_names_what_is_wrong(change: str, message: str) -> None:
    table = SyntheticConfig(samples=60).load(Path(), Path())
    labels, available = table.labels.copy(), table.available.copy()
    labels[3], available[5] = 9, False
    broken = {
        "twice": {"ids": (table.ids[0], *table.ids[:-1])},
        "empty": {"splits": {**table.splits, "valid": np.empty(0, np.int64)}},
        "overlap": {"splits": {**table.splits, "valid": table.splits["train"]}},
        "label": {"labels": labels},
        "rows": {"labels": labels[:-1]},
        "absent": {"available": available},
    }[change]
    with pytest.raises(DataError, match=message):
        check_table(replace(table, **broken))  # type: ignore[arg-type]


def test_check_table_of_multilabel() -> None:
    table = SyntheticConfig(samples=60, task="multilabel").load(Path(), Path())
    labels = table.labels.copy()
    labels[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        check_table(replace(table, labels=labels))
    with pytest.raises(DataError, match=r"shape \[N, 4\]"):
        check_table(replace(table, labels=labels[:, :2]))
