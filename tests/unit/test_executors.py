"""Executors: one entry for all, endings that are lost on the way, places and memory, clusters that are really there."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from filelock import FileLock

from harness import registry, sweep
from harness.cli import main
from harness.errors import UsageError
from harness.executors.base import Ending, Executor, ExecutorConfig, Task
from harness.executors.local import LocalConfig, fits
from harness.executors.ray import RayConfig
from harness.executors.slurm import Requeued, SlurmConfig
from harness.executors.worker import run_task
from harness.runner import Outcome
from harness.sweep import SweepConfig, make_plan, run_plan
from harness.tracking import load_runs

GRID = ["dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu", "method=majority"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with an empty database."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    monkeypatch.setenv("HARNESS_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def tasks_of(grid: Sequence[str], config: SweepConfig | None = None) -> list[Task]:
    plan = make_plan(grid)
    workspace = sweep.Workspace(sweep.Folders.resolve(plan.cells[0].config.paths))
    return sweep._tasks(plan.cells, config or SweepConfig(), workspace.folders, (), sweep._past_costs(plan.cells))


# -- the entry that all share ------------------------------------------------------------------------------------------


def test_a_task_is_plain_data_and_leaves_a_record(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = tasks_of(GRID)
    assert json.loads(json.dumps(asdict(task)))["config"] == task.config
    # Another machine has another environment: the folders are in the task.
    monkeypatch.setenv("HARNESS_HOME", "/nowhere")
    monkeypatch.chdir("/")
    ending = run_task(pickle.loads(pickle.dumps(task)))
    assert ending.reason == ""
    record = json.loads((home / "runs" / task.run_id / "record.json").read_text())
    assert (record["status"], record["finished"]) == ("finished", ending.finished)
    again = run_task(task)
    assert (again.skipped, again.finished, again.mlflow_run_id) == (True, ending.finished, ending.mlflow_run_id)


def test_a_machine_with_other_code_refuses(home: Path) -> None:
    (task,) = tasks_of(GRID)
    ending = run_task(replace(task, run_id="0" * 64))
    assert "differ from those of the one that planned the sweep" in ending.reason
    assert not (home / "runs").exists()


def test_what_cannot_run_is_a_reason(home: Path) -> None:
    (task,) = tasks_of(GRID)
    assert "no such file" in run_task(replace(task, plugins=("/nowhere.py",))).reason
    config = dict(task.config) | {"method": {"name": "majorty"}}
    assert "unknown method 'majorty'" in run_task(replace(task, config=config)).reason
    folder = home / "runs" / task.run_id
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert run_task(task, wait=False).busy


# -- executors of others -----------------------------------------------------------------------------------------------


@dataclass
class HereConfig(ExecutorConfig):
    """Runs cells here, and forgets some of the answers.

    Attributes:
        loses: Whether answers are lost, as when a machine goes down after its cell.
        runs: Whether cells are run at all.
    """

    loses: bool = False
    runs: bool = True

    target: ClassVar[str] = f"{__name__}:Here"

    @classmethod
    def implementation(cls) -> Any:
        return Here


class Here(Executor):
    def run(self, tasks: Sequence[Task], places: int) -> Generator[tuple[Task, Ending], None, None]:
        for task in tasks:
            ending = run_task(task) if self.config.runs else Ending(reason="the machine went down.")
            yield task, Ending(reason="the machine went down.") if self.config.loses else ending


def test_a_package_may_bring_its_executor(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.executors.names()
    monkeypatch.setattr(registry.executors, "_entries", dict(registry.executors._entries))
    monkeypatch.setattr(registry.executors, "_loaded", dict(registry.executors._loaded))
    registry.executors.register("here", HereConfig, "a test")
    from harness.cli.commands.sweep import split_options

    config, rest = split_options([*GRID, "executor=here", "executor.loses=true", "workers=2"])
    assert (config.executor, config.places, rest) == (HereConfig(loses=True), 2, GRID)
    (outcome,) = run_plan(make_plan(rest), config)
    assert (outcome.record.status, outcome.skipped) == ("finished", False), "the record is there, the answer is not"


def test_a_cell_without_answer_and_record_is_recorded_as_failed() -> None:
    (outcome,) = run_plan(make_plan(GRID), SweepConfig(HereConfig(runs=False)))
    assert (outcome.record.status, outcome.record.error) == ("failed", "the machine went down.")


def test_records_of_a_machine_that_shares_no_folder_are_read_from_the_store(home: Path) -> None:
    class Elsewhere(Here):
        def run(self, tasks: Sequence[Task], places: int) -> Generator[tuple[Task, Ending], None, None]:
            for task, ending in super().run(tasks, places):
                (home / "runs" / task.run_id / "record.json").unlink()
                yield task, ending

    class ElsewhereConfig(HereConfig):
        @classmethod
        def implementation(cls) -> Any:
            return Elsewhere

    (outcome,) = run_plan(make_plan(GRID), SweepConfig(ElsewhereConfig()))
    assert (outcome.record.status, outcome.skipped) == ("finished", False)
    assert len(outcome.predictions().ids) > 0
    assert outcome.mlflow_run_id


# -- places and memory -------------------------------------------------------------------------------------------------


def test_places() -> None:
    assert [LocalConfig().places(workers) for workers in (None, 1, 3)] == [1, 1, 3]
    assert LocalConfig().places(0) >= 1
    for config in (SlurmConfig(), RayConfig()):
        assert [config.places(workers) for workers in (None, 0, 3)] == [0, 0, 3]


@pytest.mark.parametrize(
    ("needs", "running", "free", "fit"),
    [
        (5, [], 4, True),  # alone, whatever it takes
        (5, [4], 9, True),
        (5, [4], 8, False),
        (0, [4], 8, True),  # nothing is known of it
        (5, [4], 0, True),  # the system does not tell
    ],
)
def test_a_cell_starts_beside_others_if_it_fits(needs: int, running: list[int], free: int, fit: bool) -> None:
    def task(memory: int) -> Task:
        return Task("0" * 64, "a cell", {}, memory=memory)

    assert fits(task(needs), [task(memory) for memory in running], free) is fit


def test_what_cells_took_before_is_what_the_next_ones_are_expected_to_take() -> None:
    assert [task.memory for task in tasks_of(GRID)] == [0]
    (outcome,) = run_plan(make_plan(GRID), SweepConfig(HereConfig()))
    assert [task.memory for task in tasks_of([*GRID, "train_seed=1"])] == [outcome.record.cost.peak_memory_bytes]


# -- Slurm and Ray -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_names_its_extra(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["sweep", *GRID, f"executor={name}"]) == 3
    assert f"pip install 'missing-modality-harness[{name}]'" in capsys.readouterr().err.splitlines()[-1]


def test_a_machine_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="`srun` is not on the PATH"):
        run_plan(make_plan(GRID), SweepConfig(SlurmConfig()))


def test_a_job_that_is_stopped_is_the_same_task_again() -> None:
    pytest.importorskip("submitit")
    task = Task("0" * 64, "a cell", {})
    again = Requeued().checkpoint(task)
    assert isinstance(again.function, Requeued)
    assert again.args == (task,)


def finished(outcomes: list[Outcome]) -> list[str]:
    return [outcome.record.status for outcome in outcomes]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_submitits_debug_executor(home: Path) -> None:
    pytest.importorskip("submitit")
    outcomes = run_plan(make_plan([*GRID, "train_seed=0,1"]), SweepConfig(SlurmConfig(cluster="debug")))
    assert finished(outcomes) == ["finished", "finished"]
    assert len(load_runs(f"sqlite:///{home / 'mlflow.db'}")) == 2
