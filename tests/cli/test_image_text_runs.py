"""The image–text methods end to end on `vilt_b32`: official formats, random weights in the hub's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.cli import main
from harness.config import PathsConfig
from harness.files import Folders
from harness.methods.common.backbones.vilt import ViltBackbone
from harness.mlflow_store import connect
from harness.testing.models import write_clip, write_vilt
from harness.testing.releases import write_food101, write_hateful_memes, write_mmimdb
from harness.testing.stand_in import stand_in

METHODS = ("redeem", "ragpt", "map", "msp")
DATASETS = {"hateful_memes": "auroc", "mmimdb": "f1_micro", "food101": "accuracy"}
CELL = "redeem/table1/hateful_memes_both_0.7"
PROTOCOLS = ("both_0.7", "text_0.7", "image_0.7")


@dataclass(frozen=True)
class Place:
    """A home with data and weights in it, shared by the tests of this module as by the runs of a user."""

    home: Path
    vilt: Path
    clip: Path

    @property
    def options(self) -> list[str]:
        """What a run needs to know of this place; one epoch is enough to see that training works."""
        return [
            f"paths.home={self.home}",
            f"backbone.weights={self.vilt}",
            "backbone.max_text_len=16",
            f"encoder_options.clip_vit_l14_336.weights={self.clip}",
            "trainer.epochs=1",
            "trainer.batch_size=8",
            "device=cpu",
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    home = tmp_path_factory.mktemp("home")
    connect(f"sqlite:///{home / 'mlflow.db'}", Folders.resolve(PathsConfig(home=str(home))))
    write_hateful_memes(home / "data" / "hateful_memes")
    write_mmimdb(home / "data" / "mmimdb")
    write_food101(home / "data" / "food101")
    return Place(home, write_vilt(home / "weights" / "vilt"), write_clip(home / "weights" / "clip"))


def records(place: Place) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in place.home.glob("runs/*/record.json")]


def check(place: Place, dataset: str, protocols: Sequence[str], methods: Sequence[str] = METHODS) -> None:
    """One command for the methods and protocols, as a user types it; then a look at every record."""
    code = main(
        [
            "run",
            f"method={','.join(methods)}",
            f"dataset={dataset}",
            f"protocol={','.join(protocols)}",
            "preset=paper",
            "backbone=vilt_b32",
            "encoders.text=clip_vit_l14_336",
            "encoders.image=clip_vit_l14_336",
            *place.options,
        ]
    )
    found = [record for record in records(place) if record["dataset"]["name"] == dataset]
    assert code == 0, [record["error"] for record in found if record["status"] != "finished"]
    cells = {(record["method"], record["protocol"]["name"]): record for record in found}
    for method in methods:
        for protocol in protocols:
            record = cells[method, protocol]
            assert (record["status"], record["preset"], record["backbone"]) == ("finished", "paper", "vilt_b32")
            # REDEEM and RAGPT declare complete training data; MAP and MSP train on what the protocol shows.
            assert record["protocol"]["supervision"] == ("complete" if method in ("redeem", "ragpt") else "observed")
            metrics = record["results"][0]["metrics"]
            assert 0.0 <= metrics[DATASETS[dataset]] <= 1.0
            assert record["cost"]["epochs"] == 1
            leaks = {audit["name"] for audit in record["audits"] if not audit["passed"] and audit["severity"] == "leak"}
            assert not [name for name in leaks if "interference" in name]


def test_the_command_of_the_documentation(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check(place, "hateful_memes", PROTOCOLS[:1], METHODS[::2])
    assert "redeem" in capsys.readouterr().out


def test_reproducing_takes_what_is_finished_and_compares_no_part_of_a_release(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was made by hand is the preset's run; a folder of 40 memes is not Hateful Memes."""
    options = [*place.options, "train_seed=0", f"paths.data={place.home / 'data'}"]
    by_hand = ["method=redeem", "dataset=hateful_memes", "protocol=both_0.7", "preset=paper", "backbone=vilt_b32"]
    encoders = ["encoders.text=clip_vit_l14_336", "encoders.image=clip_vit_l14_336"]
    assert main(["run", *by_hand, *encoders, *options]) == 0
    capsys.readouterr()
    before = {record["run_id"] for record in records(place)}
    assert main(["reproduce", CELL, *options, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "1 preset, 1 runs finished, 0 to run" in printed.err
    assert {record["run_id"] for record in records(place)} == before
    (line,) = json.loads((tmp_path / "out" / f"{CELL.replace('/', '-')}.json").read_text())["lines"]
    record = next(record for record in records(place) if record["run_id"] in line["run_ids"])
    assert line["ours"] == record["results"][0]["metrics"]["auroc"]
    assert (line["published"], line["metric"], line["seeds"]) == (0.6702, "auroc", [0])
    assert line["verdict"] == "not compared"
    assert line["reason"] == "the folder is not the whole release (24 / 8 / 8 samples)"
    assert line["reason"] in printed.out
    assert "note: run with backbone.weights=" in printed.out
    assert "1 of 1 runs have an audit that says" in printed.out  # the memory holds validation samples


def test_training_audits_and_inspection_on_another_device(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tensor that was left on the CPU is an error, as on a GPU."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(stand_in()))
    asked: list[torch.device] = []
    compute = ViltBackbone.encode_pooled

    def watched(backbone: ViltBackbone, hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        asked.append(hidden.device)
        return compute(backbone, hidden, *arguments, **options)

    monkeypatch.setattr(ViltBackbone, "encode_pooled", watched)
    cell = ["method=redeem", "dataset=hateful_memes", "protocol=both_0.7", "backbone=vilt_b32"]
    *options, _ = place.options
    known = {record["run_id"] for record in records(place)}
    encoders = ["encoders.text=clip_vit_l14_336", "encoders.image=clip_vit_l14_336"]
    assert main(["run", *cell, *encoders, *options, "device=auto"]) == 0
    (run,) = {record["run_id"] for record in records(place)} - known
    for command in ("audit", "inspect"):
        before = len(asked)
        assert main([command, run, f"paths.home={place.home}"]) == 0
        assert len(asked) > before
    assert set(asked) == {stand_in()}


@pytest.mark.slow
def test_a_whole_table_goes_on_where_it_stopped(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two data sets are there and one is not: the others run, and the exit code says that data are missing."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("hateful_memes", "mmimdb"):
        (data / name).symlink_to(place.home / "data" / name)
    command = ["reproduce", "redeem/table1/*_both_0.7", *place.options, f"paths.data={data}", "train_seed=0,1"]
    command += ["--out", str(tmp_path / "out"), "workers=2"]
    assert main(command) == 3
    first = capsys.readouterr()
    assert "3 presets, " in first.err
    assert "1 preset cannot run here" in first.err
    lines = {(line["dataset"], line["metric"]): line for line in written(tmp_path)}
    assert set(lines) == {
        ("hateful_memes", "auroc"),
        ("mmimdb", "f1_micro"),
        ("mmimdb", "f1_samples"),
        ("food101", "accuracy"),
    }
    assert lines["mmimdb", "f1_samples"]["seeds"] == [0, 1]
    assert lines["mmimdb", "f1_samples"]["spread"] is not None
    assert lines["food101", "accuracy"]["verdict"] == "not run"
    assert "no train_titles.csv and test_titles.csv" in lines["food101", "accuracy"]["reason"]
    assert main(command) == 3
    again = capsys.readouterr()
    assert "4 runs finished, 0 to run" in again.err
    assert again.out == first.out


@pytest.mark.slow
def test_weights_that_are_not_here_are_named_and_a_failed_run_is_too(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "reproduce",
        CELL,
        f"paths.home={place.home}",
        "device=cpu",
        "train_seed=7",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*command, "backbone.weights=nobody/no-vilt"]) == 3
    assert "are neither a local folder nor in the hub's cache" in written(tmp_path)[0]["reason"]
    capsys.readouterr()
    options = [text for text in place.options if not text.startswith("paths.home")]
    assert main([*command, *options[:-1], "method.prompt_layer=99"]) == 1
    (line,) = written(tmp_path)
    assert line["verdict"] == "failed"
    assert line["reason"].startswith("1 of 1 runs failed: ")


def written(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "out").glob("*.json")
    lines: list[dict[str, Any]] = json.loads(file.read_text())["lines"]
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_method_on_every_data_set_under_every_missing_type(dataset: str, place: Place) -> None:
    check(place, dataset, PROTOCOLS)
