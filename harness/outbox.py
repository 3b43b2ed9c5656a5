"""The outbox: a run is whole on disk before it is sent, and leaves only when MLflow has confirmed it.

`<outbox>/<run_id>/delivery.json` says where it goes; `<outbox>/<run_id>/files/` are its artifacts.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DataError, TrackingError
from harness.files import Folders, ensure_folder, locked
from harness.mlflow_store import connect, ensure_experiment, reason, redact, send
from harness.record import RunRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RECORD_FILE = "record.json"
#: Staging folders older than this were left by killed processes.
STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Entry:
    """One run that waits.

    Attributes:
        folder: Its folder in the outbox.
        experiment: Name of the experiment it goes to.
        token: Names this delivery, so that sending it twice stores it once.
    """

    folder: Path
    experiment: str
    token: str

    @property
    def files(self) -> Path:
        """Folder of its artifacts."""
        return self.folder / "files"

    def record(self) -> RunRecord:
        """Its record."""
        return RunRecord.load(self.files / RECORD_FILE)


@dataclass
class SyncReport:
    """What `sync` did.

    Attributes:
        sent: Run ids that MLflow confirmed.
        failed: Run id -> why it still waits.
    """

    sent: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@contextmanager
def _held(folders: Folders, run_id: str) -> Iterator[None]:
    # One of a few lock files by the id's first character: bounded litter, and distinct runs rarely wait.
    with locked(folders.outbox / ".locks" / run_id[:1]):
        yield


def entry(folders: Folders, run_id: str) -> Entry | None:
    """The waiting entry of a run, or None."""
    folder = folders.outbox / run_id
    try:
        data = json.loads((folder / "delivery.json").read_text())
        return Entry(folder, data["experiment"], data["token"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: not a readable outbox entry ({reason(error)}); move it away.") from error


def entries(folders: Folders) -> list[str]:
    """Run ids that wait, oldest first."""
    if not folders.outbox.is_dir():
        return []
    waiting = [path for path in folders.outbox.iterdir() if not path.name.startswith(".") and path.is_dir()]
    return [path.name for path in sorted(waiting, key=lambda path: (path.stat().st_mtime, path.name))]


def put(folders: Folders, experiment: str, record: RunRecord, artifacts: Mapping[str, Path]) -> Path:
    """Copies a record and its artifacts into the outbox, all or nothing; replaces an entry of the same run.

    Args:
        folders: Home and outbox.
        experiment: Name of the experiment the run goes to.
        record: The record.
        artifacts: Files or folders by artifact path.

    Returns:
        The entry's folder.

    Raises:
        DataError: If an artifact is missing or the outbox cannot be written.
    """
    token = uuid.uuid4().hex
    staging = ensure_folder(folders.outbox) / f".staging-{token}"
    final = folders.outbox / record.run_id
    try:
        files = staging / "files"
        files.mkdir(parents=True)
        for name, source in artifacts.items():
            target = files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link_or_copy)
            else:
                _link_or_copy(source, target)
        (files / RECORD_FILE).write_text(record.to_json())
        (files / "config.yaml").write_text(_yaml(record.config))
        (files / "environment.json").write_text(json.dumps(record.environment, indent=2, sort_keys=True) + "\n")
        (staging / "delivery.json").write_text(json.dumps({"experiment": experiment, "token": token}) + "\n")
        _flush(staging)
        with _held(folders, record.run_id):
            _discard(final)
            staging.replace(final)
    except OSError as error:
        raise DataError(f"cannot keep run {record.run_id} in {folders.outbox}: {error}.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final


def deliver(client: MlflowClient, uri: str, folders: Folders, run_id: str) -> str:
    """Sends one entry and removes it once MLflow has confirmed it.

    Returns:
        The MLflow run id; empty when another process has sent the entry meanwhile.

    Raises:
        TrackingError: If MLflow did not take it; the entry stays.
    """
    with _held(folders, run_id):
        waiting = entry(folders, run_id)
        if waiting is None:
            return ""
        try:
            experiment = ensure_experiment(client, uri, waiting.experiment, folders)
            stored = send(client, experiment, waiting.record(), waiting.files, waiting.token)
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {redact(uri)} did not take run {run_id}: {reason(error)}.") from error
        _discard(waiting.folder)
        return stored


def sync(uri: str, folders: Folders) -> SyncReport:
    """Sends everything that waits; entries that fail stay.  Safe to repeat and to start twice.

    Raises:
        TrackingError: If something waits and MLflow cannot be reached.
    """
    report = SyncReport()
    _sweep(folders)
    waiting = entries(folders)
    if not waiting:
        return report
    client = connect(uri, folders)
    for run_id in waiting:
        try:
            if deliver(client, uri, folders, run_id):
                report.sent.append(run_id)
        except (TrackingError, DataError) as error:
            report.failed[run_id] = str(error)
    return report


def _sweep(folders: Folders) -> None:
    """Removes what killed processes left half-copied or half-removed."""
    if folders.outbox.is_dir():
        for pattern in (".staging-*", ".discarded-*"):
            for path in folders.outbox.glob(pattern):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Removes an entry in one step as others see it: renamed first, then deleted."""
    if folder.exists():
        gone = folder.with_name(f".discarded-{uuid.uuid4().hex}")
        folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link where the file system has them (artifacts are written once and renamed), else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    return str(yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True))
