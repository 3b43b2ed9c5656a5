"""The leaderboard as one self-contained HTML page: tables as HTML, everything behind a row as packed data.

The tables are plain HTML, so that they can be read, printed and searched without JavaScript.  Details and figures are
drawn by `report.js` from JSON, packed with gzip, when a reader asks for them: a page of thousands of runs stays
small and quick.  Every text of a record is either escaped by jinja2 or set as text by the script.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.reports.blocks import BlockTest
from harness.reports.details import Details, Inspected, Show, condition_bands, curve_step, inspect
from harness.reports.leaderboard import Leaderboard, RunLike
from harness.reports.overview import Overview, OverviewCell
from harness.reports.render import GUIDE, Column, best_rows, columns, notes
from harness.reports.sections import EMPTY, Section, duels_section, published_section, score_text, wins_section
from harness.reports.statistics import Difference
from harness.reports.table import Row, Table

_HERE = Path(__file__).parent
#: A text that sorts as the number it is.
_PLAIN = re.compile(r"-?\d+(\.\d+)?( %)?")
#: Learning curves are drawn from so many levels between their lowest and highest value.
_LEVELS = 100
#: Letters of run ids: enough to find a run by.
_ID = 16
#: Confusion tables of more classes are left out: nobody can read them, and they would fill the page.
MOST_CLASSES = 60


@dataclass(frozen=True)
class TableView:
    """One table for the template.

    Attributes:
        table: The table.
        number: From 1, its anchor.
        columns: Without the column of remarks, which stand below the name.
        best: Column key -> positions of the best rows.
        notes: Below the table.
        published: Published numbers beside the rows.
        first_runs: Per row the beginning of its first run's id, its anchor.
        published_runs: The anchors of the rows of `published`.
    """

    table: Table
    number: int
    columns: list[Column]
    best: dict[str, set[int]]
    notes: list[str]
    published: Section | None
    first_runs: list[str]
    published_runs: list[str]

    @property
    def leaders(self) -> list[Row]:
        """Rows that nothing is significantly better than, best first."""
        return [row for row in self.table.rows if row.rank == 1]

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(row.runs) for row in self.table.rows)


def to_html(board: Leaderboard, runs: Sequence[Inspected] = (), show: Show | None = None) -> str:
    """One page without any outside reference but links to MLflow; every string of a record is escaped.

    Args:
        board: What to show.
        runs: The runs behind it, for everything that is shown on a click; without them only what the board holds.
        show: Finds texts and pictures of test samples.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    views = [_view(number, table) for number, table in enumerate(board.tables, start=1)]
    by_id = {run.record.run_id: run for run in runs}
    places = _places(runs)
    data = {
        "places": list(places),
        "tables": [_table_data(view, by_id, places, show) for view in views],
        "tests": [
            {
                "methods": test.methods,
                "ranks": test.mean_ranks,
                "groups": test.groups,
                "critical": test.critical_difference,
                "blocks": len(test.blocks),
            }
            for test in board.block_tests
        ],
    }
    return environment.get_template("report.html.j2").render(
        views=views,
        overviews=board.overviews,
        tests=board.block_tests,
        depth=_depth,
        pairs=_pairs,
        facts=_facts(board, runs),
        facets=_facets(board),
        sources=_sources(runs),
        guide=GUIDE,
        sort_value=sort_value,
        kind=_kind,
        score_text=score_text,
        css=(_HERE / "report.css").read_text(encoding="utf-8"),
        first_run=lambda overview, place, cell: views[overview.columns[place].table].first_runs[cell.row],
        start=(_HERE / "start.js").read_text(encoding="utf-8"),
        script=pack_text((_HERE / "report.js").read_text(encoding="utf-8")),
        data=pack(data),
    )


def pack(data: Any) -> str:
    """JSON, gzip (the same bytes every time), base64: letters that need no escaping in a page."""
    return pack_text(json.dumps(_finite(data), separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=str))


def pack_text(text: str) -> str:
    """Text, gzip, base64."""
    # A lone surrogate, as in a damaged name, has no UTF-8.
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)).decode("ascii")


