"""Sweeps: a grid of cells planned as a whole, run by worker processes, finished with what is left.

Everything that cells share (data sets, features, the tracking database) is made ready before the first worker
starts.  A cell that fails is a record like any other; a worker that dies takes no other cell with it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import registry
from harness.cell import Cell, cell_features, resolve
from harness.compose import changed_options, compose, to_dict
from harness.config import RunConfig
from harness.errors import TrackingError, UsageError
from harness.executors.base import Ending, Executor, ExecutorConfig, Task
from harness.files import Folders, ensure_folder
from harness.mlflow_store import connect
from harness.mlflow_sweeps import sweep_name
from harness.outbox import entries, sync
from harness.plugin import check_range
from harness.progress import duration_text, say, track
from harness.record import RunRecord
from harness.runner import Outcome, record_failure, summary_line
from harness.tracking import PREDICTIONS_FILE, PastCost, load_runs, past_costs, tracking_uri
from harness.workspace import Workspace

#: `method=all`: every registered method that can run on the data set.
ALL = "all"


@dataclass
class SweepConfig:
    """How the cells of a sweep are run; never part of a run's identity.

    Attributes:
        executor: Config of a registered executor; None is `local`, processes of this machine.
        workers: Most cells at a time; 0 is as many as there is room for, None what the executor chooses.
        cell_timeout: Seconds after which a cell is stopped and recorded as failed; 0 means never.
    """

    executor: Any = None
    workers: int | None = None
    cell_timeout: float = 0.0

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        self.engine().validate()
        if self.workers is not None:
            check_range("sweep", "workers", self.workers, 0)
        check_range("sweep", "cell_timeout", self.cell_timeout, 0.0)

    def engine(self) -> ExecutorConfig:
        """The executor's config."""
        config = self.executor if self.executor is not None else registry.executors.get("local")()
        assert isinstance(config, ExecutorConfig)
        return config

    @property
    def places(self) -> int:
        """Cells at a time; 0 if only the cluster knows."""
        return self.engine().places(self.workers)


@dataclass(frozen=True)
class LeftOut:
    """A method that `method=all` names and that cannot run on a data set.

    Attributes:
        method: Its name.
        where: Data set and protocol; empty for a plugin that cannot be loaded.
        reason: Why.
    """

    method: str
    where: str
    reason: str


@dataclass
class Plan:
    """The cells of a sweep and what is known of them.

    Attributes:
        cells: Resolved cells in grid order, each run id once.
        finished: Run id -> outcome of the cells that need not be run.
        left_out: What `method=all` does not run, and why.
    """

    cells: list[Cell]
    finished: dict[str, Outcome] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the sweep: below it MLflow shows the cells' runs."""
        return self.cells[0].config.tracking.sweep if self.cells else ""

    @property
    def todo(self) -> list[Cell]:
        """Cells to run."""
        return [cell for cell in self.cells if cell.run_id not in self.finished]

    def groups(self) -> list[dict[str, Any]]:
        """Cells that will stand in one table: data set, protocol, supervision, masks, and how many there are."""
        groups: dict[tuple[str, ...], list[Cell]] = {}
        tables = {id(cell.masks): cell.masks for cell in self.cells}
        fingerprints = {key: masks.fingerprint[:8] for key, masks in tables.items()}
        for cell in self.cells:
            config = cell.config
            key = (cell.table.spec.name, cell.protocol.name, config.supervision, fingerprints[id(cell.masks)])
            groups.setdefault(key, []).append(cell)
        return [
            {
                "dataset": key[0],
                "protocol": key[1],
                "supervision": key[2],
                "masks": key[3],
                "methods": len({(cell.method_name, variant(cell)) for cell in cells}),
                "cells": len(cells),
                "finished": sum(cell.run_id in self.finished for cell in cells),
            }
            for key, cells in groups.items()
        ]


def variant(cell: Cell) -> str:
    """What tells cells of one method apart, besides data and seeds: label, preset, changed options."""
    method = cell.config.method
    parts = (method.label, method.preset if method.preset != "clean" else "", *changed_options(method))
    return ", ".join(part for part in parts if part)


