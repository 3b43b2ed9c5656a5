"""Methods over several tables: one row a method, one column a data set under a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness.reports.table import Row, Table


@dataclass(frozen=True)
class OverviewColumn:
    """One table of the report.

    Attributes:
        table: Its position in `Leaderboard.tables`.
        dataset: Data set.
        protocol: Protocol, with what tells it from the other columns: the score over conditions, masks, data version.
        metric: Primary metric.
        higher_is_better: Its direction.
    """

    table: int
    dataset: str
    protocol: str
    metric: str
    higher_is_better: bool


@dataclass(frozen=True)
class OverviewCell:
    """A row of a table, in short.

    Attributes:
        row: Its position in `Table.rows`.
        status: `finished`, `failed`, …
        score: Mean over seeds; None where no seed finished.
        low: Lower end of its 95 % interval.
        high: Upper end.
        rank: As in the table.
        seeds: Number of seeds that finished.
        wanted: Number of seeds that any row of the table has.
    """

    row: int
    status: str
    score: float | None
    low: float | None
    high: float | None
    rank: int | None
    seeds: int
    wanted: int

    @property
    def complete(self) -> bool:
        """Whether every seed of the table stands behind the score."""
        return self.score is not None and self.seeds == self.wanted


@dataclass(frozen=True)
class OverviewRow:
    """One method configuration.

    Attributes:
        name: As in the tables.
        method: Registered name.
        backbone: Backbone, empty for methods without one.
        oracle: Whether it was shown every modality.
        reference: `floor`, `ceiling` or None.
        cells: One per column; None where it has no run.
        mean: Mean score over the columns; None unless every cell is complete and all columns have one metric.
        differs: Config entries that are not the same in all columns, beside data set and protocol.
    """

    name: str
    method: str
    backbone: str
    oracle: bool
    reference: str | None
    cells: list[OverviewCell | None]
    mean: float | None = None
    differs: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether no cell is missing, failed or short of seeds."""
        return all(cell is not None and cell.complete for cell in self.cells)


@dataclass
class Overview:
    """All tables of one supervision rule side by side.

    Attributes:
        supervision: What training sees.
        columns: The tables.
        rows: Complete rows first, best mean first (best mean place, where metrics differ).
        notes: What a reader must know.
    """

    supervision: str
    columns: list[OverviewColumn]
    rows: list[OverviewRow]
    notes: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading."""
        return f"Overview · {self.supervision} supervision"

    @property
    def one_metric(self) -> bool:
        """Whether all columns can be averaged."""
        return len({(column.metric, column.higher_is_better) for column in self.columns}) == 1

    def places(self, place: int) -> list[float]:
        """Different scores of the ranked rows in one column, best first."""
        cells = [row.cells[place] for row in self.rows]
        scores = {cell.score for cell in cells if cell is not None and cell.rank is not None and cell.score is not None}
        return sorted(scores, reverse=self.columns[place].higher_is_better)


def overviews(tables: Sequence[Table]) -> list[Overview]:
    """One overview per supervision rule that has several tables."""
    groups: dict[str, list[int]] = {}
    for number, table in enumerate(tables):
        groups.setdefault(table.key.supervision, []).append(number)
    return [_overview(name, tables, numbers) for name, numbers in groups.items() if len(numbers) > 1]


def _overview(supervision: str, tables: Sequence[Table], numbers: Sequence[int]) -> Overview:
    shown = [tables[number] for number in numbers]
    columns = [
        OverviewColumn(number, table.key.dataset, label, table.key.metric, table.higher_is_better)
        for number, table, label in zip(numbers, shown, protocol_labels(shown), strict=True)
    ]
    result = Overview(supervision, columns, [])
    versions = {(tables[n].key.metric, tables[n].key.metric_version) for n in numbers}
    averaged = result.one_metric and len(versions) == 1
    found: dict[str, list[tuple[int, Row] | None]] = {}
    for place, number in enumerate(numbers):
        for position, row in enumerate(tables[number].rows):
            found.setdefault(row.identity, [None] * len(numbers))[place] = (position, row)
    for entries in found.values():
        rows = [entry[1] for entry in entries if entry is not None]
        cells = [None if entry is None else _cell(*entry) for entry in entries]
        line = OverviewRow(
            rows[0].name,
            rows[0].method,
            rows[0].backbone,
            rows[0].oracle,
            rows[0].reference,
            cells,
            None,
            _differs(rows),
        )
        if line.complete and averaged:
            scores = [cell.score for cell in cells if cell is not None and cell.score is not None]
            line = replace(line, mean=float(np.mean(scores)))
        result.rows.append(line)
    sign = -1.0 if columns[0].higher_is_better else 1.0

    def order(row: OverviewRow) -> tuple[bool, int, float, str]:
        filled = [cell for cell in row.cells if cell is not None]
        value = sign * row.mean if row.mean is not None else float(np.mean([cell.row for cell in filled]))
        return not row.complete, -len(filled), value if row.complete else 0.0, row.name

    result.rows.sort(key=order)
    if not averaged:
        result.notes.append("No mean: the columns have different metrics, or versions of one.")
    elif not all(row.complete for row in result.rows):
        result.notes.append("A mean is given only where no cell is missing, failed or short of seeds.")
    for line in result.rows:
        if line.differs:
            result.notes.append(f"{line.name}: the columns differ in {', '.join(line.differs)}.")
    return result


def protocol_labels(tables: Sequence[Table]) -> list[str]:
    """Protocol of each table, with as much of its key as it takes to tell the tables of a data set apart."""
    labels = [table.key.protocol for table in tables]
    for extra in ("condition", "metric", "mask_fingerprint", "dataset_fingerprint", "metric_version"):
        groups: dict[tuple[str, str], list[int]] = {}
        for place, table in enumerate(tables):
            groups.setdefault((table.key.dataset, labels[place]), []).append(place)
        for twins in groups.values():
            values = [str(getattr(tables[place].key, extra)) for place in twins]
            if len(set(values)) > 1:
                for place, value in zip(twins, values, strict=True):
                    labels[place] = f"{labels[place]} · {value[:8]}"
    return labels


def _cell(position: int, row: Row) -> OverviewCell:
    wanted = len(row.seeds) + len(row.missing_seeds)
    return OverviewCell(position, row.status, row.score, row.low, row.high, row.rank, len(row.seeds), wanted)


def _differs(rows: Sequence[Row]) -> list[str]:
    """Options of method, backbone and trainer that are not the same in all rows."""
    names = []
    for part in ("method", "backbone", "trainer"):
        configs = [row.config.get(part, {}) for row in rows]
        if not all(isinstance(config, dict) for config in configs):
            continue
        for name in dict.fromkeys(name for config in configs for name in config):
            if any(config.get(name) != configs[0].get(name) for config in configs):
                names.append(f"{part}.{name}")
    return names
