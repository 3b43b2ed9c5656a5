"""Data sets: ids and splits, copies and near-copies over splits, label words in texts, statistics over everything.

What only depends on the data set is looked for once and remembered by its fingerprint.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.audit.near_copies import NEAR, NearCopies
from harness.errors import DataError, first_few
from harness.features import FeatureArray
from harness.files import atomic_write, locked
from harness.masking import MaskTable
from harness.record import AuditResult
from harness.types import SPLITS, BoolArray, DataTable, IntArray

#: Raised when a check of a data set changes what it finds.
DATA_AUDIT_VERSION = 1

#: Texts that hold a word of their own class name: told from this share on, warned of from that one on.
_TOLD, _WARNED = 0.05, 0.2
#: ... if it is that much more frequent than words of other classes' names.
_LIFT = 3.0
#: Largest deviation of mean and standard deviation from 0 and 1 that rounding explains.
_EXACT = 1e-3
#: Rows that statistics are looked at on, per split.
_ROWS = 5000


def check_data(
    table: DataTable, masks: MaskTable, features: Mapping[str, FeatureArray], cache: Path | None
) -> list[AuditResult]:
    """Ids and copies every time, the rest from the cache when it was found before."""
    return [_ids(masks), _copies(table, features), *_remembered(table, features, cache)]


def _remembered(table: DataTable, features: Mapping[str, FeatureArray], cache: Path | None) -> list[AuditResult]:
    if cache is None:
        return _look(table, features)
    path = cache / table.spec.name / f"{table.spec.fingerprint[:32]}-{DATA_AUDIT_VERSION}.json"
    with locked(path):
        try:
            return [AuditResult(**found) for found in json.loads(path.read_text())]
        except (OSError, ValueError, TypeError):
            results = _look(table, features)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return results


def _look(table: DataTable, features: Mapping[str, FeatureArray]) -> list[AuditResult]:
    return [_near(table, features), _label_words(table), _statistics(table)]


def _ids(masks: MaskTable) -> AuditResult:
    seen: dict[str, str] = {}
    shared = []
    for split in SPLITS:
        for name in masks.ids[split]:
            if name in seen:
                shared.append(f"{name!r} in {seen[name]} and {split}")
            seen[name] = split
    detail = first_few(shared) if shared else f"{len(seen)} ids, unique and disjoint over splits"
    return AuditResult("ids", not shared, detail)


def _copies(table: DataTable, features: Mapping[str, FeatureArray]) -> AuditResult:
    """Samples of valid or test that are identical to a training sample, and groups that a split boundary cuts."""
    digests = np.stack([features[name].digest for name in table.spec.modality_names], axis=1)
    train = {tuple(row) for row in digests[table.splits["train"]].tolist()}
    held = [(split, int(row)) for split in ("valid", "test") for row in table.splits[split]]
    copies = [table.ids[row] for _, row in held if tuple(digests[row].tolist()) in train]
    if copies:
        return AuditResult(
            "split_overlap", False, f"{len(copies)} samples are copies of training samples, e.g. {copies[0]!r}"
        )
    if table.groups is not None:
        known = set(table.groups[table.splits["train"]].tolist())
        cut = [table.ids[row] for _, row in held if int(table.groups[row]) in known]
        if cut:
            return AuditResult(
                "split_overlap", False, f"{len(cut)} samples belong to a group of training samples, e.g. {cut[0]!r}"
            )
    return AuditResult("split_overlap", True, "no sample of valid or test is a copy of a training sample")


def _near(table: DataTable, features: Mapping[str, FeatureArray]) -> AuditResult:
    """Samples of valid or test that nearly copy one training sample in every modality that they have."""
    held = np.concatenate([table.splits["valid"], table.splits["test"]])
    near = {
        modality.name: NearCopies(
            modality.kind,
            table.values.get(modality.name, ()),
            features[modality.name].digest,
            _with(table, column, held),
            _with(table, column, table.splits["train"]),
        )
        for column, modality in enumerate(table.spec.modalities)
    }
    counts = {name: sum(copies.number(row) > 0 for row in held.tolist()) for name, copies in near.items()}
    total = len(held)
    told = ", ".join(f"{name} {count} ({count / total:.1%})" for name, count in counts.items())
    whole = []
    for row in held.tolist():
        own = [near[name] for column, name in enumerate(table.spec.modality_names) if table.available[row, column]]
        fewest = min(own, key=lambda copies: copies.number(row))
        other = next((other for other in fewest.rows(row) if all(copies.holds(row, other) for copies in own)), None)
        if other is not None:
            whole.append(f"{table.ids[row]!r} and {table.ids[other]!r}")
    ways = sorted({NEAR.get(modality.kind, "identical") for modality in table.spec.modalities})
    detail = f"near-copies of training values among {total} samples of valid and test: {told} ({', '.join(ways)})"
    if whole:
        detail = f"{len(whole)} samples nearly copy a training sample in every modality: {first_few(whole)}; {detail}"
    return AuditResult("near_duplicates", not whole, detail, "warning")


def _with(table: DataTable, column: int, rows: IntArray) -> IntArray:
    there: IntArray = rows[table.available[rows, column]]
    return there


def _label_words(table: DataTable) -> AuditResult:
    """How often a text holds a word of its own class's name, and how often one of another's."""
    task = table.spec.task
    texts = [
        (column, modality.name) for column, modality in enumerate(table.spec.modalities) if modality.kind == "text"
    ]
    classes: dict[str, set[int]] = defaultdict(set)
    for number, label in enumerate(task.labels):
        for word in _words(label):
            classes[word].add(number)
    if task.kind == "regression" or not texts or not classes:
        return AuditResult("label_words", True, "no texts or no class names to look for")
    worst: tuple[float, str, str] | None = None
    for column, name in texts:
        rows = np.flatnonzero(table.available[:, column])
        hits = np.zeros((len(rows), task.num_outputs), dtype=np.bool_)
        for place, row in enumerate(rows.tolist()):
            for word in _words(table.values[name][row]):
                hits[place, list(classes.get(word, ()))] = True
        own = _own(table.labels[rows], task.num_outputs)
        mine, others = _share(hits, own), _share(hits, ~own)
        detail = (
            f"{name}: {mine:.1%} of texts hold a word of their own class's name, {others:.1%} one of another class's"
        )
        flagged = mine >= _TOLD and mine >= _LIFT * others
        ranked = (mine if flagged else 0.0, detail, name)
        worst = ranked if worst is None else max(worst, ranked)
    assert worst is not None
    share, detail, _ = worst
    return AuditResult("label_words", share < _WARNED, detail, "note" if 0 < share < _WARNED else "warning")


def _words(text: str) -> set[str]:
    """Words of three letters or more, without a plural s."""
    return {word.removesuffix("s") for word in re.findall(r"[^\W\d_]{3,}", str(text).lower())}


def _own(labels: npt.NDArray[Any], count: int) -> BoolArray:
    """`[n, C]`, which classes are a sample's own."""
    return np.eye(count, dtype=np.bool_)[labels] if labels.ndim == 1 else labels > 0


