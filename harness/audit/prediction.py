"""Predictions: what moves the logits of a test sample must be that sample's own observed values, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np

from harness.audit.subject import (
    PROBE,
    Subject,
    examples,
    guarded,
    incomplete_first,
    poisoned,
    probe_size,
    take,
)
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.record import AuditResult, Severity
from harness.seeding import derive_seed, seed_everything
from harness.types import FloatArray

#: Padding is replaced by noise of so many standard deviations of the real tokens.
_NOISE = 3.0


def check_predictions(subject: Subject) -> list[AuditResult]:
    """Probes of the test views; each asks the trained method a few samples again."""
    tests = list(subject.views.tests.values())
    # The samples of the probe are shared out over the conditions: many of them cost no more than one.
    chosen = [view for view in tests if not view.present.all()] or [tests[0]]
    # Samples that miss something come first: a probe in which nothing is hidden shows nothing.
    probes = [view.subset(incomplete_first(view)[: probe_size(len(chosen))]) for view in chosen]
    pairs = [poisoned(probe, probe.features) for probe in probes]
    plain = pairs[0][0]
    first = ask(subject, plain)
    return [
        *guarded("non_interference", lambda: _non_interference(subject, pairs, first, len(tests)), "leak"),
        *guarded("labels", lambda: _labels(subject, plain, first), "leak"),
        *guarded("eval_mode", lambda: _eval_mode(subject, plain, first)),
        *guarded("batch_companions", lambda: _companions(subject, plain, first)),
        *guarded("attention_masks", lambda: _attention_masks(subject, probes[0], first)),
    ]


def ask(subject: Subject, view: ObservedDataset, seed: int = 0) -> FloatArray:
    """Logits of a view; `seed` tells draws of one question from those of another."""
    seed_everything(derive_seed(subject.eval_seed, "audit", seed), "predict")
    return subject.engine.predict(subject.method, view)


def _non_interference(
    subject: Subject, pairs: list[tuple[ObservedDataset, ObservedDataset]], first: FloatArray, conditions: int
) -> AuditResult:
    """Logits are bit-identical when every hidden value is replaced by NaN, under every condition that hides."""
    same = True
    for number, (plain, poison) in enumerate(pairs):
        expected = first if number == 0 else ask(subject, plain)
        try:
            same &= np.array_equal(expected, ask(subject, poison))
        except Exception:  # whatever breaks on NaN or an impossible token has read it
            same = False
    hidden = sum(int((~plain.present).sum()) for plain, _ in pairs)
    where = f"{sum(len(plain) for plain, _ in pairs)} test samples"
    where += f" under {len(pairs)} of {conditions} conditions" if conditions > 1 else ""
    detail = f"{hidden} hidden values of {where} poisoned; logits " + (
        "bit-identical" if same else "CHANGED: the method sees hidden values"
    )
    return AuditResult("non_interference", same, detail)


def _labels(subject: Subject, plain: ObservedDataset, first: FloatArray) -> AuditResult:
    """Logits are bit-identical when the batch carries other labels."""
    other = copy.copy(plain)
    classes = plain.labels.dtype.kind == "i"
    other.labels = (plain.labels + 1) % subject.table.spec.task.num_outputs if classes else 1.0 - plain.labels
    other.labels = other.labels.astype(plain.labels.dtype)
    same = np.array_equal(first, ask(subject, other))
    return AuditResult(
        "labels", same, "other labels in the batch, " + ("same logits" if same else "OTHER logits: they are read")
    )


def _eval_mode(subject: Subject, plain: ObservedDataset, first: FloatArray) -> AuditResult:
    """In eval mode nothing trains, a batch asked again gives the same bits, and no seed matters."""
    method = subject.method
    before = method.training
    method.eval()
    awake = [name or type(module).__name__ for name, module in method.named_modules() if module.training]
    method.train(before)
    if awake:
        return AuditResult("eval_mode", False, f"still in train mode after eval(): {examples(awake)}", "warning")
    if np.array_equal(first, ask(subject, plain, seed=1)):
        return AuditResult("eval_mode", True, f"{len(plain)} samples asked again: the same bits, under any seed")
    if np.array_equal(first, ask(subject, plain)):
        return AuditResult("eval_mode", False, "predictions are drawn: another eval_seed gives other logits", "warning")
    return AuditResult("eval_mode", False, "the same batch under the same seed gives other logits", "warning")


def _companions(subject: Subject, plain: ObservedDataset, first: FloatArray) -> AuditResult:
    """A sample's logits do not depend on which other samples are in the batch, or in which order."""
    if len(plain) < 2:
        return AuditResult("batch_companions", True, "one sample only, nothing to compare")
    order = np.arange(len(plain))[::-1]
    halves = np.array_split(order, 2)
    apart = np.concatenate([ask(subject, plain.subset(half)) for half in halves])
    gap = difference(apart, first[order])
    if gap > subject.tolerance and not np.array_equal(first, ask(subject, plain, seed=1)):
        return AuditResult("batch_companions", True, "not tested: predictions are drawn (see eval_mode)", "note")
    detail = f"{len(plain)} samples in another order and in halves: logits differ by {gap:.1g} of their size"
    if gap > subject.tolerance:
        detail += "; other test samples of the batch decide too"
    return AuditResult("batch_companions", gap <= subject.tolerance, detail)


