"""Finding recorded runs by what people type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.tracking import StoredRun


def named_run(runs: Sequence[StoredRun], text: str, purpose: str) -> StoredRun:
    """The one finished run whose run id or MLflow id begins with a text.

    Args:
        runs: All runs.
        text: What was typed.
        purpose: What is to be done with it, as a participle.

    Raises:
        UsageError: If there are none or several, or it has not finished.
    """
    found = [run for run in runs if run.record.run_id.startswith(text.lower()) or run.mlflow_run_id.startswith(text)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} recorded runs have an id that begins with {text!r}; name exactly one.")
    if found[0].record.status != "finished":
        raise UsageError(f"run {text} is {found[0].record.status}; only finished runs can be {purpose}.")
    return found[0]
