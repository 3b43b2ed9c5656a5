"""Corruptions: values keep their kind, damage is repeatable, a higher severity goes on where a lower one stopped."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.corruption import CORRUPTIONS, Corruption

CASES = [(kind, name) for kind, own in CORRUPTIONS.items() for name in own]

pictures = st.tuples(st.integers(8, 48), st.integers(8, 48), st.integers(0, 2**31)).map(
    lambda case: np.random.default_rng(case[2]).integers(0, 256, (case[0], case[1], 3), dtype=np.uint8)
)
texts = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABCDOSZ0158  .,!ß"), max_size=80)
clips = st.tuples(st.integers(1, 6_000), st.integers(0, 2**31)).map(
    lambda case: np.random.default_rng(case[1]).normal(0, 0.2, case[0]).astype(np.float32)
)
VALUES = {"image": pictures, "text": texts, "audio": clips}
seeds = st.integers(0, 2**31)


def corrupted(case: tuple[str, str], value: Any, severity: int, seed: int = 0) -> Any:
    corruption: Corruption = CORRUPTIONS[case[0]][case[1]]
    return corruption.apply(value, corruption.levels[severity - 1], np.random.RandomState(seed))


def as_array(value: Any) -> npt.NDArray[Any]:
    return np.array(list(value)) if isinstance(value, str) else np.asarray(value, dtype=np.float64)


@pytest.mark.parametrize("case", CASES, ids="_".join)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), severity=st.integers(1, 5), seed=seeds)
def test_values_keep_their_kind(case: tuple[str, str], data: st.DataObject, severity: int, seed: int) -> None:
    value = data.draw(VALUES[case[0]])
    before = value if isinstance(value, str) else value.copy()
    result = corrupted(case, value, severity, seed)
    assert np.array_equal(as_array(value), as_array(before)), "the value itself was changed"
    assert np.array_equal(as_array(result), as_array(corrupted(case, value, severity, seed))), "not repeatable"
    if isinstance(value, str):
        assert isinstance(result, str)
        assert bool(result.split()) == bool(value.split()), "a text lost all of its words"
        return
    assert result.dtype == value.dtype
    assert result.shape == value.shape
    assert np.isfinite(result).all()


def picture() -> npt.NDArray[np.uint8]:
    """Waves of three lengths, so that blur and compression have something to lose."""
    y, x = np.mgrid[:64, :96]
    waves = [np.sin(x / 3), np.cos(y / 2), np.sin((x + y) / 5)]
    return np.stack([np.rint(127 + 120 * wave) for wave in waves], axis=2).astype(np.uint8)


SENTENCE = "Some small boats with bright blue sails go slowly down the old river before the morning rain begins again"
CLIP = np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.5
EXAMPLES: dict[str, Any] = {"image": picture(), "text": SENTENCE, "audio": CLIP}


def damage(case: tuple[str, str], severity: int) -> float:
    """Distance between the example and its corruption."""
    value, result = EXAMPLES[case[0]], corrupted(case, EXAMPLES[case[0]], severity)
    if case[1] == "drop":
        return float(len(value) - len(result))
    if isinstance(value, str):
        # Look-alikes of two characters move the rest of a text: words are compared.
        return float(sum(a != b for a, b in zip(value.split(), result.split(), strict=True)))
    return float(np.square(value.astype(np.float64) - result).mean())


@pytest.mark.parametrize("case", CASES, ids="_".join)
def test_a_higher_severity_does_more_damage(case: tuple[str, str]) -> None:
    losses = [damage(case, severity) for severity in range(1, 6)]
    assert losses[0] > 0
    assert all(low <= high for low, high in pairwise(losses)), losses
    assert losses[-1] > losses[0]


@pytest.mark.parametrize(
    "case",
    [("text", "typo"), ("text", "swap"), ("text", "ocr"), ("audio", "dropout"), ("image", "occlusion")],
    ids="_".join,
)
@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_damage_is_nested(case: tuple[str, str], seed: int) -> None:
    value = EXAMPLES[case[0]]
    pieces = {"audio": 20, "image": 64}.get(case[0], 0)
    parts = value.split() if isinstance(value, str) else value.reshape(pieces, -1)
    hit = []
    for severity in range(1, 6):
        result = corrupted(case, value, severity, seed)
        others = result.split() if isinstance(result, str) else result.reshape(pieces, -1)
        hit.append({place for place, (a, b) in enumerate(zip(parts, others, strict=True)) if np.any(a != b)})
    assert all(low <= high for low, high in pairwise(hit))


def test_dropped_words_are_nested() -> None:
    kept = [corrupted(("text", "drop"), SENTENCE, severity).split() for severity in range(1, 6)]
    assert [len(words) for words in kept] == [17, 15, 13, 11, 9]  # of 19, what is dropped rounded up
    for more, fewer in pairwise(kept):
        rest = iter(more)
        assert all(word in rest for word in fewer), "the order of words was kept"


def test_shares_are_exact() -> None:
    letters = sum(character.isalpha() for character in SENTENCE)
    typed = corrupted(("text", "typo"), SENTENCE, 5)
    assert len(typed) == len(SENTENCE)
    # A letter may be replaced by itself, one time in 26.
    assert 0.2 * letters < sum(a != b for a, b in zip(SENTENCE, typed, strict=True)) <= np.ceil(0.3 * letters)
    silent = corrupted(("audio", "dropout"), CLIP + 1, 3).reshape(-1, 800)
    assert (silent == 0).all(axis=1).sum() == 6
    covered = corrupted(("image", "occlusion"), np.zeros((50, 80, 3), np.uint8), 4)
    assert (covered == 128).all(axis=2).mean() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_has_its_ratio(severity: int) -> None:
    noise = corrupted(("audio", "noise"), CLIP, severity).astype(np.float64) - CLIP
    ratio = 10 * np.log10(np.square(CLIP, dtype=np.float64).mean() / np.square(noise).mean())
    assert ratio == pytest.approx((20, 15, 10, 5, 0)[severity - 1], abs=0.2)
    grey = np.full((60, 60, 3), 128, np.uint8)
    spread = (corrupted(("image", "noise"), grey, 1).astype(float) - 128).std()
    assert spread == pytest.approx(0.08 * 255, rel=0.05)


def test_silence_stays_silence() -> None:
    quiet = np.zeros(900, np.float32)
    assert not corrupted(("audio", "noise"), quiet, 5).any()
    assert not corrupted(("audio", "clipping"), quiet, 5).any()


def test_contrast_keeps_the_mean_colour() -> None:
    faint = corrupted(("image", "contrast"), EXAMPLES["image"], 5).astype(float)
    assert faint.mean(axis=(0, 1)) == pytest.approx(EXAMPLES["image"].mean(axis=(0, 1)), abs=0.6)
    assert np.ptp(faint) < 0.2 * np.ptp(EXAMPLES["image"].astype(float))


def test_legacy_streams_are_frozen() -> None:
    """What a corruption draws is the same in every version of NumPy."""
    assert corrupted(("text", "typo"), "A small boat", 5, 7) == "O smale bomt"
    assert corrupted(("image", "noise"), np.full((1, 2, 3), 100, np.uint8), 2, 7).tolist() == [
        [[152, 86, 101], [112, 76, 100]]
    ]