def _attention_masks(subject: Subject, probe: ObservedDataset, first: FloatArray) -> AuditResult:
    """Masks tell padding from tokens, and padding does not reach the logits."""
    blind = [name for name in probe.modalities if _all_ones(probe.features[name])]
    if blind:
        return AuditResult(
            "attention_masks", False, f"mask is all ones, but sequences end in zeros: {', '.join(blind)}", "warning"
        )
    arrays, count = _noisy_padding(probe)
    if not count:
        return AuditResult("attention_masks", True, "no padding among the samples of the probe")
    gap = difference(ask(subject, probe.with_features(arrays)), first)
    detail = f"{count} padding tokens replaced by noise: logits differ by {gap:.1g} of their size"
    if gap > subject.tolerance:
        detail += "; padding is read as if it were data"
    return AuditResult("attention_masks", gap <= subject.tolerance, detail, "warning")


def _all_ones(array: FeatureArray) -> bool:
    """Whether a mask says that every token is real, though sequences of different lengths end in zero vectors."""
    some = np.unique(np.linspace(0, len(array.mask) - 1, 256).astype(np.int64))
    tokens = np.asarray(array.tokens[some])
    if tokens.ndim < 3 or tokens.shape[1] < 2 or not array.mask[some].all():
        return False
    filled = (tokens != 0).reshape(*tokens.shape[:2], -1).any(axis=2)
    # Rows without the modality are zero throughout.
    last = filled[filled.any(axis=1), -1]
    return bool((~last).any()) and bool(last.any())


def _noisy_padding(view: ObservedDataset) -> tuple[Mapping[str, FeatureArray], int]:
    """Features of a view whose observed padding is noise (other token ids, other pixels), and how many tokens it is."""
    draw = np.random.default_rng(0)
    arrays, count = {}, 0
    for column, name in enumerate(view.modalities):
        array = arrays[name] = take(view.features[name], view.rows)
        there = view.present[:, [column]]
        padding, real = there & ~array.mask, there & array.mask
        count += int(padding.sum())
        if not padding.any() or not real.any():
            continue
        if array.tokens.dtype.kind == "f":
            scale = _NOISE * (float(array.tokens[real].std()) + 1e-6)
            array.tokens[padding] = scale * draw.standard_normal(array.tokens[padding].shape)
        else:
            array.tokens[padding] = draw.choice(array.tokens[real], size=int(padding.sum()))
    return arrays, count


def check_replay(subject: Subject, severity: Severity = "leak") -> AuditResult:
    """Whether the method gives the predictions that were stored of it, on a probe of the first condition.

    Args:
        subject: A run that was read back.
        severity: Of other predictions.
    """
    condition, view = next(iter(subject.views.tests.items()))
    probe = view.subset(np.arange(min(PROBE, len(view))))
    first, stored = ask(subject, probe), subject.predictions[condition]
    if not np.array_equal(first, ask(subject, probe, seed=1)):
        return AuditResult("replay", True, "not tested: predictions are drawn (see eval_mode)", "note")
    place = {sample: row for row, sample in enumerate(stored.ids)}
    gap = difference(first, stored.logits[[place[sample] for sample in probe.ids]])
    detail = (
        f"{len(probe)} test samples predicted again from the stored weights: logits differ by {gap:.1g} of their size"
    )
    return AuditResult("replay", gap <= subject.tolerance, detail, severity)


def difference(one: FloatArray, other: FloatArray) -> float:
    """Largest difference of logits, relative to their size."""
    return float(np.abs(one - other).max() / (1.0 + np.abs(other).max()))
