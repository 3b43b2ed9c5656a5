"""What the metrics compute: numpy functions on `(logits, labels)`, equal to scikit-learn.

Every metric is written once, for S weightings of the samples at the same time: one weighting of ones gives the
score, the counts of S bootstrap resamples give S scores in a few matrix products.  A score that is not defined
(no samples, AUROC with one class) is NaN, never 0.

Shapes: `logits` `[N, C]`; `labels` `[N]` class indices, `[N, C]` 0/1 rows (multilabel) or `[N, C]` values
(regression); `weights` `[S, N]`; results `[S]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.types import BoolArray

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]

ECE_BINS = 15


#: What a metric keeps of every sample, `[N]` or `[N, K]`, and the scores `[S]` that follow from weighted sums of it
#: (`[S]` or `[S, K]`) and the sums of the weights `[S]`; for `[N]` elementwise, so that `[S, R]` gives `[S, R]`.
Parts = tuple[Floats, Callable[[Floats, Floats], Floats]]


@dataclass(frozen=True)
class Score:
    """A metric: called, it scores all samples; `resampled` scores many weightings of them.

    Attributes:
        weighted: `(logits, labels, weights) -> [S]`.
        parts: `(logits, labels) -> Parts` of a metric that is a function of sums over samples: then one matrix
            product scores many methods at the same time.
    """

    weighted: Callable[[Floats, Labels, Floats], Floats]
    parts: Callable[[Floats, Labels], Parts] | None = None

    @classmethod
    def of_sums(cls, parts: Callable[[Floats, Labels], Parts]) -> Score:
        """A metric that is a function of sums over samples."""

        def weighted(logits: Floats, labels: Labels, weights: Floats) -> Floats:
            kept, value = parts(logits, labels)
            return value(weights @ kept, weights.sum(axis=1))

        return cls(weighted, parts)

    def __call__(self, logits: npt.NDArray[Any], labels: Labels) -> float:
        """The score of N samples, each counted once."""
        return float(self.resampled(logits, labels, np.ones((1, len(labels))))[0])

    def resampled(self, logits: npt.NDArray[Any], labels: Labels, weights: Floats) -> Floats:
        """The score under each row of `weights` `[S, N]`, how often each sample is counted."""
        if len(labels) == 0:
            return np.full(len(weights), np.nan)
        return self.weighted(*exact(logits, labels), weights)


def exact(logits: npt.NDArray[Any], labels: Labels) -> tuple[Floats, Labels]:
    """Both in the precision that metrics compute in."""
    kind = np.float64 if labels.ndim == 2 else np.int64
    return np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=kind)


def _ratio(numerator: Floats, denominator: Floats, undefined: float = np.nan) -> Floats:
    """Elementwise quotient; `undefined` where the denominator is 0."""
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), undefined)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def _mean_defined(values: Floats) -> Floats:
    """Mean over the defined entries of each row `[S, K]`; NaN where there is none."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def _sample_mean(values: Floats) -> Parts:
    """Weighted mean of one value per sample `[N]`."""
    return values, _ratio


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    # Summed in sorted order: samples with the same logits in another order tie exactly, on every machine.
    return np.asarray(shifted - np.log(np.exp(np.sort(shifted, axis=1)).sum(axis=1, keepdims=True)))


def _binary_columns(logits: Floats, labels: Labels) -> tuple[Floats, BoolArray]:
    """Scores and truths of the yes/no questions that ranking metrics average over, both `[N, K]`.

    Binary: the one question "class 1?", by logit1 - logit0; multiclass: one-vs-rest, by softmax probability;
    multilabel: every label, by its logit.
    """
    if labels.ndim == 2:
        return logits, labels > 0.5
    if logits.shape[1] == 2:
        return (logits[:, 1] - logits[:, 0])[:, None], (labels == 1)[:, None]
    return np.exp(_log_softmax(logits)), labels[:, None] == np.arange(logits.shape[1])


def _accuracy(logits: Floats, labels: Labels) -> Parts:
    return _sample_mean((logits.argmax(axis=1) == labels).astype(np.float64))


def _uar(logits: Floats, labels: Labels) -> Parts:
    predicted, true = _decisions(logits, labels, 0.0)

    def value(sums: Floats, total: Floats) -> Floats:  # noqa: ARG001
        hits, support = np.split(sums, 2, axis=1)
        return _mean_defined(_ratio(hits, support))

    return np.hstack([predicted * true, true]), value


def _decisions(logits: Floats, labels: Labels, threshold: float) -> tuple[Floats, Floats]:
    """Predicted and true 0/1 indicators, both `[N, C]`; multilabel decides by `logit >= threshold`."""
    if labels.ndim == 2:
        return (logits >= threshold).astype(np.float64), (labels > 0.5).astype(np.float64)
    classes = np.arange(logits.shape[1])
    predicted = logits.argmax(axis=1)[:, None] == classes
    return predicted.astype(np.float64), (labels[:, None] == classes).astype(np.float64)


def _f1(average: str, threshold: float = 0.0) -> Score:
    def parts(logits: Floats, labels: Labels) -> Parts:
        predicted, true = _decisions(logits, labels, threshold)
        if average == "samples":
            hits, total = (predicted * true).sum(axis=1), (predicted + true).sum(axis=1)
            return _sample_mean(_ratio(2 * hits, total, undefined=0.0))
        # Macro: classes that occur neither in labels nor in predictions do not count, labels always do.
        absent = 0.0 if labels.ndim == 2 else np.nan

        def value(sums: Floats, total: Floats) -> Floats:  # noqa: ARG001
            hits, chosen, support = np.split(sums, 3, axis=1)
            both = chosen + support
            if average == "micro":
                return _ratio(2 * hits.sum(axis=1), both.sum(axis=1), undefined=0.0)
            if average == "weighted":
                return _ratio((_ratio(2 * hits, both, undefined=0.0) * support).sum(axis=1), support.sum(axis=1), 0.0)
            return _mean_defined(_ratio(2 * hits, both, undefined=absent))

        return np.hstack([predicted * true, predicted, true]), value

    return Score.of_sums(parts)


