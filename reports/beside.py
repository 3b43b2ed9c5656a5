"""Published numbers beside our own: compared only where data set, protocol, condition and metric are the same.

So must supervision and backbone be, where the presets of the number's table tell them.  Everything else that was
published for a method on the data set of a table is refused with its reason, never shown in the same line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from harness.errors import first_few
from harness.record import RunRecord
from harness.reports.presets import shared_settings
from harness.reports.published import UNKNOWN, Published, published
from harness.reports.reproduction import expected_range, value_of, why_not
from harness.reports.table import Beside, Row, Table, Verdict

#: So many names are listed in a line before it says how many more there are.
_LISTED = 4


def compare_published(
    table: Table, records: Callable[[int], Sequence[RunRecord]], numbers: Sequence[Published] | None = None
) -> tuple[list[Beside], list[str]]:
    """Sets published numbers beside the rows of a table.

    Args:
        table: Its rows are those that may be compared with papers; oracles and rows with changed options are not.
        records: Finished records behind the row at a position of `Table.rows`.
        numbers: By default all that are known.

    Returns:
        The comparisons, and one line for each reason for which numbers were refused.
    """
    found: list[Beside] = []
    refused: dict[tuple[str, str], list[str]] = {}
    for number in published() if numbers is None else numbers:
        if not _concerns(number, table.key.dataset):
            continue
        for position, row in enumerate(table.rows):
            if row.method != number.method or row.oracle or row.score is None:
                continue
            done = records(position)
            why = _refusal(table, row, number) or next(((text, number.paper) for text in _reasons(number, done)), None)
            if why is None:
                found.append(_beside(position, number, done))
            else:
                refused.setdefault((row.name, why[0]), []).append(why[1])
    found.sort(key=lambda one: (one.row, one.condition, one.metric, one.published.paper, one.published.table))
    return found, [_line(*key, whats) for key, whats in refused.items()]


def _concerns(number: Published, dataset: str) -> bool:
    """Whether a number is for a data set, or for the one that it is a fold or a task of (`iemocap_fold1`)."""
    return dataset == number.dataset or dataset.startswith(f"{number.dataset}_")


def _reasons(number: Published, records: Sequence[RunRecord]) -> list[str]:
    shared = shared_settings().get((number.paper, number.table))
    settings = shared.run if shared else {}
    return [reason for reason in (why_not(number, record, settings) for record in records) if reason]


def _beside(position: int, number: Published, records: Sequence[RunRecord]) -> Beside:
    values = [value for value in (value_of(number, record) for record in records) if value is not None]
    shared = shared_settings().get((number.paper, number.table))
    ours, runs = float(np.mean(values)), shared.repetitions if shared else 1
    spread = low = high = None
    verdict: Verdict = "one run has no spread"
    if len(values) > 1:
        spread = float(np.std(values, ddof=1))
        low, high, _ = expected_range(ours, spread, len(values), runs, number.value)
        verdict = "agrees"
        if not low <= number.value <= high:
            verdict = "ours is higher" if ours > number.value else "ours is lower"
    return Beside(
        position, number.condition, number.metric, number, runs, ours, spread, low, high, len(values), verdict
    )


def _metrics(row: Row, condition: str) -> dict[str, float]:
    return row.condition_metrics.get(condition, {}) if condition else row.metrics


def _refusal(table: Table, row: Row, number: Published) -> tuple[str, str] | None:
    """Why a number cannot stand beside a row, and what it is about; None if it can."""
    if UNKNOWN in (number.protocol, number.dataset):
        return "the protocol is not stated", number.paper
    if number.dataset != table.key.dataset:
        return f"published for a whole of which {table.key.dataset} is one fold or task", number.dataset
    if number.protocol != table.key.protocol:
        return f"published under another protocol than {table.key.protocol}", number.protocol
    if number.variant or row.changed or row.label:
        return "published for, or run as, another variant of the method", number.variant or "as proposed"
    if number.condition != "" and number.condition not in row.condition_metrics:
        return "published under a condition that was not run", number.condition
    if number.condition == "" and table.conditions:
        return f"published without saying which condition, ours is {table.key.condition}", number.paper
    if number.metric not in _metrics(row, number.condition):
        ours = ", ".join(_metrics(row, number.condition))
        return f"published with another metric than ours ({ours})", number.metric
    return None


def _line(name: str, reason: str, whats: Sequence[str]) -> str:
    """One line about numbers that were refused for one reason."""
    distinct = list(dict.fromkeys(whats))
    count = f"{len(whats)} published numbers are" if len(whats) > 1 else "1 published number is"
    return f"{name}: {count} not compared, {reason}: {first_few(distinct, _LISTED)}."
