"""Independent rates, the released draw, every pattern, train/test and test grids: counts, exceptions, names."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import HarnessError, UsageError
from harness.masking import MaskTable
from harness.protocol import format_rate, join_names, parse_protocol, share_of
from harness.testing.protocols import some_available
from harness.testing.tables import make_table
from harness.types import SPLITS, BoolArray, DataTable, iterate_patterns, pattern_name

PAIR = ("text", "image")
TRIO = ("text", "image", "audio")

rates = st.integers(0, 100).map(lambda hundredths: hundredths / 100)
seeds = st.integers(0, 2**31)


def draw(name: str, table: DataTable, seed: int = 0) -> MaskTable:
    return MaskTable.build(parse_protocol(name), table, seed)


def natural(sizes: tuple[int, int, int], modalities: tuple[str, ...]) -> DataTable:
    return make_table(sizes, modalities, available=some_available(len(modalities), sum(sizes)))


# Independent rates


@settings(deadline=None, max_examples=60)
@given(chosen=st.lists(rates, min_size=2, max_size=5), size=st.integers(1, 80), seed=seeds, lacking=st.booleans())
def test_every_modality_has_its_own_exact_rate(chosen: list[float], size: int, seed: int, lacking: bool) -> None:
    names = tuple("abcde"[: len(chosen)])
    table = natural((size, 1, 1), names) if lacking else make_table((size, 1, 1), names)
    protocol = parse_protocol(f"imbalanced_{'-'.join(map(format_rate, chosen))}")
    available = table.available[table.splits["train"]]
    hidden = protocol.hidden(table, "train", seed)
    assert not (hidden & ~available).any()
    assert (available & ~hidden).any(axis=1).all()
    asked = sum(share_of(rate, int(available[:, column].sum())) for column, rate in enumerate(chosen))
    excepted = asked - int(hidden.sum())
    lines = [line for line in protocol.remarks(table, seed) if line.startswith("train:")]
    assert lines == (
        [f"train: {excepted} of {size} samples were to lose everything and keep one modality"] if excepted else []
    )
    # Who keeps a modality by exception keeps one only.
    kept = (available & ~hidden).sum(axis=1)
    assert (kept == 1).sum() >= excepted
    for column, rate in enumerate(chosen):
        quota = share_of(rate, int(available[:, column].sum()))
        assert quota - excepted <= hidden[:, column].sum() <= quota


@settings(deadline=None, max_examples=40)
@given(pair=st.tuples(rates, rates).map(sorted), size=st.integers(1, 80), seed=seeds, count=st.integers(2, 4))
def test_shared_rates_are_nested(pair: list[float], size: int, seed: int, count: int) -> None:
    table = make_table((size, 1, 1), tuple("abcd"[:count]))
    low, high = (parse_protocol(f"shared_{format_rate(rate)}").hidden(table, "train", seed) for rate in pair)
    assert not (low & ~high).any(), "a value hidden at the lower rate is back at the higher one"


def test_shared_is_imbalanced_with_equal_rates() -> None:
    table = make_table(modalities=TRIO)
    assert draw("shared_0.5", table).fingerprint == draw("imbalanced_0.5-0.5-0.5", table).fingerprint


def test_modalities_are_lost_independently() -> None:
    present = draw("imbalanced_0.2-0.5-0.8", make_table((4000, 1, 1), TRIO)).present["train"]
    hidden = ~present
    # Text and image are lost together with audio kept; that is so by chance, or by the exception.
    assert (hidden[:, 0] & hidden[:, 1]).mean() == pytest.approx(0.2 * 0.5 * 0.2 + 0.2 * 0.5 * 0.8 / 3, abs=0.01)
    # Without the exception 8 % of the samples would lose everything.
    excepted = (0.2 + 0.5 + 0.8) - hidden.mean(axis=0).sum()
    assert excepted == pytest.approx(0.2 * 0.5 * 0.8, abs=0.015)
    # The exception falls on every modality alike.
    assert 0.2 - hidden[:, 0].mean() == pytest.approx(excepted / 3, abs=0.01)
    assert 0.8 - hidden[:, 2].mean() == pytest.approx(excepted / 3, abs=0.01)


def test_everything_lost_is_one_modality_kept() -> None:
    masks = draw("shared_1", make_table((300, 10, 10), TRIO))
    assert (masks.present["train"].sum(axis=1) == 1).all()
    assert (masks.present["train"].sum(axis=0) > 70).all()
    assert "train: 300 of 300 samples were to lose everything and keep one modality" in masks.remarks
    assert draw("shared_0", make_table(modalities=TRIO)).remarks == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imbalanced_0.5", "one rate per modality, e.g. imbalanced_0.2-0.8, or shared_0.5"),
        ("imbalanced_0.5-2", "rate 2 lies outside 0 to 1"),
        ("imbalanced_0.5--0.5", "'' is not a rate"),
        ("shared_many", "'many' is not a rate"),
    ],
)
def test_bad_independent_rates(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_protocol(name)


def test_one_rate_per_modality_of_the_data_set() -> None:
    with pytest.raises(UsageError, match=r"has 2 rates, but data set 'contract' has 3 modalities \(text, image, audio"):
        draw("imbalanced_0.2-0.8", make_table(modalities=TRIO))


# The released draw


@pytest.mark.parametrize("order", [PAIR, PAIR[::-1]])
@pytest.mark.parametrize(
    ("sizes", "single", "text_missing", "image_missing"),
    [
        ((15_552, 2_608, 7_799), (10_884, 1_791, 5_496), (5_415, 897, 2_773), (5_443, 921, 2_721)),
        ((8_500, 500, 1_000), (5_934, 346, 720), (2_963, 174, 363), (2_983, 188, 329)),
        ((67_971, 0, 22_715), (47_568, 0, 15_912), (23_785, 0, 7_955), (23_780, 0, 7_960)),
    ],
    ids=["mm_imdb", "hateful_memes", "food101"],
)
def test_counts_of_the_released_draw(
    sizes: tuple[int, ...],
    single: tuple[int, ...],
    text_missing: tuple[int, ...],
    image_missing: tuple[int, ...],
    order: tuple[str, ...],
) -> None:
    table = make_table(sizes, order)
    both, text = parse_protocol("concat_both_0.7"), parse_protocol("concat_text_0.7")
    column = order.index("text")
    for position, split in enumerate(SPLITS):
        hidden = both.hidden(table, split, 2024)
        assert hidden[:, column].sum() == text_missing[position]
        assert hidden[:, 1 - column].sum() == image_missing[position]
        assert hidden.sum(axis=1).max(initial=0) <= 1
        assert text.hidden(table, split, 2024)[:, column].sum() == single[position]
        assert not text.hidden(table, split, 2024)[:, 1 - column].any()


def test_the_released_draw_is_the_legacy_generator_over_all_splits() -> None:
    np.random.seed(7)
    text = np.random.choice(100, 35, replace=False)
    left = [index for index in range(100) if index not in set(text.tolist())]
    image = np.random.choice(left, 35, replace=False)
    masks = draw("concat_both_0.7", make_table((50, 20, 30)), 7)
    present = np.concatenate([masks.present[split] for split in SPLITS])
    assert set(np.flatnonzero(~present[:, 0])) == set(text)
    assert set(np.flatnonzero(~present[:, 1])) == set(image)


def test_the_released_draw_leaves_the_global_generator_alone() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    draw("concat_both_0.7", make_table(), 3)
    assert np.random.random() == expected


def test_the_released_draw_keeps_what_is_alone() -> None:
    table = natural((60, 20, 40), PAIR)
    masks, protocol = draw("concat_text_1", table), parse_protocol("concat_text_1")
    for split in SPLITS:
        available = table.available[table.splits[split]]
        alone = available[:, 0] & ~available[:, 1]
        assert masks.present[split][alone, 0].all()
        assert not masks.present[split][~alone, 0].any()
        line = f"{split}: {alone.sum()} samples were drawn to lose the only modality that they have; they keep it"
        assert line in masks.remarks
        assert list(protocol.remarks(table, 0, [split])) == [line]


@pytest.mark.parametrize(
    ("name", "modalities", "seed", "message"),
    [
        ("concat_both_0.7", TRIO, 0, r"has 3 \(text, image, audio\); use 'any_0.7' or concat_<modality>"),
        ("concat_txt_0.7", PAIR, 0, "has no modality 'txt'. Modalities: text, image"),
        ("concat_text_0.7", PAIR, -1, "mask_seed=-1"),
        ("concat_0.7", PAIR, 0, "write concat_both_0.7"),
        ("concat_both_7", PAIR, 0, "lies outside 0 to 1"),
    ],
)
def test_refused_released_draws(name: str, modalities: tuple[str, ...], seed: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(name, make_table(modalities=modalities), seed)


# Every pattern


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 60), seed=seeds, count=st.integers(2, 4), proper=st.booleans())
def test_patterns_are_dealt_evenly(size: int, seed: int, count: int, proper: bool) -> None:
    names = tuple("abcd"[:count])
    masks = draw("patterns_proper" if proper else "patterns", make_table((size, size, 2), names), seed)
    patterns = [pattern_name(pattern, names) for pattern in iterate_patterns(names)]
    patterns = patterns[:-1] if proper else patterns
    assert list(masks.conditions) == patterns
    for split in ("train", "valid"):
        counts = [masks.counts()[split].get(pattern, 0) for pattern in patterns]
        assert sum(counts) == size
        assert max(counts) - min(counts) <= 1
    assert all(masks.counts()[f"test:{pattern}"] == {pattern: 2} for pattern in patterns)


def test_the_six_conditions_of_mmin() -> None:
    masks = draw("patterns_proper", make_table(modalities=TRIO))
    assert len(masks.conditions) == 6
    assert "test" not in masks.present
    assert not any(rows.all(axis=1).any() for rows in (*masks.conditions.values(), *masks.present.values()))
    assert len(draw("patterns", make_table(modalities=TRIO)).conditions) == 7


@pytest.mark.parametrize("name", ["patterns", "patterns_proper"])
def test_patterns_where_values_lack_naturally(name: str) -> None:
    table = natural((120, 60, 84), TRIO)
    masks = draw(name, table)
    for split in ("train", "valid"):
        available = table.available[table.splits[split]]
        assert masks.present[split].any(axis=1).all()
        if name == "patterns_proper":
            assert not masks.present[split][available.all(axis=1)].all(axis=1).any()
    available = table.available[table.splits["test"]]
    skipped = 0
    for condition, rows in masks.conditions.items():
        shown = np.array([modality in condition.split("+") for modality in TRIO])
        assert np.array_equal(rows, available & shown)
        without = int((~(available & shown).any(axis=1)).sum())
        assert masks.counts()[f"test:{condition}"].get("skipped", 0) == without
        skipped += without
    assert skipped > 0


def test_patterns_need_two_modalities() -> None:
    with pytest.raises(UsageError, match="needs two modalities, but data set 'contract' has only 'text'"):
        draw("patterns", make_table(modalities=("text",)))


def test_a_condition_that_shows_nothing_of_any_sample_is_refused() -> None:
    available = np.ones((30, 2), dtype=np.bool_)
    available[:, 1] = False
    with pytest.raises(UsageError, match=r"no sample of split 'test' under condition 'image' .* anything to show"):
        draw("patterns", make_table((10, 10, 10), available=available))


# Train and test


def rows_of(masks: MaskTable, split: str) -> list[BoolArray]:
    return [rows for own, rows in masks.parts().values() if own == split]


@pytest.mark.parametrize("train", ["complete", "both_0.7", "shared_0.5", "patterns", "concat_both_0.7"])
@pytest.mark.parametrize("test", ["complete", "text_0.3", "shared_0.5", "patterns", "concat_both_0.7"])
def test_each_side_is_its_own_protocol(train: str, test: str) -> None:
    table = make_table()
    masks, left, right = (draw(name, table, 4) for name in (f"train:{train},test:{test}", train, test))
    assert masks.protocol == f"train:{train},test:{test}"
    for split, source in (("train", left), ("valid", left), ("test", right)):
        assert all(map(np.array_equal, rows_of(masks, split), rows_of(source, split)))
    assert list(masks.conditions) == list(right.conditions)
    if train == test:
        assert masks.fingerprint == left.fingerprint


@settings(deadline=None, max_examples=30)
@given(first=st.integers(0, 9), steps=st.integers(1, 10), step=st.sampled_from(["0.1", "0.05", "0.01"]))
def test_grids(first: int, steps: int, step: str) -> None:
    start = Fraction(first, 10)
    last = start + steps * Fraction(step)
    name = f"test:any_{float(start)}..{float(last)}:{step}"
    if last > 1:
        with pytest.raises(UsageError, match="lies outside 0 to 1"):
            parse_protocol(name)
        return
    masks = draw(name, make_table((3, 3, 100), TRIO))
    expected = [f"any_{format_rate(float(start + index * Fraction(step)))}" for index in range(steps + 1)]
    assert list(masks.conditions) == expected
    for condition, rows in masks.conditions.items():
        assert (~rows.all(axis=1)).sum() == share_of(float(condition.removeprefix("any_")), 100)
        assert np.array_equal(rows, draw(condition, make_table((3, 3, 100), TRIO)).present["test"])
    # The curve is paired: who misses a value at one rate misses it at every higher one.
    assert not any((~low & high).any() for low, high in pairwise(masks.conditions.values()))
    assert parse_protocol(masks.protocol).name == masks.protocol


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("train:complete,test:both_0.7", "train:complete,test:both_0.7"),
        ("train:both_0.70,test:complete", "train:both_0.7,test:complete"),
        ("test:both_0.7", "train:complete,test:both_0.7"),
        ("test:both_0.0..1.0:0.1", "train:complete,test:both_0..1:0.1"),
        ("test:text_0.0..0.9", "train:complete,test:text_0..0.9:0.1"),
        ("train:both_0.7,test:text_0.0..0.9:0.1", "train:both_0.7,test:text_0..0.9:0.1"),
        ("train:patterns,test:front_camera_0.5..1:.25", "train:patterns,test:front_camera_0.5..1:0.25"),
        ("shared_.50", "shared_0.5"),
        ("imbalanced_.2-0.50-1.0", "imbalanced_0.2-0.5-1"),
        ("concat_both_0.70", "concat_both_0.7"),
        ("concat_front_camera_1", "concat_front_camera_1"),
    ],
)
def test_names_are_canonical(name: str, canonical: str) -> None:
    protocol = parse_protocol(name)
    assert protocol.name == canonical
    assert parse_protocol(canonical) == protocol
    assert "\n" not in protocol.describe()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train:complete", "lacks its test side; write train:complete,test:both_0.7"),
        ("train:,test:both_0.5", "lacks its train side"),
        ("train:complete,test:", "lacks its test side"),
        ("train:complete,test:test:both_0.5", "'test:both_0.5' cannot be a side"),
        ("train:train:complete,test:both_0.5", "'train:complete' cannot be a side"),
        ("test:nothing", "unknown protocol 'nothing'"),
        ("test:both_0..1:0.3", "even steps from its first rate to its last"),
        ("test:both_0.5..0.1", "even steps"),
        ("test:both_0.5..0.5", "even steps"),
        ("test:both_0..1:0", "even steps"),
        ("test:both_0..1:0.001", "at most 100 even steps"),
        ("test:both_..1", "'' is not a rate"),
        ("test:both_0..x", "'x' is not a rate"),
        ("test:both_0..1:", "'0..1:' is not a rate"),
        ("test:imbalanced_0..1", "one rate per modality"),
    ],
)
def test_bad_sides(name: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message) as caught:
        parse_protocol(name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_scores_over_all_conditions() -> None:
    assert dict(parse_protocol("both_0.7").aggregates) == {}
    assert dict(parse_protocol("test:both_0.7").aggregates) == {}
    assert dict(parse_protocol("test:both_0..1").aggregates) == {"mean_over_grid": "mean"}
    for name in ("patterns", "test:patterns_proper"):
        assert list(parse_protocol(name).aggregates.items()) == [("pooled", "pool"), ("mean_of_patterns", "mean")]


def test_exceptions_are_told_of_the_side_that_is_used() -> None:
    table = make_table(modalities=TRIO)
    masks = draw("train:shared_0.9,test:patterns", table)
    assert [line.split(": ")[:2] for line in masks.remarks] == [["shared_0.9", "train"], ["shared_0.9", "valid"]]
    masks = draw("train:complete,test:shared_0.9", table)
    assert [line.split(": ")[:2] for line in masks.remarks] == [["shared_0.9", "test"]]


def test_commas_inside_names() -> None:
    assert join_names(["train:a", "test:b"]) == ["train:a,test:b"]
    assert join_names(["x", "train:a", "test:b", "test:c", "y"]) == ["x", "train:a,test:b", "test:c", "y"]
    assert join_names(["train:a", "x", "test:b"]) == ["train:a", "x", "test:b"]
    assert join_names([]) == []
