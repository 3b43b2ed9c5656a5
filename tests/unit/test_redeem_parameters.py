"""Parameter counts of REDEEM at ViLT-B/32 size, from the released configuration (K = 5, d = 768)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.config import BackboneConfig
from harness.method import MethodContext
from harness.methods.redeem.config import RedeemConfig
from harness.methods.redeem.model import Redeem
from harness.trainer import count_parameters
from harness.types import DatasetSpec, FeatureSpec, ModalitySpec, TaskSpec

FEATURES = {"text": FeatureSpec(128, (), 384), "image": FeatureSpec(1, (384, 384, 3), 1280)}


class FrozenTrunk(Backbone):
    """Stands for ViLT-B/32: everything frozen but the pooler, 768 -> 768."""

    hidden_size = 768
    num_blocks = 12

    def __init__(self, config: BackboneConfig, features: Mapping[str, FeatureSpec]) -> None:
        super().__init__(config, features)
        self.pooler = nn.Linear(768, 768)

    def length(self, modality: str) -> int:
        return {"text": 128, "image": 145}[modality]

    def embed(self, modality: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("parameters are counted, nothing is run")

    def block(self, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        raise AssertionError("parameters are counted, nothing is run")

    def norm(self, hidden: Tensor) -> Tensor:
        raise AssertionError("parameters are counted, nothing is run")

    def pool(self, hidden: Tensor, index: int = 0) -> Tensor:
        raise AssertionError("parameters are counted, nothing is run")


def trainable(config: RedeemConfig, classes: int) -> int:
    kind = "binary" if classes == 2 else "multiclass"
    spec = DatasetSpec(
        "counts",
        "1",
        (ModalitySpec("text", "text"), ModalitySpec("image", "image")),
        TaskSpec(kind, classes, tuple(map(str, range(classes))), "accuracy"),
        "",
        "",
        "",
    )
    with torch.device("meta"):
        method = Redeem(config, MethodContext(spec, FEATURES, lambda: FrozenTrunk(BackboneConfig(), FEATURES)))
    return count_parameters(method)[0]


@pytest.mark.parametrize(
    ("classes", "one_generator", "two_generators"),
    [(2, 13_585_920, 20_673_024), (23, 13_602_048, 20_689_152), (101, 13_661_952, 20_749_056)],
    ids=["hateful_memes", "mmimdb", "food101"],
)
def test_official_counts(classes: int, one_generator: int, two_generators: int) -> None:
    single = RedeemConfig.from_preset("official")
    single.targets = ["text"]
    assert trainable(single, classes) == one_generator
    assert trainable(RedeemConfig.from_preset("official"), classes) == two_generators


def test_clean_count() -> None:
    assert trainable(RedeemConfig(), 23) == 19_524_887


def test_a_vilt_generator_costs_k_experts_and_a_router() -> None:
    more = RedeemConfig.from_preset("official")
    more.k = 6
    extra = trainable(more, 2) - trainable(RedeemConfig.from_preset("official"), 2)
    assert extra == 2 * 1_181_184
