"""Samples of the machine beside a run: kept on disk, sent with the record."""

import importlib.util
from pathlib import Path

import pytest

from harness.compose import compose
from harness.errors import DependencyError
from harness.files import Folders
from harness.mlflow_store import connect
from harness.runner import run_cells
from harness.system_metrics import SYSTEM_METRICS_FILE, read_samples, sampled
from harness.testing.records import make_predictions, make_record
from harness.tracking import Tracker


def test_a_block_is_sampled_at_least_at_both_ends_and_goes_on_in_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / SYSTEM_METRICS_FILE
    for ends in (2, 4):
        with sampled(file):
            pass
        samples = read_samples(file)
        assert len(samples) == ends
    times = [time for time, _ in samples]
    assert times == sorted(times)
    for _, values in samples:
        assert 0 < values["system_memory_usage_percentage"] <= 100
        assert values["disk_available_megabytes"] >= 0


def test_nothing_is_sampled_unless_asked_for(tmp_path: Path) -> None:
    with sampled(None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / SYSTEM_METRICS_FILE
    file.write_text('{"time": 1, "cpu": 2.5}\n{"time": 2, "cp\n{"time": 3, "cpu": 4}\n')
    assert read_samples(file) == [(1, {"cpu": 2.5}), (3, {"cpu": 4.0})]


def test_samples_are_mlflows_system_metrics(uri: str, folders: Folders, tmp_path: Path) -> None:
    file = tmp_path / SYSTEM_METRICS_FILE
    file.write_text('{"time": 1000, "cpu": 2.5}\n{"time": 11000, "cpu": 4}\n')
    stored = Tracker(uri, "e", folders).log(make_record("map", make_predictions(0.7)), {SYSTEM_METRICS_FILE: file})
    history = connect(uri).get_metric_history(stored, "system/cpu")
    assert [(point.timestamp, point.step, point.value) for point in history] == [(1000, 0, 2.5), (11000, 1, 4.0)]


def test_without_psutil_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "psutil" else find(name, *rest)
    )
    compose(["method=majority", "dataset=synthetic"])
    with pytest.raises(DependencyError, match=r"needs psutil, .*: pip install"):
        compose(["method=majority", "dataset=synthetic", "tracking.system_metrics=true"])


def test_a_run_has_them_without_changing_its_identity(uri: str, folders: Folders) -> None:
    common = ["method=majority", "dataset=synthetic", "dataset.samples=40", "protocol=any_0.5", "device=cpu"]
    common.append(f"paths.home='{folders.home}'")
    (outcome,) = run_cells(compose([*common, "tracking.system_metrics=true"]))
    metrics = connect(uri).get_run(outcome.mlflow_run_id).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    (again,) = run_cells(compose(common))
    assert again.skipped
    (bare,) = run_cells(compose([*common, "overwrite=always"]))
    found = connect(uri).get_run(bare.mlflow_run_id).data.metrics
    assert not [name for name in found if name.startswith("system/")], "samples of the run before are not this one's"
