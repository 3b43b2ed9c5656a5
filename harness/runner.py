"""One cell: resolve, mask, audit, prepare, fit, predict, score, record.

What a user can mend (unknown names, missing data) is raised before anything is trained; what goes wrong afterwards
becomes a record with status `failed`, so that a sweep goes on and the failure is visible in every report.
"""

from __future__ import annotations

import datetime
import multiprocessing
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from harness import audit, processes, registry
from harness.backbone import Backbone
from harness.changes import parse_identity, spread
from harness.compose import changed_options, encoder_config, identity_dict, to_dict
from harness.config import BackboneConfig, EncoderConfig, MethodConfig, RunConfig, digest_of
from harness.environment import describe_environment
from harness.errors import (
    CellBusyError,
    CellTimeout,
    HarnessError,
    ProcessLostError,
    Terminated,
    TrackingError,
    UsageError,
)
from harness.features import FeatureArray, FeatureStore
from harness.files import Folders, atomic_write, ensure_folder, file_sha256
from harness.findings import Findings
from harness.identity import run_id
from harness.masking import MaskTable, ObservedDataset, observe
from harness.method import Method, MethodContext
from harness.metrics import is_higher_better, metric_for, metric_versions, metrics_for
from harness.mlflow_store import redact
from harness.plugin import PluginConfig
from harness.predictions import load_predictions, pool_conditions, save_predictions
from harness.progress import say, track
from harness.protocol import Protocol, parse_protocol
from harness.record import ConditionResult, Cost, RunRecord
from harness.retrieval import MemoryBank
from harness.scoring import Layout, bootstrap_interval, evaluate, evaluate_aggregate, evaluate_predictions
from harness.seeding import seed_everything
from harness.system_metrics import SYSTEM_METRICS_FILE, sampled
from harness.tracking import PREDICTIONS_FILE, StoredRun, Tracker, experiment_name, load_runs, tracking_uri
from harness.trainer import CHECKPOINT, FitResult, Trainer, count_parameters, trainable_state
from harness.types import SPLITS, Aggregate, DataTable, FloatArray, ModalityKind, Predictions, Split

#: In the folder of a run: held while a program runs the cell.
_LOCK = ".lock"


class Workspace:
    """What cells of one process share: loaded data sets and opened feature blocks.

    Args:
        folders: Resolved folders.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self._tables: dict[str, DataTable] = {}
        self._features: dict[str, FeatureArray] = {}
        self._masks: dict[tuple[str, str, int, bool], tuple[MaskTable, str]] = {}
        self._sources: dict[type[PluginConfig], str] = {}

    def table(self, config: Any) -> DataTable:
        """The loaded data set of a config."""
        key = digest_of({"name": registry.datasets.name_of(type(config)), **config.to_dict()})
        if key not in self._tables:
            self._tables[key] = config.load(self.folders.data, self.folders.cache / "datasets")
        return self._tables[key]

    def masks(
        self, protocol: Protocol, table: DataTable, mask_seed: int, revealed: bool = False
    ) -> tuple[MaskTable, str]:
        """The mask table of a protocol with its fingerprint, drawn once; `revealed`: as an oracle is shown it."""
        key = (protocol.name, table.spec.fingerprint, mask_seed, revealed)
        if key not in self._masks:
            if revealed:
                masks = self.masks(protocol, table, mask_seed)[0].revealed(table)
            else:
                masks = MaskTable.build(protocol, table, mask_seed)
            # Sorting the ids of a large data set takes longer than all else that a plan does for a cell.
            self._masks[key] = masks, masks.fingerprint
        return self._masks[key]

    def source_fingerprint(self, plugin: type[PluginConfig]) -> str:
        """Digest of a plugin's sources, read once: what is imported does not change either."""
        if plugin not in self._sources:
            self._sources[plugin] = plugin.source_fingerprint()
        return self._sources[plugin]

    def features(
        self, table: DataTable, encoders: Mapping[str, tuple[str, EncoderConfig]], device: str = "auto"
    ) -> dict[str, FeatureArray]:
        """Feature arrays of every modality, from the store or computed now, on `device` if the encoder knows it."""
        store = FeatureStore(self.folders.cache / "features")
        result = {}
        for modality in table.spec.modalities:
            name, config = encoders[modality.name]
            key = digest_of([table.spec.fingerprint, modality.name, name, config.to_dict(), device])
            if key not in self._features:
                self._features[key] = store.get(table, modality, name, config, device)
            result[modality.name] = self._features[key]
        return result


