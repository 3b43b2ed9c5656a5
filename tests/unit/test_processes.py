"""One run on several processes: same result as one, one writer, failures of one are failures of all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import registry
from harness.cell import cell_features, observed_views, resolve
from harness.compose import compose, identity_dict
from harness.config import PathsConfig
from harness.errors import EXIT_USAGE
from harness.execution import build_method
from harness.files import Folders
from harness.masking import ObservedDataset
from harness.method import Method
from harness.record import RunRecord
from harness.runner import Outcome, run_cells
from harness.seeding import seed_everything
from harness.trainer import EpochBatches, Shares
from harness.types import IntArray
from harness.workspace import Workspace

#: 144 training samples: batches of 13 leave one sample for the last, so one of two processes has none.
SMALL = ["dataset=synthetic", "dataset.samples=240", "backbone.hidden_size=16", "backbone.dropout=0.0", "device=cpu"]
SMALL += ["trainer.epochs=2", "trainer.batch_size=13", "trainer.eval_batch_size=10", "protocol=any_0.5"]

#: Ends process 1 (or all) in the middle of the second epoch, by an exception or as `kill -9` does.
PLUGIN = '''
import os
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness import processes, registry
from harness.config import MethodConfig
from harness.method import Method
from harness.types import StepOutput


@dataclass
class Fails(MethodConfig):
    """Fails.

    Attributes:
        how: `raise` or `exit`.
    """

    target: ClassVar[str] = f"{__name__}:Failing"
    uses_backbone: ClassVar[bool] = False
    how: str = "raise"


class Failing(Method):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.bias = torch.nn.Parameter(torch.zeros(self.task.num_outputs))
        self.steps = 0

    def predict_step(self, batch):
        return self.bias.expand(len(batch), -1)

    def training_step(self, batch):
        self.steps += 1
        if self.steps == 14 and (processes.rank() == 1 or self.config.how == "stop"):
            if self.config.how == "raise":
                raise ValueError("nothing works")
            os._exit(9)
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        return StepOutput(loss, {"task": loss})


registry.methods.register("fails", Fails, "a test")
'''

#: Makes an empty home folder.
Homes = Callable[[str], Path]

RUN = "import sys; from harness.cli import main; sys.exit(main(sys.argv[1:]))"


def launch(code: str, *arguments: str, count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """Runs Python code in `count` connected processes, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", code, *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        ends = [process.communicate(timeout=580) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *end)
        for process, end in zip(started, ends, strict=True)
    ]


@pytest.fixture
def homes(tmp_path: Path, mlflow_template: Path) -> Homes:
    """Home folders by name, each with an empty database, which takes seconds to create."""

    def home(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "runs.db").write_bytes(mlflow_template.read_bytes())
        return folder

    return home


def options(home: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"paths.home={home}", f"tracking.uri=sqlite:///{home / 'runs.db'}", *overrides]


def in_one(home: Path, *overrides: str) -> Outcome:
    return run_cells(compose(options(home, *overrides)))[0]


def in_two(home: Path, *overrides: str, flags: Sequence[str] = ()) -> list[subprocess.CompletedProcess[str]]:
    return launch(RUN, *flags, "run", *options(home, *overrides))


def same(left: Outcome, right: Outcome) -> None:
    """Predictions agree within float tolerance in the same order, and training decided alike."""
    one, two = left.predictions(), right.predictions()
    assert one.ids == two.ids
    np.testing.assert_allclose(one.logits, two.logits, atol=2e-4)
    assert left.record.run_id == right.record.run_id
    assert left.record.cost.best_epoch == right.record.cost.best_epoch
    assert len(left.record.history) == len(right.record.history)
    for a, b in zip(left.record.history, right.record.history, strict=True):
        assert a == pytest.approx(b, abs=2e-4)


