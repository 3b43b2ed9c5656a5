"""Light configs of the backbones and of the encoders that prepare a backbone's own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.config import BackboneConfig, EncoderConfig
from harness.plugin import check_choice, check_range


@dataclass
class FusionConfig(BackboneConfig):
    """A small pre-norm multimodal transformer over frozen encoders' tokens, trained from scratch.

    Attributes:
        hidden_size: Token width d.
        num_blocks: Transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Width of the feed-forward layer over d.
        dropout: Dropout after embedding, attention and feed-forward.
    """

    hidden_size: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    mlp_ratio: float = 2.0
    dropout: float = 0.3

    target: ClassVar[str] = "harness.methods.common.backbones.fusion:FusionBackbone"
    summary: ClassVar[str] = "small multimodal transformer over frozen encoders' tokens, trained (offline default)"
    citation: ClassVar[str] = "Vaswani et al., Attention Is All You Need, NeurIPS 2017 (pre-norm encoder)"
    card: ClassVar[str] = "cards/fusion.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        for option in ("hidden_size", "num_blocks", "num_heads"):
            check_range("backbone", option, getattr(self, option), 1)
        check_range("backbone", "dropout", self.dropout, 0.0, 0.99)


@dataclass
class ViltB32Config(BackboneConfig):
    """ViLT-B/32, frozen but for its pooler (REDEEM, RAGPT, MAP, MSP).

    Attributes:
        weights: Hub id, or a local folder in the hub's format.
        max_text_len: Text tokens; the 40-entry position table is stretched to this length.
        patch_order: `raster` (fixed), or `random` per call as in the released code.
        allow_download: Whether the hub may be contacted when the weights are not in a folder or the cache.
    """

    weights: str = "dandelin/vilt-b32-mlm"
    max_text_len: int = 128
    patch_order: str = "raster"
    allow_download: bool = False

    target: ClassVar[str] = "harness.methods.common.backbones.vilt:ViltBackbone"
    summary: ClassVar[str] = "ViLT-B/32 of Hugging Face, frozen, weights from the hub's cache or a local folder"
    citation: ClassVar[str] = "Kim, Son and Kim, ViLT, ICML 2021"
    card: ClassVar[str] = "cards/vilt_b32.md"
    token_encoders: ClassVar[Mapping[str, str] | None] = {"text": "vilt_text", "image": "vilt_image"}

    def encoder_options(self) -> Mapping[str, Mapping[str, Any]]:
        """The tokenizer and image size come from the same weights folder."""
        shared = {"weights": self.weights, "allow_download": self.allow_download}
        return {"vilt_text": {**shared, "max_text_len": self.max_text_len}, "vilt_image": shared}

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("backbone", "patch_order", self.patch_order, ("raster", "random"))
        check_range("backbone", "max_text_len", self.max_text_len, 2)


@dataclass
class ViltTextConfig(EncoderConfig):
    """Word-piece ids of ViLT's tokenizer, padded to `max_text_len`; pooled is empty.

    Attributes:
        weights: Hub id, or a local folder in the hub's format.
        allow_download: Whether the hub may be contacted.
        max_text_len: Word pieces, `[CLS]` and `[SEP]` included; longer texts are cut.
    """

    weights: str = "dandelin/vilt-b32-mlm"
    allow_download: bool = False
    max_text_len: int = 128

    target: ClassVar[str] = "harness.methods.common.backbones.vilt_inputs:ViltTextEncoder"
    summary: ClassVar[str] = "token ids for vilt_b32"
    citation: ClassVar[str] = "Kim, Son and Kim, ViLT, ICML 2021"
    card: ClassVar[str] = "cards/vilt_b32.md"
    kinds: ClassVar[tuple[str, ...]] = ("text",)


@dataclass
class ViltImageConfig(EncoderConfig):
    """Pixels for ViLT, squashed to a square of the model's image size, uint8; pooled is empty.

    Attributes:
        weights: Hub id, or a local folder in the hub's format; only its image size is read.
        allow_download: Whether the hub may be contacted.
    """

    weights: str = "dandelin/vilt-b32-mlm"
    allow_download: bool = False

    target: ClassVar[str] = "harness.methods.common.backbones.vilt_inputs:ViltImageEncoder"
    summary: ClassVar[str] = "square uint8 pixels for vilt_b32"
    citation: ClassVar[str] = "Kim, Son and Kim, ViLT, ICML 2021"
    card: ClassVar[str] = "cards/vilt_b32.md"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