@dataclass(frozen=True)
class Cell:
    """A run config resolved against data: everything that has an identity.

    Attributes:
        config: The run config.
        table: Loaded data set.
        protocol: Parsed protocol.
        masks: The protocol's mask table; groups results.
        shown: The table in force: `masks`, or nothing hidden for oracle methods.
        run_id: sha256 identity.
        plugins: Source fingerprints by plugin.
    """

    config: RunConfig
    table: DataTable
    protocol: Protocol
    masks: MaskTable
    shown: MaskTable
    run_id: str
    plugins: Mapping[str, str]

    @property
    def method_name(self) -> str:
        """Registered name of the method."""
        return registry.methods.name_of(type(self.config.method))

    @property
    def title(self) -> str:
        """How progress lines call the cell."""
        label = f"[{self.config.method.label}]" if self.config.method.label else ""
        return (
            f"{self.method_name}{label} · {self.table.spec.name} · {self.protocol.name} · "
            f"train_seed={self.config.train_seed}"
        )


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


def token_encoder_names(config: RunConfig, table: DataTable) -> dict[str, tuple[str, EncoderConfig]]:
    """Encoder of each modality that yields pooled keys and, unless the backbone has its own, tokens.

    Raises:
        UsageError: If a modality kind has no encoder.
    """
    chosen = {}
    for modality in table.spec.modalities:
        # A features modality may be called "text": such a name is read as the kind it is elsewhere.
        own = "" if modality.name in get_args(ModalityKind) else config.encoders.get(modality.name, "")
        name = own or config.encoders.get(modality.kind, "")
        if not name:
            raise UsageError(
                f"no encoder for modality {modality.name!r} of kind {modality.kind}; set encoders.{modality.kind}=NAME."
            )
        chosen[modality.name] = (name, encoder_config(name, config.encoder_options.get(name, {})))
    unused = sorted(set(config.encoder_options) - {name for name, _ in chosen.values()})
    if unused:
        used = ", ".join(sorted({name for name, _ in chosen.values()}))
        raise UsageError(f"encoder_options.{unused[0]} is given, but {table.spec.name} is encoded by {used}.")
    return chosen


def backbone_encoder_names(config: RunConfig, table: DataTable) -> dict[str, tuple[str, EncoderConfig]] | None:
    """Encoders that prepare the backbone's own inputs, or None when it works on the run's encoders.

    Raises:
        UsageError: If the backbone does not take a modality of the data set.
    """
    backbone: BackboneConfig = config.backbone
    if not config.method.uses_backbone or backbone.token_encoders is None:
        return None
    options = backbone.encoder_options()
    chosen = {}
    for modality in table.spec.modalities:
        name = backbone.token_encoders.get(modality.kind)
        if name is None:
            raise UsageError(
                f"backbone {registry.backbones.name_of(type(backbone))!r} takes "
                f"{', '.join(backbone.token_encoders)}, but modality {modality.name!r} is {modality.kind}; "
                "use backbone=fusion."
            )
        chosen[modality.name] = (name, encoder_config(name, options.get(name, {})))
    return chosen


def resolve(config: RunConfig, workspace: Workspace) -> Cell:
    """Loads the data set, draws the mask table and computes the run id.

    Raises:
        UsageError: If options do not fit the data set or the protocol.
        DataError: If the data set cannot be loaded.
    """
    method: MethodConfig = config.method
    table = workspace.table(config.dataset)
    method.validate_for(table.spec.modality_names)
    if config.trainer.select_on:
        metric_for(table.spec.task, config.trainer.select_on)
    if method.needs_complete_supervision() and config.supervision != "complete":
        raise UsageError(
            f"method.preset={method.preset} of {registry.methods.name_of(type(method))} reads true values of missing "
            "training modalities; run it with supervision=complete, or choose options that do not."
        )
    protocol = parse_protocol(config.protocol)
    masks, fingerprint = workspace.masks(protocol, table, config.mask_seed)
    if masks.conditions and config.trainer.select_split == "test":
        raise UsageError(
            f"trainer.select_split=test replays selection on the test split; {protocol.name!r} has "
            f"{len(masks.conditions)} test conditions, choose a protocol with one."
        )
    shown, shown_fingerprint = workspace.masks(protocol, table, config.mask_seed, method.oracle)
    plugins = {"method": workspace.source_fingerprint(type(method))}
    identity = identity_dict(config)
    # The fingerprint stands for the data set: where its files lie does not matter.
    identity.pop("dataset")
    if method.uses_backbone:
        plugins["backbone"] = workspace.source_fingerprint(type(config.backbone))
    else:
        identity.pop("backbone", None)
    for group in (token_encoder_names(config, table), backbone_encoder_names(config, table) or {}):
        plugins |= {f"encoder:{name}": workspace.source_fingerprint(type(encoder)) for name, encoder in group.values()}
    return Cell(
        config,
        table,
        protocol,
        masks,
        shown,
        run_id(
            identity,
            dataset_fingerprint=table.spec.fingerprint,
            mask_fingerprint=f"{fingerprint}:{shown_fingerprint}",
            plugins=plugins,
            metrics=metric_versions(table.spec.task, _replays(config)),
        ),
        plugins,
    )


