"""A sweep's parent run in MLflow: one per sweep, found again, never lost, never doubled."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness import mlflow_sweeps, outbox
from harness.errors import DataError
from harness.files import Folders
from harness.mlflow_store import connect, ensure_experiment, search
from harness.mlflow_sweeps import PARENT, SWEEP, SweepRecord, known_here, parent_of
from harness.record import RunRecord
from harness.testing.records import make_predictions, make_record
from harness.tracking import OutboxError, Tracker, load_runs, log_sweep

NAME = "sweep-3f2a9c1e"
STARTED = "2026-01-01T00:00:00+00:00"
DEAD = "http://127.0.0.1:9"


def cell(method: str = "redeem", train_seed: int = 0, *, sweep: str = NAME, **options: Any) -> RunRecord:
    """The record of a cell that was run by the sweep, or by itself."""
    config = {"method": {"name": method}, "tracking": {"sweep": sweep}}
    return make_record(method, make_predictions(0.8), train_seed=train_seed, config=config, **options)


def sweep_of(*records: RunRecord, status: str = "finished", **options: Any) -> SweepRecord:
    cells = [
        {
            "run_id": record.run_id,
            "dataset": record.dataset["name"],
            "protocol": record.protocol["name"],
            "supervision": "observed",
            "masks": "m" * 64,
            "method": record.method,
            "variant": "",
            "mask_seed": 0,
            "train_seed": record.seeds["train_seed"],
            "status": "to run" if status == "running" else record.status,
        }
        for record in records
    ]
    finished = "" if status == "running" else "2026-01-01T01:00:00+00:00"
    options = {"experiments": ["e"], "started": STARTED, "finished": finished} | options
    return SweepRecord(NAME, status, cells=cells, command=["sweep", "method=redeem"], **options)  # type: ignore[arg-type]


def runs(uri: str, experiment: str = "e") -> dict[str, Any]:
    """Runs of an experiment by name."""
    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in search(client, [found.experiment_id], "")}


def test_the_parent_has_plan_then_table_and_report_and_the_cells_below_it(
    uri: str, folders: Folders, tmp_path: Path
) -> None:
    cells = [cell(train_seed=0), cell(train_seed=1)]
    log_sweep(uri, folders, sweep_of(*cells, status="running", note="the plan"), {})
    (parent,) = runs(uri).values()
    assert parent.info.status == "RUNNING"
    assert parent.data.tags["mlflow.note.content"] == "the plan"
    assert parent.data.metrics["cells/left"] == 2

    for record in cells:
        Tracker(uri, "e", folders).log(record, {})
    page = tmp_path / "report.html"
    page.write_text("<table>")
    stored = log_sweep(uri, folders, sweep_of(*cells, note="| the | table |"), {"report/report.html": page})

    found = runs(uri)
    parent = found.pop(f"redeem × both_0.7 × 2 train seeds · {NAME}")
    assert parent.info.run_id == stored
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mlflow.note.content"] == "| the | table |"
    assert parent.data.tags["harness.status"] == "finished"
    assert parent.data.tags["harness.method"] == "redeem"
    assert parent.data.metrics == {"cells/all": 2, "cells/finished": 2, "cells/failed": 0, "cells/left": 0}
    assert {run.data.tags[PARENT] for run in found.values()} == {stored}
    files = Path(parent.info.artifact_uri.removeprefix("file://").replace("%20", " "))
    assert (files / "report" / "report.html").read_text() == "<table>"
    assert [each["train_seed"] for each in json.loads((files / "sweep.json").read_text())["cells"]] == [0, 1]
    assert len(load_runs(uri)) == 2, "a parent is no result"


def test_a_sweep_over_two_experiments_has_a_parent_in_each(uri: str, folders: Folders) -> None:
    records = {name: cell(dataset=name) for name in ("cdda", "openmoji")}
    for name, record in records.items():
        Tracker(uri, name, folders).log(record, {})
    stored = log_sweep(uri, folders, sweep_of(*records.values(), experiments=list(records)), {}).split(",")
    for name, parent in zip(records, stored, strict=True):
        found = runs(uri, name)
        assert found[f"2 data sets × redeem × both_0.7 · {NAME}"].info.run_id == parent
        assert found["redeem · both_0.7 · seed 0"].data.tags[PARENT] == parent


def test_a_cell_that_arrives_first_makes_the_parent_that_the_sweep_finds(uri: str, folders: Folders) -> None:
    record = cell()
    Tracker(uri, "e", folders).log(record, {})
    parent = runs(uri)["redeem · both_0.7 · seed 0"].data.tags[PARENT]
    assert runs(uri)[NAME].info.status == "FINISHED", "whoever only nests does not know whether the sweep goes on"
    assert log_sweep(uri, folders, sweep_of(record), {}) == parent


def test_cells_that_were_finished_before_are_nested_and_those_of_another_sweep_stay(uri: str, folders: Folders) -> None:
    alone, others, ours = cell("map", sweep=""), cell("msp", sweep="another"), cell()
    for record in (alone, others, ours):
        Tracker(uri, "e", folders).log(record, {})
    parent = log_sweep(uri, folders, sweep_of(alone, others, ours), {})
    found = runs(uri)
    for method in ("map", "redeem"):
        assert found[f"{method} · both_0.7 · seed 0"].data.tags[PARENT] == parent
    assert found["msp · both_0.7 · seed 0"].data.tags[SWEEP] == "another"


def test_two_drivers_that_make_a_parent_at_once_agree_on_one(
    uri: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look and find none; both create one; a cell of the first is nested below the one that gives way."""
    client = connect(uri)
    experiment = ensure_experiment(client, uri, "e", folders)
    real, created = mlflow_sweeps.search, []

    def neither_sees_the_other(*arguments: Any) -> Any:
        return [run for run in real(*arguments) if run.info.run_id in created]

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_sweeps, "search", neither_sees_the_other)
        create = type(client).create_run

        def remember(*arguments: Any, **options: Any) -> Any:
            run = create(*arguments, **options)
            created[:] = [run.info.run_id]
            return run

        patch.setattr(type(client), "create_run", remember)
        first = parent_of(client, experiment, NAME, STARTED)
        created.clear()
        second = parent_of(client, experiment, NAME, STARTED)
    assert first != second
    keep = parent_of(client, experiment, NAME, STARTED)
    assert keep == parent_of(client, experiment, NAME, STARTED)
    gone = ({first, second} - {keep}).pop()
    assert client.get_run(gone).info.lifecycle_stage == "deleted"

    record = cell()
    child = Tracker(uri, "e", folders).log(record, {})
    client.set_tag(child, PARENT, gone)
    log_sweep(uri, folders, sweep_of(record), {})
    assert client.get_run(child).data.tags[PARENT] == keep


