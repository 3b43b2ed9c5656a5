"""Missingness that depends on another value, on the label or on the value itself: exact, nested, and as it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError, UsageError
from harness.masking import MaskTable
from harness.protocol import format_rate, parse_protocol, share_of, weighted_order
from harness.protocols.not_at_random import norm_of
from harness.testing.protocols import some_available
from harness.testing.tables import make_table
from harness.types import SPLITS, DataTable

PAIR = ("text", "image")
TRIO = ("text", "image", "audio")
FAMILIES = ("mar_text_by_image", "mnar_text_by_label", "mnar_text_by_norm")

rates = st.integers(0, 100).map(lambda hundredths: hundredths / 100)
seeds = st.integers(0, 2**31)


def draw(name: str, table: DataTable, seed: int = 0) -> MaskTable:
    return MaskTable.build(parse_protocol(name), table, seed)


def with_values(table: DataTable, **values: list[Any]) -> DataTable:
    return replace(table, values={**table.values, **values})


@settings(deadline=None, max_examples=60)
@given(family=st.sampled_from(FAMILIES), rate=rates, size=st.integers(3, 60), seed=seeds, lacking=st.booleans())
def test_the_share_is_exact(family: str, rate: float, size: int, seed: int, lacking: bool) -> None:
    available = some_available(3, size + 28) if lacking else None
    table = make_table((size, 14, 14), TRIO, available, readable=True)
    protocol = parse_protocol(f"{family}_{format_rate(rate)}")
    there = table.available[table.splits["train"]]
    able = there[:, 0] & (there[:, 1] if family.startswith("mar") else there[:, 1:].any(axis=1))
    if rate and not able.any():
        with pytest.raises(UsageError, match="could lose a value and keep another one"):
            protocol.hidden(table, "train", seed)
        return
    hidden = protocol.hidden(table, "train", seed)
    assert hidden[:, 0].sum() == share_of(rate, int(able.sum()))
    assert not hidden[:, 1:].any(), "only the named modality is lost"
    assert not (hidden[:, 0] & ~able).any()


@settings(deadline=None, max_examples=40)
@given(family=st.sampled_from(FAMILIES), pair=st.tuples(rates, rates).map(sorted), seed=seeds)
def test_rates_are_nested(family: str, pair: list[float], seed: int) -> None:
    table = make_table((50, 2, 2), readable=True)
    low, high = (parse_protocol(f"{family}_{format_rate(rate)}").hidden(table, "train", seed) for rate in pair)
    assert not (low & ~high).any()


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=40), seed=seeds)
def test_a_weighted_order_is_a_permutation(weights: list[int], seed: int) -> None:
    ids = [f"s{row}" for row in range(len(weights))]
    order = weighted_order(ids, weights, seed, "train", "x")
    assert sorted(order.tolist()) == list(range(len(ids)))
    # A heavier sample never falls behind, the others as they were.
    heavier = [9 if row == 0 else weight for row, weight in enumerate(weights)]
    place = order.tolist().index(0)
    assert weighted_order(ids, heavier, seed, "train", "x").tolist().index(0) <= place


def test_weights_are_relative_chances() -> None:
    ids = [f"s{row}" for row in range(20_000)]
    weights = [1 + 8 * (row % 2) for row in range(20_000)]
    first = weighted_order(ids, weights, 0, "train", "x")[:2_000]
    # Nine in ten of the first tenth are heavy: 9 to 1, as long as few are drawn.
    assert (first % 2 == 1).mean() == pytest.approx(0.9, abs=0.015)


def test_the_upper_half_of_the_order_is_hit_more() -> None:
    size = 2_000
    ids = [f"s{row:04d}" for row in range(size + 2)]
    table = with_values(
        make_table((size, 1, 1), ids=ids),
        image=[np.full((2, 2, 3), row % 200, np.uint8) for row in range(size + 2)],
        text=["x" * (row % 100) for row in range(size + 2)],
    )
    rows = np.arange(size)
    for name, order in {
        "mar_text_by_image_0.5": rows % 200,
        "mnar_text_by_norm_0.5": rows % 100,
        "mnar_text_by_label_0.5": table.labels[:size],
    }.items():
        lost = parse_protocol(name).hidden(table, "train", 0)[:, 0]
        shares = [lost[np.argsort(order, kind="stable")][part].mean() for part in np.array_split(rows, 2)]
        assert shares[0] < 0.38, name
        assert shares[1] > 0.62, name


def test_mar_shares_rise_with_the_covariate() -> None:
    size = 4_000
    table = with_values(make_table((size, 1, 1)), image=[np.array([[row]], np.float32) for row in range(size + 2)])
    lost = parse_protocol("mar_text_by_image_0.4").hidden(table, "train", 3)[:, 0]
    shares = [part.mean() for part in np.split(lost, 5)]
    assert all(low < high for low, high in pairwise(shares))


def test_multilabel_and_regression_labels_have_an_order() -> None:
    labels = np.tile(np.array([[0, 0, 0], [1, 0, 1]], np.float32), (500, 1))
    table = replace(make_table((998, 1, 1)), labels=labels)
    lost = parse_protocol("mnar_text_by_label_0.3").hidden(table, "train", 0)[:, 0]
    assert lost[1::2].sum() > 5 * lost[::2].sum()


def test_equal_values_are_drawn_at_random() -> None:
    table = with_values(make_table((1000, 1, 1)), text=["same"] * 1002)
    lost = parse_protocol("mnar_text_by_norm_0.5").hidden(table, "train", 0)[:, 0]
    assert lost.sum() == 500
    assert lost[:500].mean() == pytest.approx(0.5, abs=0.06)


def test_the_halves_and_who_takes_no_part_are_counted() -> None:
    table = make_table((60, 14, 14), TRIO, some_available(3, 88), readable=True)
    masks = draw("mar_text_by_image_0.5", table)
    for split in SPLITS:
        there = table.available[table.splits[split]]
        able = there[:, 0] & there[:, 1]
        lost = int((there[:, 0] & ~masks.present[split][:, 0]).sum())
        (counts,) = (line for line in masks.remarks if line.startswith(f"{split}: 'text' is hidden"))
        numbers = [int(word) for word in counts.split() if word.isdigit()]
        assert numbers[0] + numbers[2] == lost
        assert numbers[1] + numbers[3] == able.sum()
        assert f"{split}: {len(able) - able.sum()} samples lack a modality by nature and take no part" in str(
            masks.remarks
        )


def test_values_are_read_once() -> None:
    reads: list[int] = []

    class Counted(list[str]):
        def __getitem__(self, row: Any) -> Any:
            reads.append(row)
            return f"text {row}"

    table = with_values(make_table((10, 5, 5)), text=Counted([""] * 20))
    draw("mnar_text_by_norm_0.5", table)
    draw("mnar_text_by_norm_0.7", table, 3)
    assert sorted(reads) == list(range(20))


@pytest.mark.parametrize(
    ("value", "norm"),
    [("", 0.0), ("abc", 3.0), (np.full((2, 2, 3), 7, np.uint8), 7.0), (np.array([3.0, -4.0], np.float32), 12.5**0.5)],
)
def test_norms(value: Any, norm: float) -> None:
    assert norm_of(value) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("mar_text_by_image_0.50", "mar_text_by_image_0.5"),
        ("mnar_front_camera_by_norm_1.0", "mnar_front_camera_by_norm_1"),
        ("mar_a_by_b_c_.3", "mar_a_by_b_c_0.3"),
        ("test:mnar_text_by_label_0..0.9", "train:complete,test:mnar_text_by_label_0..0.9:0.1"),
        ("train:mar_text_by_image_0.50,test:patterns", "train:mar_text_by_image_0.5,test:patterns"),
    ],
)
def test_names_are_canonical(name: str, canonical: str) -> None:
    protocol = parse_protocol(name)
    assert protocol.name == canonical
    assert parse_protocol(canonical) == protocol


def test_sides_say_what_they_read() -> None:
    assert parse_protocol("train:mar_text_by_image_0.5,test:mnar_text_by_label_0.5").reads == ("values", "labels")
    assert parse_protocol("train:complete,test:mnar_text_by_norm_0..1:0.5").reads == ("values",)
    assert parse_protocol("both_0.7").reads == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mar_text_0.5", "write mar_text_by_image_0.5"),
        ("mnar_text_by_label", "write mar_text_by_image_0.5"),
        ("mar_text_by_label_0.5", "by the label or the value's own norm it is mnar"),
        ("mar_text_by_text_0.5", "missing by another modality"),
        ("mnar_text_by_image_0.5", "by another modality it is mar_text_by_image_0.5"),
        ("mar_text_by_image_2", "lies outside 0 to 1"),
        ("mar_text_by_image_x", "'x' is not a rate"),
        ("mar_txt_by_image_0.5", "has no modality 'txt'. Modalities: text, image"),
        ("mar_text_by_img_0.5", "has no modality 'img'"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message) as caught:
        draw(name, make_table(readable=True))
    assert caught.value.exit_code == 2
