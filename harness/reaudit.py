"""Audits a recorded run again: from its record alone, and with data, stored weights and predictions where they are.

Nothing is trained and nothing is written; whoever wrote the method, the same checks as in the run are made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from harness import audit
from harness.compose import from_dict
from harness.config import PathsConfig
from harness.errors import HarnessError
from harness.files import Folders
from harness.predictions import split_conditions
from harness.protocol import parse_protocol
from harness.record import AuditResult, RunRecord
from harness.runner import Cell, Workspace, audit_subject, build_method, cell_features, observed_views, resolve
from harness.tracking import StoredRun
from harness.trainer import FitResult, Trainer, restore_state
from harness.types import Predictions

_WEIGHTS = "checkpoint/model.safetensors"
#: Checks that only see something while a run trains: with what is read back they are told as they were recorded.
_ONLY_THEN = ("parameters", "selection_split")


@dataclass(frozen=True)
class Reaudit:
    """What auditing a run again found.

    Attributes:
        record: Of the run.
        again: Checks that were made now.
        recorded: Checks of the record that could not be made again, as they were.
        remarks: Why some could not, and what is not as it was when the run was made.
    """

    record: RunRecord
    again: tuple[AuditResult, ...]
    recorded: tuple[AuditResult, ...]
    remarks: tuple[str, ...]

    @property
    def leaks(self) -> list[AuditResult]:
        """Failed checks of severity `leak`, made now or recorded."""
        return [check for check in (*self.again, *self.recorded) if not check.passed and check.severity == "leak"]


def reaudit(run: StoredRun, folders: Folders) -> Reaudit:
    """Makes every check again that what is here allows.

    Args:
        run: A recorded run.
        folders: Where data and features are.
    """
    record = run.record
    remarks: list[str] = []
    again = {check.name: check for check in _from_record(run, remarks)}
    try:
        cell, features = _cell(record, folders)
    except HarnessError as error:
        remarks.append(f"checked from record and predictions only: {' '.join(str(error).split())}")
    else:
        again |= {check.name: check for check in _from_data(run, cell, features, folders, remarks)}
    known = {check.name: check for check in record.audits}
    for name in _ONLY_THEN:
        # A failure that shows in the history as well is as good as recorded.
        if name in known and (name not in again or again[name].passed):
            again.pop(name, None)
    recorded = tuple(check for name, check in known.items() if name not in again)
    return Reaudit(record, tuple(again.values()), recorded, tuple(remarks))


def _cell(record: RunRecord, folders: Folders) -> tuple[Cell, dict[str, Any]]:
    """The run's cell on the data that are here, and its features.

    Raises:
        HarnessError: If plugins or data are not here, or the data are of another version.
    """
    workspace = Workspace(folders)
    config = replace(from_dict(record.config), paths=PathsConfig(home=str(folders.home), data=str(folders.data)))
    cell = resolve(config, workspace)
    if cell.table.spec.fingerprint != record.dataset["fingerprint"]:
        raise HarnessError(f"{record.dataset['name']} has another version here than the run had.")
    return cell, cell_features(cell, workspace)


def _fit(record: RunRecord) -> FitResult:
    """As much of what training left as the history tells."""
    looks = Counter(
        split for epoch in record.history for split in {key.partition("/")[0] for key in epoch if "/" in key}
    )
    return FitResult(
        history=record.history,
        selection_looks={split: count for split, count in looks.items() if split in ("train", "valid", "test")},
    )


def _from_record(run: StoredRun, remarks: list[str]) -> list[AuditResult]:
    """Checks that need neither data nor method."""
    record = run.record
    # Terms that are declared always stand in the history, so those that do are a good stand-in for the declaration.
    terms = sorted({key.removeprefix("loss/") for epoch in record.history for key in epoch if key.startswith("loss/")})
    results = audit.check_history(_fit(record), terms, len(record.protocol["conditions"]), None)
    if record.dataset.get("bayes_accuracy") and not parse_protocol(record.protocol["name"]).reads:
        try:
            results.append(audit.above_bayes(_predictions(run), record.dataset["bayes_accuracy"]))
        except HarnessError as error:
            remarks.append(f"no predictions to compare with the known answer: {error}")
    return results


def _predictions(run: StoredRun) -> dict[str, Predictions]:
    """Stored predictions by condition."""
    parts = split_conditions(run.predictions())
    # Written before conditions were noted, where there was only one.
    return {name or run.record.protocol["name"]: part for name, part in parts.items()}


def _from_data(
    run: StoredRun, cell: Cell, features: dict[str, Any], folders: Folders, remarks: list[str]
) -> list[AuditResult]:
    """Checks on the data set, and on the method with its stored weights."""
    record, config = run.record, cell.config
    results = audit.audit_before(cell.table, cell.masks, cell.protocol, features, folders.cache / "audits")
    if cell.masks.fingerprint != record.protocol["mask_fingerprint"]:
        detail = f"{cell.protocol.name} draws {cell.masks.fingerprint[:12]}, the run was shown another table"
        return [*results, AuditResult("masks", False, detail)]
    views = observed_views(cell, features)
    trainer = Trainer(config.trainer, config.train_seed, config.device)
    method = build_method(config, cell.table, features, views).to(trainer.device)
    same = cell.run_id == record.run_id
    if not same:
        changed = [name for name, source in cell.plugins.items() if record.fingerprints.get(name) != source]
        remarks.append(f"the code is not the run's ({', '.join(changed) or 'metrics or options'} changed since)")
    try:
        if config.method.trains:
            from safetensors.torch import load

            restore_state(method, load(run.artifact(_WEIGHTS)), f"the checkpoint of run {record.run_id[:12]}")
    except HarnessError as error:
        remarks.append(f"the trained method was not asked: {' '.join(str(error).split())}")
        return results
    subject = audit_subject(cell, features, views, method, trainer, _fit(record), _predictions(run))
    return [*results, *audit.audit_after(subject), audit.check_replay(subject, "leak" if same else "warning")]
