"""The one entry of all executors: runs a task in this process, and says how it ended."""

from __future__ import annotations

from harness import registry
from harness.cell import resolve
from harness.compose import from_dict
from harness.config import digest_of
from harness.errors import CellBusyError, HarnessError
from harness.executors.base import Ending, Task
from harness.files import Folders
from harness.mlflow_store import redact
from harness.runner import run_cell
from harness.workspace import Workspace

#: What the tasks of one process share, by folders.
_workspaces: dict[str, Workspace] = {}


def run_task(task: Task, wait: bool = True) -> Ending:
    """Runs one cell, or finds that it is finished.

    Exceptions of the cell stay here, because not all can be sent; what stops the process passes.

    Args:
        task: The cell.
        wait: Whether to wait when another program runs the same cell.
    """
    try:
        for file in task.plugins:
            registry.load_plugin_file(file)
        if task.threads:
            import torch

            torch.set_num_threads(min(torch.get_num_threads(), task.threads))
        config = from_dict(task.config)
        workspace = _workspaces.setdefault(digest_of(task.config["paths"]), Workspace(Folders.resolve(config.paths)))
        cell = resolve(config, workspace)
        if cell.run_id != task.run_id:
            return Ending(
                reason=f"here the cell is run {cell.run_id[:12]}, not {task.run_id[:12]}: plugins, data or metrics of "
                "this machine differ from those of the one that planned the sweep."
            )
        outcome = run_cell(cell, workspace, task.timeout, wait)
        return Ending(outcome.record.finished, outcome.mlflow_run_id, outcome.skipped)
    except CellBusyError as error:
        return Ending(reason=str(error), busy=True)
    except HarnessError as error:
        return Ending(reason=redact(str(error)))
    except Exception as error:
        return Ending(reason=redact(f"{type(error).__name__}: {error}"))
