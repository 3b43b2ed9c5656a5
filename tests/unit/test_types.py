"""Batches, patterns and specs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.types import Batch, FeatureSpec, ModalityBatch, Predictions, iterate_patterns, pattern_name

NAMES = ("text", "image", "audio")


def make_batch(present: torch.Tensor, full: Batch | None = None) -> Batch:
    """A batch whose every value tells its sample: 100 * modality + row of the original batch."""
    inputs = {}
    for column, name in enumerate(NAMES):
        rows = present[:, column].nonzero(as_tuple=True)[0]
        value = (rows + 100 * (column + 1)).float()
        inputs[name] = ModalityBatch(
            rows,
            value[:, None, None].expand(-1, 2, 3).clone(),
            torch.ones(len(rows), 2, dtype=torch.bool),
            value[:, None].expand(-1, 4).clone(),
            value.long(),
        )
    size = len(present)
    return Batch([f"s{row}" for row in range(size)], present, inputs, torch.arange(size), full)


def check(batch: Batch) -> None:
    """Every part holds the values of exactly the present samples, in order."""
    for column, name in enumerate(NAMES):
        part = batch.inputs[name]
        rows = batch.present[:, column].nonzero(as_tuple=True)[0]
        assert torch.equal(part.rows, rows)
        expected = batch.labels[rows].float() + 100 * (column + 1)  # the label is the row in the first batch
        assert torch.equal(part.tokens[:, 0, 0], expected)
        assert torch.equal(part.pooled[:, 0], expected)
        assert torch.equal(part.digest, expected.long())
        assert len(part) == len(part.mask) == len(rows)


matrices = st.integers(1, 8).flatmap(
    lambda size: st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=size, max_size=size)
)


@settings(deadline=None, max_examples=50)
@given(present=matrices, data=st.data())
def test_without_drops_values(present: list[list[bool]], data: st.DataObject) -> None:
    batch = make_batch(torch.tensor(present))
    hidden = torch.tensor(
        data.draw(
            st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=len(present), max_size=len(present))
        )
    )
    fewer = batch.without(hidden)
    assert torch.equal(fewer.present, torch.tensor(present) & ~hidden)
    check(fewer)
    check(batch)
    assert torch.equal(batch.present, torch.tensor(present)), "the first batch was changed"


@settings(deadline=None, max_examples=50)
@given(present=matrices, data=st.data())
def test_select_takes_rows_in_their_order(present: list[list[bool]], data: st.DataObject) -> None:
    everything = torch.ones(len(present), 3, dtype=torch.bool)
    batch = make_batch(torch.tensor(present), make_batch(everything))
    rows = data.draw(
        st.permutations(range(len(present))).flatmap(
            lambda order: st.integers(0, len(order)).map(lambda cut: order[:cut])
        )
    )
    part = batch.select(torch.tensor(rows, dtype=torch.int64))
    assert part.ids == [f"s{row}" for row in rows]
    assert part.labels.tolist() == rows
    check(part)
    assert part.full is not None
    assert part.full.ids == part.ids
    check(part.full)


def test_moving_keeps_everything() -> None:
    batch = make_batch(torch.tensor([[True, False, True]]), make_batch(torch.ones(1, 3, dtype=torch.bool)))
    moved = batch.to("meta")
    assert moved.device.type == "meta"
    assert all(part.tokens.device.type == "meta" for part in moved.inputs.values())
    assert moved.full is not None
    assert moved.full.device.type == "meta"
    assert len(moved) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_patterns_are_all_non_empty_ones_once(count: int) -> None:
    names = tuple("abcd"[:count])
    patterns = list(iterate_patterns(names))
    assert len(set(patterns)) == len(patterns) == 2**count - 1
    assert [sum(pattern) for pattern in patterns] == sorted(sum(pattern) for pattern in patterns)
    assert patterns[:count] == [tuple(row == column for column in range(count)) for row in range(count)]
    assert patterns[-1] == (True,) * count


def test_pattern_names() -> None:
    assert pattern_name((True, False, True), NAMES) == "text+audio"
    assert pattern_name((False, False, False), NAMES) == "none"
    with pytest.raises(ValueError, match="shorter"):
        pattern_name((True,), NAMES)


def test_predictions_name_their_patterns() -> None:
    import numpy as np

    predictions = Predictions(
        ("a", "b"),
        np.zeros((2, 2), np.float32),
        np.zeros(2),
        np.array([[True, True, False], [False, True, False]]),
        NAMES,
    )
    assert predictions.patterns() == ["text+image", "image"]


def test_only_vectors_have_a_width() -> None:
    assert FeatureSpec(4, (8,), 8).dim == 8
    with pytest.raises(ValueError, match="no single width"):
        _ = FeatureSpec(4, (), 0).dim
