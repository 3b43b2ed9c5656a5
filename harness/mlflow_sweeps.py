"""Sweeps in MLflow: one parent run per sweep and experiment, below which the runs of its cells are nested.

A sweep is known by its name, so that whoever writes to it, now or later, from here or from another machine, finds the
same parent.  Writing is repeatable: everything is set, nothing is appended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.config import digest_of
from harness.errors import DataError
from harness.files import Folders, atomic_write
from harness.mlflow_store import (
    RUN_ID,
    STATUS,
    SUPERSEDED,
    ensure_experiment,
    listed,
    milliseconds,
    search,
    user_tags,
)
from harness.record import RunRecord

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SWEEP = "harness.sweep"
#: What only a parent has: runs of cells carry `harness.run_id` instead.
PARENT_MARK = "harness.cells"
PARENT = "mlflow.parentRunId"
SWEEP_FILE = "sweep.json"
#: A name that nobody chose (`sweep_name`).
OWN_NAME = r"sweep-[0-9a-f]{8}"
#: MLflow takes 8,000 characters.
NOTE_LENGTH = 7500

SweepStatus = Literal["running", "finished", "failed", "interrupted"]
_MLFLOW_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


@dataclass
class SweepRecord:
    """What a sweep's parent run says.

    Attributes:
        name: Names the sweep, the same on every machine.
        status: `finished` when all cells are.
        experiments: Names of the experiments that its cells are in; each has a parent.
        cells: Per cell `run_id`, `dataset`, `protocol`, `supervision`, `masks`, `method`, `variant`, `mask_seed`,
            `train_seed` and `status` (`to run` until it ended).
        command: What was typed after `harness`.
        note: Markdown: the table of scores.
        started: ISO time of the first start that this driver knows of.
        finished: ISO time of the end; empty while it runs.
    """

    name: str
    status: SweepStatus
    experiments: list[str]
    cells: list[dict[str, Any]]
    command: list[str] = field(default_factory=list)
    note: str = ""
    started: str = ""
    finished: str = ""

    @property
    def title(self) -> str:
        """What varies, with the name, e.g. `20 methods × 3 protocols × 5 train seeds · sweep-3f2a9c1e`.

        A name that somebody chose comes first.
        """
        parts = []
        for key in ("dataset", "method", "protocol", "train_seed"):
            values = list(dict.fromkeys(cell[key] for cell in self.cells))
            if len(values) > 1:
                parts.append(f"{len(values)} {key.replace('_', ' ').replace('dataset', 'data set')}s")
            elif values and key in ("method", "protocol"):
                parts.append(str(values[0]))
        both = [self.name, " × ".join(parts)]
        if re.fullmatch(OWN_NAME, self.name):
            both.reverse()
        return " · ".join(part for part in both if part)

    def counts(self) -> dict[str, int]:
        """Number of cells, and of those that are finished, failed and left."""
        states = [cell["status"] for cell in self.cells]
        finished, left = states.count("finished"), states.count("to run")
        return {"all": len(states), "finished": finished, "failed": len(states) - finished - left, "left": left}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> SweepRecord:
        """Reads what `to_json` wrote.

        Raises:
            DataError: If it is something else.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path}: not a record of a sweep ({error}).") from error


def sweep_name(run_ids: Iterable[str]) -> str:
    """The name of a sweep that was not given one: the same for the same cells."""
    return f"sweep-{digest_of(sorted(run_ids), 8)}"


def entry_name(sweep: str) -> str:
    """File-name form of a sweep's name; never the id of a run."""
    return f"sweep-{hashlib.sha256(sweep.encode()).hexdigest()[:16]}"


def known_here(folders: Folders, name: str) -> SweepRecord | None:
    """What this machine wrote last of a sweep, without asking MLflow."""
    path = folders.home / "sweeps" / f"{entry_name(name)}.json"
    try:
        return SweepRecord.load(path) if path.is_file() else None
    except DataError:
        return None


def remember_here(folders: Folders, record: SweepRecord) -> None:
    """Keeps what `known_here` returns."""
    with atomic_write(folders.home / "sweeps" / f"{entry_name(record.name)}.json") as temporary:
        temporary.write_text(record.to_json())


