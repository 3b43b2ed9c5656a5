"""Leak checks that run on every cell and are stored in its record.

Each check returns an `AuditResult`; a failed check of severity `leak` is shown as a badge and never hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.features import FeatureArray
from harness.masking import MaskTable, ObservedDataset
from harness.method import Method
from harness.protocol import Protocol
from harness.record import AuditResult
from harness.retrieval import Bank
from harness.trainer import FitResult
from harness.types import SPLITS, DataTable, IntArray

_PROBE = 64
_LEAST_PROBE = 8


@dataclass(frozen=True)
class Views:
    """The observed splits of a run; the test split once per test condition."""

    train: ObservedDataset
    valid: ObservedDataset
    tests: Mapping[str, ObservedDataset]

    def parts(self) -> dict[str, ObservedDataset]:
        """All views by a name for people: `train`, `valid`, and `test` or one `test:<condition>` each."""
        several = len(self.tests) > 1
        tests = {f"test:{name}" if several else "test": view for name, view in self.tests.items()}
        return {"train": self.train, "valid": self.valid, **tests}


def audit_before(
    table: DataTable, masks: MaskTable, protocol: Protocol, features: Mapping[str, FeatureArray]
) -> list[AuditResult]:
    """Checks ids, splits and the mask table before anything is trained."""
    return [
        _check_ids(masks),
        _check_twins(table, features),
        _check_masks(table, masks, protocol),
    ]


def audit_after(
    method: Method,
    views: Views,
    features: Mapping[str, FeatureArray],
    fit: FitResult,
    supervision: str,
    declared_terms: Sequence[str],
    predict: Callable[[Method, ObservedDataset], npt.NDArray[np.float32]],
) -> list[AuditResult]:
    """Checks what the trained method did: selection, loss terms, banks, and whether hidden values reach it."""
    results = [_check_selection(fit)]
    if fit.history:
        results.append(_check_terms(fit, declared_terms))
    for name, bank in method.banks().items():
        results.append(_check_bank(name, bank, views, supervision))
        results.append(_check_self_retrieval(name, bank, views))
    results.append(_check_non_interference(method, list(views.tests.values()), features, predict))
    return results


def _check_ids(masks: MaskTable) -> AuditResult:
    seen: dict[str, str] = {}
    shared = []
    for split in SPLITS:
        for name in masks.ids[split]:
            if name in seen:
                shared.append(f"{name!r} in {seen[name]} and {split}")
            seen[name] = split
    detail = "; ".join(shared[:3]) if shared else f"{len(seen)} ids, unique and disjoint over splits"
    return AuditResult("ids", not shared, detail)


def _check_twins(table: DataTable, features: Mapping[str, FeatureArray]) -> AuditResult:
    """Samples of valid or test whose every modality is identical to a training sample's."""
    digests = np.stack([features[name].digest for name in table.spec.modality_names], axis=1)
    train = {tuple(row) for row in digests[table.splits["train"]].tolist()}
    twins = [
        table.ids[row]
        for split in ("valid", "test")
        for row in table.splits[split]
        if tuple(digests[row].tolist()) in train
    ]
    if twins:
        return AuditResult(
            "split_overlap", False, f"{len(twins)} samples are copies of training samples, e.g. {twins[0]!r}"
        )
    return AuditResult("split_overlap", True, "no sample of valid or test is a copy of a training sample")


def _check_masks(table: DataTable, masks: MaskTable, protocol: Protocol) -> AuditResult:
    """The table in force is the one the protocol draws, and nobody is left without a modality."""
    again = MaskTable.build(protocol, table, masks.mask_seed).fingerprint
    kept = all(rows.any(axis=1).all() for rows in masks.present.values())
    kept &= all(rows.any() for rows in masks.conditions.values())
    rates = [rates for part, rates in masks.missing_rates().items() if part.startswith("test")]
    spans = {name: sorted({min(rate[name] for rate in rates), max(rate[name] for rate in rates)}) for name in rates[0]}
    where = f"test ({len(rates)} conditions)" if masks.conditions else "test"
    detail = f"realised missing on {where}: " + ", ".join(
        f"{name} {' to '.join(f'{rate:.1%}' for rate in span)}" for name, span in spans.items()
    )
    skipped = sum(int((~rows.any(axis=1)).sum()) for rows in masks.conditions.values())
    if skipped:
        detail += f"; {skipped} times a condition skipped a sample that lacks what it shows"
    if again != masks.fingerprint:
        return AuditResult("masks", False, f"mask table {masks.fingerprint[:12]} is not what {protocol.name} draws")
    return AuditResult("masks", kept, detail)


def _check_selection(fit: FitResult) -> AuditResult:
    looks = fit.selection_looks
    detail = ", ".join(f"{split}: {count} looks" for split, count in looks.items()) or "nothing was selected"
    return AuditResult("selection_split", set(looks) <= {"valid"}, f"{detail}; test is opened once, after selection")