def _ranked(scores: Floats, true: BoolArray, weights: Floats, value: Callable[[Floats, Floats], Floats]) -> Floats:
    """Applies `value(positives, negatives)` to the weights `[S, G]` of groups of equal score, highest first."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    taken, positive = weights[:, order], true[order]
    positives = np.add.reduceat(taken * positive, starts, axis=1)
    negatives = np.add.reduceat(taken * ~positive, starts, axis=1)
    return value(positives, negatives)


def _roc_area(positives: Floats, negatives: Floats) -> Floats:
    """Share of (positive, negative) pairs in the right order; ties count half."""
    above = positives.cumsum(axis=1) - positives / 2
    return _ratio((above * negatives).sum(axis=1), positives.sum(axis=1) * negatives.sum(axis=1))


def _step_precision(positives: Floats, negatives: Floats) -> Floats:
    """Precision at every threshold, weighted by the recall that it adds."""
    hits = positives.cumsum(axis=1)
    precision = _ratio(hits, hits + negatives.cumsum(axis=1), undefined=0.0)
    return _ratio((positives * precision).sum(axis=1), positives.sum(axis=1))


def _macro(value: Callable[[Floats, Floats], Floats]) -> Score:
    def weighted(logits: Floats, labels: Labels, weights: Floats) -> Floats:
        scores, true = _binary_columns(logits, labels)
        columns = [_ranked(scores[:, k], true[:, k], weights, value) for k in range(scores.shape[1])]
        return _mean_defined(np.stack(columns, axis=1))

    return Score(weighted)


def _auroc_columns(logits: Floats, labels: Labels, weights: Floats) -> Floats:
    true = labels == 1
    return (_ranked(logits[:, 1], true, weights, _roc_area) + _ranked(logits[:, 0], ~true, weights, _roc_area)) / 2


def _log_loss(logits: Floats, labels: Labels) -> Parts:
    if labels.ndim == 2:
        losses = np.logaddexp(0.0, np.where(labels > 0.5, -logits, logits)).mean(axis=1)
    else:
        losses = -_log_softmax(logits)[np.arange(len(labels)), labels]
    return _sample_mean(losses)


def _ece(logits: Floats, labels: Labels, weights: Floats) -> Floats:
    if labels.ndim == 2:
        right = (logits >= 0) == (labels > 0.5)
        confidence = 1.0 / (1.0 + np.exp(-np.abs(logits)))
    else:
        right = (logits.argmax(axis=1) == labels)[:, None]
        confidence = np.exp(_log_softmax(logits).max(axis=1))[:, None]
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    excess = confidence - right
    per_bin = np.stack([np.where(bins == index, excess, 0.0).sum(axis=1) for index in range(ECE_BINS)], axis=1)
    return _ratio(np.abs(weights @ per_bin).sum(axis=1), weights.sum(axis=1) * right.shape[1])


def _mae(logits: Floats, labels: Labels) -> Parts:
    return _sample_mean(np.abs(logits - labels).mean(axis=1))


def _rmse(logits: Floats, labels: Labels, weights: Floats) -> Floats:
    squares = _ratio(weights @ (logits - labels) ** 2, weights.sum(axis=1, keepdims=True))
    return np.asarray(np.sqrt(squares).mean(axis=1))


def _correlation(logits: Floats, labels: Labels, weights: Floats) -> Floats:
    count = weights.sum(axis=1, keepdims=True)
    x, y = logits - logits.mean(axis=0), labels - labels.mean(axis=0)
    mean_x, mean_y = _ratio(weights @ x, count), _ratio(weights @ y, count)
    covariance = _ratio(weights @ (x * y), count) - mean_x * mean_y
    spread_x, spread_y = _spread(x, mean_x, weights, count), _spread(y, mean_y, weights, count)
    values = _ratio(covariance, np.sqrt(spread_x * spread_y))
    # Constant labels say nothing and are left out; constant predictions have no correlation.
    undefined = ((spread_x == 0) & (spread_y > 0)).any(axis=1)
    return np.where(undefined, np.nan, _mean_defined(np.clip(values, -1.0, 1.0)))


def _spread(values: Floats, mean: Floats, weights: Floats, count: Floats) -> Floats:
    """Variance `[S, C]`; exactly 0 where it is rounding noise of a constant."""
    square = _ratio(weights @ values**2, count)
    variance = square - mean**2
    return np.where(variance <= 1e-13 * square, 0.0, variance)


accuracy = Score.of_sums(_accuracy)
uar = Score.of_sums(_uar)
f1_micro = _f1("micro")
f1_macro = _f1("macro")
f1_samples = _f1("samples")
f1_weighted = _f1("weighted")
auroc = _macro(_roc_area)
average_precision = _macro(_step_precision)
log_loss = Score.of_sums(_log_loss)
ece = Score(_ece)
mae = Score.of_sums(_mae)
rmse = Score(_rmse)
correlation = Score(_correlation)
auroc_official = Score(_auroc_columns)
f1_micro_logit05 = _f1("micro", threshold=0.5)
f1_samples_logit05 = _f1("samples", threshold=0.5)
