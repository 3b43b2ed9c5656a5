"""What rows are called: one name for a row in every table, figure and format."""

from __future__ import annotations

from collections.abc import Iterable

from harness.record import RunRecord


def row_names(records: Iterable[RunRecord]) -> dict[str, str]:
    """Names of the rows of runs that are shown together.

    Args:
        records: All of them: a row says on which backbone it is where they hold its method on several.

    Returns:
        Run id -> name.
    """
    shown = list(records)
    backbones: dict[str, set[str]] = {}
    for record in shown:
        backbones.setdefault(record.method, set()).add(record.backbone)

    def name(record: RunRecord) -> str:
        several = len(backbones[record.method]) > 1 and record.backbone
        return f"{record.display_name} on {record.backbone}" if several else record.display_name

    return {record.run_id: name(record) for record in shown}
