"""The leaderboard: run records grouped into tables whose rows may be compared, and nothing else.

One table holds runs on the same data set, under the same masks, supervision rule and metric version.  A row is
one method configuration; its score is the mean over train seeds.  All renderers read these objects.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from typing import Any, Protocol

import numpy as np

from harness.config import digest_of, identity_part
from harness.errors import DataError, HarnessError, first_few
from harness.findings import Findings
from harness.predictions import split_conditions
from harness.record import ConditionResult, RunRecord
from harness.reports.beside import compare_published
from harness.reports.blocks import BlockTest, block_tests
from harness.reports.names import row_names
from harness.reports.overview import Overview, overviews
from harness.reports.statistics import (
    Difference,
    Draws,
    Metric,
    bootstrap,
    curve_area,
    detectable,
    pair_tests,
    ranks,
    tie_letters,
)
from harness.reports.table import Badge, Pair, Row, Table, TableKey
from harness.types import Aggregate, Predictions

#: How many differences the name of a row tells, where they are enough.
_TOLD = 2
#: How many unequal options a table names.
_UNEQUAL = 6
#: Fewer train seeds than this are marked: their spread says little.
ENOUGH_SEEDS = 3
_SEEDS = ("mask_seed", "train_seed", "eval_seed")


class RunLike(Protocol):
    """What a report needs of a run; `harness.tracking.StoredRun` is one."""

    @property
    def record(self) -> RunRecord:
        """The record."""

    @property
    def mlflow_run_id(self) -> str:
        """MLflow's id of the run."""

    @property
    def link(self) -> str:
        """Address of the run's page; empty where no server shows one."""

    def predictions(self) -> Predictions:
        """Predictions per test sample."""

    def findings(self) -> Findings | None:
        """What `harness inspect` found in the run; None where nobody has looked."""


@dataclass
class Leaderboard:
    """All tables of a set of runs, and what spans several of them.

    Attributes:
        tables: By data set and protocol.
        overviews: Methods over the tables of one supervision rule, where there are several.
        block_tests: Tests over data sets and protocols, one per supervision rule that has enough of them.
    """

    tables: list[Table]
    overviews: list[Overview] = field(default_factory=list)
    block_tests: list[BlockTest] = field(default_factory=list)

    @classmethod
    def build(cls, runs: Sequence[RunLike]) -> Leaderboard:
        """Groups, aggregates, tests and ranks.

        Args:
            runs: Runs in any order; several with one `run_id` count once (the last).
        """
        unique = list({run.record.run_id: run for run in runs}.values())
        names = row_names(run.record for run in unique)
        groups: dict[TableKey, list[_Scored]] = {}
        for run in unique:
            key, result = headline(run.record)
            groups.setdefault(key, []).append(_Scored(run, result, names[run.record.run_id]))
        ordered = sorted(groups.items(), key=lambda item: tuple(asdict(item[0]).values()))
        tables = [_table(key, scored) for key, scored in ordered]
        return cls(tables, overviews(tables), block_tests(tables))


@dataclass(frozen=True)
class _Scored:
    run: RunLike
    result: ConditionResult | None
    name: str

    @property
    def record(self) -> RunRecord:
        return self.run.record

    @property
    def conditions(self) -> list[ConditionResult]:
        """Results under each of several test conditions."""
        aggregated = self.result is not None and self.result.kind != "condition"
        return [result for result in self.record.results if result.kind == "condition"] if aggregated else []

    @property
    def lost_conditions(self) -> list[str]:
        """Test conditions of the protocol without a result: an incomplete grid is never averaged."""
        there = {result.condition for result in self.conditions}
        wanted = [str(name) for name in self.record.protocol.get("conditions", [])]
        return [name for name in wanted if name not in there] if there else []

    def score(self, metric: str) -> float | None:
        """The score; None for a failed run, an incomplete grid, and a metric that the predictions leave undefined."""
        value = None if self.result is None or self.lost_conditions else self.result.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None

    def predictions(self) -> Predictions:
        """Predictions under all test conditions.

        Raises:
            DataError: If they cannot be read, or are about other conditions than the record.
        """
        predictions = self.run.predictions()
        wanted = [result.condition for result in self.conditions]
        if wanted and list(split_conditions(predictions)) != wanted:
            raise DataError("its predictions are not about the test conditions of its record.")
        return predictions


