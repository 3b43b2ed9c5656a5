"""`harness prepare`: exit codes, what it prints, features only when asked for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import main
from harness.testing.releases import write_food101, write_hateful_memes, write_mmimdb

from .conftest import PLUGIN_FILE

Capture = pytest.CaptureFixture[str]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "and", "a", "in"]


@pytest.fixture
def memes(tmp_path: Path) -> Path:
    return write_hateful_memes(tmp_path / "memes")


def test_a_sound_part_of_a_release(memes: Path, home: Path, capsys: Capture) -> None:
    assert main(["prepare", "dataset=hateful_memes", f"dataset.folder={memes}"]) == 3
    shown = capsys.readouterr().out
    assert "hateful_memes: 3 problems" in shown
    assert "train: 24 samples, the release has 8,500" in shown
    assert "subset=true accepts it" in shown
    assert main(["prepare", "dataset=hateful_memes", f"dataset.folder={memes}", "subset=true"]) == 0
    facts = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if not line.startswith("data ")
    )
    assert facts["splits"] == "train 24, valid 8, test 8"
    assert facts["files"] == str(memes)
    assert Path(facts["index"]).is_file()
    assert Path(facts["report"]).is_file()
    assert not (home / "cache" / "features").exists()


def test_many_problems_are_few_lines_on_the_screen_and_all_in_the_report(memes: Path, capsys: Capture) -> None:
    for picture in (memes / "img").iterdir():
        picture.write_bytes(b"nothing")
    command = ["prepare", "dataset=hateful_memes", f"dataset.folder={memes}", "subset=true"]
    assert main(command) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 23
    assert lines[0] == f"hateful_memes: 40 problems in {memes}"
    assert lines[-2] == "  … and 20 more"
    report = Path(lines[-1].removeprefix("all of them: "))
    assert report.read_text().count("is not a picture") == 40
    assert main([*command, "--json"]) == 3
    (outcome,) = json.loads(capsys.readouterr().out)
    assert len(outcome["problems"]) == 40
    assert outcome["facts"] == {}
    assert outcome["counts"]["train"] == {"found": 24, "release": 8500}


def test_several_data_sets_one_of_them_absent(tmp_path: Path, home: Path, capsys: Capture) -> None:
    write_mmimdb(home / "data" / "mmimdb")
    write_food101(home / "data" / "food101")
    assert main(["prepare", "dataset=mmimdb,hateful_memes,food101", "subset=true"]) == 3
    captured = capsys.readouterr()
    assert "no train.jsonl of Hateful Memes" in captured.err
    assert captured.out.count("splits") == 2


def test_one_absent_data_set_is_one_line(capsys: Capture) -> None:
    assert main(["prepare", "dataset=food101"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("harness: error: no train_titles.csv")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["subset=true"], "name a data set"),
        (["dataset=hateful_meme"], "Did you mean 'hateful_memes'"),
        (["dataset=hateful_memes", "dataset.damaged=ignore"], "damaged='ignore' is not one of"),
        (["dataset=hateful_memes", "method=redeem"], "method"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["prepare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_any_other_data_set_is_loaded_and_nothing_computed(home: Path, capsys: Capture) -> None:
    assert main(["--plugin", str(PLUGIN_FILE), "prepare", "dataset=toy_data"]) == 0
    shown = capsys.readouterr().out
    assert "train 10, valid 5, test 5" in shown
    assert "computed or in installed packages" in shown
    assert not (home / "cache" / "features").exists()


@pytest.fixture
def storing(memes: Path, tmp_path: Path) -> list[str]:
    """A command that stores token ids and pixels."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (weights / "config.json").write_text(json.dumps({"model_type": "vilt", "vocab_size": len(WORDS), "image_size": 64}))
    return [
        "prepare",
        "dataset=hateful_memes",
        f"dataset.folder={memes}",
        "subset=true",
        "features=true",
        "encoders={text: vilt_text, image: vilt_image}",
        f"encoder_options.vilt_text={{weights: '{weights}', max_text_len: 16}}",
        f"encoder_options.vilt_image={{weights: '{weights}'}}",
    ]


def test_features_are_stored_once(storing: list[str], tmp_path: Path, home: Path, capsys: Capture) -> None:
    assert main(storing) == 0
    assert "text by vilt_text" in capsys.readouterr().out
    blocks = {path: path.stat().st_mtime_ns for path in (home / "cache" / "features").rglob("meta.json")}
    assert len(blocks) == 2
    assert main(storing) == 0
    assert {path: path.stat().st_mtime_ns for path in (home / "cache" / "features").rglob("meta.json")} == blocks
    # The backbone's own inputs are stored beside them.
    weights = tmp_path / "weights"
    assert main([*storing, "backbone=vilt_b32", f"backbone.weights='{weights}'", "backbone.max_text_len=8"]) == 0
    assert len(list((home / "cache" / "features").rglob("meta.json"))) == 3


def test_two_prepare_commands_at_once_give_what_one_gives(storing: list[str], home: Path, capsys: Capture) -> None:
    command = [sys.executable, "-m", "harness", *storing]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    folders = {path.parent for path in (home / "cache" / "features").rglob("meta.json")}
    assert len(folders) == 2
    together = {folder: (folder / "tokens.npy").read_bytes() for folder in folders}
    shutil.rmtree(home / "cache")
    assert main(storing) == 0
    assert {folder: (folder / "tokens.npy").read_bytes() for folder in folders} == together