def test_without_a_server_the_sweep_waits_and_is_sent_once(uri: str, folders: Folders) -> None:
    record = cell()
    with pytest.raises(OutboxError, match="harness sync"):
        log_sweep(DEAD, folders, sweep_of(record, status="running"), {})
    with pytest.raises(OutboxError):
        Tracker(DEAD, "e", folders).log(record, {})
    with pytest.raises(OutboxError):
        log_sweep(DEAD, folders, sweep_of(record), {})
    assert len(outbox.entries(folders)) == 2, "what is to be said replaces what was to be said before"
    assert not outbox.sync(uri, folders).failed
    found = runs(uri)
    assert len(found) == 2
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_replay_writes_the_same_again(uri: str, folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after MLflow has it and before the entry is removed, twice."""
    record = sweep_of(cell())
    outbox.put_sweep(folders, record, {})

    def die(_folder: Path) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(outbox, "_discard", die)
            with pytest.raises(KeyboardInterrupt):
                outbox.sync(uri, folders)
    outbox.sync(uri, folders)
    assert outbox.entries(folders) == []
    (parent,) = runs(uri).values()
    assert len(connect(uri).get_metric_history(parent.info.run_id, "cells/all")) == 1


def test_what_was_written_last_is_known_without_asking_mlflow(uri: str, folders: Folders) -> None:
    assert known_here(folders, NAME) is None
    record = sweep_of(cell())
    log_sweep(uri, folders, record, {})
    assert known_here(folders, NAME) == record


def test_something_else_than_a_sweeps_record_is_named(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    file.write_text("{}")
    with pytest.raises(DataError, match=r"sweep\.json: not a record of a sweep"):
        SweepRecord.load(file)
