"""What an executor is: it runs tasks, one cell each, somewhere, and says how each ended.

A task is plain data, and every executor runs it through the same entry, `harness.executors.worker.run_task`.  The
cell's lock, its checkpoint and the outbox make that safe to repeat, so an executor may start a task again whenever it
does not know what became of it.  Results do not travel: the sweep reads them back from where they are recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.plugin import PluginConfig


@dataclass(frozen=True)
class Task:
    """One cell, as any process on any machine can run it.

    Attributes:
        run_id: Its identity; a machine whose code or data differ gets another one and refuses.
        title: How progress lines call it.
        config: The run config (`harness.compose.to_dict`), with absolute folders.
        plugins: Files that are loaded first, as with `--plugin`.
        timeout: Seconds after which the cell is stopped and recorded as failed; 0 means never.
        memory: Bytes that it is expected to take, from finished runs of its method and data set; 0 if there are none.
        threads: Most threads of torch; 0 leaves what torch chooses.
    """

    run_id: str
    title: str
    config: Mapping[str, Any]
    plugins: tuple[str, ...] = ()
    timeout: float = 0.0
    memory: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Ending:
    """How a task ended.

    Attributes:
        finished: When the record that it left was written; tells it from an older one of the same cell.
        mlflow_run_id: The record's MLflow run; empty while it waits in the outbox.
        skipped: Whether another program had finished the cell before.
        reason: Why there is no record; empty if there is one.
        busy: Whether there is none because another program runs the cell at this moment.
    """

    finished: str = ""
    mlflow_run_id: str = ""
    skipped: bool = False
    reason: str = ""
    busy: bool = False


@dataclass
class ExecutorConfig(PluginConfig):
    """Base of executor configs; `target` names a `harness.executors.base.Executor`."""

    card: ClassVar[str] = ""

    def places(self, workers: int | None) -> int:
        """How many cells run at a time.

        Args:
            workers: What the user asked for; None is nothing, 0 as many as there is room for.

        Returns:
            The number; 0 if the engine alone knows.
        """
        return workers or 0


class Executor(ABC):
    """Runs tasks.

    Args:
        config: Its options.
        folder: Where the engine may keep its own files; all machines see it.
    """

    def __init__(self, config: Any, folder: Path) -> None:
        self.config = config
        self.folder = folder

    @abstractmethod
    def run(self, tasks: Sequence[Task], places: int) -> Generator[tuple[Task, Ending], None, None]:
        """Yields every task once, as it ends.  Closing the generator stops what runs.

        Args:
            tasks: At least one.
            places: Most tasks at a time; 0 leaves it to the engine.

        Raises:
            HarnessError: If the engine cannot be used at all.
        """
