"""Leak checks that run on every cell and are stored in its record.

Each check returns an `AuditResult`.  A failed check of severity `leak` takes the run out of the ranking, a failed
`warning` is a badge; a check that passed with severity `note` has something to tell.  `docs/leaks.md` lists what each
of them is there to catch.

`audit_before` looks at data and masks before anything is trained, `audit_after` at the trained method and its
predictions.  Both are cheap: probes of a few samples, and what depends on the data set alone is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from harness.audit.answers import above_bayes, check_known_answer
from harness.audit.banks import check_banks
from harness.audit.data import check_data
from harness.audit.masks import check_binding, check_columns, check_drawn
from harness.audit.prediction import check_predictions, check_replay
from harness.audit.rebuild import check_rebuilt
from harness.audit.subject import Engine, Subject, Views, guarded, poisoned
from harness.audit.training import check_history, check_training
from harness.features import FeatureArray
from harness.masking import MaskTable
from harness.protocol import Protocol
from harness.record import AuditResult
from harness.types import DataTable

__all__ = [
    "AuditResult",
    "Engine",
    "Subject",
    "Views",
    "above_bayes",
    "audit_after",
    "audit_before",
    "check_history",
    "check_replay",
    "poisoned",
]


def audit_before(
    table: DataTable,
    masks: MaskTable,
    protocol: Protocol,
    features: Mapping[str, FeatureArray],
    cache: Path | None = None,
) -> list[AuditResult]:
    """Checks data set, splits and mask table before anything is trained.

    Args:
        table: The data set.
        masks: The table in force.
        protocol: What should have drawn it.
        features: Per modality all values.
        cache: Folder in which findings about the data set alone are kept; None looks again.
    """
    return [
        *guarded("data", lambda: check_data(table, masks, features, cache)),
        *guarded("masks", lambda: check_drawn(table, masks, protocol), "leak"),
        *guarded("mask_columns", lambda: check_columns(table, masks)),
    ]


def audit_after(subject: Subject) -> list[AuditResult]:
    """Checks what the trained method did: selection, loss terms, banks, and whether hidden values reach it."""
    return [
        *guarded("mask_binding", lambda: check_binding(subject)),
        *guarded("training", lambda: check_training(subject)),
        *guarded("training_probe", lambda: check_rebuilt(subject)),
        *guarded("banks", lambda: check_banks(subject)),
        *guarded("predictions", lambda: check_predictions(subject)),
        *guarded("known_answer", lambda: check_known_answer(subject)),
    ]
