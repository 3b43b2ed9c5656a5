"""Generated data: the closed form of the Bayes accuracy is what an exact Bayes rule reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.datasets.synthetic import NOISE, SyntheticConfig, codes
from harness.errors import UsageError
from harness.types import DataTable, iterate_patterns


def _table(**options: Any) -> DataTable:
    return SyntheticConfig(**options).load(Path(), Path())


def _shown(table: DataTable, column: int, seed: int) -> np.ndarray[Any, Any]:
    """What one modality shows of each sample, read from its features: a class, or -1 for blank."""
    code = codes(seed, column)
    shown = []
    for value in table.values["abcd"[column]]:
        scores = np.atleast_2d(value) @ code.T
        assert scores.max() > 1 - NOISE or scores.max() <= NOISE  # nothing in between: no reading error
        shown.append(int(scores.max(axis=0).argmax()) if scores.max() > 0.5 else -1)
    return np.array(shown)


@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 5)])
@pytest.mark.parametrize("length", [1, 4])
def test_closed_form_equals_monte_carlo_of_the_bayes_rule(task: str, classes: int, length: int) -> None:
    table = _table(task=task, classes=classes, samples=8000, modalities=3, sequence_length=length, seed=5)
    shown = [_shown(table, column, 5) for column in range(3)]
    rng = np.random.default_rng(1)
    assert table.bayes_accuracy is not None
    assert len(table.bayes_accuracy) == 7
    for pattern in iterate_patterns("abc"):
        guess = rng.integers(classes, size=len(table.ids))  # no modality shows the label: all classes alike
        for column in np.flatnonzero(pattern):
            guess = np.where(shown[column] >= 0, shown[column], guess)
        expected = table.bayes_accuracy[tuple(name for name, there in zip("abc", pattern, strict=True) if there)]
        found = float((guess == table.labels).mean())
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / len(table.ids))


def test_what_is_shown_is_never_wrong() -> None:
    table = _table(samples=500)
    for column in range(2):
        shown = _shown(table, column, 0)
        assert (shown[shown >= 0] == table.labels[shown >= 0]).all()


def test_modalities_are_independent_given_the_label() -> None:
    table = _table(samples=8000)
    first, second = (_shown(table, column, 0) >= 0 for column in range(2))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(table.ids))


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 3])
def test_every_variant_loads(task: str, modalities: int, length: int) -> None:
    table = _table(task=task, modalities=modalities, sequence_length=length, samples=60)
    assert table.spec.task.kind == task
    assert table.spec.modality_names == tuple("abcd"[:modalities])
    assert (table.bayes_accuracy is None) == (task in ("multilabel", "regression"))
    lengths = {np.atleast_2d(value).shape[0] for value in table.values["a"]}
    assert lengths == set(range(1, length + 1))


def test_multilabel_and_regression_can_be_learned_from_features() -> None:
    for task in ("multilabel", "regression"):
        table = _table(task=task, samples=2000)
        features = np.concatenate([np.stack(table.values[name]) for name in "ab"], axis=1)
        weights, *_ = np.linalg.lstsq(features, table.labels - table.labels.mean(axis=0), rcond=None)
        error = ((features @ weights - table.labels + table.labels.mean(axis=0)) ** 2).mean()
        assert error < 0.5 * table.labels.var()


def test_seed_decides_everything() -> None:
    assert _table().spec.fingerprint == _table().spec.fingerprint
    assert _table().spec.fingerprint != _table(seed=1).spec.fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"task": "ranking"},
        {"modalities": 1},
        {"modalities": 5},
        {"samples": 5},
        {"classes": 17},
        {"seed": -1},
        {"sequence_length": 0},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"dataset\.{next(iter(options))}="):
        SyntheticConfig(**options).validate()
