"""Light configs of ViLT on stored patch embeddings.

They stand in a module of their own so that run ids of the other backbones do not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.config import EncoderConfig
from harness.methods.common.backbones.config import ViltB32Config


@dataclass
class ViltPatchesConfig(EncoderConfig):
    """Patch embeddings of ViLT before positions are added, bf16; pooled is empty.

    Attributes:
        weights: Hub id, or a local folder in the hub's format.
        allow_download: Whether the hub may be contacted.
    """

    weights: str = "dandelin/vilt-b32-mlm"
    allow_download: bool = False

    target: ClassVar[str] = "harness.methods.common.backbones.vilt_inputs:ViltPatchEncoder"
    summary: ClassVar[str] = "bf16 patch embeddings for vilt_b32_patches"
    citation: ClassVar[str] = "Kim, Son and Kim, ViLT, ICML 2021"
    version: ClassVar[str] = "2"  # 1: weights in float32
    card: ClassVar[str] = "cards/vilt_b32.md"
    kinds: ClassVar[tuple[str, ...]] = ("image",)


@dataclass
class ViltB32PatchesConfig(ViltB32Config):
    """`vilt_b32` that reads stored patch embeddings instead of pixels: half the bytes, and no projection per epoch."""

    summary: ClassVar[str] = "vilt_b32 on stored bf16 patch embeddings instead of pixels"
    token_encoders: ClassVar[Mapping[str, str] | None] = {"text": "vilt_text", "image": "vilt_patches"}

    def encoder_options(self) -> Mapping[str, Mapping[str, Any]]:
        """The tokenizer and the projection come from the same weights folder."""
        options = super().encoder_options()
        return {"vilt_text": options["vilt_text"], "vilt_patches": options["vilt_image"]}
