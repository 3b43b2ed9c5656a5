"""`harness list published`, and words that narrow a list down."""

from __future__ import annotations

import json

import pytest

from harness.cli import main
from harness.reports.published import COLUMNS, published

Capture = pytest.CaptureFixture[str]


def rows(capsys: Capture, *arguments: str) -> list[dict[str, object]]:
    assert main(["list", *arguments, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_all_of_them(capsys: Capture) -> None:
    found = rows(capsys, "published")
    assert len(found) == len(published())
    assert set(found[0]) == set(COLUMNS)
    assert main(["list", "published"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(found) + 1


def test_words_narrow_it_down(capsys: Capture) -> None:
    words = ["method=redeem", "dataset=mmimdb", "f1_micro", "IMAGE_0.7"]
    found = rows(capsys, "published", *words, "table=table 1")
    assert [(row["method"], row["value"]) for row in found] == [("redeem", 0.4954)]
    # A word alone may stand in any column: here in the title of the paper.
    assert len(rows(capsys, "published", "redeem", *words[1:], "table=table 1")) == 12
    assert [row["variant"] for row in rows(capsys, "published", *words, "K=3")] == ["K=3"]
    assert rows(capsys, "published", "nothing like it") == []


def test_a_line_says_what_where_and_how_sure(capsys: Capture) -> None:
    assert main(["list", "published", "method=mmin", "condition=audio+video", "uar", "paper=MPLMM"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.split()[:6] == [
        *("mmin", "iemocap", "train:complete,test:patterns_proper", "audio+video", "uar", "0.6543"),
    ]
    assert "high, quoted" in line
    assert "MPLMM (ACL 2024), Table 1: copied there from MMIN" in line


def test_words_narrow_other_kinds_too(capsys: Capture) -> None:
    assert [row["name"] for row in rows(capsys, "methods", "redeem")] == ["knn_vote", "redeem"]
    assert [row["name"] for row in rows(capsys, "methods", "name=redeem")] == ["redeem"]


def test_they_are_not_part_of_the_list_of_everything(capsys: Capture) -> None:
    assert main(["list", "--json"]) == 0
    assert "published" not in json.loads(capsys.readouterr().out)
