"""The objects of a report: tables of rows that may be compared.  Renderers and figures read them, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from harness.reports.published import Published
from harness.reports.statistics import Difference

Verdict = Literal["agrees", "ours is higher", "ours is lower", "one run has no spread"]
BadgeKind = Literal["reference", "audit", "failed", "seeds", "preset", "supervision", "undefined", "grid", "tuning"]


@dataclass(frozen=True)
class TableKey:
    """What runs must share to be compared; `condition` names the score by which they are ranked."""

    dataset: str
    dataset_fingerprint: str
    protocol: str
    condition: str
    supervision: str
    mask_fingerprint: str
    metric: str
    metric_version: str


@dataclass(frozen=True)
class Badge:
    """A short warning or fact about a row.

    Attributes:
        kind: What it is about.
        text: For people.
        bad: Whether the row's numbers suffer from it.
    """

    kind: BadgeKind
    text: str
    bad: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Pair:
    """Two ranked rows of one table, tested in pairs over test samples and seeds.

    Attributes:
        first: Position in `Table.rows` of the row with the better score.
        second: Position of the other one.
        difference: Score of `first` minus score of `second`, with its 95 % interval and unadjusted p-value.
        p_holm: p-value adjusted over all pairs of the table (Holm).
        detectable: Smallest true difference that these seeds and samples would show (level 0.05, unadjusted) with a
            probability of 80 %.
    """

    first: int
    second: int
    difference: Difference
    p_holm: float
    detectable: float


@dataclass(frozen=True)
class Beside:
    """A published number and ours for the same method, data set, protocol, condition and metric.

    Attributes:
        row: Position of our row in `Table.rows`.
        condition: Test condition, or score over all of them; empty where there is only one.
        metric: Metric.
        published: The number, a fraction, with where it was read.
        repetitions: Runs behind it, as far as known, else 1.
        ours: Mean over our seeds.
        spread: Standard deviation over our seeds; None for a single one.
        low: Lower end of the range in which the mean of `repetitions` further runs of ours would fall (Student's t,
            95 %): both were tested on the same samples, so that only training differs.
        high: Upper end.
        seeds: Number of our seeds.
        verdict: `agrees` where the published number lies in the range; else on which side of it ours lies.
    """

    row: int
    condition: str
    metric: str
    published: Published
    repetitions: int
    ours: float
    spread: float | None
    low: float | None
    high: float | None
    seeds: int
    verdict: Verdict


@dataclass
class Row:
    """One method configuration in one table.

    Attributes:
        name: Method, label, preset, changed options, backbone where the report has several of the method; with whatever
            else tells it from rows of the same name.
        method: Registered name.
        backbone: Backbone, empty for methods without one.
        status: `finished`, or `failed` when no seed finished.
        label: Variant of the method.
        preset: Fidelity preset.
        changed: Options that differ from the preset as `option=value`.
        rank: One more than the number of significantly better rows; None for rows that are not ranked.
        ties: Letters of its tie groups: rows that share a letter cannot be told apart; empty for unranked rows.
        p_best: p-value (Holm over all pairs) of the difference to the ranked row with the best score; None for that
            row and for unranked ones.
        score: Mean of the primary metric over seeds.
        low: Lower end of the 95 % interval.
        high: Upper end.
        seeds: Train seeds that finished.
        missing_seeds: Train seeds that other rows of the table have and this one lacks or failed.
        per_pattern: Pattern -> mean of the primary metric; empty where there are several test conditions.
        per_condition: Test condition -> mean of the primary metric, where there are several.
        beside: Other scores over all test conditions by name, never mixed with `score`.
        drop: How much worse the last condition of a grid is than its first, the one that misses least.
        area: Area under the curve of score over missing rate (trapezoids), divided by the span of rates; for grids.
        gap_recovered: `(score - floor) / (oracle - floor)`; None where it is undefined.
        over_floor: Difference to the floor, tested in pairs.
        cost: Means over seeds of seconds, and the largest of what a seed needed.
        oracle: Whether the method was shown every modality.
        reference: `floor`, `ceiling` or None.
        badges: Short warnings and facts.
        error: First line of the first failure.
        metrics: Every metric, mean over seeds.
        condition_metrics: Test condition -> metric -> mean over seeds, where there are several conditions; scores over
            all of them too.
        config: Config without seeds and paths.
        audits: One line per failed or passed check.
        counts: Test samples per pattern.
        runs: The records behind the row: `run_id`, `mlflow_run_id`, `link` (to the page on a tracking server, else
            empty), seed, status and score of each run.
    """

    name: str
    method: str
    backbone: str
    status: str
    label: str = ""
    preset: str = ""
    changed: list[str] = field(default_factory=list)
    rank: int | None = None
    ties: str = ""
    p_best: float | None = None
    score: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: list[int] = field(default_factory=list)
    missing_seeds: list[int] = field(default_factory=list)
    per_pattern: dict[str, float] = field(default_factory=dict)
    per_condition: dict[str, float] = field(default_factory=dict)
    beside: dict[str, float] = field(default_factory=dict)
    drop: float | None = None
    area: float | None = None
    gap_recovered: float | None = None
    over_floor: Difference | None = None
    cost: dict[str, float] = field(default_factory=dict)
    oracle: bool = False
    reference: str | None = None
    badges: list[Badge] = field(default_factory=list)
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    condition_metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    audits: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """What tells the row from the others of its table, and finds it again in other tables."""
        return f"{self.name}|{self.backbone}"

    @property
    def complete(self) -> bool:
        """Whether every train seed of the table stands behind the score."""
        return self.score is not None and not self.missing_seeds

    @property
    def leaks(self) -> bool:
        """Whether a leak check failed."""
        return any(badge.kind == "audit" and badge.bad for badge in self.badges)


@dataclass
class Table:
    """Rows that may be compared, best first; unranked oracles at their score, failures last.

    Attributes:
        key: What the rows share.
        higher_is_better: Direction of the metric.
        patterns: Patterns that occur, most modalities first.
        pattern_counts: Test samples per pattern.
        rows: The rows.
        notes: What could not be tested, and why.
        conditions: Test conditions, where there are several, in the protocol's order.
        condition_counts: Test samples per condition.
        rates: Missing rates of the conditions, where they are a grid of rates; else empty.
        beside: Names of other scores over all conditions.
        pairs: Every two ranked rows against each other.
        published: Published numbers beside ours.
        refused: Why other published numbers of these methods on this data set are not.
    """

    key: TableKey
    higher_is_better: bool
    patterns: list[str]
    pattern_counts: dict[str, int]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    condition_counts: dict[str, int] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    published: list[Beside] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Heading of the table."""
        condition = f", ranked by {self.key.condition}" if self.key.condition != self.key.protocol else ""
        masks = self.key.mask_fingerprint[:8]
        return (
            f"{self.key.dataset} · {self.key.protocol}{condition} · {self.key.supervision} supervision · masks {masks}"
        )