def headline(record: RunRecord) -> tuple[TableKey, ConditionResult | None]:
    """The table that a record belongs to, and the result that it is ranked by; None when it failed."""
    result = record.results[0] if record.status == "finished" and record.results else None
    protocol = str(record.protocol.get("name", ""))
    key = TableKey(
        str(record.dataset.get("name", "")),
        str(record.dataset.get("fingerprint", "")),
        protocol,
        str(record.protocol.get("headline", protocol)) if result is None else result.condition,
        str(record.protocol.get("supervision", "")),
        str(record.protocol.get("mask_fingerprint", "")),
        record.primary_metric,
        record.metric_versions.get(record.primary_metric, ""),
    )
    return key, result


def _table(key: TableKey, scored: Sequence[_Scored]) -> Table:
    cells: dict[str, list[_Scored]] = {}
    for item in scored:
        cells.setdefault(row_key(item.record), []).append(item)
    all_seeds = sorted({item.record.seeds.get("train_seed", 0) for item in scored})
    sorted_out = [_one_per_seed(items, key.metric) for items in cells.values()]
    groups = [items for items, _ in sorted_out]
    rows = [_row(key, items, all_seeds) for items in groups]
    _tell_apart(rows)
    notes = [_repeated(row, again) for row, (_, again) in zip(rows, sorted_out, strict=True) if again]
    higher = next((item.record.higher_is_better for item in scored if item.result is not None), True)
    sign = -1.0 if higher else 1.0
    order = sorted(
        range(len(rows)), key=lambda at: (rows[at].score is None, sign * (rows[at].score or 0.0), rows[at].name)
    )
    rows, groups = [rows[at] for at in order], [groups[at] for at in order]
    counts = next((dict(item.result.pattern_counts) for item in scored if item.result and not item.record.oracle), {})
    for row in rows:
        if row.oracle and counts and row.counts != counts:
            # Shown everything, its "patterns" are other samples than the other rows'; see `_oracle_patterns`.
            row.per_pattern, row.counts = {}, counts
    table = Table(key, higher, _pattern_order(rows, scored), counts, rows, sorted(notes))
    _mark_tuning(table, [items[0].record.tuning for items in groups])
    _note_inequality(table)
    _fill_conditions(table, groups)
    _compare_with_references(rows, _rank(table, groups), higher)
    table.published, table.refused = compare_published(
        table, lambda position: [item.record for item in groups[position] if item.score(key.metric) is not None]
    )
    return table


def row_key(record: RunRecord) -> str:
    """Digest of what must agree for runs to be seeds of one row: config and code, not seeds and paths."""
    return digest_of({"row": _row_config(record), "name": [record.display_name, record.backbone]})


def _row_config(record: RunRecord) -> dict[str, Any]:
    config = {name: value for name, value in identity_part(record.config).items() if name not in _SEEDS}
    return config | {"code": dict(record.fingerprints)}


def _one_per_seed(items: Sequence[_Scored], metric: str) -> tuple[list[_Scored], list[_Scored]]:
    """The runs of a row in the order of their seeds, and those that score a train seed again, which do not count.

    They are runs under another `eval_seed`, or another `mask_seed` where the masks do not depend on it.  Training was
    drawn once for all of them: as further seeds they would feign certainty.
    """

    def seeds(item: _Scored) -> list[int]:
        return [item.record.seeds.get(name, 0) for name in ("train_seed", "mask_seed", "eval_seed")]

    kept: list[_Scored] = []
    again: list[_Scored] = []
    scored: set[int] = set()
    for item in sorted(items, key=lambda item: (seeds(item), item.record.run_id)):
        there = item.score(metric) is not None
        (again if there and seeds(item)[0] in scored else kept).append(item)
        if there:
            scored.add(seeds(item)[0])
    return kept, again


