"""Looks into a finished run: what its method put in the place of hidden modalities, and whom it asked for it.

The method is built again and given its stored weights.  What it is shown are the run's own test conditions; the true
values are shown to the same network afterwards, by themselves, and only the harness compares.  Nothing of this is
part of the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness import audit
from harness.cell import observed_views
from harness.errors import DataError, UsageError
from harness.execution import audit_subject
from harness.files import Folders
from harness.findings import Agreement, Example, Findings, Neighbour, Recovery
from harness.inspector import VOTE, Inspector, inspector_of
from harness.masking import ObservedDataset, observe
from harness.reaudit import recorded_fit, recorded_predictions
from harness.restore import Rebuilt, load_weights, rebuild, untrained
from harness.seeding import seed_everything
from harness.tracking import StoredRun
from harness.trainer import Trainer
from harness.types import Batch, DataTable, Predictions, TaskSpec, pattern_name

Floats = npt.NDArray[np.float64]
#: Test samples that are shown per pattern and missing modality, and neighbours of each.
EXAMPLES = 3
LISTED = 8
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def inspect_run(run: StoredRun, folders: Folders, examples: int = EXAMPLES) -> Findings:
    """Measures what a run's method recovered, and lists whom it asked.

    Args:
        run: A finished run that kept its weights.
        folders: Where data and features are.
        examples: Test samples per pattern and missing modality.

    Raises:
        UsageError: If the method has no inspector.
        HarnessError: If data, plugin or weights are not here or not the run's.
    """
    record = run.record
    rebuilt = rebuild(record, folders)
    cell = rebuilt.cell
    if cell.masks.fingerprint != record.protocol["mask_fingerprint"]:
        raise DataError(f"run {record.run_id[:12]} was shown other masks than {cell.protocol.name} draws here.")
    views = observed_views(cell, rebuilt.features)
    method, trainer = untrained(rebuilt, views)
    load_weights(method, run)
    inspector = inspector_of(method.eval())
    if inspector is None:
        raise UsageError(f"{record.display_name} neither reconstructs nor retrieves: there is nothing to inspect.")
    predictions = recorded_predictions(run)
    subject = audit_subject(cell, rebuilt.features, views, method, trainer, recorded_fit(record), predictions)
    replay = audit.check_replay(subject)
    findings = Findings(record.run_id)
    findings.remarks.extend(filter(None, (rebuilt.changed, "" if replay.passed else f"replay: {replay.detail}")))
    for name, view in views.tests.items():
        seed_everything(cell.config.eval_seed, "predict")
        look = _Look(cell.table, name, view, predictions.get(name))
        with torch.no_grad():
            for batch, complete in _batches(rebuilt, name, view, trainer):
                with trainer.accelerator.autocast():
                    look.compare(inspector, batch, complete)
                    look.ask(inspector, batch)
        findings.recoveries.extend(look.recoveries())
        findings.agreements.extend(look.agreements())
        shown = {(example.pattern, example.use) for example in findings.examples}
        findings.examples.extend(one for one in look.examples(examples) if (one.pattern, one.use) not in shown)
    return findings


def _batches(rebuilt: Rebuilt, name: str, view: ObservedDataset, trainer: Trainer) -> Iterator[tuple[Batch, Batch]]:
    """The samples of a test condition as the method is shown them, and with nothing hidden or changed."""
    table = rebuilt.cell.table
    revealed = rebuilt.cell.masks.revealed(table)
    whole = observe(table, revealed, rebuilt.features, "test", condition=name)
    assert whole.ids == view.ids, "both are the samples of one condition"
    size = trainer.config.eval_batch_size
    for start in range(0, len(view), size):
        rows = np.arange(start, min(start + size, len(view)))
        yield view.batch(rows).to(trainer.device), whole.batch(rows).to(trainer.device)


@dataclass
class _Asked:
    """Whom samples asked for one use.

    Attributes:
        rows: Their rows in the view.
        ids: `[n, k]` ids of training samples, empty where none.
        score: `[n, k]`.
        weight: `[n, k]`.
    """

    rows: list[int] = field(default_factory=list)
    ids: list[list[str]] = field(default_factory=list)
    score: list[Floats] = field(default_factory=list)
    weight: list[Floats] = field(default_factory=list)


class _Look:
    """What is seen under one test condition.

    Args:
        table: The data set.
        condition: Name.
        view: The samples.
        predictions: What the run said of them.
    """

    def __init__(
        self, table: DataTable, condition: str, view: ObservedDataset, predictions: Predictions | None
    ) -> None:
        self._table, self._condition, self._view = table, condition, view
        self._said = {} if predictions is None else dict(zip(predictions.ids, predictions.logits, strict=True))
        self._labels = dict(zip(table.ids, table.labels, strict=True))
        self._row = {name: row for row, name in enumerate(view.ids)}
        self._patterns = [pattern_name(present, view.modalities) for present in view.present]
        self._pairs: dict[tuple[str, str], list[tuple[Floats, Floats]]] = {}
        self._asked: dict[str, _Asked] = {}

    def compare(self, inspector: Inspector, batch: Batch, complete: Batch) -> None:
        """Keeps recovered and true embeddings of what is hidden."""
        hidden = complete.present & ~batch.present
        if not hidden.any():
            return
        recovered = inspector.recovered(batch)
        truth = inspector.embedded(complete) if recovered else {}
        for column, name in enumerate(self._view.modalities):
            rows = hidden[:, column].nonzero().squeeze(1)
            if name not in recovered or not len(rows):
                continue
            found, true = _array(recovered[name][rows]), _array(truth[name][rows])
            patterns = np.array([self._patterns[self._row[batch.ids[row]]] for row in rows.tolist()])
            for pattern in dict.fromkeys(patterns.tolist()):
                here = patterns == pattern
                self._pairs.setdefault((pattern, name), []).append((found[here], true[here]))

    def ask(self, inspector: Inspector, batch: Batch) -> None:
        """Keeps the training samples that were asked."""
        for use, asked in inspector.consulted(batch).items():
            everyone = torch.ones(len(batch), dtype=torch.bool, device=batch.device)
            wanted = everyone if use == VOTE else ~batch.present[:, self._view.modalities.index(use)]
            kept = self._asked.setdefault(use, _Asked())
            index, score, weight = asked.index.cpu().numpy(), _array(asked.score), _array(asked.weight)
            for row in wanted.nonzero().squeeze(1).tolist():
                if (index[row] < 0).all():
                    continue
                kept.rows.append(self._row[batch.ids[row]])
                kept.ids.append([asked.ids[int(item)] if item >= 0 else "" for item in index[row]])
                kept.score.append(score[row])
                kept.weight.append(weight[row])

    def recoveries(self) -> list[Recovery]:
        """One per pattern and hidden modality."""
        return [
            recovery(self._condition, pattern, name, *(np.concatenate(part) for part in zip(*parts, strict=True)))
            for (pattern, name), parts in sorted(self._pairs.items())
        ]

    def agreements(self) -> list[Agreement]:
        """One per use; none for regression, where labels do not agree or differ."""
        if self._table.spec.task.kind == "regression":
            return []
        found = []
        for use, asked in self._asked.items():
            if not asked.rows:
                continue
            own = [self._labels[self._view.ids[row]] for row in asked.rows]
            weight = np.stack(asked.weight)
            there = np.array([[bool(name) for name in names] for names in asked.ids])
            same = np.array(
                [
                    [agreement(label, self._labels[name]) if name else 0.0 for name in names]
                    for label, names in zip(own, asked.ids, strict=True)
                ]
            )
            plain = (same * there).sum(1) / there.sum(1)
            found.append(
                Agreement(
                    self._condition,
                    use,
                    len(own),
                    weight.shape[1],
                    float(plain.mean()),
                    float((same * weight).sum(1).mean()),
                    [float(value) for value in weight.mean(0)],
                )
            )
        return found

    def examples(self, count: int) -> list[Example]:
        """The first samples of every pattern and use by the hash of their ids."""
        chosen = []
        for use, asked in self._asked.items():
            taken: dict[str, int] = {}
            order = sorted(range(len(asked.rows)), key=lambda at: _hash(self._view.ids[asked.rows[at]]))
            for at in order:
                pattern = self._patterns[asked.rows[at]]
                taken[pattern] = taken.get(pattern, 0) + 1
                if taken[pattern] <= count:
                    chosen.append(self._example(use, asked, at))
        return sorted(chosen, key=lambda one: (one.use, one.pattern))

    def _example(self, use: str, asked: _Asked, at: int) -> Example:
        task, sample = self._table.spec.task, self._view.ids[asked.rows[at]]
        own = self._labels[sample]
        neighbours = [
            Neighbour(
                name,
                label_text(task, self._labels[name]),
                float(score),
                float(weight),
                None if task.kind == "regression" else agreement(own, self._labels[name]),
            )
            for name, score, weight in zip(asked.ids[at], asked.score[at], asked.weight[at], strict=True)
            if name
        ]
        return Example(
            sample,
            self._condition,
            self._patterns[asked.rows[at]],
            use,
            label_text(task, own),
            predicted_text(task, self._said.get(sample)),
            neighbours[:LISTED],
        )


def recovery(condition: str, pattern: str, modality: str, found: Floats, true: Floats) -> Recovery:
    """Compares recovered with true embeddings, `[n, d]` each."""
    count = len(found)
    unit_found, unit_true = _unit(found), _unit(true)
    cosines = (unit_found * unit_true).sum(1)
    others = None
    if count > 1:
        # All pairs of different samples at once.
        every = float(unit_found.sum(0) @ unit_true.sum(0)) - float(cosines.sum())
        others = every / (count * (count - 1))
    spread = float(np.square(true - true.mean(0)).sum())
    error = float(np.square(found - true).sum()) / spread if count > 1 and spread > 0 else None
    quantiles = [float(value) for value in np.quantile(cosines, _QUANTILES)]
    return Recovery(condition, pattern, modality, count, float(cosines.mean()), others, error, quantiles)


def agreement(one: Any, other: Any) -> float:
    """1 for equal classes, else 0; of several labels the Jaccard index of both sets, 1 where both are empty."""
    if np.ndim(one) == 0:
        return float(one == other)
    first, second = np.asarray(one) > 0.5, np.asarray(other) > 0.5
    union = int((first | second).sum())
    return float((first & second).sum()) / union if union else 1.0


def label_text(task: TaskSpec, label: Any) -> str:
    """A label for people."""
    if task.kind == "regression":
        return ", ".join(f"{value:.4g}" for value in np.atleast_1d(label))
    if np.ndim(label) == 0:
        return _name(task.labels, int(label))
    return ", ".join(_name(task.labels, int(index)) for index in np.flatnonzero(np.asarray(label) > 0.5)) or "none"


def predicted_text(task: TaskSpec, logits: Any) -> str:
    """What logits `[C]` say, for people; empty without any."""
    if logits is None:
        return ""
    if task.kind == "regression":
        return label_text(task, logits)
    return label_text(task, (logits >= 0).astype(np.float64) if task.kind == "multilabel" else int(logits.argmax()))


def _name(labels: Sequence[str], index: int) -> str:
    return str(labels[index]) if index < len(labels) else str(index)


def _unit(rows: Floats) -> Floats:
    """Rows of length one; zero stays zero, whose cosine with anything is 0."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _array(values: Tensor) -> Floats:
    return np.asarray(values.detach().double().cpu().numpy())


def _hash(sample: str) -> str:
    return hashlib.sha256(sample.encode("utf-8", "surrogatepass")).hexdigest()
