"""Banks of retrievable samples: training samples only, nothing hidden, and nobody finds oneself or one's copy."""

from __future__ import annotations

import numpy as np

from harness.audit.subject import Subject, Views, guarded, probe_size
from harness.record import AuditResult
from harness.retrieval import Bank, content_digests

_NEIGHBOURS = 3


def check_banks(subject: Subject) -> list[AuditResult]:
    """Contents and neighbours of every bank that the method declares."""
    results = []
    for name, bank in subject.method.banks().items():
        results += guarded(f"bank:{name}", lambda: _contents(name, bank, subject.views, subject.supervision))  # noqa: B023
        results += guarded(f"self_retrieval:{name}", lambda: _neighbours(name, bank, subject.views))  # noqa: B023
    return results


def _contents(name: str, bank: Bank, views: Views, supervision: str) -> AuditResult:
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


def _neighbours(name: str, bank: Bank, views: Views) -> AuditResult:
    """No query finds itself, or an item with identical content, in any split."""
    itself: dict[str, int] = {}
    twins: dict[str, int] = {}
    parts = views.parts()
    total = 0
    for part, whole in parts.items():
        view = whole.subset(np.arange(min(probe_size(len(parts)), len(whole))))
        batch = view.batch(np.arange(len(view)))
        total += len(view)
        index = bank.neighbours(batch, min(_NEIGHBOURS, len(bank))).index.cpu().numpy()
        content = content_digests(batch).cpu().numpy()
        for sample, found, digest, present in zip(view.ids, index, content, view.present, strict=True):
            items = found[found >= 0]
            if sample in {bank.ids[item] for item in items}:
                itself[part] = itself.get(part, 0) + 1
            elif bank.copies(items[None], digest[None], present[None]).any():
                twins[part] = twins.get(part, 0) + 1
    told = [f"{count} {part} queries find themselves" for part, count in itself.items()]
    told += [f"{count} {part} queries find a copy of themselves" for part, count in twins.items()]
    detail = ", ".join(told) or f"none of {total} queries finds itself or a copy of itself"
    return AuditResult(f"self_retrieval:{name}", not told, detail)