def parent_of(client: MlflowClient, experiment: str, name: str, started: str) -> str:
    """MLflow id of a sweep's parent run in an experiment, created if needed.

    MLflow cannot refuse a second run of one name, so whoever creates one looks again: of several the first started
    stays, for everybody who looks, and takes what is nested below the others.

    Args:
        client: Where to.
        experiment: Its id.
        name: The sweep's.
        started: ISO time at which a parent that is created now is said to have started.
    """
    from mlflow.exceptions import MlflowException

    query = f"tags.`{PARENT_MARK}` != '' AND tags.`{SWEEP}` = '{name}'"
    found = search(client, [experiment], query)
    if not found:
        tags = {SWEEP: name, PARENT_MARK: "?"} | user_tags()
        # Ended at once: who only nests a run below it does not know whether the sweep goes on.
        run = client.create_run(experiment, start_time=milliseconds(started), tags=tags, run_name=name)
        client.set_terminated(run.info.run_id)
        found = search(client, [experiment], query)
    keep, *others = sorted((run.info for run in found), key=lambda info: (info.start_time, info.run_id))
    for other in others:
        # Somebody else may be doing the same.
        with contextlib.suppress(MlflowException):
            for child in search(client, [experiment], f"tags.`{PARENT}` = '{other.run_id}'"):
                client.set_tag(child.info.run_id, PARENT, keep.run_id)
            client.set_tag(other.run_id, SUPERSEDED, keep.run_id)
            client.delete_run(other.run_id)
    return str(keep.run_id)


def send_sweep(client: MlflowClient, uri: str, folders: Folders, record: SweepRecord, files: Path) -> str:
    """Writes a sweep's parent in each of its experiments; safe to repeat.

    Args:
        client: Where to.
        uri: Its address.
        folders: Where a local store keeps artifacts.
        record: The sweep.
        files: Folder whose content becomes the parent's artifacts.

    Returns:
        The MLflow ids, joined by commas.
    """
    from mlflow.entities import Metric, RunTag

    # Of values with one time MLflow shows the largest, so the end is never at the time of the start.
    stamp = (milliseconds(record.finished or record.started) or 0) + (record.status != "running")
    parents = []
    for name in record.experiments:
        experiment = ensure_experiment(client, uri, name, folders)
        parent = parent_of(client, experiment, record.name, record.started)
        metrics = [Metric(f"cells/{key}", float(value), stamp, 0) for key, value in record.counts().items()]
        client.log_batch(parent, metrics=metrics, tags=[RunTag(*item) for item in _tags(record).items()])
        client.log_artifacts(parent, str(files))
        if record.status == "running":
            client.update_run(parent, status="RUNNING", name=record.title[:250])
        else:
            client.update_run(parent, name=record.title[:250])
            client.set_terminated(parent, _MLFLOW_STATUS[record.status], stamp)
            _adopt(client, uri, experiment, parent, record)
        parents.append(parent)
    return ",".join(parents)


def _tags(record: SweepRecord) -> dict[str, str]:
    """Tags to filter by, as runs have them; what differs between cells is a list."""
    tags = {
        SWEEP: record.name,
        PARENT_MARK: str(len(record.cells)),
        STATUS: record.status,
        "mlflow.note.content": record.note[:NOTE_LENGTH],
        "mlflow.source.name": f"harness {' '.join(record.command)}"[:500],
    }
    for key in ("method", "dataset", "protocol", "supervision"):
        tags[f"harness.{key}"] = ", ".join(dict.fromkeys(str(cell[key]) for cell in record.cells))[:5000]
    return {name: value for name, value in tags.items() if value}


def _adopt(client: MlflowClient, uri: str, experiment: str, parent: str, record: SweepRecord) -> None:
    """Nests runs of the sweep's cells that have no parent, or one that gave way to `parent`; others keep theirs."""
    cells = {cell["run_id"] for cell in record.cells}
    for run in listed(uri, [SWEEP, PARENT]):
        ours = run.tags.get(SWEEP, record.name) == record.name and run.experiment_id == experiment
        if ours and run.tags[RUN_ID] in cells and run.tags.get(PARENT) != parent:
            client.set_tag(run.mlflow_run_id, SWEEP, record.name)
            client.set_tag(run.mlflow_run_id, PARENT, parent)


def nesting_tags(client: MlflowClient, experiment: str, record: RunRecord) -> dict[str, str]:
    """Tags that nest a run below the sweep that its config names; none for a run of its own."""
    name = str(record.config.get("tracking", {}).get("sweep", ""))
    return {SWEEP: name, PARENT: parent_of(client, experiment, name, record.started)} if name else {}