def _repeated(row: Row, again: Sequence[_Scored]) -> str:
    shown = first_few([item.record.run_id[:12] for item in again], _UNEQUAL)
    return (
        f"{row.name}: of the runs of one train seed under several values of mask_seed or eval_seed (the masks are the "
        f"same) the first counts, not {shown}."
    )


def _row(key: TableKey, items: Sequence[_Scored], all_seeds: Sequence[int]) -> Row:
    record = items[0].record
    done = [item for item in items if item.score(key.metric) is not None]
    failed = [item.record for item in items if item.result is None]
    row = Row(items[0].name, record.method, record.backbone, "finished" if done else record.status)
    row.label, row.preset, row.changed = record.label, record.preset, list(record.changed)
    row.oracle, row.reference, row.config = record.oracle, record.reference, _row_config(record)
    row.seeds = sorted({item.record.seeds.get("train_seed", 0) for item in done})
    row.missing_seeds = [seed for seed in all_seeds if seed not in row.seeds]
    row.error = next((record.error.splitlines()[0] for record in failed if record.error), "")
    results = [item.result for item in done if item.result is not None]
    lost = {name: None for item in items for name in item.lost_conditions}
    undefined = len(items) - len(done) - len(failed) - sum(bool(item.lost_conditions) for item in items)
    row.metrics = _means([result.metrics for result in results])
    row.score = row.metrics.get(key.metric)
    row.per_pattern = _means(
        [
            {name: scores[key.metric] for name, scores in result.per_pattern.items() if key.metric in scores}
            for result in results
            if result.kind == "condition"
        ]
    )
    row.counts = dict(results[0].pattern_counts) if results else {}
    own = results[0].intervals.get(key.metric, []) if len(results) == 1 else []
    if own and all(map(math.isfinite, own)):
        row.low, row.high = own
    costs = [vars(item.record.cost) for item in done]
    row.cost = {
        name: float(max(values) if name.endswith(("_bytes", "_items", "_parameters")) else np.mean(values))
        for name in (costs[0] if costs else {})
        for values in [[cost[name] for cost in costs]]
    }
    checks: dict[str, list[str]] = {}
    for item in items:
        for audit in item.record.audits:
            if not audit.passed or audit.severity == "note":
                seed = item.record.seeds.get("train_seed", 0)
                checks.setdefault(audit.severity, []).append(f"{audit.name} (seed {seed}): {audit.detail}")
    passed = sum(audit.passed for item in items for audit in item.record.audits)
    row.audits = [f"{kind}: {line}" for kind, lines in checks.items() for line in lines] + [f"{passed} checks passed"]
    row.runs = [
        {
            "run_id": item.record.run_id,
            "mlflow_run_id": item.run.mlflow_run_id,
            "link": item.run.link,
            "train_seed": item.record.seeds.get("train_seed", 0),
            "status": item.record.status,
            key.metric: item.score(key.metric),
        }
        for item in items
    ]
    row.badges = _badges(row, key, len(failed), checks)
    if undefined:
        row.badges.append(Badge("undefined", f"{key.metric} undefined in {undefined}", bad=True))
    if lost:
        row.badges.append(Badge("grid", f"incomplete grid, failed: no result under {', '.join(lost)}", bad=True))
    return row


