"""Preset files: complete, consistent with the published numbers, and valid runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.compose import compose
from harness.errors import DataError, UsageError
from harness.reports.presets import FOLDER, SHARED, Preset, presets, select, tables
from harness.reports.published import published

OURS = ("redeem", "ragpt", "map", "msp")
#: Published table -> folder and the rows of it that are methods of issue here.
COVERED = {
    ("REDEEM (KDD 2025)", "Table 1"): ("redeem/table1", OURS),
    ("RAGPT (AAAI 2025)", "Table 1"): ("ragpt/table1", ("ragpt",)),
}


@pytest.mark.parametrize(("source", "where"), COVERED.items(), ids=lambda part: str(part[0]))
def test_every_number_of_the_table_is_in_one_cell(source: tuple[str, str], where: tuple[str, tuple[str, ...]]) -> None:
    folder, methods = where
    wanted = [number for number in published() if (number.paper, number.table) == source and number.method in methods]
    found = [number for preset in select([folder]) for number in preset.numbers]
    assert Counter(number.key for number in found) == Counter(number.key for number in wanted)
    assert len(wanted) == 12 * len(methods)


def test_how_many() -> None:
    assert Counter("/".join(name.split("/")[:2]) for name in presets()) == {
        "redeem/table1": 36,
        "ragpt/table1": 9,
        "map/curves": 9,
    }


@pytest.mark.parametrize("name", presets())
def test_a_file_states_its_numbers_and_is_named_after_its_run(name: str) -> None:
    preset = presets()[name]
    run = preset.run
    assert name.rpartition("/")[2] == f"{run['dataset']}_{run['protocol']}"
    *_, row = name.split("/")[:-1]
    assert run["method"] == (row if row in OURS else name.split("/")[0])
    for number in preset.numbers:
        assert (number.method, number.dataset, number.protocol) == (run["method"], run["dataset"], run["protocol"])
        text = (FOLDER / f"{name}.yaml").read_text()
        assert f"{number.metric}: {number.value:.4f}".rstrip("0") in text
        assert number.paper in text
        assert number.table in text


@pytest.mark.parametrize(
    "name", [f"redeem/table1/{row}hateful_memes_both_0.7" for row in ("", "ragpt/", "map/", "msp/")]
)
def test_a_preset_is_a_valid_grid_of_five_seeds(name: str) -> None:
    configs = compose(presets()[name].overrides)
    assert [config.train_seed for config in configs] == [0, 1, 2, 3, 4]
    first = configs[0]
    assert (first.protocol, first.supervision, first.mask_seed) == ("both_0.7", "complete", 0)
    trainer = first.trainer
    assert (trainer.lr, trainer.weight_decay, trainer.epochs, trainer.batch_size) == (1e-3, 5e-5, 20, 64)
    assert first.method.preset == ("official" if name.split("/")[2] in ("map", "msp") else "paper")


def test_what_papers_and_released_code_say_of_single_cells() -> None:
    (ragpt,) = compose(["train_seed=0", *without_seed(presets()["ragpt/table1/mmimdb_image_0.7"])])
    assert ragpt.method.k == 3
    (redeem,) = compose(["train_seed=0", *without_seed(presets()["redeem/table1/food101_text_0.7"])])
    assert (redeem.method.k, redeem.method.prompt_length, redeem.method.prompt_layer) == (5, 2, 1)
    assert redeem.trainer.select_split == "test"
    (own,) = compose(["train_seed=0", *without_seed(presets()["map/curves/mmimdb_both_0.7"])])
    assert (own.trainer.lr, own.trainer.batch_size, own.backbone.max_text_len) == (1e-2, 256, 1024)
    assert "every plot" in presets()["map/curves/mmimdb_both_0.7"].differs


@pytest.mark.parametrize("name", [name for name in presets() if "food101" in name])
def test_food101_has_maps_validation_split_or_does_not_run(name: str) -> None:
    assert presets()[name].run["dataset.valid"] == "map"


def without_seed(preset: Preset) -> list[str]:
    return [text for text in preset.overrides if not text.startswith("train_seed=")]


def test_cells_are_chosen_by_name_folder_and_pattern() -> None:
    def count(*names: str) -> int:
        return len(select(names))

    assert count("redeem/table1") == count("redeem/") == 36
    assert count("redeem/table1/*_0.7") == 9
    assert count("redeem/table1/*/hateful_memes_*") == 9
    assert count("redeem/table1/ragpt", "redeem/table1/ragpt/*", "redeem/table1/food101_both_0.7") == 10
    assert tables(presets()) == ["map/curves", "ragpt/table1", "redeem/table1"]
    with pytest.raises(
        UsageError, match=r"no preset 'redeem/table2'. Did you mean 'redeem/table1'.*Tables: map/curves"
    ):
        select(["redeem/table2"])
    for stray in (".", "", "redeem/tab", "*"):
        with pytest.raises(UsageError, match="no preset"):
            select([stray])


CELL = """\
paper: REDEEM (KDD 2025)
table: Table 1
published:
  auroc: 0.6702
run:
  method: redeem
  dataset: hateful_memes
  protocol: both_0.7
"""
TABLE = """\
repetitions: 5
run:
  backbone: vilt_b32
"""


def write(folder: Path, cell: str = CELL, table: str | None = TABLE) -> Path:
    home = folder / "redeem" / "table1"
    home.mkdir(parents=True)
    (home / "a.yaml").write_text(cell)
    if table is not None:
        (home / SHARED).write_text(table)
    return folder


def test_what_a_cell_shares_comes_first(tmp_path: Path) -> None:
    (preset,) = presets(write(tmp_path)).values()
    assert preset.name == "redeem/table1/a"
    assert preset.overrides == ["backbone=vilt_b32", "method=redeem", "dataset=hateful_memes", "protocol=both_0.7"]
    assert (preset.repetitions, preset.source, preset.note) == (5, "REDEEM (KDD 2025), Table 1", "")


@pytest.mark.parametrize(
    ("cell", "table", "message"),
    [
        (CELL.replace("0.6702", "0.6703"), TABLE, r"states auroc 0.6703, but the published number .* is 0.6702"),
        (CELL.replace("0.6702", "high"), TABLE, "states auroc high, but"),
        (CELL.replace("auroc", "accuracy"), TABLE, "no published number REDEEM"),
        (CELL.replace("both_0.7", "both_0.8"), TABLE, "no published number REDEEM"),
        (CELL.replace("Table 1", "Table 9"), TABLE, "no published number REDEEM"),
        (CELL.replace("  method: redeem\n", ""), TABLE, "names no method"),
        (CELL.replace("paper: REDEEM (KDD 2025)\n", ""), TABLE, "it must have paper, published, run, table"),
        (CELL + "wishes: none\n", TABLE, "has paper, table, published, run, wishes"),
        (CELL + "note: [a]\n", TABLE, "note must be a text"),
        (CELL.replace("auroc: 0.6702", "- auroc"), TABLE, "published must be lines of NAME: VALUE"),
        (CELL + "  backbone: fusion\n", TABLE, "backbone is set here and in"),
        ("{", TABLE, "cannot be read as YAML"),
        ("just words", TABLE, "has str"),
        (CELL, None, "there is no table.yaml in its folder or above"),
        (CELL, TABLE.replace("5", "few"), "repetitions is 'few'"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, cell: str, table: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        presets(write(tmp_path, cell, table))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
