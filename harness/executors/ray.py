"""Ray: cells as tasks of a Ray cluster, each with the resources it is given; a lost node costs nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from harness.errors import DependencyError, UsageError
from harness.executors.base import Ending, Executor, ExecutorConfig, Task
from harness.plugin import check_range
from harness.progress import say

#: How long cells have to write down that they were interrupted.
GRACE_SECONDS = 60.0
#: Settings that cells find in their environment on every machine.
_PREFIXES = ("HARNESS_", "MLFLOW_", "OMP_", "MKL_")


@dataclass
class RayConfig(ExecutorConfig):
    """A Ray cluster; its machines see the home folder, or records go to a tracking server.

    Attributes:
        address: `auto` for the cluster that this machine belongs to, or its address; empty starts one here.
        cpus: Cores of a cell.
        gpus: GPUs of a cell; parts of one share it.
        memory_gb: Memory of a cell; 0 leaves memory out of the account.
        retries: How often a cell is started again after its process or machine was lost.
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 0.0
    retries: int = 3

    target: ClassVar[str] = "harness.executors.ray:Ray"
    summary: ClassVar[str] = "tasks of a Ray cluster, with cores, GPUs and memory per cell"
    citation: ClassVar[str] = "Moritz et al., Ray: A Distributed Framework for Emerging AI Applications, OSDI 2018"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        for option in ("cpus", "gpus", "memory_gb", "retries"):
            check_range("executor", option, getattr(self, option), 0)


class Ray(Executor):
    """Hands tasks to Ray and waits for them."""

    config: RayConfig

    def run(self, tasks: Sequence[Task], places: int) -> Generator[tuple[Task, Ending], None, None]:
        """Yields tasks as they end; closing interrupts what runs and leaves the cluster."""
        ray = self._connect()
        self._check_size(ray)
        running: dict[Any, Task] = {}
        waiting = list(reversed(tasks))
        try:
            while waiting or running:
                while waiting and (not places or len(running) < places):
                    task = waiting.pop()
                    running[self._submit(ray, task)] = task
                done, _ = ray.wait(list(running))
                for reference in done:
                    yield running.pop(reference), _ending(ray, reference)
        finally:
            _interrupt(ray, list(running))
            ray.shutdown()

    def _connect(self) -> Any:
        # Ray reports its use to its makers unless it is told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise DependencyError("executor=ray needs Ray: pip install 'missing-modality-harness[ray]'.") from error
        variables = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
        options: dict[str, Any] = {"address": self.config.address} if self.config.address else {"address": "local"}
        if not self.config.address:
            options["include_dashboard"] = False
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": variables},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"executor=ray: no cluster at {self.config.address or 'this machine'} ({reason}); start one with "
                "`ray start --head`, or leave executor.address out."
            ) from error
        return ray

    def _check_size(self, ray: Any) -> None:
        """Says so when no machine is large enough yet; a cluster may grow."""
        needed = {"CPU": self.config.cpus, "GPU": self.config.gpus, "memory": self.config.memory_gb * 2**30}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(has.get(name, 0) >= amount for name, amount in needed.items()) for has in machines):
            say("warning: no machine of the Ray cluster has what executor.cpus, gpus and memory_gb ask for; waiting.")

    def _submit(self, ray: Any, task: Task) -> Any:
        from harness.executors.worker import run_task

        config = self.config
        options: dict[str, Any] = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_retries": config.retries}
        if config.memory_gb:
            options["memory"] = int(config.memory_gb * 2**30)
        threads = max(1, int(config.cpus))
        return ray.remote(run_task).options(name=task.title, **options).remote(replace(task, threads=threads))


def _ending(ray: Any, reference: Any) -> Ending:
    try:
        ending = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return Ending(reason=f"Ray lost the cell ({type(error).__name__}: {reason}).")
    assert isinstance(ending, Ending)
    return ending


def _interrupt(ray: Any, references: Sequence[Any]) -> None:
    """Raises KeyboardInterrupt in the cells that run, which record it; then kills what is left."""
    if not references:
        return
    for reference in references:
        ray.cancel(reference, force=False)
    _, left = ray.wait(list(references), num_returns=len(references), timeout=GRACE_SECONDS)
    for reference in left:
        ray.cancel(reference, force=True)
