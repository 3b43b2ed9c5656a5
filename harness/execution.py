"""What is computed for one cell: audit, prepare, fit, predict and score."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from harness import audit, processes
from harness.backbone import Backbone
from harness.cell import Cell, cell_features, observed_views
from harness.config import RunConfig
from harness.features import FeatureArray
from harness.files import Folders, atomic_write, file_sha256
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.metrics import is_higher_better, metrics_for
from harness.predictions import pool_conditions, save_predictions
from harness.record import ConditionResult, Cost, RunRecord
from harness.retrieval import MemoryBank
from harness.scoring import Layout, bootstrap_interval, evaluate, evaluate_aggregate, evaluate_predictions
from harness.seeding import seed_everything
from harness.tracking import PREDICTIONS_FILE
from harness.trainer import FitResult, Trainer, count_parameters, trainable_state
from harness.types import Aggregate, DataTable, FloatArray, Predictions
from harness.workspace import Workspace


def execute(cell: Cell, features: dict[str, FeatureArray], folders: Folders, record: RunRecord) -> None:
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


def _predict(trainer: Trainer, method: Method, view: ObservedDataset, eval_seed: int) -> Predictions:
    """Predictions under one test condition; what they draw does not depend on the conditions before."""
    seed_everything(eval_seed, "predict")
    return Predictions(view.ids, trainer.predict(method, view), view.labels, view.present, view.modalities)


def _score_all(cell: Cell, predictions: Predictions, name: str, how: Aggregate) -> ConditionResult:
    """Metrics over all test conditions; of a pool also per pattern."""
    task = cell.table.spec.task
    names = metrics_for(task, cell.config.method.replays)
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
    overall, per_pattern, counts = evaluate_predictions(
        task, predictions, metrics_for(task, cell.config.method.replays)
    )
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
