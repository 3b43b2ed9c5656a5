"""Predictions: what moves the logits of a test sample must be that sample's own observed values, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from harness.audit.subject import (
    PROBE,
    Subject,
    guarded,
    incomplete_first,
    poisoned,
    probe_size,
    take,
)
from harness.backbone import Backbone
from harness.errors import first_few
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.record import AuditResult, Severity
from harness.seeding import derive_seed, seed_everything
from harness.types import FloatArray, IntArray

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
        *guarded("padding_length", lambda: _padding_length(subject, chosen[0], probes[0], first)),
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
        return AuditResult("eval_mode", False, f"still in train mode after eval(): {first_few(awake)}", "warning")
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
    begun = np.maximum.accumulate(filled[:, ::-1], axis=1)[:, ::-1]
    if (begun & ~filled).any():
        return False  # zeros amid others are values, e.g. the empty corners of a sprite, and so may those at the end be
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


def _padding_length(subject: Subject, view: ObservedDataset, probe: ObservedDataset, first: FloatArray) -> AuditResult:
    """Logits do not depend on how far sequences are padded; shows padding that is read as zeros, too.

    Sequences get more padding.  What only takes sequences up to the length that it was built for is shown them with
    less: without the steps that are padding in all samples.  A backbone with a place for every step of its input gets
    padding behind its embeddings.  What mixes sequences with others of a fixed length is asked about complete samples.
    """
    complete = view.subset(np.flatnonzero(view.present.all(axis=1))[: len(probe)])
    padded = [name for name in view.modalities if any(_has_padding(part, name) for part in (probe, complete))]
    if not padded:
        return AuditResult("padding_length", True, "no padding among the samples of the probe")
    for change in (_lengthened, _shortened, _behind_embeddings):
        for part in (probe, complete) if len(complete) else (probe,):
            try:
                asked, steps, found = change(subject, part, padded)
            except Exception:  # it takes no sequences of this length
                continue
            if not steps:
                continue
            gap = difference(found, (first if part is probe else ask(subject, part))[asked])
            detail = f"{steps} of padding, {len(asked)} samples: logits differ by {gap:.1g} of their size"
            if gap > subject.tolerance:
                detail += "; padding is read as if it were data"
            return AuditResult("padding_length", gap <= subject.tolerance, detail, "warning")
    return AuditResult("padding_length", True, "not tested: takes sequences of one length only", "note")


def _has_padding(view: ObservedDataset, name: str) -> bool:
    """Whether a sample of a view shows a modality with padding."""
    there = view.present[:, [view.modalities.index(name)]]
    return bool((there & ~view.features[name].mask[view.rows]).any())


#: Rows that were asked, what was done to their sequences (empty: nothing could be), and their logits.
_Asked = tuple[IntArray, str, FloatArray]


def _lengthened(subject: Subject, view: ObservedDataset, padded: Sequence[str]) -> _Asked:
    """Asks with half as many steps of padding behind each sequence."""
    arrays, steps = {}, []
    for name in view.modalities:
        array = take(view.features[name], view.rows)
        if name in padded:
            more = _more(array.mask.shape[1])
            steps.append(f"{more} more steps of {name!r}")
            tokens = np.zeros((len(view), more, *array.tokens.shape[2:]), dtype=array.tokens.dtype)
            mask = np.zeros((len(view), more), dtype=np.bool_)
            array = replace(
                array, tokens=np.concatenate([array.tokens, tokens], 1), mask=np.concatenate([array.mask, mask], 1)
            )
        arrays[name] = array
    return np.arange(len(view)), ", ".join(steps), ask(subject, view.with_features(arrays))


def _shortened(subject: Subject, view: ObservedDataset, padded: Sequence[str]) -> _Asked:
    """Asks about samples with a short sequence, without the steps that are padding in all of them."""
    most, shorter, chosen = 0, "", np.zeros(0, dtype=np.int64)
    for name in padded:
        mask = view.features[name].mask[view.rows]
        ends = (mask * np.arange(1, mask.shape[1] + 1)).max(axis=1, initial=1)
        # The shorter half of what is not as long as can be.
        short = np.flatnonzero(view.present[:, view.modalities.index(name)] & (ends < mask.shape[1]))
        short = short[ends[short] <= np.median(ends[short])] if len(short) else short
        less = mask.shape[1] - int(ends[short].max(initial=1))
        if len(short) and less > most:
            most, shorter, chosen = less, name, short
    if not most:
        return chosen, "", np.zeros((0, 0), dtype=np.float32)
    arrays = {name: take(view.features[name], view.rows[chosen]) for name in view.modalities}
    array = arrays[shorter]
    arrays[shorter] = replace(array, tokens=array.tokens[:, :-most], mask=array.mask[:, :-most])
    return chosen, f"{most} fewer steps of {shorter!r}", ask(subject, view.subset(chosen).with_features(arrays))


def _behind_embeddings(subject: Subject, view: ObservedDataset, padded: Sequence[str]) -> _Asked:
    """Asks with steps of padding behind what backbones embed, if there are any."""
    steps: dict[str, str] = {}
    with ExitStack() as stack:
        for backbone in (module for module in subject.method.modules() if isinstance(module, Backbone)):
            more = {name: _more(backbone.length(name)) for name in backbone.modalities if name in padded}
            stack.enter_context(_longer_embeddings(backbone, more))
            steps |= {name: f"{count} more embedded steps of {name!r}" for name, count in more.items()}
        return np.arange(len(view)), ", ".join(steps.values()), ask(subject, view)


@contextmanager
def _longer_embeddings(backbone: Backbone, more: Mapping[str, int]) -> Iterator[None]:
    """Lets `embed` return so many more steps, zeros that its mask calls padding, and `length` count them."""
    embed, length = backbone.embed, backbone.length

    def embedded(modality: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden, real = embed(modality, tokens, mask)
        padding = (len(hidden), more.get(modality, 0))
        return (
            torch.cat([hidden, hidden.new_zeros(*padding, *hidden.shape[2:])], 1),
            torch.cat([real, real.new_zeros(padding)], 1),
        )

    backbone.embed = embedded  # type: ignore[method-assign]
    backbone.length = lambda modality: length(modality) + more.get(modality, 0)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backbone.embed, backbone.length


def _more(length: int) -> int:
    """Steps that a sequence is lengthened by."""
    return length // 2 + 1


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
