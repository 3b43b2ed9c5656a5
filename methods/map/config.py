"""Options of MAP; see card.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.methods.common.options import PromptOptions, check_choices


@dataclass
class MapConfig(PromptOptions):
    """MAP: one set of prompts per missing pattern tells a transformer which inputs are dummies.

    Attributes:
        preset: `clean` and `paper` (the original settings; they differ in weight decay), `official` (the baseline that
            REDEEM and RAGPT released and compare with).
        patterns: `all`: prompts for each of the 2^M - 1 patterns; `observed`: for those of the training split, and any
            other pattern uses the prompts of the one that differs from it in the fewest modalities.
        simulate_missing: Training shows each sample with a uniformly drawn subset of its observed modalities.
    """

    patterns: str = "all"
    simulate_missing: bool = False

    target: ClassVar[str] = "harness.methods.map.model:Map"
    summary: ClassVar[str] = "learned prompts per missing pattern in the first blocks (CVPR 2023)"
    citation: ClassVar[str] = (
        "Lee, Tsai, Chiu and Lee, Multimodal Prompting with Missing Modalities for Visual Recognition, CVPR 2023"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "clean": {},
        "paper": {"decay": "weights_and_prompts"},
        "official": {"prompt_type": "attention", "patterns": "observed", "dummies": "masked", "decay": "all"},
    }

    official_names: ClassVar[Mapping[str, str]] = {
        "backbone.vilt.embeddings": "embedding_layer",
        "backbone.vilt.encoder.layer": "encoder_layer",
        "backbone.vilt.layernorm": "layernorm",
        "backbone.vilt.pooler": "pooler",
        "prompts": "missing_aware_prompt",
        "head.layers": "classifier",
    }

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        super().validate()
        check_choices(self, {"patterns": ("all", "observed")})
