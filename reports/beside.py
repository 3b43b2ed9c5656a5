"""Published numbers beside our own: compared only where data set, protocol, condition and metric are the same.

Everything else that was published for a method on the data set of a table is refused with its reason, never shown in
the same line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from harness.reports.published import UNKNOWN, Published, published
from harness.reports.table import Beside, Row, Table, Verdict

#: Half the width of a 95 % interval in standard deviations.
_WIDTH = 1.959964
#: So many names are listed in a line before it says how many more there are.
_LISTED = 4

#: `(row position, condition, metric) -> 95 % interval` of one of our scores, or None.
Intervals = Callable[[int, str, str], tuple[float, float] | None]


def compare_published(
    table: Table, interval: Intervals, numbers: Sequence[Published] | None = None
) -> tuple[list[Beside], list[str]]:
    """Sets published numbers beside the rows of a table.

    Args:
        table: Its rows are those that may be compared with papers; oracles and rows with changed options are not.
        interval: Of our scores.
        numbers: By default all that are known.

    Returns:
        The comparisons, and one line for each reason for which numbers were refused.
    """
    found: list[Beside] = []
    refused: dict[tuple[str, str], list[str]] = {}
    for number in published() if numbers is None else numbers:
        if number.dataset != table.key.dataset:
            continue
        for position, row in enumerate(table.rows):
            if row.method != number.method or row.oracle or row.score is None:
                continue
            why = _refusal(table, row, number)
            if why is not None:
                reason, what = why
                refused.setdefault((row.name, reason), []).append(what)
                continue
            ours = _metrics(row, number.condition)[number.metric]
            span = interval(position, number.condition, number.metric)
            low, high = span or (None, None)
            verdict = _verdict(number, low, high)
            found.append(
                Beside(position, number.condition, number.metric, number, ours, low, high, len(row.seeds), verdict)
            )
    found.sort(key=lambda one: (one.row, one.condition, one.metric, one.published.paper, one.published.table))
    return found, [_line(*key, whats) for key, whats in refused.items()]


def _metrics(row: Row, condition: str) -> dict[str, float]:
    return row.condition_metrics.get(condition, {}) if condition else row.metrics


def _refusal(table: Table, row: Row, number: Published) -> tuple[str, str] | None:
    """Why a number cannot stand beside a row, and what it is about; None if it can."""
    if UNKNOWN in (number.protocol, number.dataset):
        return "the protocol is not stated", number.paper
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
    more = f" and {len(distinct) - _LISTED} more" if len(distinct) > _LISTED else ""
    count = f"{len(whats)} published numbers are" if len(whats) > 1 else "1 published number is"
    return f"{name}: {count} not compared, {reason}: {', '.join(distinct[:_LISTED])}{more}."


def _verdict(number: Published, low: float | None, high: float | None) -> Verdict:
    if low is None or high is None or not math.isfinite(low + high):
        return "no interval"
    margin = _WIDTH * (number.spread or 0.0)
    if low > number.value + margin:
        return "ours is higher"
    return "ours is lower" if high < number.value - margin else "agrees"
