"""A stand-in for ViLT-B/32 that needs no weights: its shapes, and what of it is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.backbone import Backbone
from harness.config import BackboneConfig, MethodConfig
from harness.method import MethodContext
from harness.trainer import count_parameters
from harness.types import DatasetSpec, FeatureSpec, ModalitySpec, TaskKind, TaskSpec

#: What `vilt_b32` is fed: word pieces and pixels, with the pooled vectors of the run's own encoders.
VILT_FEATURES = {"text": FeatureSpec(128, (), 384), "image": FeatureSpec(1, (384, 384, 3), 1280)}


class ViltShapes(Backbone):
    """12 frozen blocks that change nothing, 128 text and 145 image tokens, a trained pooler.

    Args:
        config: No options.
        features: Keys are `text` and `image`.

    Attributes:
        seen: Per block run the shapes of its tokens and of its mask.
        pooled: Index that the pooler read last.
    """

    hidden_size = 768
    num_blocks = 12

    def __init__(self, config: BackboneConfig, features: Mapping[str, FeatureSpec]) -> None:
        super().__init__(config, features)
        self.pooler = nn.Linear(self.hidden_size, self.hidden_size)
        self.seen: list[tuple[torch.Size, torch.Size]] = []
        self.pooled = -1

    def length(self, modality: str) -> int:
        """Tokens at 384 x 384 pixels."""
        return {"text": 128, "image": 145}[modality]

    def embed(self, modality: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros of the right shape; images have no padding."""
        length = self.length(modality)
        return torch.zeros(len(tokens), length, self.hidden_size), mask.expand(-1, length)

    def block(self, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG002
        """Hands on what it got."""
        assert mask is not None
        self.seen.append((hidden.shape, mask.shape))
        return hidden

    def norm(self, hidden: Tensor) -> Tensor:
        """Hands on what it got."""
        return hidden

    def pool(self, hidden: Tensor, index: int = 0) -> Tensor:
        """The pooler on the token at `index`."""
        self.pooled = index
        pooled: Tensor = self.pooler(hidden[:, index])
        return pooled


def vilt_context(classes: int) -> MethodContext:
    """A text-image classification task with `classes` classes on `ViltShapes`."""
    kind: TaskKind = "binary" if classes == 2 else "multiclass"
    spec = DatasetSpec(
        "shapes",
        "1",
        (ModalitySpec("text", "text"), ModalitySpec("image", "image")),
        TaskSpec(kind, classes, tuple(map(str, range(classes))), "accuracy"),
        "CC0-1.0",
        "none: generated",
        "shapes",
    )
    return MethodContext(spec, VILT_FEATURES, lambda: ViltShapes(BackboneConfig(), VILT_FEATURES))


def parameters_at_vilt_size(config: MethodConfig, classes: int) -> int:
    """Trained parameters of a method on ViLT-B/32, counted without memory for them."""
    with torch.device("meta"):
        return count_parameters(config.implementation()(config, vilt_context(classes)))[0]
