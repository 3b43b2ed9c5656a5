"""What goes wrong while a cell runs: nothing is lost, one clear line says what to do, and the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from harness import registry
from harness.cell import resolve
from harness.cli import main
from harness.compose import compose
from harness.config import PathsConfig
from harness.errors import EXIT_DATA, EXIT_INTERRUPTED, EXIT_TERMINATED, CellBusyError
from harness.files import Folders
from harness.record import RunRecord
from harness.runner import run_cell
from harness.sweep import SweepConfig, make_plan, run_plan
from harness.tracking import load_runs
from harness.workspace import Workspace

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

SMALL = ["dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu"]
SMALL += ["trainer.epochs=3", "trainer.batch_size=16"]

#: A tiny method that does, in its second epoch of three steps, what `method.how` says.
PLUGIN = '''
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from harness import registry
from harness.config import MethodConfig
from harness.method import Method
from harness.types import StepOutput

print("hello from the plugin")


@dataclass
class Trouble(MethodConfig):
    """Gets into trouble.

    Attributes:
        how: Which.
    """

    target: ClassVar[str] = f"{__name__}:InTrouble"
    uses_backbone: ClassVar[bool] = False
    how: str = "none"


class Killed(torch.utils.data.Dataset):
    """Values whose reader is killed."""

    def __len__(self):
        return 4

    def __getitem__(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


class InTrouble(Method):
    healed = False

    def __init__(self, config, context):
        super().__init__(config, context)
        self.bias = torch.nn.Parameter(torch.zeros(self.task.num_outputs))
        self.steps = 0

    def predict_step(self, batch):
        return self.bias.expand(len(batch), -1)

    def training_step(self, batch):
        self.steps += 1
        print("a method that talks")
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        if self.steps == 5 and not InTrouble.healed:
            how = self.config.how
            if how == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            elif how == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            elif how == "memory":
                torch.empty(2**50)
            elif how == "nan":
                loss = loss * float("nan")
            elif how == "forever":
                while True:
                    try:
                        time.sleep(0.01)
                    except Exception:
                        pass
            elif how == "loader":
                print(list(torch.utils.data.DataLoader(Killed(), num_workers=1)))
            elif how == "leak":
                multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,)).start()
                found = subprocess.Popen(["sleep", "1000"]).pid
                (Path(os.environ["HARNESS_HOME"]) / "leaked").write_text(str(found))
            elif how == "deaf":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
                time.sleep(600)
        return StepOutput(loss, {"task": loss})


registry.methods.register("trouble", Trouble, "a test")
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "trouble.py"
    file.write_text(PLUGIN)
    return str(file)


@pytest.fixture
def small_disk(home: Path) -> Iterator[Callable[[str], None]]:
    """The home folder on a file system of its own; the function mounts it with other options."""
    home.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", home], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    yield lambda options: subprocess.run([mount, "-o", f"remount,{options}", home], check=True) and None
    subprocess.run(["umount", home], check=True)


def run(plugin: str, *overrides: str) -> int:
    return main(["--plugin", plugin, "run", "--no-table", *SMALL, *overrides])


def records(home: Path) -> list[RunRecord]:
    return [RunRecord.load(path) for path in sorted(home.glob("runs/*/record.json"))]


def heal(home: Path) -> None:
    """The trouble is over: the same command shall end now, and train only what was not trained."""
    for module in [module for name, module in sys.modules.items() if name.startswith("harness_plugin_")]:
        if hasattr(module, "InTrouble"):
            module.InTrouble.healed = True
    assert list(home.glob("runs/*/last.pt")), "a checkpoint is there to go on from"


# -- stopped -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [("interrupt", EXIT_INTERRUPTED, "stopped by Ctrl-C"), ("terminate", EXIT_TERMINATED, "stopped by SIGTERM")],
)
def test_a_stopped_run_is_recorded_and_goes_on(
    store: Path, plugin: str, how: str, code: int, says: str, capsys: Capture
) -> None:
    assert run(plugin, "method=trouble", f"method.how={how}") == code
    out, err = capsys.readouterr()
    assert out == "", "what plugins print does not get into results"
    assert err.splitlines()[-1] == "harness: interrupted; the same command goes on from the last checkpoint."
    (record,) = records(store)
    assert (record.status, says in record.error) == ("interrupted", True)
    assert [run.record.status for run in load_runs(f"sqlite:///{store / 'mlflow.db'}")] == ["interrupted"]
    heal(store)
    assert run(plugin, "method=trouble", f"method.how={how}") == 0
    (record,) = records(store)
    assert (record.status, len(record.history)) == ("finished", 3)
    assert [run.record.status for run in load_runs(f"sqlite:///{store / 'mlflow.db'}")] == ["finished"]


# -- one cell fails, the others go on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("memory", "out of memory"),
        ("nan", "loss is nan at step 1 of epoch 1, samples"),
        ("loader", "RuntimeError: DataLoader worker (pid"),
    ],
)
def test_a_cell_that_fails_is_recorded(store: Path, plugin: str, how: str, says: str, capsys: Capture) -> None:
    assert run(plugin, "method=trouble", f"method.how={how},none") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert len(lines) == 2
    assert f"failed: {says}" in lines[0]
    found = {record.config["method"]["how"]: record for record in records(store)}
    assert {name: record.status for name, record in found.items()} == {how: "failed", "none": "finished"}
    if how == "nan":
        step = found["nan"].error.splitlines()[1]
        assert step.startswith("all 16 samples of the step: ")
        assert len(step.partition(": ")[2].split(", ")) == 16
    elif how == "memory":
        assert "trainer.accumulate=2" in found[how].error


def test_a_cell_that_never_ends_is_stopped(store: Path, plugin: str) -> None:
    registry.load_plugin_file(plugin)
    cell = resolve(compose([*SMALL, "method=trouble", "method.how=forever"])[0], Workspace(folders(store)))
    outcome = run_cell(cell, Workspace(folders(store)), timeout=2.0)
    assert outcome.record.status == "failed"
    assert outcome.record.error.startswith("stopped after 2 s (cell_timeout)")


@pytest.mark.slow
def test_a_worker_that_does_not_hear_its_alarm_is_killed(store: Path, plugin: str, monkeypatch: Patch) -> None:
    registry.load_plugin_file(plugin)
    monkeypatch.setattr("harness.executors.local.GRACE_SECONDS", 25.0)
    plan = make_plan([*SMALL, "method=trouble", "method.how=deaf"])
    (outcome,) = run_plan(plan, SweepConfig(cell_timeout=1.0), plugins=[plugin])
    assert outcome.record.error.startswith("stopped after 1 s (cell_timeout)")
    assert [record.status for record in records(store)] == ["failed"]


@pytest.mark.slow
def test_processes_that_a_method_leaves_behind_end_with_the_sweep(store: Path, plugin: str) -> None:
    """Python would wait for the first one for ever; the second one would stay."""
    grid = [*SMALL, "method=trouble", "method.how=leak,none", "--no-table", "--plugin", plugin]
    command = [sys.executable, "-P", "-m", "harness", "sweep", *grid]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "trouble · synthetic · any_0.5 · train_seed=0: left 1 processes running; they were killed." in done.stderr
    assert sorted(record.status for record in records(store)) == ["finished", "finished"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((store / "leaked").read_text()), 0)


def test_a_clock_that_jumps_back_hides_no_record(store: Path, plugin: str, monkeypatch: Patch) -> None:
    """The later run counts, whatever the clock said when it was stored; what it took is not negative."""
    assert run(plugin, "method=trouble", "method.how=nan") == 1
    for name in ("harness.runner._now", "harness.mlflow_store.now"):
        monkeypatch.setattr(name, lambda: "2001-01-01T00:00:00.000000+00:00")
    monkeypatch.setattr("time.time", lambda: 978307200.0)
    heal(store)
    assert run(plugin, "method=trouble", "method.how=nan") == 0
    (stored,) = load_runs(f"sqlite:///{store / 'mlflow.db'}")
    assert (stored.record.status, stored.record.finished[:4]) == ("finished", "2001")
    assert stored.record.cost.total_seconds >= 0
    cells = [resolve(config, Workspace(folders(store))) for config in compose([*SMALL, "method=trouble"])]
    assert run_cell(cells[0], Workspace(folders(store))).record.status == "finished"


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["last.pt", "predictions.parquet"])
def test_a_disk_that_is_full_when_a_file_is_written(
    store: Path, plugin: str, file: str, monkeypatch: Patch, capsys: Capture
) -> None:
    """The cell fails, the next one runs; when there is room again, the same command ends both."""
    refuse = full_disk(monkeypatch, file, times=1)
    assert run(plugin, "method=trouble", "train_seed=0,1") == 1
    assert refuse == [file]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[1")]
    assert len(lines) == 1
    assert f"{file} (No space left on device); free space there" in lines[0]
    assert sorted(record.status for record in records(store)) == ["failed", "finished"]
    assert run(plugin, "method=trouble", "train_seed=0,1") == 0
    assert [record.status for record in records(store)] == ["finished", "finished"]


def test_a_disk_that_is_full_when_the_record_is_written(
    store: Path, plugin: str, monkeypatch: Patch, capsys: Capture
) -> None:
    """Without room for a record there is nothing to go on with; what was trained stays."""
    with monkeypatch.context() as patch:
        full_disk(patch, "record.json", times=1)
        assert run(plugin, "method=trouble") == EXIT_DATA
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("harness: error: cannot write ")
    assert "record.json (No space left on device)" in last
    assert records(store) == []
    heal(store)
    assert run(plugin, "method=trouble") == 0
    assert [record.status for record in records(store)] == ["finished"]


def full_disk(monkeypatch: Patch, file: str, times: int) -> list[str]:
    """Lets the first writes of a file fail as on a full disk; returns what was refused."""
    refused: list[str] = []
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target.name == file and len(refused) < times:
            refused.append(file)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    return refused


def test_a_file_system_that_is_really_full(
    home: Path, plugin: str, database: bytes, tmp_path: Path, small_disk: Callable[[str], None], capsys: Capture
) -> None:
    (tmp_path / "runs.db").write_bytes(database)
    where = f"tracking.uri=sqlite:///{tmp_path / 'runs.db'}"
    with (home / "ballast").open("wb") as ballast:
        ballast.write(bytes(990_000))
    assert run(plugin, "method=trouble", where) in (1, EXIT_DATA)
    assert "space" in capsys.readouterr().err
    assert not list(home.rglob("*.tmp*"))
    small_disk("size=50m")
    assert run(plugin, "method=trouble", where) == 0
    assert [record.status for record in records(home)] == ["finished"]


def test_a_read_only_folder(home: Path, plugin: str, small_disk: Callable[[str], None], capsys: Capture) -> None:
    small_disk("ro")
    assert run(plugin, "method=trouble") == EXIT_DATA
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"harness: error: cannot write to {home}")
    assert "paths.home=DIR" in last


# -- two programs ------------------------------------------------------------------------------------------------------


def test_a_cell_is_run_by_one_program_at_a_time(store: Path, plugin: str) -> None:
    registry.load_plugin_file(plugin)
    workspace = Workspace(folders(store))
    cell = resolve(compose([*SMALL, "method=trouble"])[0], workspace)
    folder = store / "runs" / cell.run_id
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(CellBusyError, match="is being run by another program"):
        run_cell(cell, workspace, wait=False)
    assert not run_cell(cell, workspace, wait=False).skipped
    assert run_cell(cell, workspace, wait=False).skipped


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_credentials_of_a_tracking_server_are_written_nowhere(home: Path, plugin: str, capsys: Capture) -> None:
    """The server does not answer, so records wait in the outbox."""
    server = "tracking.uri=http://someone:hunter2@127.0.0.1:9"
    assert run(plugin, "method=trouble", server) == 0
    assert main(["sync", server]) != 0
    assert main(["run", *SMALL, "method=majority", "--dry-run", server]) == 0
    assert main(["run", *SMALL, "method=majority", server.replace("uri", "url")]) == 2
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err
    assert "***@127.0.0.1:9" in err
    files = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []


# -- plugins -----------------------------------------------------------------------------------------------------------


def test_a_plugin_that_prints_does_not_spoil_results(plugin: str, capsys: Capture) -> None:
    assert main(["--plugin", plugin, "list", "methods", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "trouble" in {entry["name"] for entry in json.loads(out)}
    assert "hello from the plugin" in err


@pytest.mark.parametrize("text", ["raise ValueError('no')", "import sys; sys.exit('no')", "1 / 0"])
def test_a_plugin_package_that_fails_on_import_is_one_line(
    tmp_path: Path, text: str, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "failing_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    registry.methods.register("failing", "failing_plugin:Config", "a package")
    assert main(["run", *SMALL, "method=failing"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("harness: error: method 'failing' of a package cannot be loaded from")


def folders(home: Path) -> Folders:
    return Folders.resolve(PathsConfig(home=str(home)))


def test_predictions_do_not_depend_on_being_stopped(store: Path, plugin: str) -> None:
    """What a stopped run ends with is what an undisturbed one does."""
    assert run(plugin, "method=trouble", "method.how=interrupt") == EXIT_INTERRUPTED
    heal(store)
    workspace = Workspace(folders(store))
    cells = [resolve(config, workspace) for config in compose([*SMALL, "method=trouble", "method.how=interrupt,none"])]
    stopped, whole = (run_cell(cell, workspace) for cell in cells)
    assert np.array_equal(stopped.predictions().logits, whole.predictions().logits)
    assert stopped.record.history == whole.record.history