def make_plan(overrides: Sequence[str], workspace: Workspace | None = None) -> Plan:
    """Resolves a grid; trains nothing and creates no database.

    Args:
        overrides: As of `harness run`; `method=all` stands for every method that can run on the data set, and a
            method that reads one modality is run once per modality unless one is named.
        workspace: Loaded data; a new one by default.

    Raises:
        UsageError: For what a user can mend.
        DataError: If a data set cannot be loaded.
    """
    return plan_sweep([overrides], workspace)


def plan_sweep(grids: Sequence[Sequence[str]], workspace: Workspace | None = None) -> Plan:
    """Resolves several grids to one plan, see `make_plan`; a cell that is in two of them is run once."""
    known: dict[Any, RunConfig] = {}
    left_out: list[LeftOut] = []
    composed: list[tuple[list[RunConfig], bool]] = []
    for overrides in grids:
        everything = f"method={ALL}" in overrides
        if everything:
            overrides, broken = _name_all(overrides)
            left_out += broken
        composed.append((compose(overrides, known), everything))
    places = [(config.paths, config.tracking) for configs, _ in composed for config in configs]
    if any(place != places[0] for place in places):
        raise UsageError("a sweep has one place for its files and records; paths and tracking cannot be a grid.")
    workspace = workspace or Workspace(Folders.resolve(places[0][0]))
    cells: list[Cell] = []
    for configs, everything in composed:
        cells += _resolve_grid(configs, everything, workspace, left_out)
    plan = plan_cells(cells, workspace)
    plan.left_out = list(dict.fromkeys(left_out))
    return plan


def _resolve_grid(
    configs: Sequence[RunConfig], everything: bool, workspace: Workspace, left_out: list[LeftOut]
) -> list[Cell]:
    """Cells of one grid; what `method=all` names and cannot run goes to `left_out`."""
    cells: list[Cell] = []
    groups: dict[str, int] = {}
    refused: dict[str, UsageError] = {}
    for config in configs:
        table = workspace.table(config.dataset)
        where = f"{table.spec.name} · {config.protocol}"
        groups.setdefault(where, 0)
        for option in _per_modality(config, table.spec.modality_names):
            try:
                cells.append(resolve(option, workspace))
            except UsageError as error:
                if not everything:
                    raise
                refused.setdefault(where, error)
                left_out.append(LeftOut(registry.methods.name_of(type(config.method)), where, str(error)))
                continue
            groups[where] += 1
    for where, count in groups.items():
        # What no method can do is not the methods' fault: a wrong protocol, a metric that does not suit the task.
        if not count:
            raise refused[where]
    return cells


def plan_cells(cells: Sequence[Cell], workspace: Workspace) -> Plan:
    """A plan of resolved cells, each run id once, that knows which of them are finished and names the sweep."""
    once = _named(list({cell.run_id: cell for cell in cells}.values()))
    return Plan(once, _finished(once, workspace) if once else {})


def _named(cells: list[Cell]) -> list[Cell]:
    """The cells with the name of their sweep: the one that was asked for, else the same for the same cells."""
    name = sweep_name(cell.run_id for cell in cells)
    named = []
    for cell in cells:
        tracking = cell.config.tracking
        config = dataclasses.replace(cell.config, tracking=dataclasses.replace(tracking, sweep=tracking.sweep or name))
        named.append(dataclasses.replace(cell, config=config))
    return named


def _name_all(overrides: Sequence[str]) -> tuple[list[str], list[LeftOut]]:
    """Replaces `method=all` by the names of all methods that can be loaded."""
    options = [text for text in overrides if text.startswith(("method.", "preset="))]
    if options:
        raise UsageError(f"{options[0]}: options of one method do not fit all of them; name the methods.")
    names, broken = [], []
    for name in registry.methods.names():
        try:
            registry.methods.get(name)
            names.append(name)
        except UsageError as error:
            broken.append(LeftOut(name, "", str(error)))
    return [f"method={','.join(names)}" if text == f"method={ALL}" else text for text in overrides], broken


def _per_modality(config: RunConfig, modalities: Sequence[str]) -> list[RunConfig]:
    """One config per modality for a method whose option `modality` is not set, else the config as it is."""
    if getattr(config.method, "modality", None) != "":
        return [config]
    return [
        dataclasses.replace(config, method=dataclasses.replace(config.method, modality=name)) for name in modalities
    ]


