"""`harness tune`: one budget, validation only, goes on after a kill, and leaves a mark that reports show."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import registry, tuning
from harness.bundle import RUN_FILES, write_bundle
from harness.cli import main
from harness.config import MethodConfig
from harness.errors import UsageError
from harness.run_files import RunFile
from harness.space import COMMON, Choice, Span, read_space, space_of, space_path
from harness.tuning import TuneConfig, make_studies, run_study

pytest.importorskip("optuna", reason="needs the extra tune: pip install -e '.[tune]'")
Capture = pytest.CaptureFixture[str]

#: A small linear method that notes which samples it ever sees, and data whose test split another seed spoils.
PLUGIN = '''
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from harness import registry
from harness.config import MethodConfig
from harness.datasets.synthetic import SyntheticConfig
from harness.method import Method
from harness.types import StepOutput

SEEN = set()


@dataclass
class LinearConfig(MethodConfig):
    """Sums of linear maps of what is there.

    Attributes:
        scale: Of the features.
        fails_above: Learning rate above which it refuses to start.
        dies: Whether it kills its process in the third trial.
    """

    scale: float = 1.0
    fails_above: float = 1.0
    dies: bool = False

    target: ClassVar[str] = f"{__name__}:Linear"
    summary: ClassVar[str] = "sums of linear maps"
    card: ClassVar[str] = "linear.md"
    uses_backbone: ClassVar[bool] = False


@dataclass
class Plain(LinearConfig):
    """Declares no space."""

    card: ClassVar[str] = ""


@dataclass
class Fixed(LinearConfig):
    """Learns nothing."""

    card: ClassVar[str] = ""
    trains: ClassVar[bool] = False


class Linear(Method):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.maps = nn.ModuleDict(
            {name: nn.Linear(spec.pooled_dim, self.task.num_outputs) for name, spec in context.features.items()}
        )

    def logits(self, batch):
        SEEN.update(batch.ids)
        if self.config.dies:
            calls = Path(os.environ["HARNESS_HOME"]) / "calls"
            calls.write_text(str(1 + int(calls.read_text()) if calls.exists() else 1))
            if int(calls.read_text()) == 40:
                os.kill(os.getpid(), signal.SIGKILL)
        total = torch.zeros(len(batch), self.task.num_outputs)
        for name, part in batch.inputs.items():
            total = total.index_add(0, part.rows, self.maps[name](part.pooled * self.config.scale))
        return total

    def prepare(self, train):
        if self.config.fails_above < 0:
            raise RuntimeError("nothing works\\nat all")

    def training_step(self, batch):
        loss = self.task_loss(self.logits(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def predict_step(self, batch):
        return self.logits(batch)


@dataclass
class Spoiled(SyntheticConfig):
    """`synthetic` with other values and labels in the test split, under the fingerprint of the true ones."""

    def load(self, data_dir, cache_dir):
        table = super().load(data_dir, cache_dir)
        test = set(table.splits["test"].tolist())
        values = {
            name: [np.full_like(value, 1e6) if row in test else value for row, value in enumerate(column)]
            for name, column in table.values.items()
        }
        labels = table.labels.copy()
        labels[sorted(test)] = 0
        return replace(table, values=values, labels=labels)


registry.methods.register("linear", LinearConfig, "a test")
registry.methods.register("plain", Plain, "a test")
registry.methods.register("fixed", Fixed, "a test")
registry.datasets.register("spoiled", Spoiled, "a test")
'''

SMALL = ["protocol=any_0.5", "dataset.samples=60", "trainer.epochs=3", "trainer.batch_size=32", "device=cpu"]
LINEAR = ["method=linear", "dataset=synthetic", *SMALL]


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "linear.py"
    file.write_text(PLUGIN)
    (tmp_path / "linear.space.yaml").write_text("method.scale: {low: 0.1, high: 10.0, log: true}\n")
    registry.load_plugin_file(file)
    return str(file)


def tuned(*arguments: str, capsys: Capture) -> list[dict[str, Any]]:
    """Studies that the command prints."""
    capsys.readouterr()
    assert main(["tune", *arguments, "--json"]) == 0
    studies: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["studies"]
    return studies


def tried(study: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What was tried and found, without what it took."""
    return [(trial["number"], trial["values"], trial["score"], trial["scores"]) for trial in study["trials"]]