def _fill_conditions(table: Table, groups: Sequence[Sequence[_Scored]]) -> None:
    """Fills what several test conditions add: their scores, other scores over all of them, the drop over a grid."""
    metric = table.key.metric
    for row, items in zip(table.rows, groups, strict=True):
        done = [item for item in items if item.score(metric) is not None]
        by_name = [
            {result.condition: result.metrics.get(metric, math.nan) for result in item.conditions} for item in done
        ]
        row.per_condition = _means(by_name)
        if done and done[0].conditions:
            row.condition_metrics = {
                name: _means([_metrics_of(item.record, name) for item in done])
                for name in (result.condition for result in done[0].record.results)
            }
        row.beside = _means(
            [
                {
                    result.condition: result.metrics.get(metric, math.nan)
                    for result in item.record.results
                    if result.kind != "condition" and result is not item.result
                }
                for item in done
            ]
        )
        if not done or not done[0].conditions:
            continue
        names = [result.condition for result in done[0].conditions]
        if not table.conditions:
            table.conditions, table.beside = names, list(row.beside)
        if not table.condition_counts and not row.oracle:
            table.condition_counts = {
                result.condition: sum(result.pattern_counts.values()) for result in done[0].conditions
            }
        # A pool is over patterns, which have no order; a mean alone is over a grid, the least missing first.
        grid = done[0].result is not None and done[0].result.kind == "mean"
        if grid and {names[0], names[-1]} <= set(row.per_condition):
            fall = row.per_condition[names[0]] - row.per_condition[names[-1]]
            row.drop = fall if table.higher_is_better else -fall
            rates = grid_rates(names)
            if rates and set(names) <= set(row.per_condition):
                table.rates = rates
                row.area = curve_area(rates, [row.per_condition[name] for name in names])