def _finished(cells: Sequence[Cell], workspace: Workspace) -> dict[str, Outcome]:
    """Outcomes of the cells that the store knows and that need not be run again, in one query."""
    wanted = {cell.run_id: cell.config.overwrite for cell in cells if cell.config.overwrite != "always"}
    uri = tracking_uri(cells[0].config.tracking, workspace.folders)
    if not wanted or not _has_records(uri):
        return {}
    try:
        runs = load_runs(uri, filters={"run_id": ",".join(wanted)})
    except TrackingError as error:
        say(f"warning: {error}")
        return {}
    return {
        run.record.run_id: Outcome(run.record, run, run.mlflow_run_id, skipped=True)
        for run in runs
        if run.record.status == "finished" or wanted[run.record.run_id] == "never"
    }


def estimate(plan: Plan, places: int) -> str:
    """How long what is left of a plan will take, in words, from what finished cells of the same methods took.

    Args:
        plan: The cells.
        places: Cells at a time; 0 if that is not known.
    """
    todo = plan.todo
    if not todo:
        return "none"
    known = _past_costs(todo)
    costs = [known.get(_kind(cell)) for cell in todo]
    told = [cost.seconds for cost in costs if cost is not None]
    total = duration_text(sum(told) / (places or 1)) + ("" if places else " of computing")
    if len(told) < len(costs):
        unknown = f"{len(costs) - len(told)} cells of methods that have not finished on their data set"
        return f"at least {total}, and {unknown}" if told else "unknown"
    return f"about {total}"


def _past_costs(cells: Sequence[Cell]) -> dict[tuple[str, str], PastCost]:
    """What finished cells of the same methods and data sets took, as far as the store knows."""
    config = cells[0].config
    uri = tracking_uri(config.tracking, Folders.resolve(config.paths))
    try:
        return past_costs(uri, {cell.table.spec.name for cell in cells}) if _has_records(uri) else {}
    except TrackingError as error:
        say(f"warning: {error}")
        return {}


