"""`harness import-checkpoint`: names, shapes, formats, and bits that come back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import registry
from harness.cli import main
from harness.cli.commands.import_checkpoint import build, match, official_name, read_state
from harness.compose import compose
from harness.config import MethodConfig
from harness.errors import DataError
from harness.methods.redeem.config import RedeemConfig
from harness.testing.data import tiny_observed
from harness.testing.methods import contract_for
from harness.trainer import restore_state, trainable_state

Capture = pytest.CaptureFixture[str]

RUN = [
    *("method=redeem", "method.preset=official", "supervision=complete"),
    *("dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "backbone.hidden_size=16", "device=cpu"),
]
#: The released names of REDEEM's modules are for text and image; the generated data call them a and b.
MAPS = [
    f"{ours.replace('.text', '.a').replace('.image', '.b')}={theirs}"
    for ours, theirs in RedeemConfig.official_names.items()
    if ours.startswith("generators")
]


def table_of(name: str) -> Mapping[str, str]:
    """`official_names` of a method."""
    config = registry.methods.get(name)
    assert issubclass(config, MethodConfig)
    return config.official_names


def redeem(seed: int) -> dict[str, Tensor]:
    """Tensors of a REDEEM with the initial weights of a seed."""
    (config,) = compose([*RUN, f"train_seed={seed}"])
    return trainable_state(build(config)[1])


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of the released code."""
    names = {**RedeemConfig.official_names, **dict(text.split("=") for text in MAPS)}
    return {official_name(name, names): value for name, value in state.items()}


def run(*arguments: str) -> list[str]:
    return ["import-checkpoint", *arguments, *RUN, *(part for text in MAPS for part in ("--map", text))]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_released_weights_come_back_bit_identical(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    random = redeem(seed=1)
    theirs = released(random)
    assert {
        "generator_t.router.linear_rem.weight",
        "generator_i.experts.4.2.bias",
        "prompter.linear_out.weight",
    } <= set(theirs)
    assert {"label_enhanced", "classifier.0.weight"} <= set(theirs)
    file = tmp_path / f"released.{suffix}"
    if suffix == "pt":
        # As trainers save it: wrapped, beside a number, from parallel training.
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in theirs.items()}}, file)
    else:
        save_file(theirs, file)
    assert main([*run(str(file)), "-o", "ours.safetensors", "--json"]) == 0
    captured = capsys.readouterr()
    assert {row["status"] for row in json.loads(captured.out)} == {"loaded"}
    assert f"{len(random)} of {len(random)} tensors loaded; wrote ours.safetensors" in captured.err
    written = load_file("ours.safetensors")
    assert set(written) == set(random)
    assert all(torch.equal(written[name], random[name]) for name in random)
    assert not all(torch.equal(value, random[name]) for name, value in redeem(seed=0).items())
    # The file is of the kind that a run leaves behind: it restores a method, and says whose it is.
    (config,) = compose(RUN)
    cell, method = build(config)
    restore_state(method, written, "the file")
    assert all(torch.equal(value, random[name]) for name, value in trainable_state(method).items())
    with safe_open("ours.safetensors", "pt") as opened:
        assert opened.metadata() == {"run_id": cell.run_id}


def test_what_does_not_fit_is_told_and_keeps_its_initial_value(tmp_path: Path, capsys: Capture) -> None:
    theirs = released(redeem(seed=1))
    theirs["label_enhanced"] = torch.zeros(7, 16)
    del theirs["prompter.q_proj.bias"]
    theirs["surprise"] = torch.zeros(2, 3)
    save_file(theirs, tmp_path / "released.safetensors")
    assert main(run("released.safetensors")) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["shape", "label_table", "label_enhanced", "4x16,", "in", "the", "file", "7x16"]
    assert rows[2] == ["missing", "prompters.shared.query.bias", "16"]
    assert rows[3] == ["unexpected", "surprise", "2x3"]
    assert {row[0] for row in rows[4:]} == {"loaded"}
    assert "the others are the initial ones of train_seed=0" in err
    written, initial = load_file("model.safetensors"), redeem(seed=0)
    for name in ("label_table", "prompters.shared.query.bias"):
        assert torch.equal(written[name], initial[name])


def test_frozen_tensors_are_left_to_the_backbone() -> None:
    ours = {"backbone.vilt.layernorm.weight": torch.ones(3), "head.layers.0.weight": torch.ones(2, 3)}
    theirs = {"layernorm.weight": torch.zeros(3), "classifier.0.weight": torch.zeros(2, 3)}
    found = match(ours, {"head.layers.0.weight"}, theirs, RedeemConfig.official_names)
    assert [(entry.status, entry.theirs) for entry in found] == [
        ("frozen", "layernorm.weight"),
        ("loaded", "classifier.0.weight"),
    ]


@pytest.mark.parametrize("name", [name for name in registry.methods.names() if table_of(name)])
def test_tables_of_names_are_of_tensors_that_exist(name: str) -> None:
    contract = contract_for(name)()
    known: set[str] = set()
    for preset in contract.plugin.presets:
        config = contract.config(tiny_observed(), preset)
        data = tiny_observed(supervision="complete" if config.needs_complete_supervision() else "observed")
        known |= set(contract.build(data, config=config).state_dict())
    # Tensors of ViLT have no place in the small backbone of the contract tests.
    prefixes = [prefix for prefix in table_of(name) if not prefix.startswith("backbone.vilt.")]
    assert [prefix for prefix in prefixes if not any(f"{tensor}.".startswith(f"{prefix}.") for tensor in known)] == []


def test_the_longest_prefix_of_whole_parts_decides() -> None:
    names = {"a": "x", "a.b": "y.z", "root": ""}
    assert official_name("a.w", names) == "x.w"
    assert official_name("a.b.w", names) == "y.z.w"
    assert official_name("a.bc.w", names) == "x.bc.w"
    assert official_name("ab.w", names) == "ab.w"
    assert official_name("a", names) == "x"
    assert official_name("root.w", names) == "w"


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"w": Harmful()}, "reading them runs code"),
        ({"epoch": 3}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
    ],
)
def test_nothing_in_a_file_is_executed(content: object, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(DataError, match=says):
        read_state(tmp_path / "file.pt")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere.pt"], 3, "no such file"),
        (["text.pt"], 3, "neither safetensors nor a torch file"),
        (["text.safetensors"], 3, "neither safetensors nor a torch file"),
        (["other.safetensors"], 2, "nothing was written"),
        (["other.safetensors", "--map", "encodr=enc"], 2, "no tensor below it; its tensors start with"),
        (["other.safetensors", "--map", "encoder"], 2, "write OURS=THEIRS"),
        (["other.safetensors", "-o", "other.safetensors"], 2, "exists; choose another"),
        (["other.safetensors", "second.pt"], 2, "one FILE"),
        (["other.safetensors", "train_seed=0,1"], 2, "these options describe 2"),
        ([], 2, "one FILE"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, says: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    save_file({"nothing.known": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert main(run(*arguments)) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
