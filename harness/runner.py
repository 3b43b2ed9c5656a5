"""A cell from its lock to its record: found finished, run, stopped or failed.

What goes wrong once a cell is resolved becomes a record with status `failed`, so that a sweep goes on and the failure
is visible in every report.
"""

from __future__ import annotations

import datetime
import multiprocessing
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import processes, registry
from harness.cell import Cell, cell_features, resolve
from harness.compose import changed_options, to_dict
from harness.config import MethodConfig, RunConfig
from harness.devices import available_device
from harness.environment import describe_environment
from harness.errors import (
    CellBusyError,
    CellTimeout,
    HarnessError,
    ProcessLostError,
    Terminated,
    TrackingError,
)
from harness.execution import execute
from harness.files import Folders, atomic_write, ensure_folder
from harness.findings import Findings
from harness.metrics import is_higher_better, metric_versions
from harness.mlflow_store import redact
from harness.predictions import load_predictions
from harness.progress import say, track
from harness.record import RunRecord
from harness.system_metrics import SYSTEM_METRICS_FILE, sampled
from harness.tracking import PREDICTIONS_FILE, StoredRun, Tracker, experiment_name, load_runs, tracking_uri
from harness.trainer import CHECKPOINT
from harness.types import SPLITS, DataTable, Predictions
from harness.workspace import Workspace

#: In the folder of a run: held while a program runs the cell.
_LOCK = ".lock"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        record: Its record.
        source: Predictions file, or the stored run that has one.
        mlflow_run_id: Its MLflow run; empty while the record waits in the outbox.
        skipped: True when a finished run was found.
    """

    record: RunRecord
    source: Path | StoredRun
    mlflow_run_id: str = ""
    skipped: bool = False

    @property
    def link(self) -> str:
        """Address of the run's page, where a tracking server has shown it before; else empty."""
        return "" if isinstance(self.source, Path) else self.source.link

    def findings(self) -> Findings | None:
        """What `harness inspect` found in it before; None for a run that has just been made."""
        return None if isinstance(self.source, Path) else self.source.findings()

    def predictions(self) -> Predictions:
        """Predictions per test sample and test condition.

        Raises:
            DataError: If the run failed before it made any.
        """
        return load_predictions(self.source) if isinstance(self.source, Path) else self.source.predictions()


def run_cells(configs: Sequence[RunConfig]) -> list[Outcome]:
    """Runs cells one after the other; finished ones are not run again.

    Raises:
        HarnessError: For whatever a user can mend, before the first cell is trained.
    """
    if not configs:
        return []
    for config in configs:
        available_device(config.device)
    workspace = Workspace(Folders.resolve(configs[0].paths))
    processes.start(configs[0].device)
    try:
        processes.from_main(lambda: ensure_folder(workspace.folders.runs))
        cells = processes.main_first(lambda: [resolve(config, workspace) for config in configs])
        outcomes = []
        for number, cell in enumerate(track(cells, "runs"), start=1):
            outcome = run_cell(cell, workspace)
            counter = f"[{number}/{len(cells)}] " if len(cells) > 1 else ""
            say(counter + summary_line(cell, outcome))
            outcomes.append(outcome)
        return outcomes
    finally:
        processes.stop()


def summary_line(cell: Cell, outcome: Outcome) -> str:
    """What became of a cell, in one line for people."""
    record = outcome.record
    if record.status != "finished":
        return f"{cell.title}: {record.status}: {record.error.splitlines()[0] if record.error else ''}"
    head = record.results[0]
    score = head.metrics[record.primary_metric]
    how = "already finished" if outcome.skipped else f"{record.cost.total_seconds:.1f} s"
    leaks = [check.name for check in record.audits if not check.passed and check.severity == "leak"]
    warnings = [check.name for check in record.audits if not check.passed and check.severity == "warning"]
    badge = f", audit failed: {', '.join(leaks)}" if leaks else ""
    badge += f", audit warns: {', '.join(warnings)}" if warnings else ""
    over = f" {head.condition}" if head.kind != "condition" else ""
    return f"{cell.title}: {record.primary_metric}{over} {score:.4f} ({how}{badge})"