def _badges(row: Row, key: TableKey, failed: int, checks: Collection[str]) -> list[Badge]:
    badges = []
    if row.oracle:
        badges.append(Badge("reference", "oracle, not ranked"))
    elif row.reference:
        badges.append(Badge("reference", f"reference: {row.reference}"))
    if "leak" in checks:
        badges.append(Badge("audit", "audit failed, not ranked", bad=True))
    elif "warning" in checks:
        badges.append(Badge("audit", "audit warning"))
    if failed:
        badges.append(Badge("failed", f"{failed} failed", bad=True))
    if row.missing_seeds and row.seeds:
        badges.append(Badge("seeds", f"{len(row.seeds)} of {len(row.seeds) + len(row.missing_seeds)} seeds", bad=True))
    elif row.seeds and len(row.seeds) < ENOUGH_SEEDS:
        badges.append(Badge("seeds", f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"))
    if row.preset != "clean":
        badges.append(Badge("preset", f"preset {row.preset}"))
    if key.supervision != "observed":
        badges.append(Badge("supervision", f"{key.supervision} supervision"))
    return badges


def _mark_tuning(table: Table, searches: Sequence[Mapping[str, Any]]) -> None:
    """Says of every ranked row whether its options were searched, where those of some row were."""
    if not any(searches):
        return
    budgets = set()
    for row, search in zip(table.rows, searches, strict=True):
        place = (search.get("dataset"), search.get("protocol"))
        elsewhere = "" if place == (table.key.dataset, table.key.protocol) else f" on {place[0]} · {place[1]}"
        if search:
            row.badges.append(Badge("tuning", f"tuned, {search.get('trials')} trials{elsewhere}"))
        elif not row.oracle:
            row.badges.append(Badge("tuning", "not tuned"))
        if search or not row.oracle:
            budgets.add(search.get("trials", 0))
    if len(budgets) > 1:
        shown = ", ".join(str(budget) if budget else "none" for budget in sorted(budgets))
        table.notes.append(f"Rows differ in how much their options were searched (trials: {shown}).")


def _note_inequality(table: Table) -> None:
    """Says in what rows differ that a fair comparison holds the same: training, inputs, a backbone's options."""
    known: dict[str, dict[str, None]] = {}
    for row in table.rows:
        parts = {part: row.config.get(part) or {} for part in ("trainer", "encoders", "encoder_options")}
        if row.backbone:
            parts[row.backbone] = row.config.get("backbone") or {}
        for name, value in _flat(parts).items():
            known.setdefault(name, {})[str(value)] = None
    unequal = [f"{name} ({', '.join(values)})" for name, values in known.items() if len(values) > 1]
    if unequal:
        table.notes.append(f"Rows differ in how they were trained or what they read: {first_few(unequal, _UNEQUAL)}.")


def grid_rates(names: Sequence[str]) -> list[float]:
    """Missing rates of a grid's conditions `<what>_<rate>`, ascending; empty if the names are something else."""
    found = [re.fullmatch(r"(.+)_(\d+(?:\.\d+)?)", name) for name in names]
    matches = [match for match in found if match is not None]
    rates = [float(match[2]) for match in matches]
    whole = len(matches) == len(names) > 1 and len({match[1] for match in matches}) == 1
    return rates if whole and all(low < high for low, high in pairwise(rates)) else []


def _metrics_of(record: RunRecord, condition: str) -> dict[str, float]:
    return next((result.metrics for result in record.results if result.condition == condition), {})


def _means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean per name over all parts; a name that some part lacks, or leaves undefined, has no mean."""
    shared = [
        name for name in (parts[0] if parts else {}) if all(math.isfinite(part.get(name, math.nan)) for part in parts)
    ]
    return {name: float(np.mean([part[name] for part in parts])) for name in shared}


def _tell_apart(rows: Sequence[Row]) -> None:
    """Adds to rows of one name the config entries in which they differ; the row's details have them all."""
    twins: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        twins.setdefault((row.name, row.backbone), []).append(row)
    for group in twins.values():
        if len(group) > 1:
            for row, differences in zip(group, _differences([_flat(row.config) for row in group]), strict=True):
                row.name += f" [{differences}]"


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells each of flat configs from the others: `_TOLD` entries, or as many as it takes."""

    def values(names: Sequence[str]) -> set[str]:
        return {json.dumps([config.get(name) for name in names], default=str) for config in configs}

    names = [name for name in dict.fromkeys(chain.from_iterable(configs)) if len(values([name])) > 1]
    enough = (count for count in range(_TOLD, len(names)) if len(values(names[:count])) == len(configs))
    told = next(enough, len(names))
    return [
        first_few([f"{name}={_short(name, config.get(name, 'unset'))}" for name in names], told) for config in configs
    ]


def _short(name: str, value: Any) -> str:
    """A value as names of rows have it: of the code's fingerprints the beginning."""
    return str(value)[:8] if name.startswith("code.") else str(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _pattern_order(rows: Sequence[Row], scored: Sequence[_Scored]) -> list[str]:
    """Patterns that occur, most modalities first, then in the data set's order of modalities."""
    modalities = [
        str(part.get("name") if isinstance(part, Mapping) else part)
        for part in scored[0].record.dataset.get("modalities", [])
    ]

    def position(pattern: str) -> tuple[int, list[int]]:
        parts = pattern.split("+")
        return -len(parts), [modalities.index(part) if part in modalities else len(modalities) for part in parts]

    names = {name for row in rows if not row.oracle for name in row.per_pattern}
    return sorted(names or {name for row in rows for name in row.per_pattern}, key=position)


def _rank(table: Table, groups: Sequence[Sequence[_Scored]]) -> dict[str, Draws]:
    """Fills intervals and ranks from the stored predictions; says what could not be tested.

    Returns:
        Bootstrap draws by row name and backbone.
    """
    metric = registered_metric(table.key.metric)
    if metric is None:
        table.notes.append(f"Metric {table.key.metric} is not registered here: no ranks, no intervals over seeds.")
        return {}
    tested: list[tuple[Row, list[Predictions]]] = []
    for row, items in zip(table.rows, groups, strict=True):
        done = [item for item in items if item.score(table.key.metric) is not None]
        if not done:
            continue
        try:
            tested.append((row, [item.predictions() for item in done]))
        except HarnessError as error:
            table.notes.append(f"{row.name}: not ranked, its predictions cannot be read ({error})")
    if not tested:
        return {}
    kinds = {item.result.kind for items in groups for item in items if item.result is not None}
    how: Aggregate = "mean" if "mean" in kinds else "pool"
    try:
        draws = bootstrap(metric, [predictions for _, predictions in tested], how=how)
    except HarnessError as error:
        table.notes.append(f"Not ranked: {error}")
        return {}
    if not table.conditions:
        _oracle_patterns(metric, tested)
    for (row, _), own in zip(tested, draws, strict=True):
        span = own.interval(row.score or 0.0)
        if row.low is None and span is not None:
            row.low, row.high = span
    ranked = [column for column, (row, _) in enumerate(tested) if not row.oracle and not row.leaks]
    scores = [tested[column][0].score or 0.0 for column in ranked]
    tests = pair_tests(scores, [draws[column] for column in ranked], higher_is_better=table.higher_is_better)
    places, letters = ranks(len(ranked), tests), tie_letters(len(ranked), tests)
    position = {id(row): at for at, row in enumerate(table.rows)}
    rows = [tested[column][0] for column in ranked]
    for row, place, ties in zip(rows, places, letters, strict=True):
        row.rank, row.ties = place, ties
    for test in tests:
        first, second, difference = rows[test.first], rows[test.second], test.difference
        least = detectable(difference.low, difference.high)
        table.pairs.append(Pair(position[id(first)], position[id(second)], difference, test.p_holm, least))
        if test.first == 0:
            second.p_best = test.p_holm
    return {row.identity: own for (row, _), own in zip(tested, draws, strict=True)}


def _oracle_patterns(metric: Metric, tested: Sequence[tuple[Row, list[Predictions]]]) -> None:
    """Scores oracles on the samples of each pattern that the other rows were shown, so that columns compare."""
    masked = next((runs[0] for row, runs in tested if not row.oracle), None)
    if masked is None:
        return
    patterns = np.array(masked.patterns())
    for row, runs in tested:
        if row.oracle:
            row.per_pattern = _means(
                [
                    {name: metric(run.logits[patterns == name], run.labels[patterns == name]) for name in row.counts}
                    for run in runs
                ]
            )


def registered_metric(name: str) -> Metric | None:
    """The function of a metric; None when nothing of this name is registered here."""
    from harness import registry

    if name not in registry.metrics:
        return None
    metric: Metric = registry.metrics.get(name).implementation()
    return metric


def _compare_with_references(rows: Sequence[Row], draws: Mapping[str, Draws], higher_is_better: bool) -> None:
    """Fills `over_floor` and `gap_recovered` from the `zero_fill` floor and the oracle that match each row best."""
    floors = [row for row in rows if row.reference == "floor" and row.method == "zero_fill"]
    oracles = [row for row in rows if row.oracle]
    for row in rows:
        floor, oracle = _reference(row, floors), _reference(row, oracles)
        if row.score is None or floor is None or floor.score is None:
            continue
        own, base = draws.get(row.identity), draws.get(floor.identity)
        if row is not floor and own is not None and base is not None:
            row.over_floor = Difference.between(row.score, floor.score, own, base)
        if oracle is None or oracle.score is None:
            continue
        gap = oracle.score - floor.score
        if gap != 0 and (gap > 0) == higher_is_better:
            row.gap_recovered = (row.score - floor.score) / gap


def _reference(row: Row, candidates: Sequence[Row]) -> Row | None:
    """The one candidate of the row's backbone (any, for rows without), trained alike if there are several."""
    fitting = [other for other in candidates if other.score is not None and row.backbone in ("", other.backbone)]
    if len(fitting) > 1:
        alike = ("trainer", "backbone", "encoders")
        fitting = [other for other in fitting if all(other.config.get(part) == row.config.get(part) for part in alike)]
    return fitting[0] if len(fitting) == 1 else None
