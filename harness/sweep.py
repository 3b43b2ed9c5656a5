"""Sweeps: a grid of cells planned as a whole, run by worker processes, finished with what is left.

Everything that cells share (data sets, features, the tracking database) is made ready before the first worker
starts.  A cell that fails is a record like any other; a worker that dies takes no other cell with it.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness import registry
from harness.compose import changed_options, compose, from_dict, to_dict
from harness.config import PathsConfig, RunConfig
from harness.errors import (
    EXIT_TERMINATED,
    CellBusyError,
    HarnessError,
    Terminated,
    TrackingError,
    UsageError,
)
from harness.files import Folders, ensure_folder
from harness.mlflow_store import connect
from harness.outbox import entries, sync
from harness.plugin import check_choice, check_range
from harness.progress import say
from harness.runner import (
    Cell,
    Outcome,
    Workspace,
    cell_features,
    record_failure,
    resolve,
    run_cell,
    summary_line,
    timeout_message,
)
from harness.tracking import load_runs, past_seconds, tracking_uri

#: `method=all`: every registered method that can run on the data set.
ALL = "all"
EXECUTORS = ("local",)
#: A worker that has not stopped this many seconds after its cell's time, or after it was told to, is killed.
GRACE_SECONDS = 60.0


@dataclass
class SweepConfig:
    """How the cells of a sweep are run; never part of a run's identity.

    Attributes:
        executor: `local`: processes of this machine.
        workers: Number of processes.
        cell_timeout: Seconds after which a cell is stopped and recorded as failed; 0 means never.
    """

    executor: str = "local"
    workers: int = 1
    cell_timeout: float = 0.0

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("sweep", "executor", self.executor, EXECUTORS)
        check_range("sweep", "workers", self.workers, 1)
        check_range("sweep", "cell_timeout", self.cell_timeout, 0.0)


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
    everything = f"method={ALL}" in overrides
    left_out: list[LeftOut] = []
    if everything:
        overrides, left_out = _name_all(overrides)
    configs = compose(overrides)
    places = [(config.paths, config.tracking) for config in configs]
    if any(place != places[0] for place in places):
        raise UsageError("a sweep has one place for its files and records; paths and tracking cannot be a grid.")
    workspace = workspace or Workspace(Folders.resolve(configs[0].paths))
    cells: dict[str, Cell] = {}
    groups: dict[str, int] = {}
    refused: dict[str, UsageError] = {}
    for config in configs:
        table = workspace.table(config.dataset)
        where = f"{table.spec.name} · {config.protocol}"
        groups.setdefault(where, 0)
        for option in _per_modality(config, table.spec.modality_names):
            try:
                cell = resolve(option, workspace)
            except UsageError as error:
                if not everything:
                    raise
                refused.setdefault(where, error)
                left_out.append(LeftOut(registry.methods.name_of(type(config.method)), where, str(error)))
                continue
            groups[where] += 1
            cells.setdefault(cell.run_id, cell)
    for where, count in groups.items():
        # What no method can do is not the methods' fault: a wrong protocol, a metric that does not suit the task.
        if not count:
            raise refused[where]
    plan = plan_cells(list(cells.values()), workspace)
    plan.left_out = list(dict.fromkeys(left_out))
    return plan


def plan_cells(cells: Sequence[Cell], workspace: Workspace) -> Plan:
    """A plan of resolved cells, each run id once, that knows which of them are finished."""
    once = list({cell.run_id: cell for cell in cells}.values())
    return Plan(once, _finished(once, workspace) if once else {})


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


def estimate(plan: Plan, workers: int) -> str:
    """How long what is left of a plan will take, in words, from what finished cells of the same methods took.

    Args:
        plan: The cells.
        workers: Cells at a time.
    """
    todo = plan.todo
    if not todo:
        return "none"
    config = todo[0].config
    uri = tracking_uri(config.tracking, Folders.resolve(config.paths))
    known: dict[tuple[str, str], float] = {}
    if _has_records(uri):
        try:
            known = past_seconds(uri, {cell.table.spec.name for cell in todo})
        except TrackingError as error:
            say(f"warning: {error}")
    costs = [known.get((cell.method_name, cell.table.spec.name)) for cell in todo]
    told = [cost for cost in costs if cost is not None]
    if len(told) < len(costs):
        unknown = f"{len(costs) - len(told)} cells of methods that have not finished on their data set"
        return f"at least {_duration(sum(told) / workers)}, and {unknown}" if told else "unknown"
    return f"about {_duration(sum(told) / workers)}"


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
        began = time.monotonic()
        try:
            with closing(_run_local(todo, sweep, workspace, plugins)) as results:
                for number, (cell, outcome) in enumerate(results, start=1):
                    outcomes[cell.run_id] = outcome
                    left = (time.monotonic() - began) / number * (len(todo) - number)
                    expected = f", about {_duration(left)} left" if number < len(todo) else ""
                    say(f"[{number}/{len(todo)}{expected}] {summary_line(cell, outcome)}")
        except KeyboardInterrupt:
            say(f"{len(outcomes)} of {len(plan.cells)} cells are recorded and stay.")
            raise
        _send_waiting(todo[0].config, workspace.folders)
    return [outcomes[cell.run_id] for cell in plan.cells]


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


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# -- local processes ---------------------------------------------------------------------------------------------------


#: Arguments of `_start_worker`.
_Start = tuple[PathsConfig, tuple[str, ...], int, float]


def _run_local(
    cells: Sequence[Cell], sweep: SweepConfig, workspace: Workspace, plugins: Sequence[str]
) -> Generator[tuple[Cell, Outcome], None, None]:
    """Cells with their outcomes as they end; closing the iterator stops the workers."""
    paths = cells[0].config.paths
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    start = (paths, tuple(plugins), max(1, cores // sweep.workers), sweep.cell_timeout)
    waiting = deque(cells)
    lost: list[Cell] = []
    while waiting:
        yield from _run_in_pool(waiting, min(sweep.workers, len(waiting)), start, workspace, lost)
    # A worker died.  Any of the cells that ran then may be the reason: they are tried again, one at a time.
    suspects, lost = deque(lost), []
    while suspects:
        yield from _run_in_pool(suspects, 1, start, workspace, lost)
        while lost:
            reason = "the worker process died twice on this cell, e.g. for want of memory; try fewer workers."
            cell = lost.pop()
            yield cell, record_failure(cell, workspace, reason)


def _run_in_pool(
    waiting: deque[Cell], workers: int, start: _Start, workspace: Workspace, lost: list[Cell]
) -> Iterator[tuple[Cell, Outcome]]:
    """Runs cells until none is waiting or a worker dies; cells that ran at that moment go to `lost`.

    A cell that another program runs at this moment goes to the end of the queue.
    """
    running: dict[Future[Outcome | str | None], tuple[Cell, float]] = {}
    limit = start[-1] + GRACE_SECONDS if start[-1] else math.inf
    broken = False
    others = set(multiprocessing.active_children())
    with _pool(workers, start) as pool:
        while running or (waiting and not broken):
            try:
                while waiting and not broken and len(running) < workers:
                    running[_submit(pool, waiting[0])] = waiting[0], time.monotonic()
                    waiting.popleft()
            except BrokenProcessPool:
                broken = True
            tick = 1.0 if math.isfinite(limit) else None
            for future in wait(running, timeout=tick, return_when=FIRST_COMPLETED).done:
                cell, _ = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    broken = True
                    lost.append(cell)
                else:
                    if result is None:
                        waiting.append(cell)
                    else:
                        yield cell, record_failure(cell, workspace, result) if isinstance(result, str) else result
            now = time.monotonic()
            overdue = [cell for cell, since in running.values() if now - since > limit]
            if overdue:
                # Its worker does not even hear the alarm.  The others go on from their checkpoints.
                waiting.extendleft(cell for cell, since in running.values() if now - since <= limit)
                running.clear()
                broken = True
                _end(set(multiprocessing.active_children()) - others, grace=0.0)
                for cell in overdue:
                    yield cell, record_failure(cell, workspace, timeout_message(start[-1]))


@contextmanager
def _pool(workers: int, start: _Start) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are stopped at once when the block is left by an exception."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, context, _start_worker, start)
    try:
        yield pool
    except BaseException:
        _end(set(multiprocessing.active_children()) - others, GRACE_SECONDS)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end(workers: Iterable[BaseProcess], grace: float) -> None:
    """Tells workers to stop, and kills those that have not after some seconds."""
    workers = list(workers)
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + grace
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        if worker.is_alive():
            worker.kill()


def _submit(pool: ProcessPoolExecutor, cell: Cell) -> Future[Outcome | str | None]:
    # A worker starts in here and inherits the mask: Ctrl-C reaches this process alone, which stops the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_run_in_worker, to_dict(cell.config))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Worker:
    """What a worker process keeps between cells."""

    workspace: Workspace
    timeout: float
    busy: bool = False


_worker: _Worker


def _start_worker(paths: PathsConfig, plugins: Sequence[str], threads: int, timeout: float) -> None:
    """First thing in a worker: plugins, a workspace of its own, its share of the cores."""
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The sweep's results go to stdout, so nothing that a plugin prints may.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for file in plugins:
        registry.load_plugin_file(file)
    _worker = _Worker(Workspace(Folders.resolve(paths)), timeout)
    signal.signal(signal.SIGTERM, _stop_worker)
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), threads))


def _end_with_parent() -> None:
    """Ends the worker when the sweep was killed; nobody would take its results."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _stop_worker(*_: object) -> None:
    """SIGTERM: a cell that is running is recorded as interrupted."""
    if _worker.busy:
        raise Terminated
    os._exit(EXIT_TERMINATED)


def _run_in_worker(data: Mapping[str, Any]) -> Outcome | str | None:
    """Runs one cell; the reason when it left no record, None when another program runs it.

    Exceptions stay here: not all can be sent.
    """
    _worker.busy = True
    try:
        workspace = _worker.workspace
        return run_cell(resolve(from_dict(data), workspace), workspace, _worker.timeout, wait=False)
    except CellBusyError:
        time.sleep(1.0)
        return None
    except HarnessError as error:
        return str(error)
    except KeyboardInterrupt:
        os._exit(EXIT_TERMINATED)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _worker.busy = False
