"""Records of every schema that was ever written load, and stand in a report.

`tests/golden/records/schema_<N>.json` was written by the harness of that schema.  A new schema adds a file and leaves
the others alone.
"""

from pathlib import Path

import pytest

from harness.errors import DataError
from harness.record import RECORD_SCHEMA, RunRecord
from harness.reports.leaderboard import Leaderboard
from harness.testing.records import FakeRun, make_predictions

FOLDER = Path(__file__).parent.parent / "golden" / "records"
VERSIONS = range(1, RECORD_SCHEMA + 1)


def golden(version: int) -> RunRecord:
    return RunRecord.load(FOLDER / f"schema_{version}.json")


def test_every_schema_has_its_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"schema_{version}.json" for version in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
def test_it_loads_as_it_was_written(version: int) -> None:
    record = golden(version)
    assert (record.schema_version, record.method, record.status) == (version, "redeem", "finished")
    assert record.results[0].metrics["accuracy"] == pytest.approx({1: 0.8, 2: 0.7, 3: 0.7}[version])
    assert record.results[0].kind == {1: "condition", 2: "mean", 3: "mean"}[version]
    assert record.cost.train_seconds == 12.5
    assert record.cost.audit_seconds == {1: 0.0, 2: 0.0, 3: 0.25}[version]
    assert ("note" in [audit.severity for audit in record.audits]) == (version == 3)
    assert RunRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("version", VERSIONS)
def test_it_stands_in_a_report(version: int) -> None:
    record = golden(version)
    (table,) = Leaderboard.build([FakeRun(record, make_predictions(0.8, 20))]).tables
    (row,) = table.rows
    assert row.score == record.results[0].metrics["accuracy"]
    assert row.runs[0]["run_id"] == record.run_id


def test_a_newer_schema_is_refused_in_one_line() -> None:
    text = golden(RECORD_SCHEMA).to_json()
    newer = text.replace(f'"schema_version": {RECORD_SCHEMA}', f'"schema_version": {RECORD_SCHEMA + 1}')
    with pytest.raises(DataError, match="written by a newer harness"):
        RunRecord.from_json(newer)