def _replays(config: RunConfig) -> bool:
    """Whether metrics that only replay released code are computed beside the correct ones."""
    return bool(config.method.preset == "official")


def run_cells(configs: Sequence[RunConfig]) -> list[Outcome]:
    """Runs cells one after the other; finished ones are not run again.

    Raises:
        HarnessError: For whatever a user can mend, before the first cell is trained.
    """
    if not configs:
        return []
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
                        _execute(cell, features, folders, record)
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


class CellFeatures(dict[str, FeatureArray]):
    """Features of every modality as the data came, with those of values that the protocol changes beside them.

    Args:
        plain: Per modality the whole data set's arrays.
        changed: Per changed part of the mask table the arrays of the changed modalities.
    """

    def __init__(
        self, plain: Mapping[str, FeatureArray], changed: Mapping[str, Mapping[str, FeatureArray]] | None = None
    ) -> None:
        super().__init__(plain)
        self.changed = dict(changed or {})


def cell_features(cell: Cell, workspace: Workspace, splits: Sequence[Split] = SPLITS) -> CellFeatures:
    """Tokens and pooled vectors of every modality as this method will see them, changed ones of `splits` only."""
    encoders = token_encoder_names(cell.config, cell.table)
    own = backbone_encoder_names(cell.config, cell.table)

    def encoded(table: DataTable) -> dict[str, FeatureArray]:
        features = workspace.features(table, encoders, cell.config.device)
        if own is not None:
            tokens = workspace.features(table, own, cell.config.device)
            features = {name: array.replace_tokens(tokens[name]) for name, array in features.items()}
        return features

    plain, changed = encoded(cell.table), {}
    for part, identity in cell.shown.changes.items():
        split = cell.shown.parts()[part][0]
        if split not in splits:
            continue
        rows = cell.table.splits[split]
        values = parse_identity(identity).apply(cell.table, split, cell.shown.mask_seed)
        changed[part] = {name: spread(array, rows, plain[name]) for name, array in encoded(values).items()}
    return CellFeatures(plain, changed)


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
        metric_versions=metric_versions(task, _replays(config)),
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


def _execute(cell: Cell, features: dict[str, FeatureArray], folders: Folders, record: RunRecord) -> None:
    """Audits, trains, predicts and scores; fills the record and writes the artifacts."""
    config, table = cell.config, cell.table
    folder = folders.runs / cell.run_id
    started = time.perf_counter()
    processes.from_main(lambda: cell.masks.save(folder / "mask"))
    views = observed_views(cell, features)
    began = time.perf_counter()
    known = folders.cache / "audits"
    record.audits = processes.main_first(lambda: audit.audit_before(table, cell.masks, cell.protocol, features, known))
    cost = Cost(audit_seconds=time.perf_counter() - began)
    cost.prepare_seconds = time.perf_counter() - started - cost.audit_seconds
    trainer, method, fit = _fit(cell, features, views, folder, cost)
    record.history, record.valid = fit.history, fit.best_metrics

    began = time.perf_counter()
    parts = {name: _predict(trainer, method, view, config.eval_seed) for name, view in views.tests.items()}
    cost.predict_seconds = time.perf_counter() - began
    predictions = pool_conditions(parts)
    record.results = [
        *(_score_all(cell, predictions, name, how) for name, how in cell.protocol.aggregates.items() if len(parts) > 1),
        *(_score(cell, name, part) for name, part in parts.items()),
    ]
    began = time.perf_counter()
    record.audits += audit.audit_after(
        audit_subject(cell, features, views, method, trainer, fit, parts, test_looks=trainer.looks["test"])
    )
    cost.audit_seconds += time.perf_counter() - began
    banks = method.banks().values()
    cost.bank_items, cost.bank_bytes = sum(map(len, banks)), sum(bank.nbytes for bank in banks)
    cost.peak_memory_bytes = _peak_memory(trainer)
    cost.total_seconds = time.perf_counter() - started + (fit.seconds if fit.resumed_from else 0.0)
    record.cost = cost

    def save() -> str:
        save_predictions(predictions, folder / PREDICTIONS_FILE)
        if config.tracking.checkpoint and config.method.trains:
            save_weights(method, folder / "model.safetensors", cell.run_id)
        return file_sha256(folder / PREDICTIONS_FILE)

    record.predictions_sha256 = processes.from_main(save)


