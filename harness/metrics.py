"""Metrics by name: a light registry entry each.  What they compute is in `harness.measures`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness import registry
from harness.config import MetricConfig
from harness.errors import UsageError
from harness.types import TaskSpec

BUILTIN = {
    "accuracy": "harness.metrics:Accuracy",
    "uar": "harness.metrics:Uar",
    "f1_micro": "harness.metrics:F1Micro",
    "f1_macro": "harness.metrics:F1Macro",
    "f1_samples": "harness.metrics:F1Samples",
    "f1_weighted": "harness.metrics:F1Weighted",
    "auroc": "harness.metrics:Auroc",
    "average_precision": "harness.metrics:AveragePrecision",
    "log_loss": "harness.metrics:LogLoss",
    "ece": "harness.metrics:Ece",
    "mae": "harness.metrics:Mae",
    "rmse": "harness.metrics:Rmse",
    "correlation": "harness.metrics:Correlation",
    "auroc_official": "harness.metrics:AurocOfficial",
    "f1_micro_logit05": "harness.metrics:F1MicroLogit05",
    "f1_samples_logit05": "harness.metrics:F1SamplesLogit05",
}

_SKLEARN = "Pedregosa et al.: Scikit-learn: Machine Learning in Python, JMLR 12, 2011"
_F1 = f"van Rijsbergen: Information Retrieval, 1979; averages as in {_SKLEARN}"
_RELEASED = "Behaviour of the code released with REDEEM (KDD 2025) and RAGPT (AAAI 2025)"


@dataclass
class ReplayMetric(MetricConfig):
    """Base of metrics that repeat a mistake of released code, to replay published numbers and for nothing else."""


@dataclass
class Accuracy(MetricConfig):
    """Share of samples whose highest logit is the label; the first of equal logits decides."""

    target: ClassVar[str] = "harness.measures:accuracy"
    summary: ClassVar[str] = "share of samples whose highest logit is the label"
    citation: ClassVar[str] = _SKLEARN
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass")


@dataclass
class Uar(MetricConfig):
    """Unweighted average recall, `UA` in emotion recognition: mean recall of the classes that occur."""

    target: ClassVar[str] = "harness.measures:uar"
    summary: ClassVar[str] = "mean recall of the classes that occur (unweighted accuracy)"
    citation: ClassVar[str] = f"Schuller, Steidl, Batliner: INTERSPEECH 2009 Emotion Challenge; as in {_SKLEARN}"
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass")


@dataclass
class F1Micro(MetricConfig):
    """F1 over all N x C decisions `logit >= 0`; 0 without any positive."""

    target: ClassVar[str] = "harness.measures:f1_micro"
    summary: ClassVar[str] = "F1 over all N x C decisions, logit >= 0"
    citation: ClassVar[str] = _F1
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)


@dataclass
class F1Macro(MetricConfig):
    """Mean F1 over the classes that occur in labels or predictions; of several labels, over all.

    A label that never occurs and is never predicted counts 0.
    """

    target: ClassVar[str] = "harness.measures:f1_macro"
    summary: ClassVar[str] = "mean F1 over classes or labels"
    citation: ClassVar[str] = _F1
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")


@dataclass
class F1Samples(MetricConfig):
    """Mean over samples of the F1 of their label sets; 0 for a sample without labels and predictions."""

    target: ClassVar[str] = "harness.measures:f1_samples"
    summary: ClassVar[str] = "mean over samples of the F1 of their label sets"
    citation: ClassVar[str] = _F1
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)


@dataclass
class F1Weighted(MetricConfig):
    """Mean F1 over classes or labels, weighted by how often each occurs; 0 without any positive."""

    target: ClassVar[str] = "harness.measures:f1_weighted"
    summary: ClassVar[str] = "mean F1 weighted by how often a class or label occurs"
    citation: ClassVar[str] = _F1
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")


@dataclass
class Auroc(MetricConfig):
    """Area under the ROC curve of logit1 - logit0 (two classes), of one-vs-rest probabilities, or of each label.

    Macro average over the classes or labels that have both positives and negatives; NaN when there is none.
    """

    target: ClassVar[str] = "harness.measures:auroc"
    summary: ClassVar[str] = "area under the ROC curve; macro over one-vs-rest or labels"
    citation: ClassVar[str] = "Hanley, McNeil: The meaning and use of the area under a ROC curve, Radiology 143, 1982"
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")


@dataclass
class AveragePrecision(MetricConfig):
    """Precision at every threshold weighted by the recall it adds, on the same scores as `auroc`.

    Macro average over the classes or labels that have positives; NaN when there is none.
    """

    target: ClassVar[str] = "harness.measures:average_precision"
    summary: ClassVar[str] = "area under the precision-recall steps; macro over one-vs-rest or labels"
    citation: ClassVar[str] = _SKLEARN
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")


@dataclass
class LogLoss(MetricConfig):
    """Mean negative log-likelihood in nats; for several labels the mean binary cross-entropy over N x C decisions."""

    target: ClassVar[str] = "harness.measures:log_loss"
    summary: ClassVar[str] = "mean negative log-likelihood, nats"
    citation: ClassVar[str] = "Good: Rational Decisions, JRSS B 14, 1952"
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")
    higher_is_better: ClassVar[bool] = False


@dataclass
class Ece(MetricConfig):
    """Mean gap between confidence and accuracy over 15 bins `((b-1)/15, b/15]` of the highest class probability.

    For several labels every one of the N x C decisions counts, with the probability of the side it takes.
    """

    target: ClassVar[str] = "harness.measures:ece"
    summary: ClassVar[str] = "expected calibration error, 15 equal-width bins"
    citation: ClassVar[str] = "Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017"
    tasks: ClassVar[tuple[str, ...]] = ("binary", "multiclass", "multilabel")
    higher_is_better: ClassVar[bool] = False


@dataclass
class Mae(MetricConfig):
    """Mean absolute error over samples and outputs."""

    target: ClassVar[str] = "harness.measures:mae"
    summary: ClassVar[str] = "mean absolute error"
    citation: ClassVar[str] = _SKLEARN
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    higher_is_better: ClassVar[bool] = False


@dataclass
class Rmse(MetricConfig):
    """Root of the mean squared error of each output, averaged over outputs."""

    target: ClassVar[str] = "harness.measures:rmse"
    summary: ClassVar[str] = "root mean squared error, mean over outputs"
    citation: ClassVar[str] = _SKLEARN
    tasks: ClassVar[tuple[str, ...]] = ("regression",)
    higher_is_better: ClassVar[bool] = False


@dataclass
class Correlation(MetricConfig):
    """Pearson correlation of each output, averaged over the outputs whose labels vary.

    NaN when no label varies or when a prediction is constant.
    """

    target: ClassVar[str] = "harness.measures:correlation"
    summary: ClassVar[str] = "Pearson correlation, mean over outputs"
    citation: ClassVar[str] = (
        "Pearson: Note on regression and inheritance in the case of two parents, Proc. R. Soc. 58, 1895"
    )
    tasks: ClassVar[tuple[str, ...]] = ("regression",)


@dataclass
class AurocOfficial(ReplayMetric):
    """Replays published numbers: mean of AUROC(logit1, y) and AUROC(logit0, 1 - y); `auroc` is the right one."""

    target: ClassVar[str] = "harness.measures:auroc_official"
    summary: ClassVar[str] = "replay only: mean of the AUROCs of both raw logit columns"
    citation: ClassVar[str] = _RELEASED
    tasks: ClassVar[tuple[str, ...]] = ("binary",)


@dataclass
class F1MicroLogit05(ReplayMetric):
    """Replays published numbers: `f1_micro` with decisions `logit >= 0.5`, a probability of 0.62."""

    target: ClassVar[str] = "harness.measures:f1_micro_logit05"
    summary: ClassVar[str] = "replay only: f1_micro that decides by raw logit >= 0.5"
    citation: ClassVar[str] = _RELEASED
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)


@dataclass
class F1SamplesLogit05(ReplayMetric):
    """Replays published numbers: `f1_samples` with decisions `logit >= 0.5`, a probability of 0.62."""

    target: ClassVar[str] = "harness.measures:f1_samples_logit05"
    summary: ClassVar[str] = "replay only: f1_samples that decides by raw logit >= 0.5"
    citation: ClassVar[str] = _RELEASED
    tasks: ClassVar[tuple[str, ...]] = ("multilabel",)


def metrics_for(task: TaskSpec, replay: bool = False) -> list[str]:
    """Names of the metrics that are computed for a task: the primary one, then the others by name.

    Args:
        task: Decides which metrics are defined.
        replay: Whether metrics that only replay published numbers are included.

    Raises:
        UsageError: If the task's primary metric is unknown or not defined for the task.
    """
    metric_for(task, task.primary_metric)
    others = [
        entry.name
        for entry in registry.metrics
        if entry.name != task.primary_metric
        and task.kind in _config(entry.name).tasks
        and (replay or not issubclass(_config(entry.name), ReplayMetric))
    ]
    return [task.primary_metric, *others]


def metric_versions(task: TaskSpec, replay: bool = False) -> dict[str, str]:
    """Version of every metric in `metrics_for`; part of a run's identity."""
    return {name: _config(name).version for name in metrics_for(task, replay)}


def is_higher_better(metric: str) -> bool:
    """Direction of a metric."""
    return _config(metric).higher_is_better


def _config(name: str) -> type[MetricConfig]:
    config = registry.metrics.get(name)
    assert issubclass(config, MetricConfig)
    return config


def metric_for(task: TaskSpec, name: str) -> type[MetricConfig]:
    """The entry of a metric.

    Raises:
        UsageError: If it is unknown or not defined for the task.
    """
    config = _config(name)
    if task.kind not in config.tasks:
        raise UsageError(f"metric {name!r} is not defined for {task.kind} tasks (it is for {', '.join(config.tasks)}).")
    return config
