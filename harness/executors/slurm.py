"""Slurm through submitit: one job a cell, in arrays; at the time limit a job is put back in the queue and goes on."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from harness.errors import DependencyError, UsageError
from harness.executors.base import Ending, Executor, ExecutorConfig, Task
from harness.files import ensure_folder
from harness.plugin import check_choice, check_range

#: Jobs of one array: what Slurm allows unless its administrator has set more.
ARRAY = 1000
#: How often the results' folder is looked at, and how often Slurm is asked for its queue.
LOOK_SECONDS = 1.0
QUEUE_SECONDS = 20.0
#: A result may show this much later than its job is gone, on file systems of clusters.
FILE_SECONDS = 30.0


@dataclass
class SlurmConfig(ExecutorConfig):
    """A Slurm cluster; all its machines see the home folder, and records go to a tracking server or that folder.

    Attributes:
        cluster: `slurm`, or for trying it out submitit's own `local` (processes) and `debug` (this process).
        partition: Partition; empty is Slurm's default.
        minutes: Time limit of a job.  A job that reaches it is put back in the queue and goes on from its checkpoint.
        requeues: How often that may happen to a cell before it is recorded as failed.
        cpus: Cores of a job.
        gpus: GPUs of a job.
        memory_gb: Memory of a job; 0 is Slurm's default.
        options: Further options of `sbatch`, e.g. `{account: vision, constraint: a100}`.
    """

    cluster: str = "slurm"
    partition: str = ""
    minutes: int = 240
    requeues: int = 3
    cpus: int = 1
    gpus: int = 0
    memory_gb: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    target: ClassVar[str] = "harness.executors.slurm:Slurm"
    summary: ClassVar[str] = "jobs of a Slurm cluster through submitit: arrays, requeued at their time limit"
    citation: ClassVar[str] = "submitit, https://github.com/facebookincubator/submitit"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("executor", "cluster", self.cluster, ("slurm", "local", "debug"))
        check_range("executor", "minutes", self.minutes, 1)
        check_range("executor", "requeues", self.requeues, 0)
        check_range("executor", "cpus", self.cpus, 1)
        check_range("executor", "gpus", self.gpus, 0)
        check_range("executor", "memory_gb", self.memory_gb, 0.0)


class Requeued:
    """`run_task` as submitit wants it: what is left to do when a job is stopped is the whole task.

    The cell's checkpoint says how far it has come.
    """

    def __call__(self, task: Task) -> Ending:
        """Runs the task in a job."""
        from harness.executors.worker import run_task

        return run_task(task)

    def checkpoint(self, task: Task) -> Any:
        """Called by submitit when the job reaches its time limit or is preempted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


class Slurm(Executor):
    """Submits arrays of jobs, one array after the other, and waits for them."""

    config: SlurmConfig

    def run(self, tasks: Sequence[Task], places: int) -> Generator[tuple[Task, Ending], None, None]:
        """Yields tasks as their jobs end; closing cancels the jobs."""
        executor = self._executor()
        tasks = [replace(task, threads=self.config.cpus) for task in tasks]
        for start in range(0, len(tasks), ARRAY):
            part = tasks[start : start + ARRAY]
            executor.update_parameters(**self._parameters(places or len(part)))
            yield from self._wait(dict(zip(executor.map_array(Requeued(), part), part, strict=True)))

    def _executor(self) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise DependencyError(
                "executor=slurm needs submitit: pip install 'missing-modality-harness[slurm]'."
            ) from error
        logging.getLogger("submitit").setLevel(logging.ERROR)  # it tells of each job on stdout
        # -P: a folder `datasets` in the working directory must not stand in for a package.
        python = f"{shlex.quote(sys.executable)} -P"
        try:
            return submitit.AutoExecutor(
                ensure_folder(self.folder / "slurm") / "%j",
                cluster=self.config.cluster,
                slurm_max_num_timeout=self.config.requeues,
                local_max_num_timeout=self.config.requeues,
                slurm_python=python,
                local_python=python,
            )
        except RuntimeError as error:
            raise UsageError(f"executor=slurm: {error} `srun` is not on the PATH of this machine.") from error

    def _parameters(self, places: int) -> dict[str, Any]:
        config = self.config
        parameters: dict[str, Any] = {
            "name": "harness",
            "timeout_min": config.minutes,
            "cpus_per_task": config.cpus,
            "gpus_per_node": config.gpus,
            "slurm_array_parallelism": places,
            "slurm_additional_parameters": dict(config.options),
        }
        if config.memory_gb:
            parameters["mem_gb"] = config.memory_gb
        if config.partition:
            parameters["slurm_partition"] = config.partition
        return parameters

    def _wait(self, jobs: dict[Any, Task]) -> Generator[tuple[Task, Ending], None, None]:
        asked, queue = time.monotonic(), set(_ids(jobs))
        missing: dict[Any, float] = {}
        try:
            while jobs:
                if self.config.cluster == "slurm" and time.monotonic() - asked > QUEUE_SECONDS:
                    asked, answer = time.monotonic(), _queue()
                    queue = queue if answer is None else answer
                before = len(jobs)
                for job in list(jobs):
                    # submitit asks Slurm's accounts, which not every cluster keeps; the queue is everywhere.
                    if job.paths.result_pickle.exists() if self.config.cluster == "slurm" else job.done():
                        yield jobs.pop(job), _ending(job)
                    elif job.job_id in queue:
                        missing.pop(job, None)
                    elif time.monotonic() - missing.setdefault(job, time.monotonic()) > FILE_SECONDS:
                        yield jobs.pop(job), _lost(job)
                if len(jobs) == before:
                    time.sleep(LOOK_SECONDS)
        finally:
            _cancel(jobs)


def _ending(job: Any) -> Ending:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        ending = job.result()
    except (UncompletedJobError, FailedJobError):
        return _lost(job)
    assert isinstance(ending, Ending)
    return ending


def _lost(job: Any) -> Ending:
    return Ending(reason=f"job {job.job_id} ended without a record; {job.paths.stderr} says more.")


def _ids(jobs: Iterable[Any]) -> list[str]:
    return [job.job_id for job in jobs]


def _queue() -> set[str] | None:
    """Ids of the jobs of this user that wait, run or end; None when Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return set(done.stdout.split())


def _cancel(jobs: Iterable[Any]) -> None:
    for job in jobs:
        job.cancel(check=False)