def _has_records(uri: str) -> bool:
    """False for a local database that no run has created yet."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()


def run_plan(
    plan: Plan, sweep: SweepConfig, workspace: Workspace | None = None, plugins: Sequence[str] = ()
) -> list[Outcome]:
    """Runs what is left of a plan.

    Args:
        plan: The cells.
        sweep: Executor and number of workers.
        workspace: The one that the plan was made with; a new one by default.
        plugins: Files that workers load first, as with `--plugin`.

    Returns:
        One outcome per cell in the order of the plan, finished ones included.

    Raises:
        HarnessError: If features cannot be computed; before the first cell is trained.
        KeyboardInterrupt: Workers are stopped; what is finished stays, what was running goes on from its checkpoint.
    """
    sweep.validate()
    outcomes = dict(plan.finished)
    todo = plan.todo
    if todo:
        workspace = workspace or Workspace(Folders.resolve(todo[0].config.paths))
        _prepare(todo, workspace)
        config = sweep.engine()
        executor: Executor = config.implementation()(config, workspace.folders.home)
        known = _past_costs(todo)
        tasks = _tasks(todo, sweep, workspace.folders, plugins, known)
        cells = {cell.run_id: cell for cell in todo}
        forecast = Forecast(todo, sweep.places, {kind: cost.seconds for kind, cost in known.items()})
        try:
            with closing(executor.run(tasks, sweep.places)) as endings:
                shown = track(endings, "cells", total=len(todo), left=forecast.text)
                for number, (task, ending) in enumerate(shown, start=1):
                    cell = cells[task.run_id]
                    outcome = outcomes[cell.run_id] = _recollect(cell, ending, workspace)
                    forecast.ended(cell, outcome)
                    expected = f", {forecast.text()}" if number < len(todo) else ""
                    say(f"[{number}/{len(todo)}{expected}] {summary_line(cell, outcome)}")
        except KeyboardInterrupt:
            say(f"{len(outcomes)} of {len(plan.cells)} cells are recorded and stay.")
            raise
        _send_waiting(todo[0].config, workspace.folders)
    return [outcomes[cell.run_id] for cell in plan.cells]


def _tasks(
    cells: Sequence[Cell],
    sweep: SweepConfig,
    folders: Folders,
    plugins: Sequence[str],
    known: Mapping[tuple[str, str], PastCost],
) -> list[Task]:
    """The cells as plain data.  Relative folders and `HARNESS_HOME` would mean something else on another machine."""
    files = tuple(str(Path(file).expanduser().absolute()) for file in plugins)
    paths = {"home": str(folders.home), "data": str(folders.data)}
    return [
        Task(
            cell.run_id,
            cell.title,
            to_dict(cell.config) | {"paths": paths},
            files,
            sweep.cell_timeout,
            known[_kind(cell)].memory if _kind(cell) in known else 0,
        )
        for cell in cells
    ]


def _recollect(cell: Cell, ending: Ending, workspace: Workspace) -> Outcome:
    """Reads back what an ended task left: in the folder of runs, or from a machine that shares none in the store."""
    reason = ending.reason
    if not reason:
        file = workspace.folders.runs / cell.run_id / "record.json"
        record = RunRecord.load(file) if file.is_file() else None
        if record is not None and record.finished == ending.finished:
            return Outcome(record, file.with_name(PREDICTIONS_FILE), ending.mlflow_run_id, ending.skipped)
        uri = tracking_uri(cell.config.tracking, workspace.folders)
        try:
            runs = load_runs(uri, filters={"run_id": cell.run_id})
        except TrackingError as error:
            runs, reason = [], f"its record cannot be read back: {error}"
        if runs:
            return Outcome(runs[0].record, runs[0], runs[0].mlflow_run_id, ending.skipped)
    return record_failure(cell, workspace, reason or "its record is neither in the folder of runs nor in the store.")


def _prepare(cells: Sequence[Cell], workspace: Workspace) -> None:
    """Makes once what all workers share: features of frozen encoders, folders, the tracking database."""
    ensure_folder(workspace.folders.runs)
    for cell in cells:
        cell_features(cell, workspace)
    try:
        connect(tracking_uri(cells[0].config.tracking, workspace.folders), workspace.folders)
    except TrackingError as error:
        say(f"warning: {error}")


def _send_waiting(config: RunConfig, folders: Folders) -> None:
    """Sends records that could not be sent when their cells ended."""
    if entries(folders):
        try:
            report = sync(tracking_uri(config.tracking, folders), folders)
            say(f"{len(report.sent)} waiting records sent, {len(report.failed)} kept in {folders.outbox}")
        except TrackingError as error:
            say(f"warning: {error}")


class Forecast:
    """Time left of a sweep: cells of one method on one data set take alike, others do not.

    Args:
        cells: What is left to run.
        places: Cells at a time; 0 if that is not known.
        known: Seconds that such cells took before; what they take in this sweep comes first.
    """

    def __init__(self, cells: Sequence[Cell], places: int, known: Mapping[tuple[str, str], float]) -> None:
        self._places = places
        self._known = known
        self._left = {cell.run_id: _kind(cell) for cell in cells}
        self._took: dict[tuple[str, str], list[float]] = {}

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Notes what a cell took; one that failed says nothing of the others."""
        self._left.pop(cell.run_id, None)
        if outcome.record.status == "finished" and not outcome.skipped:
            self._took.setdefault(_kind(cell), []).append(outcome.record.cost.total_seconds)

    def text(self) -> str:
        """In words; what has never ended is not guessed at."""
        each = dict(self._known) | {kind: statistics.mean(took) for kind, took in self._took.items()}
        costs = [each[kind] for kind in self._left.values() if kind in each]
        if not costs:
            return "time left unknown" if self._left else ""
        # No more cells run at a time than are left, and none is shared.
        seconds = max(sum(costs) / (self._places or 1), max(costs) if self._places else 0.0)
        word = "about" if len(costs) == len(self._left) else "at least"
        return f"{word} {duration_text(seconds)}{'' if self._places else ' of computing'} left"


def _kind(cell: Cell) -> tuple[str, str]:
    return cell.method_name, cell.table.spec.name
