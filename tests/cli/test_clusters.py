"""Sweeps on engines that are really there: submitit's processes, a Slurm and a Ray cluster of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.executors import local
from harness.executors.local import LocalConfig
from harness.executors.ray import RayConfig
from harness.executors.slurm import SlurmConfig
from harness.runner import Outcome
from harness.sweep import SweepConfig, make_plan, run_plan
from harness.tracking import load_runs

pytestmark = pytest.mark.slow

SMALL = ["dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu", "method=patient"]

#: A method that says where it is, and waits there for a moment the first time.
PLUGIN = '''
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from harness import registry
from harness.executors import local
from harness.executors.local import LocalConfig
from harness.config import MethodConfig
from harness.method import Method


@dataclass
class Patient(MethodConfig):
    """Waits.

    Attributes:
        seconds: How long.
        mark: Ends the name of the file that says where it is.
    """

    target: ClassVar[str] = f"{__name__}:Waiting"
    uses_backbone: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    seconds: float = 0.0
    mark: str = ""


class Waiting(Method):
    def prepare(self, train):
        where = Path(os.environ["HARNESS_HOME"]) / f"at-{self.config.mark}"
        first = not where.exists()
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        where.write_text(f"{os.environ.get('SLURM_JOB_ID', '')} {node()} {os.getpid()} {gpus}")
        end = time.monotonic() + first * self.config.seconds
        while time.monotonic() < end:
            time.sleep(0.1)  # Ray interrupts Python, not the system's calls

    def predict_step(self, batch):
        return torch.zeros(len(batch), self.task.num_outputs)

    def training_step(self, batch):
        raise AssertionError("is not trained")


def node():
    ray = sys.modules.get("ray")
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ""


registry.methods.register("patient", Patient, "a test")
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "patient.py"
    file.write_text(PLUGIN)
    registry.load_plugin_file(file)
    return str(file)


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def place_of(home: Path, name: str) -> list[str]:
    """Job, node, process and GPU of a cell, once it runs."""
    file = home / f"at-{name}"
    deadline = time.monotonic() + 600
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < deadline, f"{name} does not start"
        time.sleep(0.1)
    return file.read_text().split(" ")


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.record.status for outcome in outcomes]


def stored(home: Path) -> list[int]:
    return sorted(run.record.seeds["train_seed"] for run in load_runs(f"sqlite:///{home / 'mlflow.db'}"))


# -- processes ---------------------------------------------------------------------------------------------------------


def test_each_worker_has_its_gpu(store: Path, plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none here, but CUDA would look them up where the workers find theirs."""
    monkeypatch.setattr(local, "_gpus", lambda: ["3", "5"])
    assert LocalConfig().places(0) == 2
    grid = [text for text in SMALL if text != "device=cpu"]
    plan = make_plan([*grid, "method.mark=a,b", "method.seconds=20"])
    outcomes = run_plan(plan, SweepConfig(workers=0), plugins=[plugin])
    assert statuses(outcomes) == ["finished", "finished"]
    assert {place_of(store, name)[3] for name in ("a", "b")} == {"3", "5"}


def test_four_processes(store: Path, plugin: str) -> None:
    plan = make_plan([*SMALL, "method.mark=a,b,c,d", "train_seed=0,1"])
    outcomes = run_plan(plan, SweepConfig(workers=4), plugins=[plugin])
    assert statuses(outcomes) == ["finished"] * 8
    assert stored(store) == [0] * 4 + [1] * 4


# -- Slurm -------------------------------------------------------------------------------------------------------------