# -- what is computed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2)])
def test_shares_of_all_processes_are_the_batches_of_one(
    monkeypatch: pytest.MonkeyPatch, count: int, accumulate: int
) -> None:
    batches = EpochBatches(29, 7, seed=3)
    shares: list[list[list[int]]] = []
    for rank in range(count):
        for name, value in {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, str(value))
        share = list(Shares(batches, accumulate))
        assert len(share) == len(Shares(batches, accumulate)) == len(batches) * accumulate
        shares.append(share)
    for step, batch in enumerate(batches):
        parts = [part for share in shares for part in share[step * accumulate : (step + 1) * accumulate]]
        assert [row for part in parts for row in part] == batch
        assert len(batch) == batches.samples(step)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_accumulating_takes_the_same_steps(homes: Homes) -> None:
    home = homes("home")
    whole, parts = in_one(home, "method=zero_fill"), in_one(home, "method=zero_fill", "trainer.accumulate=3")
    np.testing.assert_allclose(whole.predictions().logits, parts.predictions().logits, atol=2e-4)
    assert whole.record.run_id != parts.record.run_id


def test_the_neutral_value_of_accumulate_changes_no_identity() -> None:
    plain = identity_dict(compose([*SMALL, "method=zero_fill"])[0])
    assert "accumulate" not in plain["trainer"]
    assert identity_dict(compose([*SMALL, "method=zero_fill", "trainer.accumulate=2"])[0])["trainer"]["accumulate"] == 2


def test_two_processes_compute_what_one_does_and_one_writes(homes: Homes) -> None:
    home = homes("two")
    options = ("method=ragpt", "method.dropout=0.0")
    main, other = in_two(home, *options)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    assert "ragpt" in main.stdout
    assert (other.stdout, "ragpt" in other.stderr) == ("", False)
    assert len(list((home / "runs").iterdir())) == 1
    assert not [path for path in (home / "outbox").iterdir() if not path.name.startswith(".")]
    outcome = in_one(home, *options)
    assert outcome.skipped, "one process finds the record of two"
    assert outcome.record.environment["processes"] == 2
    assert all(check.passed for check in outcome.record.audits), outcome.record.audits
    same(in_one(homes("one"), *options), outcome)


@pytest.mark.slow
def test_accelerate_launch_starts_two_processes_on_a_cpu(homes: Homes) -> None:
    """By the launcher for several GPUs, which is told `device=cpu`; with `--cpu` it starts one."""
    home = homes("launched")
    command = [sys.executable, "-P", "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "-m", "harness", "run", *options(home, "method=mean_fill")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = run_cells(compose(options(home, "method=mean_fill")))[0]
    assert found.record.environment["processes"] == 2
    same(in_one(homes("one"), "method=mean_fill"), found)


def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path: Path, homes: Homes) -> None:
    """Process 1 is gone in the second epoch: nothing is recorded, the first epoch stays, one process ends the run."""
    plugin, home = tmp_path / "fails.py", homes("home")
    plugin.write_text(PLUGIN)
    main, other = in_two(home, "method=fails", "method.how=exit", flags=["--plugin", str(plugin)])
    assert (main.returncode, other.returncode) == (1, 9), main.stderr
    errors = [line for line in main.stderr.splitlines() if line.startswith("harness")]
    assert errors == [
        "harness: error: process 0 of 2: another process of this run has ended; "
        "the same command goes on from the last checkpoint."
    ]
    assert list(home.glob("runs/*/last.pt"))
    assert not list(home.glob("runs/*/record.json"))
    registry.load_plugin_file(plugin)
    resumed = in_one(home, "method=fails", "method.how=exit")
    same(in_one(homes("whole"), "method=fails", "method.how=exit"), resumed)
    assert len(resumed.record.history) == 2


def test_what_fails_in_one_process_fails_in_all_and_the_next_cell_runs(tmp_path: Path, homes: Homes) -> None:
    plugin, home = tmp_path / "fails.py", homes("home")
    plugin.write_text(PLUGIN)
    main, other = in_two(home, "method=fails,majority", flags=["--plugin", str(plugin)])
    assert (main.returncode, other.returncode) == (1, 1), main.stderr + other.stderr
    assert (
        "fails · synthetic · any_0.5 · train_seed=0: failed: process 1 of 2: ValueError: nothing works" in main.stderr
    )
    assert "majority" in main.stdout
    found = [RunRecord.load(path) for path in home.glob("runs/*/record.json")]
    assert sorted((record.method, record.status) for record in found) == [("fails", "failed"), ("majority", "finished")]


