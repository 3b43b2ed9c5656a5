"""Processes of this machine: one per GPU or share of the cores, as many at a time as fit in memory."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.errors import EXIT_TERMINATED, Terminated
from harness.executors.base import Ending, Executor, ExecutorConfig, Task
from harness.plugin import check_range
from harness.progress import be_quiet

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import SynchronizedArray

#: A worker that has not stopped this many seconds after its cell's time, or after it was told to, is killed.
GRACE_SECONDS = 60.0
#: Where CUDA looks up which GPUs a process has.
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass
class LocalConfig(ExecutorConfig):
    """Processes of this machine; `workers=0` starts one per GPU, or without GPUs one per core.

    Attributes:
        memory_gb: What one cell takes; a cell is started beside others only if it fits in what was free at the start.
            0: what earlier cells of its method and data set took; where there are none, memory sets no limit.
    """

    memory_gb: float = 0.0

    target: ClassVar[str] = "harness.executors.local:Local"
    summary: ClassVar[str] = "processes of this machine, one per GPU or share of the cores, as far as memory reaches"
    citation: ClassVar[str] = "none: concurrent.futures of the standard library"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("executor", "memory_gb", self.memory_gb, 0.0)

    def places(self, workers: int | None) -> int:
        """One by default; 0 asks for as many as there are GPUs, or without GPUs cores."""
        return (len(_gpus()) or _cores()) if workers == 0 else workers or 1


class Local(Executor):
    """Worker processes that live until the sweep ends; one that dies takes no other cell with it."""

    config: LocalConfig

    def run(self, tasks: Sequence[Task], places: int) -> Generator[tuple[Task, Ending], None, None]:
        """Yields tasks as they end; those that ran when a worker died are tried again, one at a time."""
        threads = max(1, _cores() // places)
        memory = int(self.config.memory_gb * 2**30)
        waiting = deque(replace(task, threads=threads, memory=memory or task.memory) for task in tasks)
        # A cell that names one GPU (`cuda:1`) has it; others get one per worker.
        own = all(task.config["device"] in ("auto", "cuda") for task in tasks)
        gpus = _gpus() if own and places > 1 else []
        lost: list[Task] = []
        while waiting:
            yield from _run_in_pool(waiting, min(places, len(waiting)), gpus, lost)
        # A worker died.  Any of the tasks that ran then may be the reason.
        suspects, lost = deque(lost), []
        while suspects:
            yield from _run_in_pool(suspects, 1, [], lost)
            while lost:
                reason = "the worker process died twice on this cell, e.g. for want of memory; try fewer workers."
                yield lost.pop(), Ending(reason=reason)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` calls them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(_DEVICES, "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def fits(task: Task, running: Sequence[Task], memory: int) -> bool:
    """Whether a task may start beside others, with so many bytes for all of them; 0 sets no limit."""
    return not running or not memory or sum(other.memory for other in running) + task.memory <= memory


def free_memory() -> int:
    """Bytes that new processes may take without swapping; 0 where the system does not tell."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return 0


def _run_in_pool(
    waiting: deque[Task], workers: int, gpus: Sequence[str], lost: list[Task]
) -> Iterator[tuple[Task, Ending]]:
    """Runs tasks until none is waiting or a worker dies; those that ran at that moment go to `lost`.

    A cell that another program runs at this moment goes to the end of the queue.
    """
    running: dict[Future[Ending], tuple[Task, float]] = {}
    limit = waiting[0].timeout + GRACE_SECONDS if waiting[0].timeout else math.inf
    memory = free_memory()
    broken = False
    others = set(multiprocessing.active_children())

    with _pool(workers, gpus) as pool:
        while running or (waiting and not broken):
            try:
                while waiting and not broken and len(running) < workers:
                    if not fits(waiting[0], [task for task, _ in running.values()], memory):
                        break
                    running[_submit(pool, waiting[0])] = waiting[0], time.monotonic()
                    waiting.popleft()
            except BrokenProcessPool:
                broken = True
            tick = 1.0 if math.isfinite(limit) else None
            for future in wait(running, timeout=tick, return_when=FIRST_COMPLETED).done:
                task, _ = running.pop(future)
                try:
                    ending = future.result()
                except BrokenProcessPool:
                    broken = True
                    lost.append(task)
                else:
                    if ending.busy:
                        waiting.append(task)
                    else:
                        yield task, ending
            now = time.monotonic()
            overdue = [task for task, since in running.values() if now - since > limit]
            if overdue:
                from harness.runner import timeout_message

                # Its worker does not even hear the alarm.  The others go on from their checkpoints.
                waiting.extendleft(task for task, since in running.values() if now - since <= limit)
                running.clear()
                broken = True
                _end(set(multiprocessing.active_children()) - others, grace=0.0)
                for task in overdue:
                    yield task, Ending(reason=timeout_message(task.timeout))


@contextmanager
def _pool(workers: int, gpus: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are stopped at once when the block is left by an exception."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    started = context.Array("q", workers)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (started, gpus))
    try:
        yield pool
    except BaseException:
        _end(set(multiprocessing.active_children()) - others, GRACE_SECONDS)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for worker in started[:]:
            _end_group(worker)


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


def _end_group(worker: int) -> None:
    """Ends what a worker's cells have started and left behind."""
    if worker:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)


def _submit(pool: ProcessPoolExecutor, task: Task) -> Future[Ending]:
    # A worker starts in here and inherits the mask: Ctrl-C reaches this process alone, which stops the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_run_in_worker, task)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in a worker -------------------------------------------------------------------------------------------------------

#: Whether the worker is in a cell.
_busy = False


def _start_worker(started: SynchronizedArray[int], gpus: Sequence[str]) -> None:
    """First thing in a worker: its process group, its GPU, and who ends it."""
    os.setsid()
    with started.get_lock():
        number = started[:].index(0)
        started[number] = os.getpid()
    if gpus:
        os.environ[_DEVICES] = gpus[number % len(gpus)]
    be_quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The sweep's results go to stdout, so nothing that a plugin prints may.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGTERM, _stop_worker)


def _end_with_parent() -> None:
    """Ends the worker and what it has started when the sweep was killed; nobody would take its results."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end_group(os.getpid())


def _stop_worker(*_: object) -> None:
    """SIGTERM: a cell that is running is recorded as interrupted."""
    if _busy:
        raise Terminated
    os._exit(EXIT_TERMINATED)


def _run_in_worker(task: Task) -> Ending:
    """Runs one task; a cell that another program runs is given back after a moment."""
    global _busy
    _busy = True
    try:
        from harness.executors.worker import run_task

        ending = run_task(task, wait=False)
        if ending.busy:
            time.sleep(1.0)
        return ending
    except KeyboardInterrupt:
        os._exit(EXIT_TERMINATED)
    finally:
        _busy = False
