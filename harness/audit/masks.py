"""Masks: the table is the one that the protocol draws, is bound to samples, and is what the method was shown."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import combinations

import numpy as np

from harness.audit.subject import Subject, probe_size
from harness.errors import first_few
from harness.masking import MaskTable, ObservedDataset
from harness.protocol import Protocol
from harness.record import AuditResult
from harness.types import SPLITS, BoolArray, DataTable

#: Parts of a protocol's name that say which modalities lose values: `text_0.7`, `both_0.5`, `test:any_0.3`.
_DECLARED = re.compile(r"(?:^|,)(?:(?:train|test):)?(?P<what>[^:,]+?)_(?P<rate>[01](?:\.\d+)?)(?=$|[:,.])")
_EVERY = ("both", "any", "shared")
#: Two modalities that lose the same samples are no coincidence below this probability.
_CHANCE = 1e-5


def check_drawn(table: DataTable, masks: MaskTable, protocol: Protocol) -> AuditResult:
    """The table in force is the one the protocol draws, whatever the order of rows, and hides what it says."""
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
    problem = ""
    if MaskTable.build(protocol, table, masks.mask_seed).fingerprint != masks.fingerprint:
        problem = f"mask table {masks.fingerprint[:12]} is not what {protocol.name} draws"
    elif not kept:
        problem = "samples are left without any modality"
    elif not protocol.replays and _turned(table, masks, protocol) != masks.fingerprint:
        problem = f"{protocol.name} binds masks to positions, not to samples: another row order gives other masks"
    elif never := _never_hidden(protocol, masks):
        problem = f"{protocol.name} should hide {', '.join(never)}, but never does, in no split"
    return AuditResult("masks", not problem, f"{problem}; {detail}" if problem else detail)


def _turned(table: DataTable, masks: MaskTable, protocol: Protocol) -> str:
    """Fingerprint of the draw for the same samples in the opposite order; it does not depend on the order of rows."""
    turned = replace(table, splits={split: table.splits[split][::-1] for split in SPLITS})
    return MaskTable.build(protocol, turned, masks.mask_seed).fingerprint


def _never_hidden(protocol: Protocol, masks: MaskTable) -> list[str]:
    """Modalities that the protocol's name says it hides, of which no value is hidden anywhere."""
    declared: set[str] = set()
    for found in _DECLARED.finditer(protocol.name):
        # So small a rate may round down to no sample at all.
        if float(found["rate"]) * min(map(len, masks.ids.values())) >= len(masks.modalities):
            declared |= {found["what"]} & set(masks.modalities)
            declared |= set(masks.modalities) if found["what"] in _EVERY else set()
    return sorted(
        name
        for column, name in enumerate(masks.modalities)
        if name in declared and all(rows[:, column].all() for _, rows in masks.parts().values())
    )


def check_columns(table: DataTable, masks: MaskTable) -> AuditResult:
    """No two modalities go missing on exactly the same samples: one draw that was used for both looks like that."""
    alike = []
    for part, (split, present) in masks.parts().items():
        # What the data set lacks by itself is not of the protocol's making.
        hidden: BoolArray = table.available[table.splits[split]] & ~present
        count = hidden.sum(axis=0)
        for one, two in combinations(range(len(masks.modalities)), 2):
            unlikely = _log_choices(len(hidden), int(count[one])) > -math.log(_CHANCE)
            if unlikely and np.array_equal(hidden[:, one], hidden[:, two]):
                alike.append(f"{masks.modalities[one]} and {masks.modalities[two]} ({part})")
    if alike:
        return AuditResult(
            "mask_columns", False, f"always missing together: {first_few(alike)}; was one draw used twice?", "warning"
        )
    return AuditResult("mask_columns", True, "no two modalities miss the same samples")


def _log_choices(total: int, chosen: int) -> float:
    """Logarithm of the binomial coefficient, which no float holds from about 1,030 samples on."""
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def check_binding(subject: Subject) -> AuditResult:
    """Batches of every view show each sample what the table says, in any order, and hold no other values."""
    masks = subject.shown
    wrong: list[str] = []
    count = 0
    parts = subject.views.parts()
    for name, view in parts.items():
        part = name if name in masks.parts() else "test"
        rows = masks.parts()[part][1]
        expected = dict(zip(masks.ids[view.split], rows, strict=True))
        size = min(len(view), probe_size(len(parts)))
        # Two orders, like two epochs: masks that follow positions cannot agree with the table in both.
        chosen = np.linspace(0, len(view) - 1, size).astype(np.int64)
        for order in (chosen, np.random.default_rng(0).permutation(chosen)):
            wrong += [f"{sample!r} ({name})" for sample in _differing(view, order, expected, subject.supervision)]
        count += size
    if wrong:
        distinct = list(dict.fromkeys(wrong))
        return AuditResult(
            "mask_binding", False, f"not shown what the mask table says: {first_few(distinct)}; {len(distinct)} samples"
        )
    return AuditResult("mask_binding", True, f"{count} samples, asked for in two orders, are shown what the table says")


def _differing(
    view: ObservedDataset, order: np.ndarray[tuple[int], np.dtype[np.int64]], expected: dict[str, BoolArray], how: str
) -> list[str]:
    batch = view.batch(order)
    present = batch.present.cpu().numpy()
    held = np.zeros_like(present)
    for column, part in enumerate(batch.inputs.values()):
        held[part.rows.cpu().numpy(), column] = True
    table = np.stack([expected[sample] for sample in batch.ids])
    bad = (present != table).any(axis=1) | (held != table).any(axis=1)
    if batch.full is not None and not (view.split == "train" and how == "complete"):
        bad[:] = True
    return [batch.ids[row] for row in np.flatnonzero(bad)]
