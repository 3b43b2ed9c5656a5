"""`harness reproduce` and `harness list presets` without data: plans, choices, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import main
from harness.cli.commands.reproduce import merge
from harness.errors import UsageError
from harness.reports.presets import presets

Capture = pytest.CaptureFixture[str]
CELL = "redeem/table1/hateful_memes_both_0.7"


def test_the_plan_of_a_table_needs_no_data(home: Path, capsys: Capture) -> None:
    assert main(["reproduce", "redeem/table1/*_both_0.7", "ragpt/table1/mmimdb_image_0.7", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 presets, 0 runs finished, 0 to run; 4 presets cannot run here"
    assert [line.split()[0] for line in lines[2:6]] == [
        "redeem/table1/food101_both_0.7",
        CELL,
        "redeem/table1/mmimdb_both_0.7",
        "ragpt/table1/mmimdb_image_0.7",
    ]
    assert "f1_micro 0.5149, f1_samples 0.5093  5" in lines[4]
    problems = [line for line in lines if "cannot run, e.g." in line]
    assert len(problems) == 3  # one per data set, with how to get it
    assert any(f"in {home / 'data' / 'hateful_memes'}; accept the licence at https://" in line for line in problems)
    assert any(line.startswith("2 presets cannot run, e.g. redeem/table1/mmimdb_both_0.7") for line in problems)
    assert not home.joinpath("mlflow.db").exists()


def test_one_cell_shows_the_command_that_it_stands_for(capsys: Capture) -> None:
    assert main(["reproduce", CELL, "trainer.epochs=3", "--dry-run"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.startswith("the same runs: harness sweep backbone=vilt_b32")
    assert command.endswith("method=redeem method.preset=paper dataset=hateful_memes protocol=both_0.7")
    assert "trainer.epochs=3" in command
    assert "trainer.epochs=20" not in command


def test_without_data_the_table_says_so(tmp_path: Path, capsys: Capture) -> None:
    assert main(["reproduce", CELL, "redeem/table1/ragpt/mmimdb_text_0.7"]) == 3
    printed = capsys.readouterr()
    assert "3 published numbers: 3 not run." in printed.out
    assert printed.out.count("not run: no ") == 3
    files = sorted((tmp_path / "reproduction").iterdir())
    assert [file.suffix for file in files] == [".csv", ".json", ".md"]
    assert len({file.stem for file in files}) == 1
    content = json.loads(files[1].read_text())
    assert [line["published"] for line in content["lines"]] == [0.6702, 0.5516, 0.55]
    assert "https://hatefulmemeschallenge.com" in files[2].read_text()


def test_the_list_of_presets(capsys: Capture) -> None:
    assert main(["list", "presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(presets())
    assert main(["list", "presets", "redeem/table1", "method=ragpt", "food101", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [
        f"redeem/table1/ragpt/food101_{kind}_0.7" for kind in ("both", "image", "text")
    ]
    assert rows[0]["published"] == {"accuracy": 0.7694}
    assert rows[0]["source"] == "REDEEM (KDD 2025), Table 1"
    assert "method=ragpt" in rows[0]["overrides"]


def test_a_seed_that_is_given_twice_is_one_run(capsys: Capture) -> None:
    assert main(["reproduce", CELL, "train_seed=3,3,4", "--dry-run"]) == 0
    assert "auroc 0.6702  2     0" in capsys.readouterr().out


def test_own_options_replace_the_presets() -> None:
    preset = presets()[CELL]
    merged = merge(preset, ["train_seed=0", "method.k=3", "preset=official"])
    assert merged.count("train_seed=0") == 1
    assert not [text for text in merged if text.startswith("method.preset")]
    assert set(merged) - set(preset.overrides) == {"train_seed=0", "method.k=3", "preset=official"}
    with pytest.raises(UsageError, match="the dataset is the preset's"):
        merge(preset, ["dataset=mmimdb"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["redeem/tabel1"], "no preset 'redeem/tabel1'. Did you mean 'redeem/table1'"),
        (["train_seed=0"], "name what to reproduce, e.g. redeem/table1"),
        ([CELL, "method=map"], "method=map: the method is the preset's; choose cells by name"),
        ([CELL, "trainer.epoch=3"], f"{CELL}: unknown key 'trainer.epoch'"),
        ([CELL, "workers=-1"], "sweep.workers=-1 must be >= 0"),
        ([CELL, "method.k=3,5"], "its runs may differ in train_seed only"),
        ([CELL, "paths.home=a,b"], "its runs may differ in train_seed only"),
    ],
)
def test_one_line_for_what_is_wrong(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
