"""`harness sweep`: plans, two worker processes, failures, interruptions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.cli import main
from harness.errors import DataError, TrackingError, UsageError
from harness.features import FeatureStore
from harness.mlflow_store import probe
from harness.sweep import Plan, SweepConfig, make_plan, run_plan, variant
from harness.tracking import load_runs

Capture = pytest.CaptureFixture[str]

SMALL = ["dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu"]

#: Methods that end in every way a cell can end.
PLUGIN = '''
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from harness import registry
from harness.config import MethodConfig
from harness.method import Method


@dataclass
class Good(MethodConfig):
    """Answers zeros."""

    target: ClassVar[str] = f"{__name__}:Zeros"
    uses_backbone: ClassVar[bool] = False
    trains: ClassVar[bool] = False


@dataclass
class Raises(Good):
    """Raises."""

    target: ClassVar[str] = f"{__name__}:Raising"


@dataclass
class Dies(Good):
    """Is killed, as for want of memory."""

    target: ClassVar[str] = f"{__name__}:Dying"


@dataclass
class Slow(Good):
    """Says where it runs and takes its time."""

    target: ClassVar[str] = f"{__name__}:Sleeping"


class Zeros(Method):
    def predict_step(self, batch):
        return torch.zeros(len(batch), self.task.num_outputs)

    def training_step(self, batch):
        raise AssertionError("is not trained")


class Raising(Zeros):
    def prepare(self, train):
        raise ValueError("nothing works")


class Dying(Zeros):
    def prepare(self, train):
        os.kill(os.getpid(), signal.SIGKILL)


class Sleeping(Zeros):
    def prepare(self, train):
        (Path(os.environ["HARNESS_HOME"]) / "sleeping").write_text(str(os.getpid()))
        time.sleep(300)


for name, config in (("good", Good), ("raises", Raises), ("dies", Dies), ("slow", Slow)):
    registry.methods.register(name, config, "a test")
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "endings.py"
    file.write_text(PLUGIN)
    return file


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as from a shell."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "harness", "sweep", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def records(home: Path) -> dict[str, dict[str, Any]]:
    """Records in the folder of runs, by method and label."""
    found = [json.loads(file.read_text()) for file in (home / "runs").glob("*/record.json")]
    return {f"{record['method']}{record['label']}": record for record in found}


def named(plan: Plan) -> list[tuple[str, str]]:
    return [(cell.method_name, variant(cell)) for cell in plan.cells]


# -- plans -------------------------------------------------------------------------------------------------------------


def test_all_methods_run_and_unimodal_once_per_modality(home: Path) -> None:
    plan = make_plan([*SMALL, "method=all", "dataset.modalities=3"])
    names = named(plan)
    for modality in "abc":
        assert ("unimodal", modality) in names
    assert {method for method, _ in names} == set(registry.methods.names())
    assert len(names) == len(registry.methods.names()) + 2
    assert plan.left_out == []
    assert plan.todo == plan.cells
    assert not (home / "mlflow.db").exists(), "planning writes no records"


@pytest.mark.usefixtures("toy")
def test_all_leaves_out_what_cannot_run_and_says_why(plugin: Path) -> None:
    registry.load_plugin_file(plugin)

    @dataclass
    class Picky(registry.methods.get("good")):  # type: ignore[misc]
        def validate_for(self, modalities: tuple[str, ...]) -> None:
            raise UsageError("needs a modality 'smell'.")

    registry.methods._entries = {name: registry.methods.entry(name) for name in ("good", "majority")}
    registry.methods._loaded["picky"] = Picky
    registry.methods.register("picky", f"{__name__}:Picky", "a test")
    registry.methods.register("broken", "nowhere_at_all:Config", "a test")
    plan = make_plan([*SMALL, "method=all", "train_seed=0,1"])
    assert named(plan) == [("good", ""), ("good", ""), ("majority", ""), ("majority", "")]
    assert [(gone.method, gone.where) for gone in plan.left_out] == [("broken", ""), ("picky", "synthetic · any_0.5")]
    assert "nowhere_at_all" in plan.left_out[0].reason
    assert plan.left_out[1].reason == "needs a modality 'smell'."


def test_groups_are_the_tables_that_come_out() -> None:
    grid = ["method=majority,knn_vote", "protocol=a_0.5,any_0.50,any_0.5", "train_seed=0,1", "dataset.seed=0,1"]
    plan = make_plan([*SMALL[:2], *grid])
    # Equal cells (any_0.50 is any_0.5) appear once; data of another seed have another fingerprint and other masks.
    assert len(plan.cells) == 16
    groups = plan.groups()
    assert [(group["protocol"], group["methods"], group["cells"]) for group in groups] == [
        ("a_0.5", 2, 4),
        ("a_0.5", 2, 4),
        ("any_0.5", 2, 4),
        ("any_0.5", 2, 4),
    ]
    assert len({group["masks"] for group in groups}) == 4


def test_cells_of_several_data_sets(tmp_path: Path) -> None:
    toys = ["encoders={image: identity, text: identity, features: identity, tabular: identity}"]
    registry.load_plugin_file(Path(__file__).with_name("plugin_file.py"))
    plan = make_plan(["method=majority", "dataset=synthetic,toy_data", "protocol=any_0.5,complete", *toys])
    assert [(group["dataset"], group["protocol"]) for group in plan.groups()] == [
        ("synthetic", "any_0.5"),
        ("synthetic", "complete"),
        ("toy_data", "any_0.5"),
        ("toy_data", "complete"),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["method=majority", "executor=lokal"], "unknown executor 'lokal'. Did you mean 'local'?"),
        (["method=majority", "executor=slurm", "executor.cluster=x"], "executor.cluster='x' is not one of slurm,"),
        (["method=majority", "executor.cpus=2"], "executor 'local' has no option 'cpus'"),
        (["method=majority", "workers=-1"], "sweep.workers=-1 must be >= 0"),
        (["method=majority", "workers=two"], "workers=two"),
        (["method=majority", "cell_timeout=-1"], "sweep.cell_timeout=-1.0 must be >= 0.0"),
        (["method=majority", "workers=1,2"], "one number of workers"),
        (["method=all", "method.k=3"], "method.k=3: options of one method do not fit all of them"),
        (["method=unimodal", "method.modality=smell"], "'smell' is not a modality"),
        (["method=redeem", "method.preset=official"], "supervision=complete"),
        (["method=majority", "paths.home=x,y"], "one place for its files"),
        (["method=all", "trainer.select_on=rmse"], "'rmse' is not defined for multiclass tasks"),
        (["workers=2"], "name a method"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, capsys: Capture) -> None:
    assert main(["sweep", *SMALL, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


def test_a_protocol_that_suits_no_method_is_an_error_not_an_empty_plan(capsys: Capture) -> None:
    assert main(["sweep", *SMALL[:2], "method=all", "protocol=text_0.5"]) == 2
    assert "has no modality 'text'" in capsys.readouterr().err


def test_dry_run_prints_every_cell_and_starts_nothing(home: Path, capsys: Capture) -> None:
    assert main(["sweep", *SMALL, "method=majority,unimodal", "train_seed=0,1", "workers=2", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 cells, 0 finished, 6 to run, 2 at a time"
    assert "estimated time: unknown" in lines
    assert sum("to run" in line and "synthetic  any_0.5" in line for line in lines[4:]) == 6
    assert not (home / "runs").exists()
    assert not (home / "mlflow.db").exists()


def test_a_record_whose_files_are_gone_is_not_taken_for_finished(store: Path, capsys: Capture) -> None:
    """The store is asked each time, and what it names is read: nothing that was lost is passed over."""
    grid = [*SMALL, "method=majority", "train_seed=0,1"]
    assert main(["run", "--no-table", *grid]) == 0
    assert make_plan(grid).todo == []
    (run,) = load_runs(f"sqlite:///{store / 'mlflow.db'}", filters={"train_seed": "1"})
    shutil.rmtree(store / "runs")
    shutil.rmtree(run.artifact_uri.removeprefix("file://"))
    plan = make_plan(grid)
    assert [cell.config.train_seed for cell in plan.todo] == [1]
    assert f"MLflow run {run.mlflow_run_id} is left out" in capsys.readouterr().err
    (_, again) = run_plan(plan, SweepConfig())
    assert (again.record.status, again.skipped) == ("finished", False)
    assert make_plan(grid).todo == []


# -- running -----------------------------------------------------------------------------------------------------------


def test_two_workers_record_everything_and_failures_stop_nobody(store: Path, plugin: Path, capsys: Capture) -> None:
    grid = [*SMALL, "method=dies,raises,majority,knn_vote", "workers=2"]
    sweep = start(*grid, "--plugin", str(plugin))
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 1, err
    assert err.splitlines()[0] == "4 cells, 0 finished, 4 to run, 2 at a time"
    assert "2 of 4 cells failed:" in out
    found = records(store)
    assert {name: record["status"] for name, record in found.items()} == {
        "dies": "failed",
        "raises": "failed",
        "majority": "finished",
        "knn_vote": "finished",
    }
    assert found["raises"]["error"].startswith("ValueError: nothing works")
    assert "died twice" in found["dies"]["error"]
    # Both workers wrote to one database; nothing waits.
    assert [path for path in (store / "outbox").iterdir() if not path.name.startswith(".")] == []

    again = ["--plugin", str(plugin), "sweep", *grid]
    assert main([*again, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 cells, 2 finished, 2 to run" in out
    assert "estimated time: unknown" in out
    # What these methods took is known now: for other seeds and masks, too.
    more = [*SMALL, "method=dies,majority,knn_vote", "train_seed=5", "mask_seed=5"]
    assert main(["--plugin", str(plugin), "sweep", *more, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"estimated time: at least \d+ s, and 1 cells of methods that have not finished on their", out)
    assert main(["sweep", *SMALL, "method=majority", "train_seed=5", "--dry-run"]) == 0
    assert re.search(r"estimated time: about \d+ s", capsys.readouterr().out)
    # All are recorded: with overwrite=never there is nothing to do, and failed cells still count.
    assert main([*again, "overwrite=never"]) == 1
    out, err = capsys.readouterr()
    assert "4 cells, 4 finished, 0 to run" in err
    assert out.count("nothing works") >= 1
    assert "knn_vote" in out


def sleeping_worker(home: Path, sweep: subprocess.Popen[str]) -> int:
    """Waits for the method `slow` and returns the process that it runs in."""
    file = home / "sleeping"
    deadline = time.monotonic() + 200
    while not (file.exists() and file.read_text()) and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return int(file.read_text())


def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(store: Path, plugin: Path) -> None:
    grid = [*SMALL, "method=majority,slow", "workers=1", "--plugin", str(plugin)]
    sweep = start(*grid)
    worker = sleeping_worker(store, sweep)
    began = time.monotonic()
    os.killpg(sweep.pid, signal.SIGINT)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, err
    assert time.monotonic() - began < 30
    assert "Traceback" not in err
    assert "1 of 2 cells are recorded and stay." in err
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert {name: record["status"] for name, record in records(store).items()} == {
        "majority": "finished",
        "slow": "interrupted",
    }
    registry.load_plugin_file(plugin)
    plan = make_plan([*SMALL, "method=majority,slow"])
    assert [cell.method_name for cell in plan.todo] == ["slow"]


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_worker_behind(store: Path, plugin: Path) -> None:
    sweep = start(*SMALL, "method=slow", "--plugin", str(plugin))
    worker = sleeping_worker(store, sweep)
    sweep.kill()
    sweep.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _alive(worker):
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        # A worker whose parent is gone may stay as a zombie where nobody collects orphans.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_sweeps_of_the_same_grid_share_its_cells(store: Path) -> None:
    grid = [*SMALL, "method=majority", "train_seed=range(0,6)", "--no-table"]
    sweeps = [start(*grid), start(*grid)]
    ends = [sweep.communicate(timeout=580) for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], ends
    done = [line for _, err in ends for line in err.splitlines() if line.startswith("[")]
    assert sum("already finished" not in line for line in done) == 6, "every cell was run once"
    runs = load_runs(f"sqlite:///{store / 'mlflow.db'}")
    assert sorted(run.record.seeds["train_seed"] for run in runs) == list(range(6))


@pytest.fixture
def serve(store: Path) -> Iterator[Callable[[], tuple[str, subprocess.Popen[bytes]]]]:
    """Starts MLflow servers on one port, each a process group of its own; none outlives the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(store / "art")]
    started: list[subprocess.Popen[bytes]] = []

    def start_server() -> tuple[str, subprocess.Popen[bytes]]:
        quiet = subprocess.DEVNULL
        started.append(subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True))
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            with suppress(TrackingError):
                probe(f"http://127.0.0.1:{port}")
                break
            time.sleep(0.2)
        return f"http://127.0.0.1:{port}", started[-1]

    yield start_server
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_server_that_is_killed_in_mid_sweep_costs_nothing(
    store: Path, serve: Callable[[], tuple[str, subprocess.Popen[bytes]]]
) -> None:
    """Records wait in the outbox, and `harness sync` sends them to the next server."""
    uri, server = serve()
    sweep = start(*SMALL, "method=majority", "train_seed=range(0,4)", f"tracking.uri={uri}")
    assert sweep.stderr is not None
    lines = []
    for line in sweep.stderr:
        lines.append(line)
        if line.startswith("[1/4"):
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    assert sweep.wait() == 0, lines
    assert any("send it later with `harness sync`" in line for line in lines)
    assert {record["status"] for record in records(store).values()} == {"finished"}
    serve()
    assert main(["sync", f"tracking.uri={uri}"]) == 0
    runs = load_runs(uri)
    assert sorted(run.record.seeds["train_seed"] for run in runs) == list(range(4))
    assert all(len(run.predictions().ids) == 15 for run in runs)


def test_features_that_cannot_be_computed_are_told_before_anything_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise DataError("picture 7 is damaged.")

    plan = make_plan([*SMALL, "method=majority"])
    monkeypatch.setattr(FeatureStore, "get", broken)
    with pytest.raises(DataError, match="picture 7"):
        run_plan(plan, SweepConfig())
    assert list((home / "runs").iterdir()) == []
