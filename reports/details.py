"""What lies behind a row of a leaderboard: learning curves, confusion, reliability and the worst samples.

All of it comes from records and from the predictions that every run stores; `Inspected` reads each file once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.findings import Agreement, Example, Findings, Recovery
from harness.measures import ECE_BINS
from harness.progress import say
from harness.record import RunRecord
from harness.reports.leaderboard import RunLike
from harness.reports.statistics import NORMAL, Spread
from harness.tracking import StoredRun
from harness.types import Predictions, pattern_names

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: Where `harness ui` answers unless it is told otherwise.
LOCAL_UI = "http://127.0.0.1:5000"
#: So many worst samples are kept for each row.
WORST = 8
#: Learning curves are thinned to at most so many epochs.
CURVE_POINTS = 30


@dataclass(frozen=True)
class Reliability:
    """How sure predictions are and how often they are right, in bins of equal width of the confidence.

    Attributes:
        count: `[B]` decisions per bin.
        confidence: `[B]` sum of their confidences.
        right: `[B]` number of right ones.
    """

    count: Floats
    confidence: Floats
    right: Floats

    def __add__(self, other: Reliability) -> Reliability:
        """The bins of both together, as over seeds."""
        return Reliability(self.count + other.count, self.confidence + other.confidence, self.right + other.right)

    @property
    def points(self) -> list[tuple[float, float, int]]:
        """Mean confidence, share of right decisions and number of every bin that has any."""
        filled = zip(self.confidence, self.right, self.count, strict=True)
        return [(float(sure / n), float(right / n), int(n)) for sure, right, n in filled if n]

    @property
    def error(self) -> float:
        """Expected calibration error of all decisions together."""
        total = float(self.count.sum())
        return float(np.abs(self.confidence - self.right).sum()) / total if total else math.nan


@dataclass(frozen=True)
class Summary:
    """What is kept of the predictions of one run.

    Attributes:
        keys: Sample and test condition of every prediction.
        patterns: Pattern that each was shown in.
        loss: `[N]` log loss of each, for regression the mean absolute error.
        predicted: `[N]` predicted class; None for other tasks.
        labels: `[N]` classes, or `[N, C]`.
        confusion: Classes: `[C, C]` counts, rows are the true classes.  Several labels: `[C, 4]` counts of right
            yes, wrong yes, wrong no and right no.  None for regression.
        reliability: None for regression.
    """

    keys: list[tuple[str, str]]
    patterns: list[str]
    loss: Floats
    predicted: Counts | None
    labels: npt.NDArray[Any]
    confusion: Counts | None
    reliability: Reliability | None


def summarise(predictions: Predictions, kind: str) -> Summary:
    """What reports show of predictions; `kind` is the task's."""
    keys = _keys(predictions.ids, predictions.condition)
    patterns = _patterns(predictions.present.tobytes(), predictions.modalities)
    logits, labels = predictions.logits.astype(np.float64), predictions.labels
    if kind == "regression":
        loss = np.abs(logits - labels).mean(axis=1)
        return Summary(keys, patterns, loss, None, labels, None, None)
    if kind == "multilabel":
        true, said = labels > 0.5, logits >= 0
        loss = np.logaddexp(0.0, np.where(true, -logits, logits)).mean(axis=1)
        table = np.stack([true & said, ~true & said, true & ~said, ~true & ~said], axis=2).sum(axis=0)
        sure, right = 1.0 / (1.0 + np.exp(-np.abs(logits))), true == said
        return Summary(keys, patterns, loss, None, labels, table, _reliability(sure, right))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    predicted, classes = logits.argmax(axis=1), logits.shape[1]
    table = np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    return Summary(
        keys,
        patterns,
        -log_probability[np.arange(len(labels)), labels],
        predicted,
        labels,
        table,
        _reliability(np.exp(log_probability.max(axis=1)), predicted == labels),
    )


#: Runs of one table are about the same samples under the same masks: what they share is made and kept once.
_SHARED = 64


