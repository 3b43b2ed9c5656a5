"""`table:FILE`: a saved or imported mask table is run as it is; what does not fit is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.errors import DataError, HarnessError, UsageError
from harness.mask_files import export_csv, import_csv
from harness.masking import MaskTable
from harness.protocol import parse_protocol
from harness.testing.protocols import some_available
from harness.testing.tables import make_table
from harness.types import DataTable


def draw(name: str, table: DataTable, seed: int = 0) -> MaskTable:
    return MaskTable.build(parse_protocol(name), table, seed)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """`both_0.7` with mask_seed 3, saved."""
    draw("both_0.7", make_table(), 3).save(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("suffix", ["", ".parquet", ".json"])
def test_names_print_without_suffix(suffix: str) -> None:
    protocol = parse_protocol(f"table:masks/both_0.7{suffix}")
    assert protocol.name == "table:masks/both_0.7"
    assert parse_protocol(protocol.name) == protocol


def test_the_table_is_the_draw(masks: Path) -> None:
    drawn, read = draw("both_0.7", make_table(), 3), draw(f"table:{masks}", make_table(), 3)
    assert read.fingerprint == drawn.fingerprint
    assert read.counts() == drawn.counts()
    assert read.protocol == f"table:{masks}"
    assert "made as 'both_0.7' with mask_seed=3" in read.definition
    assert drawn.fingerprint[:16] in read.definition


@pytest.mark.parametrize(
    ("source", "scores"),
    [
        ("patterns", {"pooled": "pool", "mean_of_patterns": "mean"}),
        ("test:both_0..1:0.5", {"mean_over_grid": "mean"}),
        ("imported", {"pooled": "pool", "mean_of_conditions": "mean"}),
    ],
)
def test_conditions_and_their_scores_are_kept(source: str, scores: dict[str, str], tmp_path: Path) -> None:
    table = make_table(available=some_available(2))
    drawn = draw("patterns" if source == "imported" else source, table)
    if source == "imported":
        drawn = import_csv(export_csv(drawn, tmp_path / "x.csv"), table)
    drawn.save(tmp_path / "mine")
    read = draw(f"table:{tmp_path / 'mine'}", table)
    assert read.fingerprint == drawn.fingerprint
    assert list(read.conditions) == list(drawn.conditions)
    assert dict(parse_protocol(f"table:{tmp_path / 'mine'}").aggregates) == scores


def test_sides(masks: Path) -> None:
    table = make_table()
    both = draw("both_0.7", table, 3)
    trained = draw(f"train:table:{masks},test:patterns", table, 3)
    tested = draw(f"test:table:{masks}", table, 3)
    assert np.array_equal(trained.present["train"], both.present["train"])
    assert np.array_equal(tested.present["test"], both.present["test"])
    assert tested.present["train"].all()


def test_counted_exceptions_come_with_the_table(tmp_path: Path) -> None:
    table = make_table(modalities=("text", "image", "audio"))
    drawn = draw("shared_0.9", table)
    drawn.save(tmp_path / "mine")
    assert draw(f"table:{tmp_path / 'mine'}", table).remarks == drawn.remarks
    (line,) = draw(f"test:table:{tmp_path / 'mine'}", table).remarks
    assert ": test: " in line


def test_a_table_made_from_itself(masks: Path) -> None:
    again = draw(f"table:{masks}", make_table(), 3)
    again.save(masks)
    assert draw(f"table:{masks}", make_table(), 3).fingerprint == again.fingerprint


def other_version(masks: Path) -> DataTable:
    table = make_table()
    return replace(table, spec=replace(table.spec, fingerprint="0" * 64))


def missing_id(masks: Path) -> DataTable:
    frame = pd.read_parquet(masks.with_suffix(".parquet"))
    frame.iloc[:-1].to_parquet(masks.with_suffix(".parquet"))
    return make_table()


def flipped_bit(masks: Path) -> DataTable:
    frame = pd.read_parquet(masks.with_suffix(".parquet"))
    frame.loc[4, "text"] = not frame.loc[4, "text"]
    frame.to_parquet(masks.with_suffix(".parquet"))
    return make_table()


def wrong_hash(masks: Path) -> DataTable:
    side = json.loads(masks.with_suffix(".json").read_text())
    masks.with_suffix(".json").write_text(json.dumps(side | {"sha256": "0" * 64}))
    return make_table()


def damaged_file(masks: Path) -> DataTable:
    raw = bytearray(masks.with_suffix(".parquet").read_bytes())
    raw[len(raw) // 3] ^= 1
    raw[8] ^= 255
    masks.with_suffix(".parquet").write_bytes(raw)
    return make_table()


def no_side_file(masks: Path) -> DataTable:
    masks.with_suffix(".json").unlink()
    return make_table()


def foreign_ids(masks: Path) -> DataTable:
    table = make_table()
    return replace(table, ids=tuple(f"x{name}" for name in table.ids))


def lacking_value(masks: Path) -> DataTable:
    return replace(make_table(), available=np.tile([True, False], (90, 1)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_version, "build a new one"),
        (missing_id, "was changed after it was saved"),
        (flipped_bit, "was changed after it was saved"),
        (wrong_hash, "side file says 0000"),
        (damaged_file, "not readable|was changed"),
        (no_side_file, "no such file; a table is a .parquet and a .json"),
        (foreign_ids, "has other ids than split 'train'"),
        (lacking_value, "present that the data set lacks"),
    ],
)
def test_what_does_not_fit_is_refused(damage: object, message: str, masks: Path) -> None:
    assert callable(damage)
    table = damage(masks)
    with pytest.raises(DataError, match=message) as caught:
        draw(f"table:{masks}", table, 3)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_another_seed_is_refused(masks: Path) -> None:
    with pytest.raises(UsageError, match="holds the draw of mask_seed=3; run it with mask_seed=3, not 0"):
        draw(f"table:{masks}", make_table())


@pytest.mark.parametrize("name", ["table:", "table:masks/", "table:a,b"])
def test_names_without_a_table(name: str) -> None:
    with pytest.raises(HarnessError, match="names no table"):
        parse_protocol("table:.parquet" if name == "table:masks/" else name)


@pytest.mark.parametrize("length", [249, 400])
def test_a_name_that_the_file_system_does_not_take_is_no_file(length: int, tmp_path: Path) -> None:
    """With 249 characters `.json` fits into the usual 255 and `.parquet` does not."""
    with pytest.raises(DataError, match="no such file"):
        draw(f"table:{tmp_path / ('x' * length)}", make_table())
