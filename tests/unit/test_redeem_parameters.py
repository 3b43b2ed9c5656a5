"""Parameter counts of REDEEM at ViLT-B/32 size, from the released configuration (K = 5, d = 768)."""

from __future__ import annotations

import pytest

from harness.methods.redeem.config import RedeemConfig
from harness.testing.backbones import parameters_at_vilt_size


@pytest.mark.parametrize(
    ("classes", "one_generator", "two_generators"),
    [(2, 13_585_920, 20_673_024), (23, 13_602_048, 20_689_152), (101, 13_661_952, 20_749_056)],
    ids=["hateful_memes", "mmimdb", "food101"],
)
def test_official_counts(classes: int, one_generator: int, two_generators: int) -> None:
    single = RedeemConfig.from_preset("official")
    single.targets = ["text"]
    assert parameters_at_vilt_size(single, classes) == one_generator
    assert parameters_at_vilt_size(RedeemConfig.from_preset("official"), classes) == two_generators


def test_clean_count() -> None:
    assert parameters_at_vilt_size(RedeemConfig(), 23) == 19_524_887


def test_a_vilt_generator_costs_k_experts_and_a_router() -> None:
    more = RedeemConfig.from_preset("official")
    more.k = 6
    extra = parameters_at_vilt_size(more, 2) - parameters_at_vilt_size(RedeemConfig.from_preset("official"), 2)
    assert extra == 2 * 1_181_184