# -- search ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def learns_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search learns from the third trial on."""
    monkeypatch.setattr(tuning, "STARTUP_TRIALS", 2)


@pytest.mark.usefixtures("learns_early")
def test_every_method_gets_the_same_trials_and_its_defaults_first(plugin: str, capsys: Capture) -> None:
    small = ["dataset=synthetic", *SMALL, "trials=5"]
    linear, plain = tuned("method=linear,plain", "trainer.weight_decay=0.01", *small, capsys=capsys)
    assert (len(linear["trials"]), len(plain["trials"])) == (5, 5)
    assert linear["trials"][0]["values"] == {"trainer.lr": 1e-3, "method.scale": 1.0}  # what is given is not searched
    assert plain["trials"][0]["values"] == {"trainer.lr": 1e-3}
    for study in (linear, plain):
        scores = [trial["score"] for trial in study["trials"]]
        assert scores[study["best"] - 1] == max(scores)
        assert all(1e-4 <= trial["values"]["trainer.lr"] <= 1e-2 for trial in study["trials"])
        assert len({json.dumps(trial["values"]) for trial in study["trials"]}) == 5


def test_a_spoiled_test_split_changes_nothing(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (true,) = tuned(*LINEAR, "trials=3", capsys=capsys)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "other home"))
    (spoiled,) = tuned("method=linear", "dataset=spoiled", *SMALL, "trials=3", capsys=capsys)
    assert tried(spoiled) == tried(true)
    seen = next(module for name, module in sys.modules.items() if name.startswith("harness_plugin_linear")).SEEN
    (study,), _ = make_studies(LINEAR, TuneConfig())
    table = study.cells[0].table
    assert seen == {*table.split_ids("train"), *table.split_ids("valid")}


def test_the_same_seed_finds_the_same_and_another_one_does_not(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (first,) = tuned(*LINEAR, "trials=3", capsys=capsys)
    (other,) = tuned(*LINEAR, "trials=3", "tune_seed=1", capsys=capsys)
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "other home"))
    (again,) = tuned(*LINEAR, "trials=3", capsys=capsys)
    assert tried(first) == tried(again)
    assert first["study"] == again["study"] != other["study"]
    assert tried(first)[0] == tried(other)[0]
    assert tried(first)[1:] != tried(other)[1:]


def test_several_train_seeds_are_one_study_scored_by_their_mean(plugin: str, capsys: Capture) -> None:
    (study,) = tuned(*LINEAR, "train_seed=0,1,2", "trials=2", capsys=capsys)
    assert study["train_seeds"] == [0, 1, 2]
    for trial in study["trials"]:
        assert len(trial["scores"]) == 3
        assert trial["score"] == pytest.approx(sum(trial["scores"]) / 3)
        assert trial["epochs"] == 9


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("learns_early")
def test_more_trials_continue_the_search_and_fewer_are_its_beginning(plugin: str, capsys: Capture) -> None:
    (whole,) = tuned(*LINEAR, "trials=5", capsys=capsys)
    (short,) = tuned(*LINEAR, "trials=2", capsys=capsys)
    assert [trial["seconds"] for trial in short["trials"]] == [trial["seconds"] for trial in whole["trials"][:2]]
    (other,) = tuned(*LINEAR, "trials=2", "tune_seed=5", capsys=capsys)
    (more,) = tuned(*LINEAR, "trials=5", "tune_seed=5", capsys=capsys)
    assert tried(more)[:2] == tried(other)


