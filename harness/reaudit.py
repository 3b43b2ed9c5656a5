"""Audits a recorded run again: from its record alone, and with data, stored weights and predictions where they are.

Nothing is trained and nothing is written; whoever wrote the method, the same checks as in the run are made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from harness import audit
from harness.cell import observed_views
from harness.errors import HarnessError
from harness.execution import audit_subject
from harness.files import Folders
from harness.predictions import split_conditions
from harness.protocol import parse_protocol
from harness.record import AuditResult, RunRecord
from harness.restore import Rebuilt, load_weights, rebuild, untrained
from harness.tracking import StoredRun
from harness.trainer import FitResult
from harness.types import Predictions

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
        rebuilt = rebuild(record, folders)
    except HarnessError as error:
        remarks.append(f"checked from record and predictions only: {' '.join(str(error).split())}")
    else:
        again |= {check.name: check for check in _from_data(run, rebuilt, folders, remarks)}
    known = {check.name: check for check in record.audits}
    for name in _ONLY_THEN:
        # A failure that shows in the history as well is as good as recorded.
        if name in known and (name not in again or again[name].passed):
            again.pop(name, None)
    recorded = tuple(check for name, check in known.items() if name not in again)
    return Reaudit(record, tuple(again.values()), recorded, tuple(remarks))


def recorded_fit(record: RunRecord) -> FitResult:
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
    results = audit.check_history(recorded_fit(record), terms, len(record.protocol["conditions"]), None)
    if record.dataset.get("bayes_accuracy") and not parse_protocol(record.protocol["name"]).reads:
        try:
            results.append(audit.above_bayes(recorded_predictions(run), record.dataset["bayes_accuracy"]))
        except HarnessError as error:
            remarks.append(f"no predictions to compare with the known answer: {error}")
    return results


def recorded_predictions(run: StoredRun) -> dict[str, Predictions]:
    """Stored predictions by condition.

    Raises:
        HarnessError: If they cannot be read.
    """
    parts = split_conditions(run.predictions())
    # Written before conditions were noted, where there was only one.
    return {name or run.record.protocol["name"]: part for name, part in parts.items()}


def _from_data(run: StoredRun, rebuilt: Rebuilt, folders: Folders, remarks: list[str]) -> list[AuditResult]:
    """Checks on the data set, and on the method with its stored weights."""
    record, cell, features = run.record, rebuilt.cell, rebuilt.features
    results = audit.audit_before(cell.table, cell.masks, cell.protocol, features, folders.cache / "audits")
    if cell.masks.fingerprint != record.protocol["mask_fingerprint"]:
        detail = f"{cell.protocol.name} draws {cell.masks.fingerprint[:12]}, the run was shown another table"
        return [*results, AuditResult("masks", False, detail)]
    views = observed_views(cell, features)
    method, trainer = untrained(rebuilt, views)
    if rebuilt.changed:
        remarks.append(rebuilt.changed)
    try:
        load_weights(method, run)
    except HarnessError as error:
        remarks.append(f"the trained method was not asked: {' '.join(str(error).split())}")
        return results
    subject = audit_subject(cell, features, views, method, trainer, recorded_fit(record), recorded_predictions(run))
    return [*results, *audit.audit_after(subject), audit.check_replay(subject, "leak" if rebuilt.same else "warning")]
