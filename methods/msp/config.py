"""Options of MSP; see card.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.methods.common.options import PromptOptions, check_choices
from harness.plugin import check_range


@dataclass
class MspConfig(PromptOptions):
    """MSP: one set of prompts per modality, composed for each missing pattern and kept distinct.

    Attributes:
        preset: `clean` and `paper` (prompts of the present modalities; they differ in weight decay), `official` (the
            baseline that REDEEM and RAGPT released and compare with).
        compose: An incomplete sample gets the sum of the prompts of its `present` or of its `missing` modalities
            (released baseline); a complete one gets the sum of all.
        orthogonal_weight: Weight of the mean absolute cosine between the prompts of two modalities.
    """

    compose: str = "present"
    orthogonal_weight: float = 1.0

    target: ClassVar[str] = "harness.methods.msp.model:Msp"
    summary: ClassVar[str] = "learned prompts per modality, summed over the present ones, kept orthogonal (ICASSP 2024)"
    citation: ClassVar[str] = (
        "Jang, Wang and Kim, Towards Robust Multimodal Prompting with Missing Modalities, ICASSP 2024, arXiv:2312.15890"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {"decay": "weights_and_prompts"},
        "official": {"prompt_type": "attention", "compose": "missing", "dummies": "masked", "decay": "all"},
    }

    #: The released prompts are two tensors, which `Msp.official_state` stacks under the name they have here.
    official_names: ClassVar[Mapping[str, str]] = {
        "backbone.vilt.embeddings": "embedding_layer",
        "backbone.vilt.encoder.layer": "encoder_layer",
        "backbone.vilt.layernorm": "layernorm",
        "backbone.vilt.pooler": "pooler",
        "head.layers": "classifier",
    }

    def loss_terms(self) -> tuple[str, ...]:
        """The orthogonality term is declared unless its weight is zero."""
        return ("task", "orthogonality") if self.orthogonal_weight > 0 else ("task",)

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        super().validate()
        check_choices(self, {"compose": ("present", "missing")})
        check_range("method", "orthogonal_weight", self.orthogonal_weight, 0.0)