@pytest.mark.slow
def test_killed_it_goes_on_as_if_nothing_had_been(
    plugin: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    command = ["tune", *LINEAR, "method.dies=true", "trials=5", "--json", "--plugin", plugin]
    process = subprocess.run(
        [sys.executable, "-P", "-m", "harness", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL
    told = [line for line in process.stderr.splitlines() if "trial" in line]
    (database,) = home.glob("tune/*/study.db")
    with sqlite3.connect(database) as connection:
        ((count,),) = connection.execute("select count(*) from trials")
    assert 0 < len(told) == count < 5
    (going_on,) = tuned(*LINEAR, "method.dies=true", "trials=5", capsys=capsys)
    calls = int((home / "calls").read_text())
    monkeypatch.setenv("HARNESS_HOME", str(tmp_path / "other home"))
    (tmp_path / "other home").mkdir()
    (tmp_path / "other home" / "calls").write_text("1000")
    (unbroken,) = tuned(*LINEAR, "method.dies=true", "trials=5", capsys=capsys)
    assert tried(going_on) == tried(unbroken)
    needed = int((tmp_path / "other home" / "calls").read_text()) - 1000
    # Of the epoch in which it was killed, three batches at most are computed again.
    assert needed <= calls <= needed + 3
    assert not [path for path in home.glob("tune/*/*") if path.is_dir()]


def test_a_trial_that_fails_counts_and_the_search_goes_on(plugin: str, capsys: Capture, home: Path) -> None:
    assert main(["tune", *LINEAR, "method.fails_above=-1", "trials=2"]) == 1
    printed = capsys.readouterr()
    assert "every trial failed, the first with: RuntimeError: nothing works" in printed.out
    assert "Traceback" not in printed.out + printed.err
    traces = list(home.glob("tune/*/trial_*_traceback.txt"))
    assert len(traces) == 2
    assert "in prepare" in traces[0].read_text()
    assert not list(Path("tuned").glob("*.yaml"))


@pytest.mark.slow
def test_two_programs_do_not_run_one_study_at_once(plugin: str, home: Path, capsys: Capture) -> None:
    from filelock import FileLock

    (study,), workspace = make_studies(LINEAR, TuneConfig(trials=1))
    lock = FileLock(home / "tune" / study.id[:16] / "study.db.lock")
    (home / "tune" / study.id[:16]).mkdir(parents=True)
    with lock:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness", "tune", *LINEAR, "trials=1", "--plugin", plugin],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "is being tuned by another program" in process.stderr.readline()
    assert process.wait(timeout=120) == 0
    process.communicate()
    told: list[str] = []
    run_study(study, workspace, told.append)
    assert told == [told[0]]
    assert "trial 1/1" in told[0]


# -- what it leaves ----------------------------------------------------------------------------------------------------


def test_the_best_options_are_a_file_that_run_takes(
    plugin: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert main(["tune", *LINEAR, "trials=4"]) == 0
    printed = capsys.readouterr().out
    file = Path("tuned/linear_synthetic_any_0.5.yaml")
    assert f"harness run from={file}" in printed
    with file.with_suffix(".csv").open() as text:
        rows = list(csv.DictReader(text))
    best = max(rows, key=lambda row: float(row["valid accuracy"]))
    assert [row["remark"] for row in rows].count("best") == 1
    assert best["remark"] == "best"
    run = yaml.safe_load(file.read_text())["run"]
    assert float(run["trainer.lr"]) == float(best["trainer.lr"])
    assert "device" not in run

    assert main(["run", f"from={file}", "train_seed=0,1", "device=cpu"]) == 0
    assert main(["run", *LINEAR]) == 0
    capsys.readouterr()
    assert main(["report", "--json"]) == 0
    ((table,), *_) = [json.loads(capsys.readouterr().out)["tables"]]
    rows_by_name = {row["name"]: row for row in table["rows"]}
    assert set(rows_by_name) == {"linear", "linear (tuned)"}
    assert "tuned, 4 trials" in json.dumps(rows_by_name["linear (tuned)"]["badges"])
    assert "not tuned" in json.dumps(rows_by_name["linear"]["badges"])
    assert "Rows differ in how much their options were searched (trials: none, 4)." in table["notes"]
    records = [json.loads(path.read_text()) for path in store.glob("runs/*/record.json")]
    marks = [record["config"]["tuning"] for record in records if "tuning" in record["config"]]
    assert len(marks) == 2
    assert marks[0]["searched"] == ["trainer.lr", "trainer.weight_decay", "method.scale"]
    assert (marks[0]["trials"], marks[0]["dataset"], marks[0]["protocol"]) == (4, "synthetic", "any_0.5")
    # The score on valid that the search saw is the run's own.
    tuned_run = next(record for record in records if "tuning" in record["config"] and not record["seeds"]["train_seed"])
    assert tuned_run["valid"]["accuracy"] == float(best["valid accuracy"])

    assert main(["compare", "linear:tuned=true", "linear"]) == 0

    # The mark is part of the run id: a bundle without it does not verify.
    assert main(["export", tuned_run["run_id"], "-o", "b.zip"]) == 0
    assert main(["verify", "b.zip"]) == 0
    with zipfile.ZipFile("b.zip") as archive:
        files = {name.rpartition("/")[2]: archive.read(name) for name in archive.namelist()}
    untuned = json.loads(files["record.json"])
    del untuned["config"]["tuning"]
    kept = {name: files[name] for name in RUN_FILES} | {
        "record.json": json.dumps(untuned).encode(),
        "config.yaml": yaml.safe_dump(untuned["config"]).encode(),
    }
    write_bundle(Path("forged.zip"), {untuned["run_id"]: kept})
    capsys.readouterr()
    assert main(["verify", "forged.zip"]) == 4
    assert "the record is of another" in capsys.readouterr().out


def test_what_was_tuned_elsewhere_says_so(plugin: str, store: Path, capsys: Capture) -> None:
    assert main(["tune", *LINEAR, "trials=2"]) == 0
    file = "tuned/linear_synthetic_any_0.5.yaml"
    capsys.readouterr()
    assert main(["run", f"from={file}", "protocol=complete", "device=cpu"]) == 0
    assert "tuned, 2 trials on synthetic · any_0.5" in capsys.readouterr().out


def test_a_mark_cannot_be_kept_with_other_options(plugin: str, capsys: Capture) -> None:
    assert main(["tune", *LINEAR, "trials=1"]) == 0
    file = Path("tuned/linear_synthetic_any_0.5.yaml")
    for text in ("trainer.lr=0.5", "trainer.epochs=9", "method=shaspec", "preset=clean"):
        assert main(["run", f"from={file}", text]) == 2
        assert "that tuned/linear_synthetic_any_0.5.yaml has from a search" in capsys.readouterr().err
    assert main(["run", "method=linear", "tuning.trials=900"]) == 2
    assert "only harness tune says what was tuned" in capsys.readouterr().err
    content = file.read_text()
    file.write_text(content.replace("trials: 1", "trials: 100"))
    assert main(["run", f"from={file}", "--dry-run"]) == 2
    assert "was changed after harness tune wrote it" in capsys.readouterr().err
    own = yaml.safe_load(content)["run"]
    file.write_text(yaml.safe_dump({"run": own}))
    assert main(["run", f"from={file}", "trainer.lr=0.5", "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["trainer"]["lr"] == 0.5
    assert "tuning" not in shown


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("- a\n", "is no run file"),
        ("run: {}\n", "run must be lines of KEY: VALUE"),
        ("run: {method: [a]}\n", "run must be lines of KEY: VALUE"),
        ("run: {method: linear}\ntuning: {trials: many}\n", "its mark cannot be read"),
        ("run: {method: linear\n", "cannot be read"),
        ("run: {method: linear}\nruns: 1\n", "is no run file"),
    ],
)
def test_a_bad_run_file_is_one_clear_line(content: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=complaint):
        RunFile.load(file)


def test_the_plan_starts_nothing(plugin: str, home: Path, capsys: Capture) -> None:
    assert main(["tune", *LINEAR, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3
    assert lines[1].split()[-6:] == ["trainer.lr", "0.001", "0.0001", "to", "0.01,", "log"]
    assert not (home / "tune").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["method=linear", "trials=0"], "tune.trials=0 must be >= 1"),
        (["method=linear", "trials=5,6"], "one number of trials"),
        (["method=linear", "trainer.select_split=test"], "tune on valid"),
        (["method=linear", "trainer.lr=0.1", "trainer.weight_decay=0", "method.scale=1"], "has nothing to search"),
        (["method=fixed"], "has nothing to search"),
        (["method=linear", "from=a.yaml"], "options that are already chosen"),
        (["method=redeem", "preset=paper", "retrieval.backend=torch"], "is handed the validation split"),
        (["method=map", "method.prompt_length=6"], ""),  # given, so it need not be one of the choices
        (["method=linear", "method.preset=clean", "method.scale=50"], ""),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(
    arguments: list[str], complaint: str, plugin: str, capsys: Capture
) -> None:
    code = main(["tune", *arguments, "dataset=synthetic", *SMALL, "--dry-run"])
    assert code == (2 if complaint else 0)
    assert complaint in capsys.readouterr().err


# -- spaces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(registry.methods.names()))
def test_the_space_of_a_method_fits_its_config(name: str) -> None:
    """Every option exists, the defaults lie inside, and every end of every span is an option that is taken."""
    config_class: type[MethodConfig] = registry.methods.get(name)  # type: ignore[assignment]
    space = space_of(config_class)
    assert set(COMMON) <= set(space) or not config_class.trains
    for option, span in space.items():
        owner, _, field = option.partition(".")
        if owner != "method":
            continue
        config = config_class()
        default = getattr(config, field)
        assert default in span, f"{name}: {option}={default} is not in {span}"
        ends = span.choices if isinstance(span, Choice) else (span.low, span.high)
        for value in ends:
            assert type(value) is type(default), f"{name}: {option}={value} is another type than {default}"
            setattr(config, field, value)
            config.validate()


def test_spaces_lie_beside_cards() -> None:
    spaces = {space_path(registry.methods.get(name)) for name in registry.methods.names()}  # type: ignore[arg-type]
    root = Path(__file__).parents[2] / "methods"
    assert {path.resolve() for path in root.rglob("*space.yaml")} <= {path.resolve() for path in spaces if path}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: {low: 1}", "write {low"),
        ("a: {low: 1, high: 1}", "low below high"),
        ("a: {low: 0, high: 1, log: true}", "above 0 for log"),
        ("a: {low: x, high: 1}", "must be numbers"),
        (f"a: {{low: 1, high: {10**400}}}", r"must be numbers of at most 2\^53"),
        ("a: {low: 1, high: .inf}", "must be numbers"),
        ("a: {low: .nan, high: 1}", "must be numbers"),
        ("a: {choices: [1]}", "two or more different values"),
        ("a: {choices: [1, 1]}", "two or more different values"),
        ("a: 3", "write {low"),
        ("[1]", "write lines of OPTION"),
        ("{", "cannot be read as YAML"),
    ],
)
def test_a_bad_space_names_its_file_and_entry(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=complaint) as error:
        read_space(file)
    assert str(file) in str(error.value)


def test_a_span_of_whole_numbers() -> None:
    assert Span(1, 9).whole
    assert not Span(1, 9.0).whole
    assert True not in Span(0, 1)
    assert (0.5 in Span(0, 1), "x" in Choice(("x", "y"))) == (True, True)
