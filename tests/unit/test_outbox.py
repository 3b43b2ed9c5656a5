import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import outbox
from harness.errors import DataError, TrackingError
from harness.files import Folders
from harness.mlflow_store import connect
from harness.predictions import load_predictions, save_predictions
from harness.testing.records import make_predictions, make_record
from harness.tracking import OutboxError, Tracker, load_runs

DEAD = "http://127.0.0.1:9"


def keep(folders: Folders, tmp_path: Path, *seeds: int, experiment: str = "e") -> list[str]:
    """Lets runs end while the server is dead."""
    save_predictions(make_predictions(0.8), tmp_path / "p.parquet")
    ids = []
    for seed in seeds:
        record = make_record("redeem", make_predictions(0.8), train_seed=seed)
        outbox.put(folders, experiment, record, {"predictions.parquet": tmp_path / "p.parquet"})
        ids.append(record.run_id)
    return ids


def test_nothing_waits(folders: Folders) -> None:
    assert outbox.sync(DEAD, folders) == outbox.SyncReport()
    assert outbox.entries(folders) == []
    assert outbox.entry(folders, "x") is None


def test_an_entry_is_whole_and_independent_of_the_run_folder(folders: Folders, tmp_path: Path) -> None:
    runs = tmp_path / "run"
    save_predictions(make_predictions(0.8), runs / "p.parquet")
    (runs / "checkpoint").mkdir()
    (runs / "checkpoint" / "model.bin").write_bytes(b"weights")
    record = make_record("redeem", make_predictions(0.8), config={"text": "${not.a.key}", "größe": [1, None]})
    artifacts = {"predictions.parquet": runs / "p.parquet", "checkpoint": runs / "checkpoint"}
    with pytest.raises(OutboxError, match="harness sync"):
        Tracker(DEAD, "e", folders).log(record, artifacts)
    shutil.rmtree(runs)

    entry = outbox.entry(folders, record.run_id)
    assert entry is not None
    assert entry.record().to_json() == record.to_json()
    assert load_predictions(entry.files / "predictions.parquet").ids == make_predictions(0.8).ids
    assert (entry.files / "checkpoint" / "model.bin").read_bytes() == b"weights"
    assert "${not.a.key}" in (entry.files / "config.yaml").read_text()
    assert json.loads((entry.files / "environment.json").read_text()) == {"python": "3.11"}
    assert sorted(path.name for path in folders.outbox.iterdir()) == sorted([".locks", record.run_id])


def test_sync_sends_everything_once(uri: str, folders: Folders, tmp_path: Path) -> None:
    ids = keep(folders, tmp_path, 0, 1)
    assert sorted(outbox.sync(uri, folders).sent) == sorted(ids)
    assert outbox.entries(folders) == []
    assert outbox.sync(uri, folders) == outbox.SyncReport()
    runs = load_runs(uri)
    assert sorted(run.record.run_id for run in runs) == sorted(ids)
    assert runs[0].predictions().ids == make_predictions(0.8).ids


def test_sync_to_a_dead_server_keeps_all(folders: Folders, tmp_path: Path) -> None:
    ids = keep(folders, tmp_path, 0)
    with pytest.raises(TrackingError, match="cannot be reached"):
        outbox.sync(DEAD, folders)
    assert outbox.entries(folders) == ids


def test_one_refused_entry_does_not_hold_up_the_others(uri: str, folders: Folders, tmp_path: Path) -> None:
    (bad,) = keep(folders, tmp_path, 0)
    (good,) = keep(folders, tmp_path, 1)
    (folders.outbox / bad / "files" / "record.json").write_text("{")
    report = outbox.sync(uri, folders)
    assert report.sent == [good]
    assert list(report.failed) == [bad]
    assert outbox.entries(folders) == [bad]


def test_killed_between_confirmation_and_removal(
    uri: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(folders, tmp_path, 0)

    def die(_folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "_discard", die)
        with pytest.raises(KeyboardInterrupt):
            outbox.sync(uri, folders)
    assert len(outbox.entries(folders)) == 1
    outbox.sync(uri, folders)
    assert len(connect(uri).search_runs(["1"])) == 1


def test_two_syncs_at_once(uri: str, folders: Folders, tmp_path: Path) -> None:
    ids = keep(folders, tmp_path, *range(6))
    code = (
        "import sys\nfrom harness.config import PathsConfig\nfrom harness.files import Folders\n"
        "from harness.outbox import sync\n"
        "report = sync(sys.argv[1], Folders.resolve(PathsConfig(home=sys.argv[2])))\n"
        "assert not report.failed, report.failed\nprint(*report.sent)\n"
    )
    command = [sys.executable, "-P", "-c", code, uri, str(folders.home)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sent = [worker.communicate()[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(sent[0] + sent[1]) == sorted(ids)
    assert len(connect(uri).search_runs(["1"])) == 6


def test_a_newer_record_of_the_same_run_replaces_the_waiting_one(folders: Folders, tmp_path: Path) -> None:
    keep(folders, tmp_path, 0)
    failed = make_record(status="failed")
    outbox.put(folders, "e", failed, {})
    entry = outbox.entry(folders, failed.run_id)
    assert entry is not None
    assert entry.record().status == "failed"
    assert outbox.entries(folders) == [failed.run_id]


def test_half_copied_entries_are_never_sent_and_swept_when_old(uri: str, folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot keep"):
        outbox.put(folders, "e", make_record(), {"predictions.parquet": tmp_path / "missing"})
    assert list(folders.outbox.iterdir()) == []
    killed, recent = folders.outbox / ".staging-old", folders.outbox / ".staging-new"
    killed.mkdir()
    recent.mkdir()
    long_ago = time.time() - 2 * outbox.STALE_SECONDS
    os.utime(killed, (long_ago, long_ago))
    assert outbox.sync(uri, folders) == outbox.SyncReport()
    assert [path.name for path in folders.outbox.iterdir()] == [".staging-new"]


def test_artifacts_are_copied_where_links_are_not_possible(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (run_id,) = keep(folders, tmp_path, 0)
    entry = outbox.entry(folders, run_id)
    assert entry is not None
    assert (entry.files / "predictions.parquet").read_bytes() == (tmp_path / "p.parquet").read_bytes()


def test_an_unreadable_entry_is_named(folders: Folders, tmp_path: Path) -> None:
    (run_id,) = keep(folders, tmp_path, 0)
    (folders.outbox / run_id / "delivery.json").write_text("{}")
    with pytest.raises(DataError, match="not a readable outbox entry"):
        outbox.entry(folders, run_id)
