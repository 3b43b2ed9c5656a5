"""A small pre-norm transformer over the tokens of frozen encoders: the offline default backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from harness.backbone import Backbone, Prefix
from harness.methods.common.backbones.config import FusionConfig
from harness.types import FeatureSpec


class FusionBackbone(Backbone):
    """Projects each modality to d, adds position and modality embeddings, and puts one `[CLS]` in front.

    Args:
        config: Width, depth, heads, dropout.
        features: Token shapes per modality.
    """

    prefix_length = 1

    def __init__(self, config: FusionConfig, features: Mapping[str, FeatureSpec]) -> None:
        super().__init__(config, features)
        width = config.hidden_size
        self.hidden_size = width
        self.num_blocks = config.num_blocks
        # Without scale and shift of its own, which the projection has: nothing is propagated through wide inputs.
        self.input_norm = nn.ModuleDict(
            {name: nn.LayerNorm(spec.dim, elementwise_affine=False) for name, spec in features.items()}
        )
        self.projection = nn.ModuleDict({name: nn.Linear(spec.dim, width) for name, spec in features.items()})
        self.position = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(spec.length, width)) for name, spec in features.items()}
        )
        self.embedding_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in features})
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(width)
        self.pooler = nn.Linear(width, width)

    def length(self, modality: str) -> int:
        """Tokens of one modality, as the encoder delivers them."""
        return self.features[modality].length

    def embed(self, modality: str, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.embed`; padding positions are zero."""
        hidden = self.projection[modality](self.input_norm[modality](tokens))
        # The position table tells the modalities apart as well: each has its own.
        hidden = self.embedding_norm[modality](hidden + self.position[modality])
        return hidden * mask.unsqueeze(-1), mask

    def assemble(self, embedded: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """See `Backbone.assemble`; dropout here and not in `embed`, so that reconstruction targets are noise-free."""
        hidden, mask = super().assemble(embedded)
        return self.embedding_dropout(hidden), mask

    def prefix(self, batch_size: int) -> Tensor | None:
        """The learned `[CLS]`, `[batch_size, 1, d]`."""
        return self.cls.expand(batch_size, -1, -1)

    def block(self, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """See `Backbone.block`."""
        result: Tensor = self.blocks[index](hidden, mask)
        return result

    def prefixed_block(self, index: int, hidden: Tensor, mask: Tensor | None, prefix: Prefix) -> Tensor:
        """See `Backbone.prefixed_block`."""
        result: Tensor = self.blocks[index](hidden, mask, prefix)
        return result

    def norm(self, hidden: Tensor) -> Tensor:
        """Final layer norm."""
        result: Tensor = self.final_norm(hidden)
        return result

    def pool(self, hidden: Tensor, index: int = 0) -> Tensor:
        """Dense + tanh on the token at `index`."""
        return torch.tanh(self.pooler(hidden[:, index]))


class _Block(nn.Module):
    """Pre-norm self-attention and feed-forward with residuals."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None, prefix: Prefix | None = None) -> Tensor:
        batch, length, width = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden))
        query, key, value = packed.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if prefix is not None:
            key, value = (
                torch.cat([part.view(batch, -1, self.heads, width // self.heads).transpose(1, 2).to(own.dtype), own], 2)
                for part, own in zip(prefix, (key, value), strict=True)
            )
            if mask is not None:
                mask = torch.cat([mask.new_ones(prefix[0].shape[:2]), mask], 1)
        # Written out: at these lengths it is five times faster on CPU than the fused kernel.
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        attended = scores.softmax(-1) @ value
        attended = attended.transpose(1, 2).reshape(batch, length, width)
        hidden = hidden + self.dropout(self.output(attended))
        result: Tensor = hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))
        return result
