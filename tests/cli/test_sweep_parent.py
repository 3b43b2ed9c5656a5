"""`harness sweep` in MLflow: a parent run with the plan, the table and the report; the runs of its cells below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.cli.parents import parent_run
from harness.mlflow_store import connect, search
from harness.mlflow_sweeps import PARENT, known_here
from harness.sweep import make_plan
from harness.testing.records import make_predictions, make_record
from harness.tracking import Tracker

CELLS = ["dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu", "method=majority,mean_fill"]
CELLS += ["trainer.epochs=1", "train_seed=0"]


def runs(home: Path) -> dict[str, Any]:
    client = connect(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [found.experiment_id for found in client.search_experiments()]
    return {run.info.run_name: run for run in search(client, experiments, "")}


def files(run: Any) -> list[str]:
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_cells_have_the_same_name_in_any_order(home: Path) -> None:
    name = make_plan(CELLS).name
    assert name.startswith("sweep-")
    turned = [text.replace("majority,mean_fill", "mean_fill,majority") for text in CELLS]
    assert make_plan(turned).name == name
    assert make_plan([*CELLS[:-1], "train_seed=1"]).name != name
    assert make_plan([*CELLS, "tracking.sweep=my study"]).name == "my study"
    assert {cell.run_id for cell in make_plan([*CELLS, "tracking.sweep=my study"]).cells} == {
        cell.run_id for cell in make_plan(CELLS).cells
    }


@pytest.mark.slow
def test_a_sweep_has_one_parent_that_it_finds_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *CELLS]) == 0
    printed = capsys.readouterr().out
    found = runs(store)
    parent = found.pop(f"2 methods × any_0.5 · {make_plan(CELLS).name}")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags[PARENT] for run in found.values()} == {parent.info.run_id}
    assert parent.data.tags["harness.dataset"] == "synthetic"
    assert parent.data.tags["harness.method"] == "majority, mean_fill"
    assert parent.data.tags["mlflow.source.name"] == f"harness sweep {' '.join(CELLS)}"
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("2 of 2 cells finished.")
    assert "majority" in note
    assert "majority" in printed
    assert files(parent) == ["report/report.html", "report/report.md", "sweep.json"]

    assert main(["sweep", *CELLS, "--no-table", "--report", "out"]) == 0
    (again,) = (run for name, run in runs(store).items() if " · sweep-" in name)
    assert again.info.run_id == parent.info.run_id
    assert "report/report.csv" in files(again)
    assert any(name.startswith("report/figures/") for name in files(again))


def test_a_sweep_with_nothing_to_run_speaks_only_if_its_end_was_not_told(store: Path) -> None:
    uri = f"sqlite:///{store / 'mlflow.db'}"
    for cell in make_plan(CELLS).cells:
        record = make_record(cell.method_name, make_predictions(0.8), dataset="synthetic", protocol="any_0.5")
        record.run_id = cell.run_id
        Tracker(uri, "harness/synthetic", plan_folders(store)).log(record, {})
    plan = make_plan(CELLS)
    assert not plan.todo
    with parent_run(plan, ["sweep"]) as parent:
        assert parent is not None
        assert parent.is_told
        parent.tell("running", plan.finished, "killed before the end", {})
    with parent_run(plan, ["sweep"]) as parent:
        assert parent is not None
        assert not parent.is_told
        parent.tell("finished", plan.finished, "the table", {})
    with parent_run(plan, ["sweep"]) as parent:
        assert parent is not None
        assert parent.is_told
    (sweep,) = (run for run in runs(store).values() if "harness.cells" in run.data.tags)
    assert sweep.data.tags["mlflow.note.content"] == "the table"
    assert sweep.info.run_name == f"2 methods × any_0.5 · {plan.name}"


def test_a_sweep_that_is_stopped_says_how_far_it_came(store: Path) -> None:
    plan = make_plan(CELLS)
    ended = make_record("majority", make_predictions(0.8))
    ended.save(store / "runs" / plan.cells[0].run_id / "record.json")
    with pytest.raises(KeyboardInterrupt), parent_run(plan, ["sweep"]):
        raise KeyboardInterrupt
    (run,) = runs(store).values()
    assert run.info.status == "KILLED"
    assert run.data.tags["harness.status"] == "interrupted"
    assert run.data.metrics["cells/finished"] == run.data.metrics["cells/left"] == 1
    known = known_here(plan_folders(store), plan.name)
    assert known is not None
    assert known.status == "interrupted"


def test_a_name_that_mlflow_could_not_be_asked_for_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *CELLS, "tracking.sweep=really?", "--dry-run"]) == 2
    assert "a name has at most 100 letters" in capsys.readouterr().err


def plan_folders(home: Path) -> Any:
    from harness.config import PathsConfig
    from harness.files import Folders

    return Folders.resolve(PathsConfig(home=str(home)))