def _fit(
    cell: Cell, features: Mapping[str, FeatureArray], views: audit.Views, folder: Path, cost: Cost
) -> tuple[Trainer, Method, FitResult]:
    """Builds, prepares and trains the method, choosing on `valid`; adds what it took to `cost`."""
    config, table = cell.config, cell.table
    task = table.spec.task
    began = time.perf_counter()
    trainer = Trainer(config.trainer, config.train_seed, config.device, folder, cell.run_id)
    method = processes.together(lambda: build_method(config, table, features, views).to(trainer.device))
    cost.prepare_seconds += time.perf_counter() - began
    cost.trainable_parameters, cost.total_parameters = count_parameters(method)

    metric = config.trainer.select_on or task.primary_metric

    def score(logits: FloatArray, view: ObservedDataset) -> Mapping[str, float]:
        return evaluate(task, logits, view.labels, sorted({metric, task.primary_metric}))

    fit = FitResult()
    if config.method.trains:
        select = next(iter(views.tests.values())) if config.trainer.select_split == "test" else views.valid
        fit = trainer.fit(method, views.train, select, score, metric, is_higher_better(metric))
    else:
        seed_everything(config.train_seed, "predict")
        fit.best_metrics = dict(score(trainer.predict(method, views.valid), views.valid))
    cost.train_seconds, cost.epochs, cost.best_epoch = fit.seconds, len(fit.history), fit.best_epoch
    return trainer, method, fit


def validate_cell(cell: Cell, workspace: Workspace, folder: Path) -> tuple[Mapping[str, float], Cost]:
    """Trains a cell and scores it on `valid`; the test split is neither opened nor recorded, and nothing is logged.

    Args:
        cell: What to train.
        workspace: Folders and loaded data.
        folder: For its checkpoint: killed, the same call goes on from there.

    Returns:
        Metrics on `valid` of the chosen epoch, and what it took.
    """
    features = cell_features(cell, workspace, splits=("train", "valid"))
    cost = Cost()
    _, _, fit = _fit(cell, features, observed_views(cell, features, tests=False), folder, cost)
    cost.total_seconds = cost.prepare_seconds + cost.train_seconds
    return fit.best_metrics, cost


def audit_subject(
    cell: Cell,
    features: Mapping[str, FeatureArray],
    views: audit.Views,
    method: Method,
    trainer: Trainer,
    fit: FitResult,
    predictions: Mapping[str, Predictions],
    test_looks: int | None = None,
) -> audit.Subject:
    """What `audit_after` looks at, of a cell whose training is over.

    Args:
        cell: The cell.
        features: All values.
        views: What the method was given.
        method: Trained, on the trainer's device.
        trainer: Steps and asks it.
        fit: What training left.
        predictions: Test predictions by condition.
        test_looks: How often a test view was predicted; None if nobody counted.
    """
    config = cell.config

    def build(shown: audit.Views) -> Method:
        return build_method(config, cell.table, features, shown).to(trainer.device)

    return audit.Subject(
        table=cell.table,
        protocol=cell.protocol,
        shown=cell.shown,
        views=views,
        method=method,
        fit=fit,
        engine=audit.Engine(build, trainer.loss, trainer.predict),
        supervision=config.supervision,
        terms=config.method.loss_terms(),
        trains=config.method.trains,
        predictions=predictions,
        test_looks=test_looks,
        eval_seed=config.eval_seed,
        # Half precision rounds to 3 digits at every layer.
        tolerance=1e-3 if config.trainer.precision == "no" else 5e-2,
    )


