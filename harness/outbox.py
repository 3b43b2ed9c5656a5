"""The outbox: a run is whole on disk before it is sent, and leaves only when MLflow has confirmed it.

`<outbox>/<run_id>/delivery.json` says where it goes; `<outbox>/<run_id>/files/` are its artifacts.  What a sweep's
parent run is to say waits likewise, as `<outbox>/sweep-<digest of its name>`.
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
from harness.mlflow_sweeps import SWEEP_FILE, SweepRecord, entry_name, nesting_tags, send_sweep
from harness.record import RunRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

RECORD_FILE = "record.json"
#: Staging folders older than this were left by killed processes.
STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Entry:
    """One run, or one sweep, that waits.

    Attributes:
        folder: Its folder in the outbox.
        experiment: Name of the experiment it goes to; a sweep's record names its own.
        token: Names this delivery, so that sending it twice stores it once.
    """

    folder: Path
    experiment: str
    token: str

    @property
    def files(self) -> Path:
        """Folder of its artifacts."""
        return self.folder / "files"

    @property
    def is_sweep(self) -> bool:
        """Whether it is about a sweep."""
        return (self.files / SWEEP_FILE).is_file()

    def record(self) -> RunRecord:
        """The run's record."""
        return RunRecord.load(self.files / RECORD_FILE)

    def sweep(self) -> SweepRecord:
        """The sweep's record."""
        return SweepRecord.load(self.files / SWEEP_FILE)


@dataclass
class SyncReport:
    """What `sync` did.

    Attributes:
        sent: Run ids, and names of sweeps' entries, that MLflow confirmed.
        failed: Such a name -> why it still waits.
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
    """Run ids, and names of sweeps' entries, that wait, oldest first."""
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
    texts = {
        RECORD_FILE: record.to_json(),
        "config.yaml": _yaml(record.config),
        "environment.json": json.dumps(record.environment, indent=2, sort_keys=True) + "\n",
    }
    return _put(folders, record.run_id, experiment, artifacts, texts)


def put_sweep(folders: Folders, record: SweepRecord, artifacts: Mapping[str, Path]) -> str:
    """Copies what a sweep's parent run is to say into the outbox; replaces what was to be said before.

    Args:
        folders: Home and outbox.
        record: The sweep.
        artifacts: Files or folders by artifact path.

    Returns:
        The entry's name.

    Raises:
        DataError: If an artifact is missing or the outbox cannot be written.
    """
    return _put(folders, entry_name(record.name), "", artifacts, {SWEEP_FILE: record.to_json()}).name


def _put(folders: Folders, name: str, experiment: str, artifacts: Mapping[str, Path], texts: Mapping[str, str]) -> Path:
    """An entry of files that exist and of texts that become files, all or nothing."""
    token = uuid.uuid4().hex
    staging = ensure_folder(folders.outbox) / f".staging-{token}"
    final = folders.outbox / name
    try:
        files = staging / "files"
        files.mkdir(parents=True)
        for path, source in artifacts.items():
            target = files / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link_or_copy)
            else:
                _link_or_copy(source, target)
        for path, text in texts.items():
            (files / path).write_text(text)
        (staging / "delivery.json").write_text(json.dumps({"experiment": experiment, "token": token}) + "\n")
        _flush(staging)
        with _held(folders, name):
            _discard(final)
            staging.replace(final)
    except OSError as error:
        raise DataError(f"cannot keep {name} in {folders.outbox}: {error}.") from error
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
            if waiting.is_sweep:
                stored = send_sweep(client, uri, folders, waiting.sweep(), waiting.files)
            else:
                record = waiting.record()
                experiment = ensure_experiment(client, uri, waiting.experiment, folders)
                nesting = nesting_tags(client, experiment, record)
                stored = send(client, experiment, record, waiting.files, waiting.token, nesting)
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
