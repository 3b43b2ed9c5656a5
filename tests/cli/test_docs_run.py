"""What README, docs and cards tell their readers to type runs, page by page and from top to bottom, at toy size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness import registry
from harness.cli import COMMANDS, main
from harness.compose import encoder_config
from harness.testing.feature_files import mmsa, write_iemocap, write_mer2024, write_mmsa, write_msp_improv
from harness.testing.models import write_clip, write_vilt
from harness.testing.releases import write_food101, write_hateful_memes, write_mmimdb

from .shown_commands import PAGES, ROOT, SHOWN, blocks, shown, words_of

#: Lines of `harness` that are not run here, by a pattern, and the tests that run the like.
ELSEWHERE = {
    r"^harness ui": "unit/test_mlflow_ui.py",
    r"^harness import-checkpoint": "cli/test_import_checkpoint.py",
    r"executor=(slurm|ray)": "cli/test_clusters.py",
}
#: Data that pip does not bring, and a release in their place; `test_real_data` of each reads the real ones.
STAND_INS = {"cdda": "hateful_memes", "tuxpaint_stamps": "iemocap", "av_digits": "hateful_memes"}
#: So that a line ends soon, where it gives these.
SMALLER = {"trials": "2", "train_seed": "0,1", "workers": "2"}
TRAINING = {"run", "sweep", "tune", "reproduce"}


@dataclass(frozen=True)
class Machine:
    """What every reader has: releases as folders of `data`, options that name weights, features of earlier runs."""

    data: Path
    weights: Mapping[str, str]
    cache: Path

    def words(self, line: str, home: Path) -> list[str]:
        """What a reader types for a line: names and numbers of their own, and as little work as shows it."""
        words = [run_of(home) if word == "3f2a9c1e" else word for word in words_of(line)[1:]]
        given = dict(word.split("=", 1) for word in words if "=" in word)
        own = self.own(next(word for word in words if word in COMMANDS), given)
        return [word for word in words if word.split("=")[0] not in own] + [f"{key}={own[key]}" for key in own]

    def own(self, command: str, given: Mapping[str, str]) -> dict[str, str]:
        """Options that take the place of those that a page gives, or stand beside them."""
        own = {key: value for key, value in SMALLER.items() if key in given}
        if given.get("method") == "all" or command == "reproduce":
            own["train_seed"] = "0"
        if "dataset" in given:
            own["dataset"] = name = STAND_INS.get(given["dataset"], given["dataset"])
            if (self.data / name).is_dir():
                own["dataset.folder"] = str(self.data / name)
        if command == "prepare":
            own["subset"] = "true"
        if command == "reproduce":
            own |= {"paths.data": str(self.data), **self.weights}
        if command in TRAINING and not {"trainer.epochs", "from"} & given.keys():
            # As the pages that say how many: a run of another length is another row of the same tables.
            own["trainer.epochs"] = "2"
        return own


def run_of(home: Path) -> str:
    """The last run of REDEEM."""
    records = sorted(home.glob("runs/*/record.json"), key=lambda file: file.stat().st_mtime)
    return [file.parent.name for file in records if json.loads(file.read_text())["method"] == "redeem"][-1]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    root = tmp_path_factory.mktemp("machine")
    data = root / "data"
    write_mmimdb(data / "mmimdb")
    write_hateful_memes(data / "hateful_memes")
    write_food101(data / "food101")
    write_iemocap(data / "iemocap")
    write_msp_improv(data / "msp_improv")
    write_mer2024(data / "mer2024")
    write_mmsa(data / "ch_sims" / "unaligned_39.pkl", mmsa((33, 20, 12), (400, 55, 39), strongest=1.0, measured=True))
    for name in ("cmu_mosi", "cmu_mosei"):
        write_mmsa(data / name / "aligned_50.pkl", mmsa((5, 20, 12), (50, 50, 50)))
    weights = {
        "backbone.weights": str(write_vilt(root / "vilt")),
        "backbone.max_text_len": "16",
        "encoder_options.clip_vit_l14_336.weights": str(write_clip(root / "clip")),
    }
    cache = root / "cache"
    cache.mkdir()
    return Machine(data, weights, cache)


def write_released_masks(machine: Machine, page: Path) -> None:
    """The files of the released codes, for the films of `machine`."""
    split = json.loads((machine.data / "mmimdb" / "split.json").read_text())
    ids = [film for part in ("train", "dev", "test") for film in split[part]]
    codes = np.arange(len(ids)) % 3
    frame = pd.DataFrame({"item_id": pd.Series(ids, dtype=object), "missing_mask_7": codes})
    frame.columns = frame.columns.astype(object)
    frame.to_pickle("missing_table.pkl")
    for part, file in (("train", "train.pt"), ("dev", "val.pt"), ("test", "test.pt")):
        torch.save(torch.arange(len(split[part])).float() % 3, file)


#: What pages tell their readers to have before they type.
PREPARED: Mapping[str, Callable[[Machine, Path], object]] = {
    "docs/protocols.md": write_released_masks,
    "docs/bring-your-own-data.md": lambda _, page: exec(blocks(page, "python")[0], {}),
    "docs/inspect.md": lambda *_: main(["run", "method=redeem", "trainer.epochs=2"]),
    "docs/sweeps.md": lambda _, page: Path("cells.yaml").write_text(blocks(page, "yaml")[0]),
}


#: Files that a page promises.
WRITTEN = {
    "README.md": ["report/report.html", "bundle.zip", "masks.parquet"],
    "docs/quickstart.md": ["report/report.html", "bundle.zip", "masks.parquet"],
}


def typed(page: Path) -> list[str]:
    """The lines of a page that are run here."""
    lines = [each.line for each in shown(page) if not each.in_text and each.line.startswith("harness ")]
    return [line for line in lines if not any(re.search(pattern, line) for pattern in ELSEWHERE)]


def test_what_is_not_run_here_is_run_elsewhere() -> None:
    assert len(typed(ROOT / "docs" / "quickstart.md")) >= 10
    for pattern, file in ELSEWHERE.items():
        assert any(re.search(pattern, each.line) for each in SHOWN), f"{pattern} matches nothing"
        assert (ROOT / "tests" / file).is_file(), file


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [each for each in PAGES if typed(each)], ids=lambda each: each.relative_to(ROOT).as_posix()
)
def test_a_page_runs_from_top_to_bottom(
    page: Path,
    machine: Machine,
    store: Path,
    plugin_files: None,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (store / "cache").symlink_to(machine.cache)
    name = page.relative_to(ROOT).as_posix()
    if name == "docs/plugins.md":
        request.getfixturevalue("plugin_package")
    if name in PREPARED:
        PREPARED[name](machine, page)
    for line in typed(page):
        capsys.readouterr()
        assert main(machine.words(line, store)) == 0, f"{line}\n{capsys.readouterr().err}"
        said = capsys.readouterr()
        assert said.out or (said.err and " -o " in line), line
    assert all(Path(file).is_file() for file in WRITTEN.get(name, []))


def test_the_example_encoder_keeps_the_contract(plugin_files: None, tmp_path: Path) -> None:
    registry.load_plugin_file(tmp_path / "letters.py")
    config = encoder_config("letters", {"width": 32})
    encoder = config.implementation()(config)
    texts = ["a red apple", "", "apple", "Apple " * 100]
    together = encoder.encode(texts)
    assert together.tokens.shape == (4, 32, 32)
    assert together.mask.sum(axis=1).tolist() == [3, 1, 1, 32]
    assert together.tokens[0, 2].tolist() == together.tokens[2, 0].tolist() == together.tokens[3, 31].tolist()
    for row, text in enumerate(texts):
        alone = encoder.encode([text])
        assert np.array_equal(alone.pooled[0], together.pooled[row])