def run_cell(cell: Cell, workspace: Workspace, timeout: float = 0.0, wait: bool = True) -> Outcome:
    """Runs one resolved cell, or returns its finished record.

    With several processes all call it, and the main one alone reads the store, writes files and records.

    Args:
        cell: What to run.
        workspace: Folders and loaded data.
        timeout: Seconds after which the cell is stopped and recorded as failed; 0 means never.
        wait: Whether to wait when another program runs the same cell.

    Raises:
        HarnessError: If features cannot be computed, or nothing can be written.
        CellBusyError: If another program runs the cell and `wait` is False.
        KeyboardInterrupt: The record says `interrupted`; the same command goes on from the checkpoint.
    """
    config = cell.config
    folders = workspace.folders
    uri = tracking_uri(config.tracking, folders)
    tracker = Tracker(uri, experiment_name(config.tracking, cell.table.spec.name), folders)
    folder = folders.runs / cell.run_id
    with _alone(folder, cell, wait):
        done = processes.from_main(lambda: _finished(cell, tracker, folder, uri))
        if done is not None:
            return done
        record = _new_record(cell)
        try:
            with _no_process_left(cell), _time_limit(timeout):
                features = processes.main_first(lambda: cell_features(cell, workspace))
                try:
                    with sampled(_samples_file(config, folder)):
                        execute(cell, features, folders, record)
                    record.status = "finished"
                except ProcessLostError:
                    raise
                except Exception as error:
                    _describe_failure(record, error, folder)
        except CellTimeout:
            record.status = "failed"
            record.error = timeout_message(timeout)
        except KeyboardInterrupt as stop:
            record.status = "interrupted"
            signal_name = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
            record.error = f"stopped by {signal_name}; the same command goes on from the last checkpoint."
            if processes.is_main():
                _conclude(tracker, record, folder)
            raise
        stored = processes.from_main(lambda: _conclude(tracker, record, folder))
        return Outcome(record, folder / PREDICTIONS_FILE, stored)


def _samples_file(config: RunConfig, folder: Path) -> Path | None:
    """Where samples of the machine go, if they are asked for; a run from the start has no older ones."""
    if not processes.is_main():
        return None
    file = folder / SYSTEM_METRICS_FILE
    if not (folder / CHECKPOINT).is_file():
        file.unlink(missing_ok=True)
    return file if config.tracking.system_metrics else None


def timeout_message(seconds: float) -> str:
    """Error of a cell that was stopped because it took too long."""
    return f"stopped after {seconds:g} s (cell_timeout); give it more, or look at what it does."