def unpack(text: str) -> Any:
    """What `pack` packed."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _rounded(value: Any) -> Any:
    """Measured numbers to the four decimals of the tables; what is smaller than 0.01 stays, so that charts keep it."""
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) and abs(value) >= 0.01 else value


def sort_value(column: Column, row: Row) -> str | None:
    """What a column is sorted by: empty where there is no value, None where the shown text does."""
    value = column.value(row)
    if isinstance(value, tuple):
        value = value[0]
    if isinstance(value, Difference):
        value = value.value
    if value is None:
        return None if column.cell(row) == EMPTY else ""
    if not isinstance(value, (int, float)) or _PLAIN.fullmatch(column.cell(row)):
        return None
    return f"{value:.6g}"


def _kind(row: Row) -> str:
    """`oracle`, `floor`, `failed` or `method`: how a row is marked."""
    if row.score is None:
        return "failed"
    return "oracle" if row.oracle else "floor" if row.reference == "floor" else "method"


def _view(number: int, table: Table) -> TableView:
    shown = [column for column in columns(table) if column.key != "badges"]
    anchors = [str(row.runs[0]["run_id"])[:12] if row.runs else "" for row in table.rows]
    return TableView(
        table,
        number,
        shown,
        {column.key: best_rows(table, column) for column in shown},
        notes(table),
        published_section(table),
        anchors,
        [anchors[one.row] for one in table.published],
    )


def _facts(board: Leaderboard, runs: Sequence[Inspected]) -> list[tuple[str, str]]:
    """Size and age of the report, for its head."""
    rows = [row for table in board.tables for row in table.rows]
    counts = {
        "run": sum(len(row.runs) for row in rows),
        "method": len({row.method for row in rows}),
        "data set": len({table.key.dataset_fingerprint for table in board.tables}),
        "table": len(board.tables),
    }
    facts = [(name if count == 1 else f"{name}s", str(count)) for name, count in counts.items()]
    newest = max((run.record.finished for run in runs), default="")
    return [*facts, *([("newest run", newest[:10])] if newest else [])]


def _facets(board: Leaderboard) -> dict[str, list[str]]:
    """Values of what tables can be filtered by, where there are several."""
    values = {
        name: sorted({str(getattr(table.key, name)) for table in board.tables})
        for name in ("dataset", "protocol", "supervision", "metric")
    }
    return {name: found for name, found in values.items() if len(found) > 1}


def _sources(runs: Sequence[RunLike]) -> list[dict[str, Any]]:
    """Data sets with version, licence and citation."""
    found = {str(run.record.dataset.get("fingerprint", "")): run.record.dataset for run in runs}
    return sorted(
        (
            {
                "name": str(data.get("name", "")),
                "version": str(data.get("version", "")),
                "fingerprint": fingerprint,
                "license": str(data.get("license", "")),
                "citation": str(data.get("citation", "")),
                "splits": ", ".join(f"{name} {count}" for name, count in data.get("splits", {}).items()),
            }
            for fingerprint, data in found.items()
        ),
        key=lambda source: (source["name"], source["fingerprint"]),
    )


def _depth(overview: Overview, place: int, cell: OverviewCell) -> int:
    """Shade of a cell in percent: 0 for the worst score of its column, 100 for the best."""
    found = [row.cells[place] for row in overview.rows]
    values = [other.score for other in found if other is not None and other.score is not None]
    span = max(values) - min(values)
    if cell.score is None or not span:
        return 50
    share = (cell.score - min(values)) / span
    return round(100 * (share if overview.columns[place].higher_is_better else 1.0 - share))


def _pairs(test: BlockTest) -> list[Section]:
    """Every two methods over the blocks."""
    return [wins_section(test), duels_section(test)]


@dataclass
class _Shared:
    """Key-value facts of many rows: what all have in common once, and what each has of its own."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def common(self) -> dict[str, Any]:
        """Entries with one value in every row."""
        first = self.rows[0] if self.rows else {}
        return {
            name: value
            for name, value in first.items()
            if all(name in row and _same(row[name], value) for row in self.rows)
        }

    def own(self) -> Iterator[dict[str, Any]]:
        """The other entries, row by row."""
        for row in self.rows:
            yield {name: value for name, value in row.items() if name not in self.common}


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, default=str, sort_keys=True) == json.dumps(other, default=str, sort_keys=True)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, Mapping) and part:
            flat |= _flat(part, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = (
                part if isinstance(part, (bool, int, float, str)) else json.dumps(part, default=str)
            )
    return flat


def _places(runs: Sequence[Inspected]) -> dict[str, int]:
    """Addresses of runs without the ids that end them, numbered: they are many runs'."""
    found = dict.fromkeys(place for run in runs if (place := _place(run)))
    return {place: number for number, place in enumerate(found)}


def _place(run: Inspected) -> str:
    """Address of a run's page without its id; empty where there is none."""
    return run.link.removesuffix(run.mlflow_run_id) if run.mlflow_run_id and run.link else ""


def _coded(seeds: Sequence[Sequence[float]]) -> list[Any]:
    """Curves as `[lowest, highest, whole numbers from 0 to _LEVELS]`: a chart shows no more."""
    known = [value for seed in seeds for value in seed if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high - low or 1.0
    return [
        low,
        high,
        [[round(_LEVELS * (value - low) / span) if math.isfinite(value) else None for value in seed] for seed in seeds],
    ]


def _table_data(
    view: TableView, by_id: Mapping[str, Inspected], places: Mapping[str, int], show: Show | None
) -> dict[str, Any]:
    """What the script needs of one table."""
    table = view.table
    behind = [[by_id[str(run["run_id"])] for run in row.runs if str(run["run_id"]) in by_id] for row in table.rows]
    details = [inspect(found) if found else None for found in behind]
    configs = _Shared([_flat(row.config) for row in table.rows])
    environments = _Shared([_flat(found[0].record.environment) if found else {} for found in behind])
    rows = [
        _rounded(_row_data(table, row, found, detail, places)) | {"config": config, "environment": environment}
        for row, found, detail, config, environment in zip(
            table.rows, behind, details, configs.own(), environments.own(), strict=True
        )
    ]
    ids = dict.fromkeys(name for detail in details if detail for name in _samples(detail))
    pictures = show(table.key.dataset, table.key.dataset_fingerprint, list(ids)) if show and ids else {}
    return {
        "title": table.title,
        "metric": table.key.metric,
        "higher": table.higher_is_better,
        "patterns": table.patterns,
        "counts": table.condition_counts or table.pattern_counts,
        "several": bool(table.conditions),
        "levels": _LEVELS,
        "rates": dict(zip(table.conditions, table.rates, strict=True)) if table.rates else {},
        "config": configs.common,
        "environment": environments.common,
        "task": next((detail.task for detail in details if detail), ""),
        "labels": next((detail.labels for detail in details if detail), []),
        "samples": {name: asdict(pictures[name]) for name in ids if name in pictures},
        "rows": rows,
    }


def _samples(detail: Details) -> Iterator[str]:
    """Ids of everything that is shown with its picture."""
    yield from (sample.sample for sample in detail.worst)
    for example in detail.examples:
        yield example.sample
        yield from (other.sample for other in example.neighbours)


def _row_data(
    table: Table, row: Row, found: Sequence[Inspected], detail: Details | None, places: Mapping[str, int]
) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": row.name,
        "kind": _kind(row),
        "rank": row.rank,
        "score": row.score,
        "low": row.low,
        "high": row.high,
        "patterns": row.per_pattern,
        "metrics": row.metrics,
        "cost": row.cost,
        "counts": row.counts,
        "error": next((run.record.error for run in found if run.record.error), row.error),
        "audits": _audits(row, found),
        "runs": [
            [run["train_seed"], run["status"], run.get(table.key.metric), run["run_id"][:_ID], run["mlflow_run_id"]]
            for run in row.runs
        ],
        "places": [places.get(_place(run), -1) for run in found],
    }
    bands = condition_bands([run.record for run in found], table.key.metric) if table.conditions else []
    if bands:
        data["bands"] = [[band.condition, band.score, band.low, band.high] for band in bands]
    if detail is None:
        return data
    step = curve_step(detail.curves)
    data["curve_step"] = step
    data["curves"] = {name: _coded([seed[::step] for seed in seeds]) for name, seeds in detail.curves.items()}
    data["curve_seeds"] = detail.seeds
    data["best_epochs"] = detail.best_epochs
    if detail.confusion is not None and len(detail.confusion) <= MOST_CLASSES:
        data["confusion"] = detail.confusion.tolist()
    if detail.reliability is not None:
        data["reliability"] = [(round(sure, 3), round(right, 3), n) for sure, right, n in detail.reliability.points]
        data["calibration_error"] = detail.reliability.error
    data["worst"] = [list(vars(sample).values()) for sample in detail.worst]
    data["inspected"] = detail.inspected
    if detail.findings:
        data["looked"] = len(detail.findings)
        data["recovered"] = [list(asdict(one).values())[:-1] for one in detail.recoveries]
        data["asked"] = [list(asdict(one).values()) for one in detail.agreements]
        data["examples"] = [
            [*list(asdict(one).values())[:-1], [list(asdict(other).values()) for other in one.neighbours]]
            for one in detail.examples
        ]
        data["remarks"] = sorted({remark for found in detail.findings for remark in found.remarks})
    return data


def _audits(row: Row, found: Sequence[Inspected]) -> list[list[Any]]:
    """`[name, passed, severity, detail]` of the first seed's checks and of those that other seeds failed."""
    if not found:
        return [["", True, "", line] for line in row.audits]
    first = [[audit.name, audit.passed, audit.severity, audit.detail] for audit in found[0].record.audits]
    others = [
        [audit.name, False, audit.severity, f"seed {run.record.seeds.get('train_seed', 0)}: {audit.detail}"]
        for run in found[1:]
        for audit in run.record.audits
        if not audit.passed
    ]
    return first + others
