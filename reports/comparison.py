"""Two methods against each other, on every cell that both have: the same data, masks, supervision and train seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness import registry
from harness.config import MetricConfig
from harness.errors import DataError, UsageError
from harness.predictions import split_conditions
from harness.record import RunRecord
from harness.reports.leaderboard import RunLike, headline, registered_metric, row_key
from harness.reports.names import row_names
from harness.reports.statistics import Difference, Metric, compare, detectable, holm
from harness.reports.table import TableKey
from harness.types import Aggregate, Predictions

_TIE = 1e-12
_RUN_ID = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Part:
    """The difference on a part of the test predictions.

    Attributes:
        name: Missing pattern, or test condition where there are several.
        count: Number of predictions.
        score_a: Mean over seeds of A.
        score_b: Mean over seeds of B.
        difference: `score_a - score_b`.
        p_holm: p-value adjusted over the parts of the cell (Holm).
    """

    name: str
    count: int
    score_a: float
    score_b: float
    difference: Difference
    p_holm: float = 1.0


@dataclass(frozen=True)
class PairedCell:
    """A and B in one cell.

    Attributes:
        key: What both share.
        name_a: Display name of A.
        name_b: Display name of B.
        seeds: Train seeds that both have; others are left out.
        samples: Number of test samples.
        higher_is_better: Direction of the metric.
        score_a: Mean over seeds of A.
        score_b: Mean over seeds of B.
        difference: `score_a - score_b`, paired bootstrap over samples and seeds.
        p_holm: p-value adjusted over all cells of the comparison (Holm).
        mcnemar: Exact McNemar p-value; only for the accuracy of one seed.
        wins: Seeds with which A is better, equal, worse.
        detectable: Smallest true difference that would be found (level 0.05) with a probability of 80 %.
        parts: Per pattern or condition.
        notes: What a reader must know.
    """

    key: TableKey
    name_a: str
    name_b: str
    seeds: tuple[int, ...]
    samples: int
    higher_is_better: bool
    score_a: float
    score_b: float
    difference: Difference
    mcnemar: float | None
    wins: tuple[int, int, int]
    detectable: float
    p_holm: float = 1.0
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = field(default=())


def select(runs: Sequence[RunLike], text: str) -> list[RunLike]:
    """Finished runs that a text names: `METHOD`, `METHOD:option=value,…`, or beginnings of run ids, comma-separated.

    Of a method's variants those are taken that change nothing but the options named (and the preset, if it is named);
    where there is none, all that agree with the options.  `METHOD:tuned=true` names what `harness tune` chose.

    Raises:
        UsageError: If nothing is found.
    """
    done = [run for run in runs if run.record.status == "finished" and run.record.results]
    ids = [part.strip() for part in text.split(",")]
    if all(_RUN_ID.fullmatch(part) for part in ids):
        found = [run for run in done if run.record.run_id.startswith(tuple(ids))]
        lost = [part for part in ids if not any(run.record.run_id.startswith(part) for run in found)]
        if lost:
            raise UsageError(f"no finished run has an id that begins with {lost[0]!r}.")
        return found
    name, _, rest = text.partition(":")
    options = _options(text, rest)
    found = [run for run in done if run.record.method == name and _agrees(run.record, options)]
    if not found:
        known = sorted({run.record.method for run in done})
        raise UsageError(
            f"no finished run of {text!r} is recorded here; there are runs of {', '.join(known) or 'none'}."
        )
    plain = [
        run
        for run in found
        if {entry.partition("=")[0] for entry in run.record.set_by_hand} <= set(options)
        and ("tuned" in options or not run.record.tuning)
        and ("preset" in options or run.record.preset == "clean")
    ]
    return plain or found


def pair(runs_a: Sequence[RunLike], runs_b: Sequence[RunLike]) -> list[PairedCell]:
    """Compares two methods in every cell that both have.

    Raises:
        UsageError: If there is no such cell (saying what differs), or one method has several variants in a cell.
        DataError: If predictions cannot be read, or a metric is of another version than the one installed.
    """
    cells_a, cells_b = _cells(runs_a), _cells(runs_b)
    shared = [key for key in cells_a if key in cells_b]
    if not shared:
        raise UsageError(_why_not(cells_a, cells_b))
    cells, apart = [], ""
    for key in shared:
        a, b = _by_seed(cells_a[key]), _by_seed(cells_b[key])
        seeds = sorted(set(a) & set(b))
        if not seeds:
            apart = f"on {key.dataset} under {key.protocol} train seeds are {sorted(a)} and {sorted(b)}"
            continue
        same = [seed for seed in seeds if a[seed].record.run_id == b[seed].record.run_id]
        if same:
            raise UsageError(f"both sides name run {a[same[0]].record.run_id[:12]}; compare it with another.")
        cells.append(_compare(key, [a[seed] for seed in seeds], [b[seed] for seed in seeds], seeds))
    if not cells:
        raise UsageError(f"nothing can be paired: {apart}; run both with the same seeds.")
    adjusted = holm([cell.difference.p for cell in cells])
    return [replace(cell, p_holm=p) for cell, p in zip(cells, adjusted, strict=True)]


def _options(text: str, rest: str) -> dict[str, str]:
    options = {}
    for part in filter(None, rest.split(",")):
        name, sign, value = part.partition("=")
        if not sign or not name or not value:
            raise UsageError(f"cannot read {text!r}: write METHOD:option=value, e.g. redeem:generator=padding.")
        options[name.strip()] = value.strip()
    return options


def _agrees(record: RunRecord, options: Mapping[str, str]) -> bool:
    method = record.config.get("method", {}) | {"tuned": bool(record.tuning)}
    return all(name in method and _text(method[name]) == value.lower() for name, value in options.items())


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower()


def _cells(runs: Sequence[RunLike]) -> dict[TableKey, list[RunLike]]:
    cells: dict[TableKey, list[RunLike]] = {}
    for run in {run.record.run_id: run for run in runs}.values():
        cells.setdefault(headline(run.record)[0], []).append(run)
    return dict(sorted(cells.items(), key=lambda item: tuple(vars(item[0]).values())))


def _by_seed(runs: Sequence[RunLike]) -> dict[int, RunLike]:
    """Runs of one configuration by train seed."""
    variants = {row_key(run.record): run for run in runs}
    if len(variants) > 1:
        first, second = list(variants.values())[:2]
        raise UsageError(
            f"{len(variants)} variants of {first.record.display_name} are recorded in one cell, e.g. runs "
            f"{first.record.run_id[:12]} and {second.record.run_id[:12]}; name options (METHOD:option=value) or ids."
        )
    by_seed: dict[int, RunLike] = {}
    for run in runs:
        seed = run.record.seeds["train_seed"]
        if seed in by_seed:
            raise UsageError(f"train seed {seed} of {run.record.display_name} has several runs; name run ids.")
        by_seed[seed] = run
    return by_seed


def _why_not(cells_a: Mapping[TableKey, Any], cells_b: Mapping[TableKey, Any]) -> str:
    """What keeps the two closest cells apart."""
    names = {
        "dataset": "data sets",
        "dataset_fingerprint": "versions of the data set",
        "protocol": "protocols",
        "condition": "scores over their test conditions",
        "supervision": "supervision rules",
        "mask_fingerprint": "masks",
        "metric": "metrics",
        "metric_version": "versions of the metric",
    }

    def first(a: TableKey, b: TableKey) -> int:
        return next(place for place, name in enumerate(names) if getattr(a, name) != getattr(b, name))

    a, b = max(((a, b) for a in cells_a for b in cells_b), key=lambda both: first(*both))
    name = list(names)[first(a, b)]
    left, right = (str(getattr(key, name))[:24] for key in (a, b))
    return f"these runs cannot be paired: they are on different {names[name]} ({left} and {right})."


def _compare(key: TableKey, a: Sequence[RunLike], b: Sequence[RunLike], seeds: Sequence[int]) -> PairedCell:
    metric = registered_metric(key.metric)
    if metric is None:
        raise DataError(f"metric {key.metric} is not registered here; load its plugin with --plugin FILE.")
    entry = registry.metrics.get(key.metric)
    assert issubclass(entry, MetricConfig)
    if entry.version != key.metric_version:
        raise DataError(
            f"these runs were scored with {key.metric} version {key.metric_version}, installed is {entry.version}; "
            "run them again."
        )
    result = headline(a[0].record)[1]
    how: Aggregate = "mean" if result is not None and result.kind == "mean" else "pool"
    names = row_names(run.record for run in (*a, *b))
    shown_a, shown_b = [run.predictions() for run in a], [run.predictions() for run in b]
    whole = compare(metric, shown_a, shown_b, how=how)
    sign = 1.0 if entry.higher_is_better else -1.0
    gains = [
        sign * (compared.record.results[0].metrics[key.metric] - other.record.results[0].metrics[key.metric])
        for compared, other in zip(a, b, strict=True)
    ]
    wins = (sum(gain > _TIE for gain in gains), sum(abs(gain) <= _TIE for gain in gains))
    oracles = [name for name, runs in (("A", a), ("B", b)) if runs[0].record.oracle]
    leaks = [
        f"{name}: a leak check of run {run.record.run_id[:12]} failed"
        for name, runs in (("A", a), ("B", b))
        for run in runs
        if any(not check.passed and check.severity == "leak" for check in run.record.audits)
    ]
    return PairedCell(
        key,
        names[a[0].record.run_id],
        names[b[0].record.run_id],
        tuple(seeds),
        whole.samples,
        entry.higher_is_better,
        whole.score_a,
        whole.score_b,
        whole.difference,
        whole.mcnemar,
        (*wins, len(gains) - sum(wins)),
        detectable(whole.difference.low, whole.difference.high),
        parts=_parts(metric, shown_a, shown_b, masked=shown_b[0] if oracles == ["A"] else shown_a[0]),
        notes=(*(f"{name} is an oracle: it was shown every modality" for name in oracles), *leaks),
    )


def _parts(metric: Metric, a: Sequence[Predictions], b: Sequence[Predictions], masked: Predictions) -> tuple[Part, ...]:
    """Differences per test condition, or per pattern where there is only one condition."""
    several = len(split_conditions(masked)) > 1
    names = np.array(masked.condition if several else masked.patterns())
    parts = []
    for name in dict.fromkeys(names.tolist()):
        rows = np.flatnonzero(names == name)
        found = compare(metric, [_rows(run, rows) for run in a], [_rows(run, rows) for run in b])
        if math.isfinite(found.difference.value):
            parts.append(Part(name, len(rows), found.score_a, found.score_b, found.difference))
    adjusted = holm([part.difference.p for part in parts])
    return tuple(replace(part, p_holm=p) for part, p in zip(parts, adjusted, strict=True))


def _rows(predictions: Predictions, rows: Any) -> Predictions:
    return replace(
        predictions,
        ids=tuple(predictions.ids[row] for row in rows),
        logits=predictions.logits[rows],
        labels=predictions.labels[rows],
        present=predictions.present[rows],
        condition=tuple(predictions.condition[row] for row in rows) if predictions.condition else (),
    )
