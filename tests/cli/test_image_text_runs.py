"""The image–text methods end to end on `vilt_b32`: official formats, random weights in the hub's layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.config import PathsConfig
from harness.files import Folders
from harness.mlflow_store import connect
from harness.testing.models import write_clip, write_vilt
from harness.testing.releases import write_food101, write_hateful_memes, write_mmimdb

METHODS = ("redeem", "ragpt", "map", "msp")
DATASETS = {"hateful_memes": "auroc", "mmimdb": "f1_micro", "food101": "accuracy"}
PROTOCOLS = ("both_0.7", "text_0.7", "image_0.7")


@dataclass(frozen=True)
class Place:
    """A home with data and weights in it, shared by the tests of this module as by the runs of a user."""

    home: Path
    vilt: Path
    clip: Path

    @property
    def options(self) -> list[str]:
        """What a run needs to know of this place; two epochs are enough to see that training works."""
        return [
            f"paths.home={self.home}",
            f"backbone.weights={self.vilt}",
            "backbone.max_text_len=16",
            f"encoder_options.clip_vit_l14_336.weights={self.clip}",
            "trainer.epochs=2",
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


def check(place: Place, dataset: str, protocols: tuple[str, ...]) -> None:
    """One command for all methods and the protocols, as a user types it; then a look at every record."""
    code = main(
        [
            "run",
            f"method={','.join(METHODS)}",
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
    for method in METHODS:
        for protocol in protocols:
            record = cells[method, protocol]
            assert (record["status"], record["preset"], record["backbone"]) == ("finished", "paper", "vilt_b32")
            # REDEEM and RAGPT declare complete training data; MAP and MSP train on what the protocol shows.
            assert record["protocol"]["supervision"] == ("complete" if method in ("redeem", "ragpt") else "observed")
            metrics = record["results"][0]["metrics"]
            assert 0.0 <= metrics[DATASETS[dataset]] <= 1.0
            assert record["cost"]["epochs"] == 2
            leaks = {audit["name"] for audit in record["audits"] if not audit["passed"] and audit["severity"] == "leak"}
            assert not [name for name in leaks if "interference" in name]


def test_the_command_of_the_documentation(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    check(place, "hateful_memes", PROTOCOLS[:1])
    assert "redeem" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_method_on_every_data_set_under_every_missing_type(dataset: str, place: Place) -> None:
    check(place, dataset, PROTOCOLS)