def observed_views(cell: Cell, features: Mapping[str, FeatureArray], tests: bool = True) -> audit.Views:
    """The splits as the cell's method may see them; the test split once per condition, or not at all."""
    table, supervision = cell.table, cell.config.supervision
    changed = features.changed if isinstance(features, CellFeatures) else {}

    def view(split: Split, condition: str = "") -> ObservedDataset:
        return observe(table, cell.shown, features, split, supervision, condition, changed)

    conditions = cell.shown.condition_names if tests else ()
    return audit.Views(view("train"), view("valid"), {name: view("test", name) for name in conditions})


def build_method(
    config: RunConfig, table: DataTable, features: Mapping[str, FeatureArray], views: audit.Views
) -> Method:
    """Builds and prepares a method; everything it draws depends on `train_seed` only."""
    context = MethodContext(
        dataset=table.spec,
        features={name: features[name].spec for name in table.spec.modality_names},
        build_backbone=lambda: _build_backbone(config, features),
        supervision=config.supervision,
        retrieval=config.retrieval,
        train_seed=config.train_seed,
    )
    seed_everything(config.train_seed, "init")
    method: Method = config.method.implementation()(config.method, context)
    seed_everything(config.train_seed, "prepare")
    if config.method.uses_valid():
        method.open_valid(views.valid)
    method.prepare(views.train)
    cache = Folders.resolve(config.paths).cache / "neighbours"
    for bank in method.banks().values():
        if isinstance(bank, MemoryBank):
            bank.expect([views.train, views.valid, *views.tests.values()], cache)
    return method


def _build_backbone(config: RunConfig, features: Mapping[str, FeatureArray]) -> Backbone:
    backbone: Backbone = config.backbone.implementation()(
        config.backbone, {name: array.spec for name, array in features.items()}
    )
    return backbone


def _predict(trainer: Trainer, method: Method, view: ObservedDataset, eval_seed: int) -> Predictions:
    """Predictions under one test condition; what they draw does not depend on the conditions before."""
    seed_everything(eval_seed, "predict")
    return Predictions(view.ids, trainer.predict(method, view), view.labels, view.present, view.modalities)


def _score_all(cell: Cell, predictions: Predictions, name: str, how: Aggregate) -> ConditionResult:
    """Metrics over all test conditions; of a pool also per pattern."""
    task = cell.table.spec.task
    names = metrics_for(task, _replays(cell.config))
    overall = evaluate_aggregate(task, predictions, how, names)
    per_pattern, counts = evaluate_predictions(task, predictions, names)[1:] if how == "pool" else ({}, {})
    interval = bootstrap_interval(
        task,
        task.primary_metric,
        predictions.logits,
        predictions.labels,
        seed=cell.config.eval_seed,
        layout=Layout.of(predictions, how),
    )
    return ConditionResult(name, overall, {task.primary_metric: list(map(float, interval))}, per_pattern, counts, how)


def _score(cell: Cell, condition: str, predictions: Predictions) -> ConditionResult:
    """Metrics overall and per pattern, with the bootstrap interval of the primary metric."""
    task = cell.table.spec.task
    overall, per_pattern, counts = evaluate_predictions(task, predictions, metrics_for(task, _replays(cell.config)))
    interval = bootstrap_interval(
        task, task.primary_metric, predictions.logits, predictions.labels, seed=cell.config.eval_seed
    )
    return ConditionResult(condition, overall, {task.primary_metric: list(map(float, interval))}, per_pattern, counts)


def save_weights(method: Method, path: Path, identity: str) -> None:
    """Writes what `trainer.restore_state` takes, as safetensors with the run id in its metadata."""
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in trainable_state(method).items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(state, metadata={"run_id": identity}))


def _peak_memory(trainer: Trainer) -> int:
    """Peak bytes: of the GPU where one is used, else the process's resident set so far."""
    if trainer.device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(trainer.device))
    scale = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


__all__ = [
    "Cell",
    "Outcome",
    "Workspace",
    "audit_subject",
    "build_method",
    "cell_features",
    "observed_views",
    "record_failure",
    "resolve",
    "run_cell",
    "run_cells",
    "save_weights",
    "summary_line",
    "timeout_message",
    "validate_cell",
]
