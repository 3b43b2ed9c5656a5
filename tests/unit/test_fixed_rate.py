"""Counts, nesting, names and messages of the fixed-rate protocols."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.errors import UnknownNameError, UsageError
from harness.masking import MaskTable
from harness.protocol import format_rate, parse_protocol, parse_rate, share_of
from harness.testing.protocols import some_available
from harness.testing.tables import make_table
from harness.types import SPLITS, BoolArray

PAIR = ("text", "image")

rates = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


def present(name: str, size: int, modalities: tuple[str, ...] = PAIR, seed: int = 0) -> BoolArray:
    """Presence of the training split of `size` samples."""
    return MaskTable.build(parse_protocol(name), make_table((size, 1, 1), modalities), seed).present["train"]


@pytest.mark.parametrize("order", [PAIR, ("image", "text")])
@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((15_552, 2_608, 7_799), ((5_443, 5_443, 4_666), (913, 912, 783), (2_730, 2_729, 2_340))),
        ((8_500, 500, 1_000), ((2_975, 2_975, 2_550), (175, 175, 150), (350, 350, 300))),
        ((61_127, 6_845, 22_716), ((21_394, 21_394, 18_339), (2_396, 2_395, 2_054), (7_951, 7_950, 6_815))),
    ],
    ids=["mm_imdb", "hateful_memes", "food101"],
)
def test_counts_of_map(
    sizes: tuple[int, ...], counts: tuple[tuple[int, int, int], ...], order: tuple[str, ...]
) -> None:
    masks = MaskTable.build(parse_protocol("both_0.7"), make_table(sizes, order), 0)
    for split, (text_missing, image_missing, complete) in zip(SPLITS, counts, strict=True):
        assert masks.counts()[split] == {
            "image": text_missing,
            "text": image_missing,
            "+".join(order): complete,
        }


def test_draw_is_the_documented_hash() -> None:
    names = [f"s{row:04d}" for row in range(10)]
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"3|train|fixed_rate|any|{name}".encode()).digest())
    lost = {name: ("text", "image")[rank % 2] for rank, name in enumerate(ranked[:7])}
    expected = [[lost.get(name) != modality for modality in PAIR] for name in names]
    assert present("both_0.7", 10, seed=3).tolist() == expected
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"3|train|fixed_rate|only|text|{name}".encode()).digest())
    assert present("text_0.7", 10, seed=3).tolist() == [[name not in ranked[:7], True] for name in names]


@settings(deadline=None, max_examples=60)
@given(rate=rates, size=st.integers(1, 80), seed=st.integers(0, 2**31), count=st.integers(2, 5))
def test_any_is_exact_and_even(rate: float, size: int, seed: int, count: int) -> None:
    shown = present(f"any_{format_rate(rate)}", size, tuple("abcde"[:count]), seed)
    total = round(rate * 1000) * size // 1000
    lost = (~shown).sum(axis=0)
    assert lost.sum() == total
    assert (~shown).sum(axis=1).max() <= 1
    assert lost.max() - lost.min() <= 1


@settings(deadline=None, max_examples=60)
@given(
    pair=st.tuples(rates, rates).map(sorted),
    size=st.integers(1, 80),
    seed=st.integers(0, 2**31),
    what=st.sampled_from(["any", "a", "c"]),
    natural=st.booleans(),
)
def test_nested_over_rates(pair: list[float], size: int, seed: int, what: str, natural: bool) -> None:
    available = some_available(3, size + 2) if natural else None
    assume(not natural or size >= 20)  # else too few samples can lose a value
    table = make_table((size, 1, 1), "abc", available=available)
    low, high = (parse_protocol(f"{what}_{format_rate(rate)}").hidden(table, "train", seed) for rate in pair)
    assert not (low & ~high).any(), "a value hidden at the lower rate is back at the higher one"


@pytest.mark.parametrize("rate", ["0", "0.3", "0.9", "1"])
def test_both_is_any_of_two(rate: str) -> None:
    table = make_table()
    both, any_ = (MaskTable.build(parse_protocol(f"{what}_{rate}"), table, 5) for what in ("both", "any"))
    assert both.fingerprint == any_.fingerprint


def test_streams_of_modalities_are_independent() -> None:
    text, image = present("text_0.5", 2000)[:, 0], present("image_0.5", 2000)[:, 1]
    together = (~text & ~image).mean()
    assert together == pytest.approx(0.25, abs=0.04), "samples that miss text tend to be those that miss the image"


@pytest.mark.parametrize("what", ["any", "text"])
def test_naturally_missing_values(what: str) -> None:
    available = some_available(3, 192)
    table = make_table((120, 36, 36), ("text", "image", "audio"), available=available)
    for rate in (0.5, 1.0):
        masks = MaskTable.build(parse_protocol(f"{what}_{rate}"), table, 0)
        for split in SPLITS:
            before = table.available[table.splits[split]]
            able = before.sum(axis=1) >= 2
            if what == "text":
                able &= before[:, 0]
            hidden = before & ~masks.present[split]
            assert 0 < able.sum() < len(able)
            assert hidden.any(axis=1).sum() == share_of(rate, int(able.sum()))
            assert hidden.sum(axis=1).max() == 1
            assert not hidden[~able].any(), "a sample that could not spare a value lost one"
            assert masks.present[split].any(axis=1).all()
            if what == "text":
                assert not hidden[:, 1:].any()
            else:
                assert hidden.sum(axis=0).max() - hidden.sum(axis=0).min() <= 2


def test_no_sample_can_spare_a_value() -> None:
    available = np.ones((30, 2), dtype=np.bool_)
    available[:10, 1] = False
    table = make_table((10, 10, 10), available=available)
    with pytest.raises(UsageError, match=r"no sample of split 'train' .* could lose a value"):
        MaskTable.build(parse_protocol("both_0.7"), table, 0)
    assert MaskTable.build(parse_protocol("both_0"), table, 0).counts()["train"] == {"text": 10}


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("both_0.70", "both_0.7"),
        ("both_.7", "both_0.7"),
        ("both_1.0", "both_1"),
        ("both_1", "both_1"),
        ("any_0", "any_0"),
        ("any_0.00", "any_0"),
        ("text_-0", "text_0"),
        ("text_1e-1", "text_0.1"),
        ("text_0.00001", "text_0.00001"),
        ("front_camera_0.25", "front_camera_0.25"),
    ],
)
def test_canonical_names(name: str, canonical: str) -> None:
    assert parse_protocol(name).name == canonical
    assert parse_protocol(canonical).name == canonical


@settings(deadline=None)
@given(st.floats(0, 1))
def test_rates_round_trip(rate: float) -> None:
    assert parse_rate(format_rate(rate), "x") == rate


@pytest.mark.parametrize(
    ("rate", "total", "share"), [(0.7, 10, 7), (0.29, 100, 29), (0.57, 100, 57), (0.1, 3, 0), (1.0, 9, 9), (0.3, 10, 3)]
)
def test_shares_do_not_suffer_from_floating_point(rate: float, total: int, share: int) -> None:
    assert share_of(rate, total) == share


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("both_70", "rate 70 lies outside 0 to 1.*0.7 for 70 %"),
        ("both_1.01", "lies outside"),
        ("text_-0.1", "lies outside"),
        ("both_x", "'x' is not a rate"),
        ("both_", "is not a rate"),
        ("both_nan", "is not a rate"),
        ("any_inf", "is not a rate"),
        ("text_0.7%", "is not a rate"),
        ("text_0,7", "is not a rate"),
        ("any_٠.٧", "is not a rate"),
    ],
)
def test_bad_rates(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_protocol(name)
    assert repr(name) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["compleet", "both", "text_many", "", "_0.7"])
def test_unknown_names_list_examples(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Available: .*both_0\.7.*complete"):
        parse_protocol(name)


def test_unknown_modality_names_neighbours() -> None:
    with pytest.raises(UsageError, match=r"no modality 'txt'\. Did you mean 'text_0\.3'\? Modalities: text, image\."):
        MaskTable.build(parse_protocol("txt_0.3"), make_table(), 0)
    with pytest.raises(UsageError, match=r"no modality 'bth'\. Did you mean 'both_0\.3'\?"):
        MaskTable.build(parse_protocol("bth_0.3"), make_table(), 0)


@pytest.mark.parametrize("modalities", [("text",), ("text", "image", "audio")])
def test_both_needs_two_modalities(modalities: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=rf"has {len(modalities)} \({', '.join(modalities)}\); use 'any_0\.7'"):
        MaskTable.build(parse_protocol("both_0.7"), make_table(modalities=modalities), 0)


@pytest.mark.parametrize("name", ["any_0.5", "text_0.5"])
def test_a_single_modality_cannot_be_hidden(name: str) -> None:
    with pytest.raises(UsageError, match="could lose a value and keep another one"):
        MaskTable.build(parse_protocol(name), make_table(modalities=("text",)), 0)


def test_description_says_the_rule() -> None:
    text = parse_protocol("both_0.7").describe()
    assert "floor(0.7 N)" in text
    assert "floor(n/2) miss the image" in text
    assert "lose 'audio'" in parse_protocol("audio_0.2").describe()
