"""`harness mask official`: the released draw of REDEEM and RAGPT as a file of codes, without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.cli import main
from harness.mask_files import released_codes
from harness.protocol import parse_protocol
from harness.testing.tables import make_table
from harness.types import SPLITS

Capture = pytest.CaptureFixture[str]

MMIMDB = "train=15552,valid=2608,test=7799"
HATEFUL = "train=8500,valid=500,test=1000"
FOOD = "train=67971,test=22715"  # as coded: the first row of each list is lost, there is no valid

#: Real set sizes, what is missing, and per split the number of samples with code 0, 1 and 2 (seed 2024, rate 0.7).
SETS = {
    "mmimdb text": (MMIMDB, "text", [(10_884, 4_668), (1_791, 817), (5_496, 2_303)]),
    "mmimdb image": (MMIMDB, "image", [(10_884, 4_668), (1_791, 817), (5_496, 2_303)]),
    "mmimdb both": (MMIMDB, "both", [(5_415, 5_443, 4_694), (897, 921, 790), (2_773, 2_721, 2_305)]),
    "hateful text": (HATEFUL, "text", [(5_934, 2_566), (346, 154), (720, 280)]),
    "hateful both": (HATEFUL, "both", [(2_963, 2_983, 2_554), (174, 188, 138), (363, 329, 308)]),
    "food image": (FOOD, "image", [(47_568, 20_403), (0, 0), (15_912, 6_803)]),
    "food both": (FOOD, "both", [(23_785, 23_780, 20_406), (0, 0, 0), (7_955, 7_960, 6_800)]),
}


def sizes_of(counts: str) -> dict[str, int]:
    return {split: int(size) for split, size in (part.split("=") for part in counts.split(","))}


def expected(counts: str, missing: str, rate: float, seed: int) -> npt.NDArray[np.int64]:
    """The released draw in other words: NumPy's global generator, seeded once, over all samples."""
    total = sum(sizes_of(counts).values())
    wanted = int(total * rate)
    state = np.random.get_state()
    np.random.seed(seed)
    if missing == "both":
        codes = np.full(total, 2)
        codes[np.random.choice(total, wanted // 2, replace=False)] = 0
        codes[np.random.choice(np.flatnonzero(codes == 2), wanted // 2, replace=False)] = 1
    else:
        codes = np.ones(total, dtype=np.int64)
        codes[np.random.choice(total, wanted, replace=False)] = 0
    np.random.set_state(state)
    return codes


def official(capsys: Capture, counts: str, missing: str, *more: str) -> tuple[npt.NDArray[np.int8], dict[str, Any]]:
    arguments = ["--counts", counts, "--missing", missing, "--rate", "0.7", "--seed", "2024", "--out", "codes.npy"]
    assert main(["mask", "official", *arguments, *more, "--json"]) == 0
    return np.load("codes.npy"), json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("counts", "missing", "wanted"), SETS.values(), ids=SETS)
def test_the_real_sets(counts: str, missing: str, wanted: list[tuple[int, ...]], capsys: Capture) -> None:
    codes, printed = official(capsys, counts, missing)
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, expected(counts, missing, 0.7, 2024))
    bounds = np.cumsum([0, *(sizes_of(counts).get(split, 0) for split in SPLITS)])
    for row, split in enumerate(SPLITS):
        part = codes[bounds[row] : bounds[row + 1]]
        found = tuple(int((part == code).sum()) for code in range(len(wanted[row])))
        assert found == wanted[row]
        assert tuple(printed["counts"][split].values()) == found
    names = ["text missing", "image missing", "complete"] if missing == "both" else [f"{missing} missing", "complete"]
    assert list(printed["codes"].values()) == names


@pytest.mark.parametrize("missing", ["both", "text", "image"])
@pytest.mark.parametrize("rate", [0.0, 0.29, 1.0])
def test_codes_are_the_protocol_as_numbers(missing: str, rate: float) -> None:
    """One draw: whoever trains under `concat_…` has these masks, in the order of the data set's splits."""
    sizes = (50, 20, 30)
    table = make_table(sizes, ("image", "text"))
    hidden = [parse_protocol(f"concat_{missing}_{rate}").hidden(table, split, 7) for split in SPLITS]
    image, text = np.concatenate(hidden).T
    codes = released_codes(dict(zip(SPLITS, sizes, strict=True)), missing, rate, 7)
    if missing == "both":
        np.testing.assert_array_equal(codes == 0, text)
        np.testing.assert_array_equal(codes == 1, image)
        np.testing.assert_array_equal(codes == 2, ~(text | image))
    else:
        np.testing.assert_array_equal(codes == 0, text if missing == "text" else image)
        np.testing.assert_array_equal(codes == 1, ~(text | image))


def test_text_and_image_runs_share_one_draw(capsys: Capture) -> None:
    text, _ = official(capsys, HATEFUL, "text")
    image, _ = official(capsys, HATEFUL, "image")
    np.testing.assert_array_equal(text, image)


def test_the_table_for_people(capsys: Capture) -> None:
    counts = ["--counts", "test=1000,train=8500,valid=500"]  # the order of the splits is the released one
    assert main(["mask", "official", *counts, "--rate", "0.7", "-o", "deep/codes.npy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ") == ["split", "samples", "0 text missing", "1 image missing", "2 complete"]
    assert [line.split() for line in lines[1:]] == [
        ["train", "8500", "2963", "2983", "2554"],
        ["valid", "500", "174", "188", "138"],
        ["test", "1000", "363", "329", "308"],
        ["all", "10000", "3500", "3500", "3000"],
    ]
    np.testing.assert_array_equal(np.load("deep/codes.npy"), expected(HATEFUL, "both", 0.7, 2024))


GOOD = {"--counts": "train=8,test=4", "--rate": "0.7", "--out": "codes.npy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--counts": "dev=8"}, "'dev=8' is not SPLIT=N with a split of train, valid, test"),
        ({"--counts": "8,4"}, "'8' is not SPLIT=N"),
        ({"--counts": "train=8,train=4"}, "train is there twice"),
        ({"--counts": "train=-8"}, "'-8' is not a whole number"),
        ({"--counts": "train=0"}, "together they must be 1 to"),
        ({"--counts": "train=999999999999"}, "together they must be 1 to"),
        ({"--counts": None, "--out": None}, "needs --counts, --out, e.g. harness mask official"),
        ({"--rate": "7"}, "rate 7 lies outside 0 to 1"),
        ({"--rate": "most"}, "'most' is not a rate"),
        ({"--missing": "audio"}, "invalid choice: 'audio'"),
        ({"--seed": "-1"}, "'-1' is not a whole number"),
        ({"--seed": "4294967296"}, "Seed must be between 0 and"),
        ({"--out": "."}, "is a folder; name a file"),
        ({"--column": "x"}, "--column belongs to `harness mask import`"),
    ],
)
def test_one_line_for_what_is_wrong(changes: dict[str, str | None], message: str, capsys: Capture) -> None:
    options = [part for name, text in (GOOD | changes).items() if text is not None for part in (f"{name}={text}",)]
    assert main(["mask", "official", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("codes.npy").exists()


def test_options_of_its_own(capsys: Capture) -> None:
    assert main(["mask", "official", "both", *(f"{name}={text}" for name, text in GOOD.items())]) == 2
    assert "takes no 'both'" in capsys.readouterr().err
    assert main(["mask", "build", "--rate", "0.7"]) == 2
    assert "--rate belongs to `harness mask official`" in capsys.readouterr().err
