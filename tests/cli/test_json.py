"""`--json` on every command that reads: one JSON value on stdout and nothing else."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from harness.cli import COMMANDS, main
from harness.config import PathsConfig
from harness.files import Folders
from harness.predictions import save_predictions
from harness.testing.records import make_predictions, make_record
from harness.tracking import Tracker

DATA = ["dataset=synthetic", "dataset.samples=40"]
GRID = [*DATA, "method=majority,mean_fill", "protocol=any_0.5"]
#: Serves pages until it is stopped; it has nothing to print.
WITHOUT = {"ui"}

#: What reads no record.
PLAIN = {
    "list": ["list"],
    "list methods": ["list", "methods"],
    "list presets": ["list", "presets"],
    "list published": ["list", "published"],
    "describe": ["describe", "method", "majority"],
    "describe protocol": ["describe", "protocol", "both_0.7"],
    "prepare": ["prepare", *DATA],
    "mask build": ["mask", "build", *DATA, "protocol=any_0.5", "-o", "table"],
    "mask show": ["mask", "show", "table.json"],
    "mask verify": ["mask", "verify", "table.json"],
    "mask diff": ["mask", "diff", "table.json", "table.json"],
    "mask export": ["mask", "export", "table.json", "--format", "csv"],
    "mask import": ["mask", "import", "table.csv", "--format", "csv", *DATA, "-o", "again"],
    "mask official": ["mask", "official", "--counts", "train=8,valid=4,test=4", "--rate", "0.5", "-o", "codes.npy"],
    "run --dry-run": ["run", *GRID, "--dry-run"],
    "sweep --dry-run": ["sweep", *GRID, "--dry-run"],
    "reproduce --dry-run": ["reproduce", "redeem/table1", "--dry-run"],
    "report without records": ["report"],
    "sync": ["sync"],
}
#: What reads records; RUN stands for the id of one.
READERS = {
    "report": ["report", "dataset=openmoji"],
    "compare": ["compare", "redeem", "map"],
    "export": ["export", "RUN", "-o", "bundle.zip"],
}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - WITHOUT))
def test_every_command_takes_it(name: str) -> None:
    module = importlib.import_module(f"harness.cli.commands.{name.replace('-', '_')}")
    assert "--json" in module.parser(prog=name).format_usage()


def answer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> object:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", PLAIN)
def test_stdout_is_one_json_value(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if PLAIN[name][0] == "mask" and PLAIN[name][1] != "build":
        main(PLAIN["mask build"])
        main(["mask", "export", "table.json", "--format", "csv"])
        capsys.readouterr()
    assert answer(PLAIN[name], capsys) is not None


def test_a_plan_names_the_sweep_and_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    plan = answer(PLAIN["sweep --dry-run"], capsys)
    assert isinstance(plan, dict)
    assert plan["name"].startswith("sweep-")
    assert [(cell["method"], cell["status"]) for cell in plan["cells"]] == [
        ("majority", "to run"),
        ("mean_fill", "to run"),
    ]


def test_records_are_json_too(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = Folders.resolve(PathsConfig(home=str(store)))
    tracker = Tracker(f"sqlite:///{store / 'mlflow.db'}", "e", folders)
    run_id = ""
    for method, accuracy in (("redeem", 0.8), ("map", 0.7)):
        predictions = make_predictions(accuracy)
        save_predictions(predictions, store / "p.parquet")
        for name in ("mask.parquet", "mask.json"):
            (store / name).write_text("{}")
        record = make_record(method, predictions)
        files = {name: store / name for name in ("mask.parquet", "mask.json")}
        tracker.log(record, {"predictions.parquet": store / "p.parquet", **files})
        run_id = record.run_id
    for arguments in READERS.values():
        found = answer([run_id if word == "RUN" else word for word in arguments], capsys)
        assert found


def test_a_run_answers_with_its_tables(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = answer(["run", *GRID[:2], "method=majority", "protocol=any_0.5", "device=cpu"], capsys)
    assert isinstance(board, dict)
    assert [row["name"] for row in board["tables"][0]["rows"]] == ["majority"]