def test_submitits_local_executor(store: Path, plugin: str) -> None:
    """A process that is killed is a failed cell; the other one is finished."""
    pytest.importorskip("submitit")
    plan = make_plan([*SMALL, "method.mark=a,b", "method.seconds=20"])
    meanwhile(lambda: os.kill(int(place_of(store, "b")[2]), signal.SIGKILL))
    outcomes = run_plan(plan, SweepConfig(SlurmConfig(cluster="local")), plugins=[plugin])
    assert statuses(outcomes) == ["finished", "failed"]
    assert "ended without a record" in outcomes[1].record.error


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of one node with two cores (Debian: slurmctld, slurmd, slurm-client, munge)."""
    programs = [shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("munged", "slurmctld", "slurmd", "sbatch")]
    if os.geteuid() != 0 or not all(programs):
        pytest.skip("needs root, and Slurm: apt-get install slurmctld slurmd slurm-client munge")
    munged, slurmctld, slurmd, _ = programs
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    (folder / "slurm.conf").write_text(
        f"""
        ClusterName=test
        SlurmctldHost={host}(127.0.0.1)
        SlurmUser=root
        SlurmdUser=root
        AuthType=auth/munge
        AuthInfo=socket={folder}/munge.socket,cred_expire=5
        StateSaveLocation={folder}/state
        SlurmdSpoolDir={folder}/spool
        SlurmctldPidFile={folder}/slurmctld.pid
        SlurmdPidFile={folder}/slurmd.pid
        SlurmctldLogFile={folder}/slurmctld.log
        SlurmdLogFile={folder}/slurmd.log
        SlurmctldPort={ports[0]}
        SlurmdPort={ports[1]}
        ProctrackType=proctrack/linuxproc
        TaskPlugin=task/none
        SelectType=select/cons_tres
        SelectTypeParameters=CR_CPU
        MpiDefault=none
        ReturnToService=2
        KillWait=5
        NodeName={host} NodeAddr=127.0.0.1 CPUs={min(2, os.cpu_count() or 1)} State=UNKNOWN
        PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
        """.replace("        ", "")
    )
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    started = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        places = [f"--{name}={folder}/munge.{end}" for name, end in (("key-file", "key"), ("socket", "socket"))]
        places += [f"--{name}={folder}/munge.{name}" for name in ("pid-file", "log-file", "seed-file")]
        for command in ([munged, "--foreground", "--force", *places], [slurmctld, "-D"], [slurmd, "-D", "-N", host]):
            quiet = subprocess.DEVNULL
            started.append(subprocess.Popen([str(word) for word in command], stdout=quiet, stderr=quiet))
            time.sleep(2)
        try:
            deadline = time.monotonic() + 60
            while "idle" not in subprocess.run(["sinfo"], capture_output=True, text=True).stdout:
                if time.monotonic() > deadline:
                    pytest.skip("this machine does not let a Slurm start")
                time.sleep(1)
            yield
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(60)


def test_a_slurm_cluster(store: Path, plugin: str, slurm: None) -> None:
    """A job is requeued and goes on; one is killed; one waits for its turn: each cell has its record."""
    pytest.importorskip("submitit")
    plan = make_plan([*SMALL, "method.seconds=60", "method.mark=preempted,killed,plain"])

    def act() -> None:
        job = place_of(store, "preempted")[0]
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        os.kill(int(place_of(store, "killed")[2]), signal.SIGKILL)

    (store / "at-plain").write_text("not the first time")
    thread = meanwhile(act)
    config = SlurmConfig(minutes=30, options={"comment": "a test"})
    outcomes = run_plan(plan, SweepConfig(config, workers=2), plugins=[plugin])
    assert statuses(outcomes) == ["finished", "failed", "finished"]
    thread.join()
    assert "ended without a record" in outcomes[1].record.error
    (log,) = [file for file in (store / "slurm").glob("*/*_log.err") if "preempted" in file.read_text()]
    assert log.with_suffix(".out").read_text().count("Starting with JobEnvironment") == 2
    # The same command ends what is left: no longer the first time.
    again = make_plan([*SMALL, "method.seconds=60", "method.mark=preempted,killed,plain"])
    assert [cell.config.method.mark for cell in again.todo] == ["killed"]
    assert statuses(run_plan(again, SweepConfig(config), plugins=[plugin])) == ["finished"] * 3


def test_a_killed_driver_of_slurm_leaves_its_jobs(store: Path, plugin: str, slurm: None) -> None:
    """`kill -9` of the driver: its jobs go on; the same command waits for what they run, and nothing is run twice."""
    pytest.importorskip("submitit")
    grid = [*SMALL, "method.mark=a,b", "method.seconds=40"]
    command = [sys.executable, "-P", "-m", "harness", "--plugin", plugin, "sweep", *grid, "executor=slurm"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    places = {name: place_of(store, name) for name in ("a", "b")}
    driver.kill()
    driver.wait()
    outcomes = run_plan(make_plan(grid), SweepConfig(SlurmConfig()), plugins=[plugin])
    assert statuses(outcomes) == ["finished", "finished"]
    assert {name: place_of(store, name) for name in ("a", "b")} == places, "no cell was begun again"
    assert stored(store) == [0, 0]


# -- Ray ---------------------------------------------------------------------------------------------------------------


def test_a_ray_of_this_machine(store: Path, plugin: str) -> None:
    pytest.importorskip("ray")
    plan = make_plan([*SMALL, "method.mark=a,b,c"])
    outcomes = run_plan(plan, SweepConfig(RayConfig(), workers=2), plugins=[plugin])
    assert statuses(outcomes) == ["finished"] * 3
    assert len(stored(store)) == 3


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """Ray with two nodes of one core each, on loopback."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_a_ray_node_that_is_killed_costs_nothing(store: Path, plugin: str, two_nodes: Any) -> None:
    """`kill -9` of a node while a cell runs on it: the cell is run again on the other one."""
    plan = make_plan([*SMALL, "method.seconds=40", "method.mark=a,b,c,d"])
    killed = []

    def act() -> None:
        (node,) = two_nodes.worker_nodes
        places = {name: place_of(store, name)[1] for name in ("a", "b")}
        killed.extend(name for name, place in places.items() if place == node.node_id)
        (raylet,) = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)

    thread = meanwhile(act)
    outcomes = run_plan(plan, SweepConfig(RayConfig(address=two_nodes.address)), plugins=[plugin])
    assert statuses(outcomes) == ["finished"] * 4
    thread.join()
    assert len(killed) == 1, "a cell ran on the node"
    assert len(stored(store)) == 4


def test_ctrl_c_interrupts_the_cells_of_ray(store: Path, plugin: str) -> None:
    pytest.importorskip("ray")
    grid = [*SMALL, "method.mark=a", "method.seconds=300", "executor=ray", "--plugin", plugin]
    command = [sys.executable, "-P", "-m", "harness", "sweep", *grid]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place_of(store, "a")
    sweep.send_signal(signal.SIGINT)
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    (record,) = [json.loads(file.read_text()) for file in (store / "runs").glob("*/record.json")]
    assert (record["status"], "stopped by Ctrl-C" in record["error"]) == ("interrupted", True)
