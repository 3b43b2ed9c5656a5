"""`harness check`: what it runs, what it prints, how it ends."""

from __future__ import annotations

import importlib
import json
import typing
from pathlib import Path
from typing import Any

import pytest

from harness import registry
from harness.cli import main
from harness.cli.commands import check
from harness.errors import UsageError

Capture = pytest.CaptureFixture[str]

#: A method in a file of its own; `{prediction}` is what it answers.
PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from harness import registry
from harness.config import MethodConfig
from harness.method import Method
from harness.types import StepOutput


@dataclass
class MineConfig(MethodConfig):
    """A linear layer on the mean of the observed modalities' pooled vectors.

    Attributes:
        gain: Factor of the logits.
    """

    gain: float = 1.0

    target: ClassVar[str] = f"{{__name__}}:Mine"
    summary: ClassVar[str] = "linear layer on pooled features"
    citation: ClassVar[str] = "none: an example"
    uses_backbone: ClassVar[bool] = False


class Mine(Method):
    def __init__(self, config, context):
        super().__init__(config, context)
        self.layers = torch.nn.ModuleDict(
            {{name: torch.nn.Linear(spec.pooled_dim, self.task.num_outputs) for name, spec in context.features.items()}}
        )

    def predict_step(self, batch):
        print("chatty")
        logits = torch.zeros(len(batch), self.task.num_outputs, device=batch.device)
        for name, part in batch.inputs.items():
            logits = logits.index_add(0, part.rows, self.layers[name](part.pooled).float())
        return {prediction}

    def training_step(self, batch):
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        return StepOutput(loss, {{"task": loss}})


registry.methods.register("mine", MineConfig, owner="mine.py")
'''


def write_plugin(folder: Path, prediction: str) -> list[str]:
    file = folder / "mine.py"
    file.write_text(PLUGIN.format(prediction=prediction))
    return ["--plugin", str(file)]


def test_a_method_that_keeps_the_contract(capsys: Capture) -> None:
    assert main(["check", "method=majority"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "method majority:"
    assert lines[1].split() == ["result", "cases", "test", "what", "it", "checks"]
    (row,) = [line for line in lines if "hidden values cannot be seen" in line]
    assert row.startswith("pass    4/4")
    assert "replaced by NaN" in row
    assert "0 failed" in err


def test_a_faulty_plugin_file_is_told_what_and_why(tmp_path: Path, capsys: Capture) -> None:
    # The mean over the batch makes a sample's answer depend on its companions.
    arguments = [*write_plugin(tmp_path, "logits - logits.mean(0)"), "check", "method=mine", "method.gain=2", "--json"]
    assert main(arguments) == 1
    (subject,) = json.loads(capsys.readouterr().out)
    assert (subject["kind"], subject["name"], subject["options"]) == ("method", "mine", {"gain": 2.0})
    found = {row["test"]: row for row in subject["checks"]}
    assert found["seeds decide"]["result"] == "pass"
    assert found["companions do not matter"]["result"] == "fail"
    assert set(found["companions do not matter"]["cases"].values()) == {"fail"}
    assert "Tensor-likes are not close" in found["companions do not matter"]["reason"]
    assert found["documented"]["reason"].startswith("write the card")
    assert found["nothing on stdout"]["result"] == "fail"
    # The rest of the contract holds, so that the table points at the fault.
    failed = {name for name, row in found.items() if row["result"] == "fail"}
    assert failed == {"documented", "companions do not matter", "nothing on stdout"}


def test_a_crash_names_the_line_of_the_plugin(tmp_path: Path, capsys: Capture) -> None:
    plugin = write_plugin(tmp_path, "logits.nothing()")
    assert main([*plugin, "check", "method=mine", "--traceback"]) == 1
    out, err = capsys.readouterr()
    line = PLUGIN[: PLUGIN.index("return {prediction}")].count("\n") + 1
    assert f"-> [binary-2] AttributeError: 'Tensor' object has no attribute 'nothing' (mine.py:{line})" in out
    assert "return logits.nothing()" in err


def test_several_plugins_with_options_and_contract_attributes(capsys: Capture) -> None:
    arguments = ["check", "protocol=any_0.5,a_0.25", "metric=rmse", "dataset=synthetic", "dataset.samples=120"]
    assert main([*arguments, "--contract", "modalities=[a, b]", "--contract", "incomplete=0.5", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["name"]) for row in found] == [
        ("dataset", "synthetic"),
        ("protocol", "any_0.5"),
        ("protocol", "a_0.25"),
        ("metric", "rmse"),
    ]
    assert found[0]["options"] == {"samples": 120}
    failed = [[check["test"] for check in row["checks"] if check["result"] == "fail"] for row in found]
    assert failed == [[], [], ["exact rate in every split"], []]
    skipped = {check["test"]: check["reason"] for check in found[1]["checks"] if check["result"] == "skip"}
    assert skipped["golden fingerprint"].startswith("not pinned")


def test_the_users_own_pytest_settings_have_no_say(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --nonsense\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('read')\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--nonsense")
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["check", "metric=accuracy"]) == 0
    assert "pass" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == before


def test_without_pytest_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    assert main(["check", "metric=accuracy"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install pytest" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a plugin"),
        (["majority"], "'majority' names no plugin"),
        (["encoder=minilm"], "'encoder=minilm' names no plugin"),
        (["method=majorty"], "Did you mean 'majority'"),
        (["metric=accurate"], "unknown metric"),
        (["protocol=both_2"], "outside 0 to 1"),
        (["method=redeem", "method.k=0"], "method.k=0 must be >= 1"),
        (["method=redeem", "method.preset=official"], "every preset is checked"),
        (["metric=accuracy", "--contract", "golden=1"], "no such attribute; they have (none)"),
        (["protocol=both_0.7", "--contract", "goldn=1"], "golden, incomplete, modalities"),
        (["protocol=both_0.7", "--contract", "golden"], "write NAME=VALUE"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, capsys: Capture) -> None:
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", check.CONTRACTS)
def test_the_table_of_contracts_is_true(kind: str) -> None:
    contract = check.CONTRACTS[kind]
    declared: dict[str, Any] = vars(getattr(importlib.import_module(contract.module), contract.name))["__annotations__"]
    assert {kind, *contract.attributes} == {name for name in declared if name != "options"}
    assert kind in typing.get_type_hints(contract.choice)


def test_a_grid_checks_every_variant() -> None:
    subjects = check.choose(["method=redeem", "method.k=3,5"])
    assert [subject.title for subject in subjects] == ["method redeem method.k=3", "method redeem"]
    with pytest.raises(UsageError, match="names no plugin"):
        check.choose(["method=redeem", "train_seed=1"])
    assert registry.methods.get("redeem")().k == 5
