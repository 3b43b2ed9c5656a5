"""`harness sweep --cells FILE`: grids from a YAML file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.cell_files import read_cells
from harness.cli import main
from harness.compose import compose

DOCS = Path(__file__).parents[2] / "docs" / "sweeps.md"
SMALL = ["dataset=synthetic", "dataset.samples=80"]


def grids(folder: Path, entries: Any, *common: str) -> list[list[str]]:
    file = folder / "cells.yaml"
    file.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return read_cells(file, common)


def test_a_mapping_is_a_grid_and_the_command_line_holds_for_all(tmp_path: Path) -> None:
    entries = [
        {"method": ["majority", "knn_vote"], "protocol": "any_0.5", "train_seed": [0, 1], "dataset.samples": 90},
        {"method": "unimodal", "method.modality": "b", "protocol": ["complete", "train:complete,test:any_0.5"]},
    ]
    first, second = grids(tmp_path, entries, *SMALL)
    assert first == [
        "dataset.samples=80",
        "method=majority,knn_vote",
        "protocol=any_0.5",
        "train_seed=0,1",
        "dataset=synthetic",
    ]
    cells = [config for grid in (first, second) for config in compose(grid)]
    assert [config.protocol for config in cells] == ["any_0.5"] * 4 + ["complete", "train:complete,test:any_0.5"]
    assert {config.dataset.samples for config in cells} == {80}


@settings(max_examples=25, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20))
@example(text="A¹")
def test_a_text_stays_what_it_is(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Quotes, commas, backslashes, dollar signs, `null`, digits."""
    (grid,) = grids(tmp_path_factory.getbasetemp(), [{"method": "majority", "tracking.experiment": text}], *SMALL)
    if "${" not in text:  # OmegaConf's interpolation, which a command line has, too
        (config,) = compose(grid)
        assert config.tracking.experiment == text


def test_values_of_other_types(tmp_path: Path) -> None:
    values = {"encoders": {"image": "identity"}, "trainer.lr": 1e-4, "tracking.checkpoint": False, "trainer.epochs": 3}
    (grid,) = grids(tmp_path, [{"method": "majority", **values}], *SMALL)
    (config,) = compose(grid)
    assert (config.encoders["image"], config.trainer.lr, config.trainer.epochs) == ("identity", 1e-4, 3)
    assert config.tracking.checkpoint is False


def test_the_file_of_the_docs_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    sizes = [len(compose(grid)) for grid in grids(tmp_path, yaml.safe_load(block), *SMALL)]
    assert sizes == [6, 2, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write a YAML list of grids"),
        ("method: redeem", "write a YAML list of grids"),
        ("- redeem", "entry 1 is not a mapping of options to values"),
        ("- {method: majority}\n- {1: 2}", "entry 2 is not a mapping"),
        ("- {method: [", "not a YAML file"),
        ("- {method: majorty}", "unknown method 'majorty'. Did you mean 'majority'?"),
    ],
)
def test_what_is_no_list_of_grids(tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text(text)
    assert main(["sweep", "--cells", str(file), *SMALL]) == 2
    assert says in capsys.readouterr().err
    assert main(["sweep", "--cells", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: No such file or directory" in capsys.readouterr().err


def test_a_cell_that_is_named_twice_is_run_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cells.yaml"
    file.write_text("- {method: majority, train_seed: [0, 1]}\n- {method: [majority, knn_vote], train_seed: 1}\n")
    assert main(["sweep", "--cells", str(file), *SMALL, "protocol=any_0.5", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("3 cells, 0 finished, 3 to run")
