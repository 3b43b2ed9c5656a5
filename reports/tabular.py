"""One line per row of every table, unrounded: CSV for spreadsheets, Parquet for programs."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import Any

from harness.reports.leaderboard import Leaderboard
from harness.reports.render import columns

_KEY = (
    *("dataset", "dataset_fingerprint", "protocol", "condition", "supervision", "mask_fingerprint"),
    *("metric", "metric_version"),
)


def lines_of(board: Leaderboard) -> list[dict[str, Any]]:
    """Every row of every table by column name; all lines have the same names, in the same order."""
    lines: list[dict[str, Any]] = []
    for table in board.tables:
        shown = [column for column in columns(table) if column.key not in ("interval", "over_floor")]
        for row in table.rows:
            key = asdict(table.key)
            line: dict[str, Any] = {name: key[name] for name in _KEY}
            line |= {"status": row.status, "low": row.low, "high": row.high}
            line |= {column.key: column.value(row) for column in shown}
            over = asdict(row.over_floor) if row.over_floor else {}
            line |= {f"over_floor_{name}": over.get(name) for name in ("value", "low", "high", "p")}
            line |= {f"metric:{name}": value for name, value in row.metrics.items()}
            line["missing_seeds"] = " ".join(map(str, row.missing_seeds))
            line["run_ids"] = " ".join(run["run_id"] for run in row.runs)
            line["links"] = " ".join(run["link"] for run in row.runs if run["link"])
            lines.append(line)
    names = list(dict.fromkeys(name for line in lines for name in line))
    return [{name: line.get(name) for name in names} for line in lines]


def to_csv(board: Leaderboard) -> str:
    """CSV; where there is no value the cell is empty."""
    lines = lines_of(board)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else _KEY, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{name: _no_formula(value) for name, value in line.items()} for line in lines])
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets a quote in front."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r", " ")  # which would end a line, and is not quoted
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t") else value


def to_parquet(board: Leaderboard) -> bytes:
    """Parquet with the columns of the CSV; where there is no value the cell is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = lines_of(board)
    fields = list(lines[0]) if lines else list(_KEY)
    table = pa.table({name: [line[name] for line in lines] for name in fields})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())