@pytest.mark.parametrize(
    ("command", "method", "says"),
    [
        ("sweep", "majority", "harness sweep is one process; only `harness run`"),
        ("run", "nope", "unknown method 'nope'"),
    ],
)
def test_wrong_usage_is_told_once(tmp_path: Path, command: str, method: str, says: str) -> None:
    main, other = launch(RUN, command, *options(tmp_path, f"method={method}"))
    assert (main.returncode, other.returncode) == (EXIT_USAGE, EXIT_USAGE)
    (line,) = main.stderr.splitlines()
    assert line.startswith(f"harness: error: {says}")
    assert other.stderr == ""


def test_results_and_errors_are_shared_in_order() -> None:
    code = """
import json
from harness import processes
from harness.errors import HarnessError, UsageError

processes.start("cpu")
rank, said = processes.rank(), {}
said["everywhere"] = processes.everywhere(lambda: f"from {rank}")
said["main"] = processes.from_main(lambda: f"from {rank}")
order = []
processes.main_first(lambda: order.append(rank))
said["order"] = processes.everywhere(lambda: order)
for number in (0, 1, 2):
    def fail():
        if rank == number:
            raise UsageError(f"fault of {rank}")
    try:
        processes.together(fail)
    except HarnessError as error:
        said[f"fault {number}"] = [str(error), error.exit_code, error.known_to_all]
print(json.dumps(said))
processes.stop()
"""
    said: list[dict[str, Any]] = []
    for process in launch(code, count=3):
        assert process.returncode == 0, process.stderr
        said.append(json.loads(process.stdout))
    for rank, own in enumerate(said):
        assert own["everywhere"] == ["from 0", "from 1", "from 2"]
        assert own["main"] == "from 0"
        assert own["order"] == [[0], [1], [2]]
        for number in range(3):
            text = f"fault of {number}"
            expected = text if number == rank else f"process {number} of 3: {text}"
            assert own[f"fault {number}"] == [expected, EXIT_USAGE, True]


# -- for which methods -------------------------------------------------------------------------------------------------

#: Methods whose loss is a mean over the samples of a batch and draws nothing but dropout: cut batches give the same
#: gradient.  `docs/several-devices.md` says why the others differ.
MEAN_OVER_SAMPLES = {"complete", "knn_impute", "map", "mean_fill", "msp", "ragpt", "zero_fill"}


@pytest.mark.slow
def test_which_methods_take_the_same_steps_from_cut_batches(tmp_path: Path) -> None:
    workspace = Workspace(Folders.resolve(PathsConfig(home=str(tmp_path))))
    same_steps = set()
    for name in registry.methods.names():
        config = compose([*SMALL, f"method={name}", *(["method.modality=a"] if name == "unimodal" else [])])[0]
        if config.method.trains:
            cell = resolve(config, workspace)
            features = cell_features(cell, workspace)
            views = observed_views(cell, features)
            if _largest_difference(build_method(config, cell.table, features, views), views.train) < 1e-4:
                same_steps.add(name)
    assert same_steps == MEAN_OVER_SAMPLES


def _largest_difference(method: Method, train: ObservedDataset) -> float:
    """Between the gradients of a whole batch and of its halves, relative, over all stages."""
    differences = []
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for stage in method.stages():
        method.stage = stage.name
        seed_everything(0, "stage")
        method.start_stage(stage, train)
        method.train()
        state = {key: value.clone() for key, value in method.state_dict().items()}
        whole = _gradient(method, train, state, [np.arange(24)])
        cut = _gradient(method, train, state, np.array_split(np.arange(24), 2))
        differences.append(float((whole - cut).norm() / whole.norm()))
    return max(differences)


def _gradient(
    method: Method, train: ObservedDataset, state: dict[str, torch.Tensor], parts: Sequence[IntArray]
) -> torch.Tensor:
    method.load_state_dict(state)
    method.zero_grad(set_to_none=True)
    for part in parts:
        seed_everything(0, "draws")
        (method(train.batch(part)).loss * (len(part) / 24)).backward()
    parameters = (parameter for group in method.parameter_groups(0.0) for parameter in group["params"])
    return torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
