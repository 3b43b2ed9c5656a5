"""What the commands that run sweeps say on the sweep's parent run in MLflow: the plan first, the report at the end."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import TrackingError
from harness.files import Folders
from harness.progress import say

if TYPE_CHECKING:
    from harness.mlflow_sweeps import SweepRecord, SweepStatus
    from harness.reports.leaderboard import Leaderboard
    from harness.runner import Outcome
    from harness.sweep import Plan


class Parent:
    """The parent run of one plan, and whether there is anything new to say on it.

    Args:
        plan: The cells.
        command: What was typed after `harness`.
    """

    def __init__(self, plan: Plan, command: Sequence[str]) -> None:
        from harness.mlflow_store import redact
        from harness.mlflow_sweeps import known_here
        from harness.tracking import tracking_uri

        config = plan.cells[0].config
        self.plan = plan
        self.folders = Folders.resolve(config.paths)
        self.uri = tracking_uri(config.tracking, self.folders)
        self.command = [redact(word) for word in command]
        known = known_here(self.folders, plan.name)
        self.started = known.started if known is not None else _now()
        cells = {cell.run_id for cell in plan.cells}
        #: Nothing was left to run, and how the sweep ended was said before: here, or by whoever ran the cells.
        self.is_told = not plan.todo and (
            known is None or (known.status == "finished" and cells <= {cell["run_id"] for cell in known.cells})
        )

    def tell(
        self, status: SweepStatus, outcomes: Mapping[str, Outcome], note: str, artifacts: Mapping[str, Path]
    ) -> None:
        """Writes the parent; what MLflow does not take waits in the outbox."""
        from harness.tracking import log_sweep

        try:
            log_sweep(self.uri, self.folders, self._record(status, outcomes, note), artifacts)
        except TrackingError as error:
            say(f"warning: {error}")

    def _record(self, status: SweepStatus, outcomes: Mapping[str, Outcome], note: str) -> SweepRecord:
        from harness.mlflow_sweeps import SweepRecord
        from harness.tracking import experiment_name

        places = [experiment_name(cell.config.tracking, cell.table.spec.name) for cell in self.plan.cells]
        return SweepRecord(
            name=self.plan.name,
            status=status,
            experiments=list(dict.fromkeys(places)),
            cells=describe_cells(self.plan, outcomes),
            command=self.command,
            note=note,
            started=self.started,
            finished="" if status == "running" else _now(),
        )


@contextmanager
def parent_run(plan: Plan, command: Sequence[str]) -> Iterator[Parent | None]:
    """Tells the plan before the block; how it ended, too, when the block is left by an exception.

    Yields:
        What `conclude` takes; None for a plan without cells.
    """
    if not plan.cells:
        yield None
        return
    parent = Parent(plan, command)
    if not parent.is_told:
        parent.tell("running", plan.finished, _plan_note(plan), {})
    try:
        yield parent
    except BaseException as error:
        if not parent.is_told:
            stopped = isinstance(error, KeyboardInterrupt)
            why = "stopped; the same command goes on" if stopped else f"ended by an error: {error}"
            status: SweepStatus = "interrupted" if stopped else "failed"
            parent.tell(status, plan.finished | _ended(plan, parent.folders), f"{_plan_note(plan)}\n\n{why}", {})
        raise


def _ended(plan: Plan, folders: Folders) -> dict[str, Outcome]:
    """Cells that ended before the sweep did, from the folder of runs."""
    from harness.record import RunRecord
    from harness.runner import Outcome
    from harness.tracking import PREDICTIONS_FILE

    files = {cell.run_id: folders.runs / cell.run_id / "record.json" for cell in plan.todo}
    return {
        run_id: Outcome(RunRecord.load(file), file.with_name(PREDICTIONS_FILE))
        for run_id, file in files.items()
        if file.is_file()
    }


def conclude(
    parent: Parent, outcomes: Sequence[Outcome], board: Leaderboard | None = None, files: Sequence[Path] = ()
) -> Leaderboard | None:
    """Puts the scores and the report on the parent, unless they stand there already.

    Args:
        parent: The parent.
        outcomes: One per cell.
        board: Tables of the outcomes, if they were made.
        files: Files of a report in one folder, if one was written; else the page and its Markdown are made.

    Returns:
        The tables, if they were made before or now.
    """
    if parent.is_told and not files:
        return board
    from harness.reports.build import build_report
    from harness.reports.render import to_note

    with tempfile.TemporaryDirectory() as folder:
        if board is None or not files:
            board, made = build_report(outcomes, Path(folder), ("html", "md"))
            artifacts = {f"report/{path.name}": path for path in made}
        else:
            root = files[0].parent
            artifacts = {f"report/{path.relative_to(root)}": path for path in files}
        by_id = {outcome.record.run_id: outcome for outcome in outcomes}
        finished = sum(outcome.record.status == "finished" for outcome in outcomes)
        note = f"{finished} of {len(outcomes)} cells finished.\n\n{to_note(board)}"
        parent.tell("finished" if finished == len(outcomes) else "failed", by_id, note, artifacts)
    return board


def describe_cells(plan: Plan, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """The cells of a plan as plain data, each with what became of it.

    Args:
        plan: The cells.
        outcomes: By run id, as far as there are any.
    """
    from harness.sweep import variant

    # Hashing a table takes a moment, and many cells share one.
    tables = {id(cell.masks): cell.masks for cell in plan.cells}
    masks = {key: table.fingerprint for key, table in tables.items()}
    return [
        {
            "run_id": cell.run_id,
            "dataset": cell.table.spec.name,
            "protocol": cell.protocol.name,
            "supervision": cell.config.supervision,
            "masks": masks[id(cell.masks)],
            "method": cell.method_name,
            "variant": variant(cell),
            "mask_seed": cell.config.mask_seed,
            "train_seed": cell.config.train_seed,
            "status": outcomes[cell.run_id].record.status if cell.run_id in outcomes else "to run",
        }
        for cell in plan.cells
    ]


def _plan_note(plan: Plan) -> str:
    """The groups of cells as a Markdown table."""
    heads = ("data set", "protocol", "supervision", "masks", "methods", "cells")
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for group in plan.groups():
        values = [group[key] for key in ("dataset", "protocol", "supervision", "masks", "methods", "cells")]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
