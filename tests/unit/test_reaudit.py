"""`harness audit RUN`: what a recorded run says when its checks are made again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from harness import restore
from harness.cli import main
from harness.compose import compose
from harness.errors import DataError
from harness.files import Folders
from harness.reaudit import reaudit
from harness.runner import Outcome, run_cells
from harness.tracking import StoredRun, load_runs
from harness.types import Predictions

Capture = pytest.CaptureFixture[str]
SMALL = ["dataset=synthetic", "dataset.samples=240", "backbone.hidden_size=16", "trainer.epochs=1", "device=cpu"]


@pytest.fixture
def ran(folders: Folders, uri: str) -> Outcome:
    options = ["method=zero_fill", "protocol=any_0.5", f"paths.home={folders.home}", f"tracking.uri={uri}"]
    (outcome,) = run_cells(compose([*SMALL, *options]))
    assert outcome.record.status == "finished", outcome.record.error
    return outcome


def stored(uri: str) -> StoredRun:
    (run,) = load_runs(uri)
    return run


def altered(run: StoredRun, **changes: object) -> StoredRun:
    """The run with another record."""
    return dataclasses.replace(run, record=dataclasses.replace(run.record, **changes))  # type: ignore[arg-type]


def test_every_check_is_made_again(ran: Outcome, folders: Folders, uri: str) -> None:
    found = reaudit(stored(uri), folders)
    again = {check.name: check for check in found.again}
    assert set(again) == {check.name for check in ran.record.audits} - {"parameters", "selection_split"} | {"replay"}
    assert {check.name for check in found.recorded} == {"parameters", "selection_split"}
    assert not found.leaks
    assert not found.remarks
    for check in ran.record.audits:
        assert again.get(check.name, check) == check
    assert "differ by 0 of" in again["replay"].detail or "e-" in again["replay"].detail


def test_predictions_that_the_weights_do_not_give_are_a_leak(
    ran: Outcome, folders: Folders, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = stored(uri).predictions()
    logits = np.eye(4, dtype=np.float32)[truth.labels] * 9
    better = Predictions(truth.ids, logits, truth.labels, truth.present, truth.modalities, truth.condition)
    monkeypatch.setattr(StoredRun, "predictions", lambda self: better)
    assert {check.name for check in reaudit(stored(uri), folders).leaks} == {"replay", "known_answer"}


def test_changed_code_is_told(ran: Outcome, folders: Folders, uri: str) -> None:
    run = stored(uri)
    old = altered(run, run_id="0" * 64, fingerprints={**run.record.fingerprints, "method": "0" * 64})
    found = reaudit(old, folders)
    assert "the code is not the run's (method changed since)" in found.remarks[0]
    assert not found.leaks


def test_without_the_data_the_record_is_what_is_left(
    ran: Outcome, folders: Folders, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise DataError("no such file")

    monkeypatch.setattr(restore, "resolve", gone)
    found = reaudit(stored(uri), folders)
    assert {check.name for check in found.again} == {"loss_terms", "known_answer"}
    assert {"masks", "non_interference", "selection_split"} <= {check.name for check in found.recorded}
    assert "checked from record and predictions only: no such file" in found.remarks[0]


def test_leaks_of_the_record_stay_leaks(ran: Outcome, folders: Folders, uri: str) -> None:
    run = stored(uri)
    history = [
        {name.replace("valid/", "test/"): value for name, value in epoch.items()} for epoch in run.record.history
    ]
    assert [check.name for check in reaudit(altered(run, history=history), folders).leaks] == ["selection_split"]
    audits = [dataclasses.replace(check, passed=check.name != "parameters") for check in run.record.audits]
    assert [check.name for check in reaudit(altered(run, audits=audits), folders).leaks] == ["parameters"]


def test_the_command(
    ran: Outcome, folders: Folders, uri: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = [f"paths.home={folders.home}", f"tracking.uri={uri}"]
    capsys.readouterr()
    assert main(["audit", ran.record.run_id[:8], *where]) == 0
    captured = capsys.readouterr()
    assert "non_interference" in captured.out
    assert "no leak found" in captured.err
    assert main(["audit", ran.mlflow_run_id, *where, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["passed"]
    assert {"name", "passed", "detail", "severity", "seen"} == set(told["checks"][0])

    leaky = [dataclasses.replace(check, passed=check.name != "parameters") for check in ran.record.audits]
    run = altered(stored(uri), audits=leaky)
    monkeypatch.setattr("harness.tracking.load_runs", lambda *_, **__: [run])
    assert main(["audit", ran.record.run_id[:8], *where]) == 4
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].startswith("LEAK")
    assert "LEAK: parameters" in captured.err


def test_a_run_that_is_not_there_is_one_line(folders: Folders, capsys: Capture, tmp_path: Path) -> None:
    assert main(["audit", "abc", f"paths.home={tmp_path}"]) == 2
    assert "name exactly one" in capsys.readouterr().err
    assert main(["audit", f"paths.home={tmp_path}"]) == 2
    assert "name a run" in capsys.readouterr().err