@lru_cache(maxsize=_SHARED)
def _keys(ids: tuple[str, ...], condition: tuple[str, ...]) -> list[tuple[str, str]]:
    """Sample and test condition of every prediction."""
    return list(zip(ids, condition or ("",) * len(ids), strict=True))


@lru_cache(maxsize=_SHARED)
def _patterns(present: bytes, modalities: tuple[str, ...]) -> list[str]:
    """Pattern of every prediction, from the bytes of `[N, M]` bool."""
    rows = np.frombuffer(present, dtype=np.bool_).reshape(-1, len(modalities))
    return pattern_names(rows, modalities)


def _reliability(confidence: Floats, right: npt.NDArray[np.bool_]) -> Reliability:
    """Bins as the metric `ece` has them: a confidence on an edge belongs to the bin below."""
    sure, hit = confidence.ravel(), right.ravel().astype(np.float64)
    bins = np.clip(np.ceil(sure * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    return Reliability(
        np.bincount(bins, minlength=ECE_BINS).astype(np.float64),
        np.bincount(bins, sure, ECE_BINS).astype(np.float64),
        np.bincount(bins, hit, ECE_BINS).astype(np.float64),
    )


@dataclass
class Inspected:
    """A run whose predictions are summarised when something reads them, so that a report reads every file once."""

    run: RunLike
    _summary: Summary | None = field(default=None, init=False, repr=False)

    @property
    def record(self) -> RunRecord:
        """The record."""
        return self.run.record

    @property
    def mlflow_run_id(self) -> str:
        """MLflow's id of the run."""
        return self.run.mlflow_run_id

    @property
    def link(self) -> str:
        """Address of the run's page: on the tracking server, or where `harness ui` shows a local store."""
        run = self.run
        if run.link or not isinstance(run, StoredRun):
            return run.link
        return f"{LOCAL_UI}/#/experiments/{run.experiment_id}/runs/{run.mlflow_run_id}"

    def predictions(self) -> Predictions:
        """Predictions per test sample.

        Raises:
            HarnessError: If they cannot be read.
        """
        predictions = self.run.predictions()
        if self._summary is None:
            kind = str(self.record.dataset.get("task", {}).get("kind", ""))
            self._summary = summarise(predictions, kind)
        return predictions

    def findings(self) -> Findings | None:
        """What `harness inspect` found in it; None where nobody has looked, or it cannot be read."""
        return self._findings

    @cached_property
    def _findings(self) -> Findings | None:
        try:
            return self.run.findings()
        except HarnessError as error:
            say(f"warning: {error}")
            return None

    def summary(self) -> Summary | None:
        """The summary; None for runs without readable predictions."""
        if self._summary is None and self.record.status == "finished":
            try:
                self.predictions()
            except HarnessError:
                return None
        return self._summary


@dataclass(frozen=True)
class WorstSample:
    """A test prediction that the seeds of a row find hardest.

    Attributes:
        sample: Its id.
        condition: Test condition, empty where there is only one.
        pattern: Modalities that it was shown with.
        loss: Mean over seeds.
        label: True class or classes, or values.
        predicted: Class that most seeds predict; empty for other tasks.
        wrong: Seeds that predict another class than the true one; None for other tasks.
    """

    sample: str
    condition: str
    pattern: str
    loss: float
    label: str
    predicted: str
    wrong: int | None


@dataclass(frozen=True)
class Details:
    """What is shown of the runs (seeds) of one row.

    Attributes:
        curves: Name -> one list of values per seed, one value per epoch.
        seeds: Train seed of each of them: runs that failed have none.
        best_epochs: Chosen epoch of each, -1 where nothing was trained.
        task: Kind of the task, which says how to read `confusion`.
        labels: Names of the classes.
        confusion: Summed over seeds, as in `Summary`.
        reliability: All seeds together.
        worst: Hardest first.
        inspected: Seeds whose predictions were read.
        findings: What `harness inspect` found in the seeds that it was asked about.
    """

    curves: dict[str, list[list[float]]]
    seeds: list[int]
    best_epochs: list[int]
    task: str
    labels: list[str]
    confusion: Counts | None
    reliability: Reliability | None
    worst: list[WorstSample]
    inspected: int
    findings: list[Findings] = field(default_factory=list)

    @property
    def recoveries(self) -> list[Recovery]:
        """How well hidden modalities were recovered, mean over the seeds that were inspected."""
        return mean_recoveries(self.findings)

    @property
    def agreements(self) -> list[Agreement]:
        """Whether those that were asked have the same label, mean over the seeds that were inspected."""
        return mean_agreements(self.findings)

    @property
    def examples(self) -> list[Example]:
        """Test samples and whom they asked, of the first seed that was inspected."""
        return self.findings[0].examples if self.findings else []


def inspect(runs: Sequence[Inspected]) -> Details:
    """Puts the seeds of one row together."""
    finished = [run for run in runs if run.record.status == "finished"]
    summaries = [summary for run in finished if (summary := run.summary()) is not None]
    task = runs[0].record.dataset.get("task", {})
    labels = [str(name) for name in task.get("labels", [])]
    # Seeds that predict other samples than the first cannot be put together with it.
    alike = [summary for summary in summaries if summary.keys == summaries[0].keys]
    trained = [run.record for run in finished if run.record.history]
    return Details(
        learning_curves(trained),
        [record.seeds.get("train_seed", 0) for record in trained],
        [record.cost.best_epoch for record in trained],
        str(task.get("kind", "")),
        labels,
        _total([summary.confusion for summary in alike]),
        _total([summary.reliability for summary in alike]),
        worst_samples(alike, labels),
        len(alike),
        findings_of(finished),
    )


def findings_of(runs: Sequence[Inspected]) -> list[Findings]:
    """Findings of the finished runs that were inspected."""
    return [found for run in runs if run.record.status == "finished" and (found := run.findings()) is not None]


def mean_recoveries(findings: Sequence[Findings]) -> list[Recovery]:
    """Mean over seeds of what each of them has; a number that a seed leaves undefined has no mean."""
    groups: dict[tuple[str, str, str], list[Recovery]] = {}
    for one in (each for found in findings for each in found.recoveries):
        groups.setdefault((one.condition, one.pattern, one.modality), []).append(one)
    return [
        Recovery(
            *key,
            group[0].count,
            float(np.mean([one.cosine for one in group])),
            _mean([one.others for one in group]),
            _mean([one.error for one in group]),
            [float(value) for value in np.mean([one.quantiles for one in group], axis=0)],
        )
        for key, group in groups.items()
        if len(group) == len(findings)
    ]


def mean_agreements(findings: Sequence[Findings]) -> list[Agreement]:
    """Mean over seeds of what each of them has."""
    groups: dict[tuple[str, str, int], list[Agreement]] = {}
    for one in (each for found in findings for each in found.agreements):
        groups.setdefault((one.condition, one.use, one.neighbours), []).append(one)
    return [
        Agreement(
            condition,
            use,
            group[0].count,
            neighbours,
            float(np.mean([one.plain for one in group])),
            float(np.mean([one.weighted for one in group])),
            [float(value) for value in np.mean([one.weights for one in group], axis=0)],
        )
        for (condition, use, neighbours), group in groups.items()
        if len(group) == len(findings)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _total(parts: Sequence[Any]) -> Any:
    """Sum of all parts, None where one is."""
    if not parts or any(part is None for part in parts):
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def learning_curves(records: Sequence[RunRecord]) -> dict[str, list[list[float]]]:
    """Training loss and the validation metric that chose the epoch, one list per seed; NaN where an epoch has none."""
    wanted = ["loss", *dict.fromkeys(f"valid/{record.primary_metric}" for record in records)]
    curves = {
        name: [[float(epoch.get(name, math.nan)) for epoch in record.history] for record in records if record.history]
        for name in wanted
    }
    return {name: seeds for name, seeds in curves.items() if any(map(math.isfinite, (v for s in seeds for v in s)))}


def worst_samples(summaries: Sequence[Summary], labels: Sequence[str], count: int = WORST) -> list[WorstSample]:
    """Predictions with the highest loss, averaged over seeds that predict the same samples."""
    if not summaries:
        return []
    first = summaries[0]
    loss = np.mean([summary.loss for summary in summaries], axis=0)
    order = np.argsort(-loss, kind="stable")
    chosen: list[WorstSample] = []
    seen: set[str] = set()
    for row in order.tolist():
        if len(chosen) == count:
            break
        sample, condition = first.keys[row]
        if sample in seen or not math.isfinite(loss[row]):
            continue
        seen.add(sample)
        said, wrong = "", None
        if all(summary.predicted is not None for summary in summaries):
            votes = [int(summary.predicted[row]) for summary in summaries if summary.predicted is not None]
            said = _name(labels, max(dict.fromkeys(votes), key=votes.count))
            wrong = sum(vote != int(first.labels[row]) for vote in votes)
        truth = _truth(first.labels[row], labels, values=first.confusion is None)
        chosen.append(WorstSample(sample, condition, first.patterns[row], float(loss[row]), truth, said, wrong))
    return chosen


def _truth(label: Any, names: Sequence[str], *, values: bool) -> str:
    if not isinstance(label, np.ndarray):
        return _name(names, int(label))
    if values:
        return ", ".join(f"{value:.4g}" for value in label)
    return ", ".join(_name(names, int(index)) for index in np.flatnonzero(label > 0.5)) or "none"


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else str(index)


@dataclass(frozen=True)
class Band:
    """Score under one test condition.

    Attributes:
        condition: Its name.
        score: Mean over seeds.
        low: Lower end of the band.
        high: Upper end.
    """

    condition: str
    score: float
    low: float
    high: float


def condition_bands(records: Sequence[RunRecord], metric: str) -> list[Band]:
    """Mean score per test condition with a 95 % band, in the protocol's order.

    The band adds two variances: that of the test samples, from the recorded interval of each run (its half width is
    1.96 standard errors; mean over seeds), and that of training, the variance over S seeds divided by S (Student's t).
    It is an approximation for curves; the leaderboard's interval of the score over all conditions is a bootstrap.
    """
    bands = []
    done = [record for record in records if record.status == "finished"]
    names = [result.condition for result in done[0].results if result.kind == "condition"] if done else []
    for name in names:
        everything = [result for record in done for result in record.results]
        found = [result for result in everything if (result.condition, result.kind) == (name, "condition")]
        values = np.array([result.metrics.get(metric, math.nan) for result in found])
        if len(values) < len(done) or not np.isfinite(values).all():
            continue
        spans = [result.intervals[metric] for result in found if len(result.intervals.get(metric, [])) == 2]
        sampling = float(np.mean([((high - low) / (2 * NORMAL)) ** 2 for low, high in spans])) if spans else 0.0
        training = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
        half = Spread(sampling, training, max(1, len(values) - 1)).reach() if math.isfinite(sampling) else 0.0
        score = float(values.mean())
        bands.append(Band(name, score, score - half, score + half))
    return bands


def curve_step(curves: Mapping[str, Sequence[Sequence[float]]], limit: int = CURVE_POINTS) -> int:
    """Every how many epochs curves are shown, so that none has more than `limit` points."""
    longest = max((len(seed) for seeds in curves.values() for seed in seeds), default=0)
    return max(1, -(-longest // limit))


@dataclass(frozen=True)
class Picture:
    """A test sample as people see it.

    Attributes:
        text: Its text, empty where it has none.
        image: `data:` address of a small picture, empty where it has none.
    """

    text: str = ""
    image: str = ""


#: `(data set name, fingerprint, ids)` -> what to show; ids may be left out.
Show = Callable[[str, str, Sequence[str]], Mapping[str, Picture]]