@contextmanager
def _alone(folder: Path, cell: Cell, wait: bool) -> Iterator[None]:
    """Holds the cell for the main process while the block runs, so that two programs never run it at once."""
    from filelock import FileLock, Timeout

    if not processes.is_main():
        yield
        return
    lock = FileLock(ensure_folder(folder) / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise CellBusyError(f"{cell.title} is being run by another program.") from None
        say(f"{cell.title} is being run by another program; waiting for it to end.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _no_process_left(cell: Cell) -> Iterator[None]:
    """Ends the processes that the block leaves behind; Python would wait for them before it ends."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        left = set(multiprocessing.active_children()) - before
        for process in left:
            process.kill()
        if left:
            say(f"warning: {cell.title}: left {len(left)} processes running; they were killed.")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises `CellTimeout` in the main thread when the block takes longer; 0 sets no limit."""
    if not seconds:
        yield
        return

    def stop(*_: object) -> None:
        raise CellTimeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _describe_failure(record: RunRecord, error: Exception, folder: Path) -> None:
    """Notes why a cell failed; an error that is not for users keeps its traceback."""
    record.status = "failed"
    if isinstance(error, HarnessError):
        record.error = redact(str(error))
    elif _is_out_of_memory(error):
        record.error = (
            f"out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "lower trainer.batch_size or trainer.eval_batch_size, or set trainer.accumulate=2."
        )
    else:
        record.error = redact(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        if processes.is_main():
            with atomic_write(folder / "traceback.txt") as temporary:
                temporary.write_text(redact(traceback.format_exc()))


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    # torch has no class of its own for what the CPU's allocator cannot give.
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or on_cpu


def _conclude(tracker: Tracker, record: RunRecord, folder: Path) -> str:
    """Writes the record of an ended cell and sends it; returns MLflow's id."""
    record.finished = _now()
    record.save(folder / "record.json")
    return _track(tracker, record, folder)


def record_failure(cell: Cell, workspace: Workspace, error: str) -> Outcome:
    """Records a cell that left no record itself, e.g. because its process was killed.

    A finished record that could only not be sent stays as it is; the next run of the cell sends it.
    """
    config, folders = cell.config, workspace.folders
    tracker = Tracker(
        tracking_uri(config.tracking, folders), experiment_name(config.tracking, cell.table.spec.name), folders
    )
    folder = ensure_folder(folders.runs / cell.run_id)
    if (folder / "record.json").is_file():
        left = RunRecord.load(folder / "record.json")
        if left.status == "finished":
            say(f"warning: {cell.title} is finished but not sent: {error}")
            return Outcome(left, folder / PREDICTIONS_FILE)
    record = _new_record(cell)
    record.status, record.error = "failed", error
    return Outcome(record, folder / PREDICTIONS_FILE, _conclude(tracker, record, folder))


def _finished(cell: Cell, tracker: Tracker, folder: Path, uri: str) -> Outcome | None:
    """A finished run of this identity: on disk (killed before it was tracked) or in MLflow."""
    if cell.config.overwrite == "always":
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
        return None
    keep = ("finished", "failed") if cell.config.overwrite == "never" else ("finished",)
    try:
        known = tracker.find(cell.run_id)
    except TrackingError:
        known = None
    if known is not None and known.status in keep and known.mlflow_run_id:
        runs = load_runs(uri, filters={"run_id": cell.run_id})
        if runs:
            return Outcome(runs[0].record, runs[0], runs[0].mlflow_run_id, skipped=True)
    path = folder / "record.json"
    if path.is_file():
        record = RunRecord.load(path)
        if record.status in keep:
            stored = _track(tracker, record, folder) if known is None else known.mlflow_run_id
            return Outcome(record, folder / PREDICTIONS_FILE, stored, skipped=True)
        path.unlink()
    return None


def _track(tracker: Tracker, record: RunRecord, folder: Path) -> str:
    """Sends a record with its artifacts to MLflow and returns MLflow's id; empty when it waits in the outbox."""
    artifacts = {
        name: path
        for name, path in {
            PREDICTIONS_FILE: folder / PREDICTIONS_FILE,
            "mask.parquet": folder / "mask.parquet",
            "mask.json": folder / "mask.json",
            "checkpoint/model.safetensors": folder / "model.safetensors",
            SYSTEM_METRICS_FILE: folder / SYSTEM_METRICS_FILE,
        }.items()
        if path.is_file()
    }
    stored = ""
    try:
        stored = tracker.log(record, artifacts)
    except TrackingError as error:
        say(f"warning: {error}")
    if record.status == "finished":
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return stored


def _new_record(cell: Cell) -> RunRecord:
    config, spec = cell.config, cell.table.spec
    method: MethodConfig = config.method
    task = spec.task
    return RunRecord(
        run_id=cell.run_id,
        status="running",
        method=cell.method_name,
        label=method.label,
        preset=method.preset,
        changed=changed_options(method),
        oracle=method.oracle,
        reference=method.reference,
        dataset={
            "name": spec.name,
            "version": spec.version,
            "fingerprint": spec.fingerprint,
            "license": spec.license,
            "citation": spec.citation,
            "modalities": [{"name": modality.name, "kind": modality.kind} for modality in spec.modalities],
            "task": {"kind": task.kind, "num_outputs": task.num_outputs, "labels": list(task.labels)},
            "splits": {split: len(cell.table.splits[split]) for split in SPLITS},
            "bayes_accuracy": _bayes(cell.table),
        },
        protocol={
            "name": cell.protocol.name,
            "definition": cell.protocol.describe(),
            "supervision": config.supervision,
            "mask_fingerprint": cell.masks.fingerprint,
            "shown_fingerprint": cell.shown.fingerprint,
            "conditions": list(cell.masks.condition_names),
            "headline": next(iter(cell.protocol.aggregates), cell.protocol.name),
            "counts": cell.masks.counts(),
            "remarks": list(cell.masks.remarks),
        },
        seeds={"mask_seed": config.mask_seed, "train_seed": config.train_seed, "eval_seed": config.eval_seed},
        config=_without_credentials(to_dict(config)),
        backbone=registry.backbones.name_of(type(config.backbone)) if method.uses_backbone else "",
        primary_metric=task.primary_metric,
        higher_is_better=is_higher_better(task.primary_metric),
        metric_versions=metric_versions(task, method.replays),
        fingerprints=dict(cell.plugins),
        environment=describe_environment(),
        started=_now(),
    )


def _without_credentials(config: dict[str, Any]) -> dict[str, Any]:
    """A record is read by others than those who may write to the tracking server."""
    return config | {"tracking": config["tracking"] | {"uri": redact(config["tracking"]["uri"])}}


def _bayes(table: DataTable) -> dict[str, float]:
    """Best possible accuracy per pattern of generated data."""
    return {"+".join(names): value for names, value in (table.bayes_accuracy or {}).items()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