def _check_terms(fit: FitResult, declared: Sequence[str]) -> AuditResult:
    dead = [term for term in declared if not any(abs(epoch.get(f"loss/{term}", 0.0)) > 0 for epoch in fit.history)]
    if dead:
        return AuditResult("loss_terms", False, f"declared but always zero: {', '.join(dead)}")
    return AuditResult("loss_terms", True, f"alive: {', '.join(declared)}")


def _check_bank(name: str, bank: Bank, views: Views, supervision: str) -> AuditResult:
    """Bank items are training samples, with no modality that the protocol hides from training."""
    check = f"bank:{name}"
    train = {sample: row for row, sample in enumerate(views.train.ids)}
    foreign = [sample for sample in bank.ids if sample not in train]
    if foreign:
        where = next((part for part, view in views.parts().items() if foreign[0] in view.ids), "unknown")
        return AuditResult(check, False, f"{len(foreign)} of {len(bank)} items are not training samples ({where})")
    rows = np.array([train[sample] for sample in bank.ids])
    hidden = bank.present & ~views.train.present[rows]
    if hidden.any() and supervision != "complete":
        return AuditResult(check, False, f"{int(hidden.any(axis=1).sum())} items carry values hidden from training")
    note = f", {int(hidden.any(axis=1).sum())} with simulated-missing values" if hidden.any() else ""
    return AuditResult(check, True, f"{len(bank)} items, all from train{note}")


def _check_self_retrieval(name: str, bank: Bank, views: Views) -> AuditResult:
    """No query finds itself, in any split."""
    found: dict[str, int] = {}
    for part, whole in views.parts().items():
        view = whole.subset(np.arange(min(_PROBE, len(whole))))
        batch = view.batch(np.arange(len(view)))
        index = bank.neighbours(batch, min(3, len(bank))).index.numpy()
        hits = sum(
            sample in {bank.ids[item] for item in row if item >= 0} for sample, row in zip(view.ids, index, strict=True)
        )
        if hits:
            found[part] = hits
    detail = ", ".join(f"{count} {part} queries find themselves" for part, count in found.items())
    return AuditResult(f"self_retrieval:{name}", not found, detail or "no query finds itself")


def poisoned(view: ObservedDataset, features: Mapping[str, FeatureArray]) -> tuple[ObservedDataset, ObservedDataset]:
    """Two copies of a view that differ in hidden values only: as stored, and replaced by NaN or extreme integers."""
    rows = view.rows
    plain, poison = {}, {}
    for column, name in enumerate(view.modalities):
        array = features[name]
        plain[name] = _take(array, rows)
        poison[name] = _poison(plain[name], np.flatnonzero(~view.present[:, column]))
    return view.with_features(plain), view.with_features(poison)


def _take(array: FeatureArray, rows: IntArray) -> FeatureArray:
    return FeatureArray(
        np.array(array.tokens[rows]),
        np.array(array.mask[rows]),
        np.array(array.pooled[rows]),
        np.array(array.digest[rows]),
    )


def _poison(array: FeatureArray, rows: IntArray) -> FeatureArray:
    tokens, mask, pooled, digest = (
        array.tokens.copy(),
        array.mask.copy(),
        array.pooled.copy(),
        array.digest.copy(),
    )
    tokens[rows] = np.nan if tokens.dtype.kind == "f" else np.iinfo(tokens.dtype).max
    mask[rows], pooled[rows], digest[rows] = True, np.nan, -1
    return FeatureArray(tokens, mask, pooled, digest)


def _check_non_interference(
    method: Method,
    tests: Sequence[ObservedDataset],
    features: Mapping[str, FeatureArray],
    predict: Callable[[Method, ObservedDataset], npt.NDArray[np.float32]],
) -> AuditResult:
    """Predictions are bit-identical when every hidden value is replaced by NaN, under every condition that hides."""
    # The samples of the probe are shared out over the conditions: many of them cost no more than one.
    chosen = [view for view in tests if not view.present.all()] or [tests[0]]
    size = max(_LEAST_PROBE, _PROBE // len(chosen))
    same, hidden, samples = True, 0, 0
    for test in chosen:
        # Samples that miss something come first: a probe in which nothing is hidden shows nothing.
        order = np.argsort(test.present.all(axis=1), kind="stable") if len(tests) > 1 else np.arange(len(test))
        probe = test.subset(order[:size])
        plain, poison = poisoned(probe, features)
        same &= np.array_equal(predict(method, plain), predict(method, poison))
        hidden += int((~probe.present).sum())
        samples += len(probe)
    where = f"{samples} test samples" + (f" under {len(chosen)} of {len(tests)} conditions" if len(tests) > 1 else "")
    detail = f"{hidden} hidden values of {where} poisoned; logits " + (
        "bit-identical" if same else "CHANGED: the method sees hidden values"
    )
    return AuditResult("non_interference", same, detail)
