"""MLflow as the record of runs: store them whole, find them again, read them back.

A run reaches MLflow through the outbox (`harness.outbox`): first it is complete on disk, then it is sent, and
only what MLflow has confirmed leaves the disk.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import outbox
from harness.config import TrackingConfig
from harness.errors import TrackingError
from harness.files import Folders
from harness.findings import FINDINGS_FILE, Findings
from harness.mlflow_store import (
    ATTACHED,
    RUN_ID,
    SENT,
    STATUS,
    Listed,
    connect,
    ensure_experiment,
    is_remote,
    is_stored,
    listed,
    probe,
    reason,
    redact,
    search,
)
from harness.mlflow_sweeps import SweepRecord, remember_here
from harness.progress import say
from harness.protocol import join_names
from harness.record import RunRecord, Status
from harness.types import Predictions

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PREDICTIONS_FILE = "predictions.parquet"
#: Letters of a whole run id.
ID_LENGTH = 64


def tracking_uri(tracking: TrackingConfig, folders: Folders) -> str:
    """Where runs are recorded: the config, `$MLFLOW_TRACKING_URI`, else a SQLite database in the home folder.

    The result may hold credentials; show it to people through `redact`.
    """
    return tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{folders.home / 'mlflow.db'}"


def experiment_name(tracking: TrackingConfig, dataset: str) -> str:
    """The configured experiment, else `harness/<data set>`."""
    return tracking.experiment or f"harness/{dataset}"


@dataclass(frozen=True)
class StoredStatus:
    """What is known of a run id.

    Attributes:
        status: Status of its record.
        mlflow_run_id: Its MLflow run; empty while the record waits in the outbox.
    """

    status: Status
    mlflow_run_id: str


class OutboxError(TrackingError):
    """MLflow did not take a record; it waits whole in the outbox.  The message is the warning to show."""


@dataclass
class Tracker:
    """Writes and finds runs of one experiment.

    Attributes:
        uri: Tracking URI.
        experiment: Experiment name.
        folders: Home and outbox.
    """

    uri: str
    experiment: str
    folders: Folders
    _client: MlflowClient | None = field(default=None, init=False, repr=False)

    def find(self, run_id: str) -> StoredStatus | None:
        """Looks an ended run up, in MLflow and in the outbox; a record that waits there is sent if possible.

        Raises:
            TrackingError: If MLflow cannot be reached and the outbox does not know the run either.
        """
        waiting = outbox.entry(self.folders, run_id)
        if waiting is not None:
            with contextlib.suppress(TrackingError):
                self._send(run_id)
                waiting = None
        if waiting is not None:
            return StoredStatus(waiting.record().status, "")
        try:
            client = self._connect()
            experiment = ensure_experiment(client, self.uri, self.experiment, self.folders)
            runs = search(client, [experiment], f"tags.`{RUN_ID}` = '{run_id}'")
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {redact(self.uri)} cannot be read: {reason(error)}.") from error
        for run in runs:
            if is_stored(run):
                return StoredStatus(run.data.tags.get(STATUS, "failed"), run.info.run_id)
        return None

    def log(self, record: RunRecord, artifacts: Mapping[str, Path]) -> str:
        """Stores an ended run and retires an older one of the same `run_id`.

        Args:
            record: The record; `record.json`, `config.yaml` and `environment.json` are made from it.
            artifacts: Further files by artifact path, e.g. `predictions.parquet`, `mask.parquet`, `mask.json`,
                `checkpoint/model.safetensors`.

        Returns:
            The MLflow run id.

        Raises:
            OutboxError: If MLflow did not take it; the record is safe in the outbox and the message says how
                to send it.
        """
        outbox.put(self.folders, self.experiment, record, artifacts)
        try:
            return self._send(record.run_id)
        except TrackingError as error:
            raise _kept(error, self.folders.outbox / record.run_id) from error

    def _connect(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self.uri, self.folders)
        else:
            probe(self.uri)
        return self._client

    def _send(self, run_id: str) -> str:
        return outbox.deliver(self._connect(), self.uri, self.folders, run_id)


def log_sweep(uri: str, folders: Folders, record: SweepRecord, artifacts: Mapping[str, Path]) -> str:
    """Says on the parent runs of a sweep how it stands.

    Args:
        uri: Tracking URI.
        folders: Home and outbox.
        record: The sweep; `sweep.json` is made from it.
        artifacts: Further files or folders by artifact path, e.g. `report`.

    Returns:
        The MLflow ids of the parents, joined by commas.

    Raises:
        OutboxError: If MLflow did not take it; it waits in the outbox.
    """
    name = outbox.put_sweep(folders, record, artifacts)
    remember_here(folders, record)
    try:
        return outbox.deliver(connect(uri, folders), uri, folders, name)
    except TrackingError as error:
        raise _kept(error, folders.outbox / name) from error


def _kept(error: TrackingError, where: Path) -> OutboxError:
    return OutboxError(f"{str(error).rstrip('.')}; it is kept in {where}: send it later with `harness sync`.")


@dataclass(frozen=True)
class StoredRun:
    """A run read back from MLflow.

    Attributes:
        record: The whole record.
        mlflow_run_id: MLflow's id.
        experiment_id: MLflow's experiment.
        uri: Tracking URI it came from.
        artifact_uri: Where its artifacts are.
        attached: Names of artifacts that were made from the run afterwards.
    """

    record: RunRecord
    mlflow_run_id: str
    experiment_id: str
    uri: str = field(default="", repr=False)
    artifact_uri: str = field(default="", repr=False)
    attached: tuple[str, ...] = ()

    @property
    def link(self) -> str:
        """Address of the run's page on a tracking server, without credentials; empty for a local store."""
        if not is_remote(self.uri):
            return ""
        parts = urllib.parse.urlsplit(self.uri)
        server = urllib.parse.urlunsplit(
            (parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")
        )
        return f"{server}/#/experiments/{self.experiment_id}/runs/{self.mlflow_run_id}"

    def predictions(self) -> Predictions:
        """Reads the predictions per sample; downloaded unless the artifact store is local.

        Raises:
            DataError: If the run has none.
        """
        from harness.predictions import load_predictions

        with _artifact(self.uri, self.mlflow_run_id, self.artifact_uri, PREDICTIONS_FILE) as path:
            return load_predictions(path)

    def findings(self) -> Findings | None:
        """What `harness inspect` found in the run; None where nobody has looked.

        Raises:
            HarnessError: If it cannot be read.
        """
        if FINDINGS_FILE not in self.attached:
            return None
        return Findings.from_json(self.artifact(FINDINGS_FILE), f"{FINDINGS_FILE} of run {self.record.run_id[:12]}")

    def attach(self, name: str, text: str) -> None:
        """Puts a file that was made from the run beside its record; the record stays as it is.

        Raises:
            TrackingError: If the store cannot be reached or does not take it.
        """
        client = connect(self.uri)
        try:
            client.log_text(self.mlflow_run_id, text, name)
            client.set_tag(self.mlflow_run_id, ATTACHED, ",".join(sorted({*self.attached, name})))
        except Exception as error:
            raise TrackingError(
                f"MLflow at {redact(self.uri)} did not take {name} of run {self.mlflow_run_id}: {reason(error)}."
            ) from error

    def artifact(self, name: str) -> bytes:
        """Content of one of its artifacts.

        Raises:
            TrackingError: If the run has none of this name, or it cannot be read.
        """
        with _artifact(self.uri, self.mlflow_run_id, self.artifact_uri, name) as path:
            try:
                return path.read_bytes()
            except OSError as error:
                raise TrackingError(
                    f"artifact {name} of MLflow run {self.mlflow_run_id} cannot be read: {reason(error)}."
                ) from error


@contextlib.contextmanager
def _artifact(uri: str, run_id: str, artifact_uri: str, name: str) -> Iterator[Path]:
    """Path of an artifact: in place for local stores, else a download that goes when the block ends."""
    parts = urllib.parse.urlsplit(artifact_uri)
    if parts.scheme in ("", "file"):
        yield Path(urllib.request.url2pathname(parts.path) if parts.scheme else artifact_uri) / name
        return
    import tempfile

    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(download_artifacts(run_id=run_id, artifact_path=name, dst_path=folder, tracking_uri=uri))
        except OSError as error:
            raise TrackingError(f"artifact {name} of MLflow run {run_id} cannot be read: {reason(error)}.") from error


def _alternatives(name: str, text: str) -> list[str]:
    """Values of a comma list; the comma of a protocol `train:X,test:Y` is part of its name."""
    parts = [part.strip() for part in text.split(",")]
    return join_names(parts) if name == "protocol" else parts


@dataclass(frozen=True)
class PastCost:
    """What finished runs of a method on a data set took.

    Attributes:
        seconds: Median wall time.
        memory: Most bytes at their peak.
    """

    seconds: float
    memory: int


def past_costs(uri: str, datasets: Iterable[str]) -> dict[tuple[str, str], PastCost]:
    """What finished runs took, by method and data set; reads no artifacts.

    Raises:
        TrackingError: If the store cannot be reached or read.
    """
    datasets = set(datasets)
    seconds, memory = "cost/total_seconds", "cost/peak_memory_bytes"
    costs: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for run in listed(uri, [STATUS, "harness.method", "harness.dataset"], [seconds, memory]):
        name = run.tags.get("harness.dataset", "")
        if run.tags.get(STATUS) == "finished" and name in datasets and seconds in run.metrics:
            costs.setdefault((run.tags.get("harness.method", ""), name), []).append(run.metrics)
    return {
        key: PastCost(statistics.median(run[seconds] for run in runs), int(max(run.get(memory, 0.0) for run in runs)))
        for key, runs in costs.items()
    }


def load_runs(uri: str, *, filters: Mapping[str, str] | None = None) -> list[StoredRun]:
    """All ended runs of a store, one per `run_id` (the newest), oldest first.

    Args:
        uri: Tracking URI.
        filters: `harness.*` tags without the prefix (`method`, `dataset`, `protocol`, `supervision`,
            `train_seed`, …) that a run must have; a value may list alternatives separated by commas.
            `experiment` and `run_id` work too, and of a run id its beginning.

    Raises:
        TrackingError: If the store cannot be reached or read.
    """
    wanted = {name: set(_alternatives(name, text)) for name, text in (filters or {}).items()}
    experiments = wanted.pop("experiment", None)
    starts = tuple(wanted.pop("run_id", {""}))
    newest: dict[str, Listed] = {}
    # A server looks for one whole id only.
    whole = starts[0] if len(starts) == 1 and len(starts[0]) == ID_LENGTH else ""
    for run in listed(uri, [ATTACHED, *(f"harness.{name}" for name in wanted)], run_id=whole):
        if experiments is not None and run.experiment not in experiments:
            continue
        named = run.tags[RUN_ID].startswith(starts)
        if named and all(run.tags.get(f"harness.{name}") in values for name, values in wanted.items()):
            known = newest.get(run.tags[RUN_ID])
            if known is None or run.tags.get(SENT, "") > known.tags.get(SENT, ""):
                newest[run.tags[RUN_ID]] = run
    stored = []
    for run in sorted(newest.values(), key=lambda run: (run.start_time, run.mlflow_run_id)):
        try:
            with _artifact(uri, run.mlflow_run_id, run.artifact_uri, outbox.RECORD_FILE) as path:
                record = RunRecord.load(path)
        except Exception as error:
            # One run written by a newer harness, or with lost artifacts, must not hide a team's other results.
            say(f"warning: MLflow run {run.mlflow_run_id} is left out: {reason(error)}.")
            continue
        attached = tuple(filter(None, run.tags.get(ATTACHED, "").split(",")))
        stored.append(StoredRun(record, run.mlflow_run_id, run.experiment_id, uri, run.artifact_uri, attached))
    return stored