def _share(hits: BoolArray, chosen: BoolArray) -> float:
    return float(hits[chosen].mean()) if chosen.any() else 0.0


def _statistics(table: DataTable) -> AuditResult:
    """Numbers that have mean 0 and deviation 1 over all splits, but not over the training split, saw the test split."""
    suspect = []
    looked = []
    for column, modality in enumerate(table.spec.modalities):
        if modality.kind not in ("features", "tabular"):
            continue
        looked.append(modality.name)
        values = table.values[modality.name]
        parts = {
            split: _stacked([values[int(row)] for row in _with(table, column, table.splits[split])[:_ROWS]])
            for split in SPLITS
        }
        if _standardised(np.concatenate(list(parts.values()))) and not _standardised(parts["train"]):
            suspect.append(modality.name)
    if suspect:
        return AuditResult(
            "data_statistics",
            False,
            f"{', '.join(suspect)}: mean 0 and deviation 1 over train, valid and test together, not over train",
        )
    where = ", ".join(looked)
    return AuditResult(
        "data_statistics",
        True,
        f"{where}: not standardised over valid and test" if looked else "no modality of plain numbers",
    )


def _stacked(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Vectors, or the frames of sequences, one below the other."""
    arrays = [np.atleast_2d(np.asarray(value, dtype=np.float64)) for value in values]
    widths = {array.shape[-1] for array in arrays}
    if len(widths) > 1:
        raise DataError(f"values of one modality have different widths {sorted(widths)}")
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])


def _standardised(values: npt.NDArray[np.float64]) -> bool:
    """Whether nine of ten columns that vary have mean 0 and standard deviation 1, up to rounding."""
    deviation = values.std(axis=0)
    varying = deviation > 0
    if not varying.any():
        return False
    mean, deviation = values.mean(axis=0)[varying], deviation[varying]
    exact = (np.abs(mean) < _EXACT) & (np.abs(deviation - 1.0) < max(_EXACT, 1.0 / len(values)))
    return bool(exact.mean() >= 0.9)
