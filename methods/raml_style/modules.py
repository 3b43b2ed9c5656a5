"""Unimodal encoders, the norm constraint and the fusion transformer of the RAML-style method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.methods.common.moments import Standardizer
from harness.methods.common.tokens import scatter_rows
from harness.methods.raml_style.config import RamlStyleConfig
from harness.types import Batch, FeatureSpec, ModalityBatch

#: Below this norm a feature is scaled as if it had it.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class Encoded:
    """Features of the n samples that have a modality.

    Attributes:
        tokens: `[n, T, d]`, constrained.
        mask: `[n, T]` bool.
    """

    tokens: Tensor
    mask: Tensor


def to_norm(features: Tensor, norm: float) -> Tensor:
    """Scales `[..., d]` to a Euclidean norm, in float32."""
    features = features.float()
    length: Tensor = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return norm * features / length.clamp(min=_SMALLEST)


def norm_penalty(encoded: Encoded) -> Tensor:
    """Mean squared distance of the tokens' norms from √d; zero, with the graph kept, without a token."""
    tokens = encoded.tokens.float()
    length: Tensor = torch.linalg.vector_norm(tokens, dim=-1)
    distance = (length - math.sqrt(tokens.shape[-1])).square()
    return (distance * encoded.mask).sum() / encoded.mask.sum().clamp(min=1)


def cap_tokens(tokens: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Averages sequences of more than `length` real tokens down to it, over runs of nearly equal size.

    Args:
        tokens: `[n, L, D]`.
        mask: `[n, L]` bool.
        length: Longest allowed.

    Returns:
        `[n, min(L, length), D]` and its mask; real tokens come first.
    """
    if tokens.shape[1] <= length:
        return tokens, mask
    count = mask.sum(1, keepdim=True)
    bins = count.clamp(max=length)
    rank = mask.long().cumsum(1) - 1
    place = torch.where(mask, rank * bins // count.clamp(min=1), -1)
    member = (place.unsqueeze(1) == torch.arange(length, device=mask.device).view(1, -1, 1)).to(tokens.dtype)
    return member @ tokens / member.sum(2, keepdim=True).clamp(min=1), member.any(2)


def transformer(width: int, heads: int, layers: int, dropout: float) -> nn.ModuleList:
    """Pre-norm layers with a feed-forward of 2d and GELU."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(layers)
    )


class UnimodalEncoder(nn.Module):
    """Features of one modality from its frozen tokens (transformer) or its pooled vector (learned tokens, an MLP).

    Args:
        features: Shape of the modality.
        config: Options.

    Attributes:
        length: Tokens T that it gives.
    """

    def __init__(self, features: FeatureSpec, config: RamlStyleConfig) -> None:
        super().__init__()
        self.config = config
        self.pooled = config.inputs == "pooled"
        width = config.width
        self.scaler = Standardizer(features, "pooled" if self.pooled else "tokens")
        self.layers: nn.Module
        if self.pooled:
            self.length = config.pooled_tokens
            self.projection = nn.Linear(features.pooled_dim, self.length * width)
            layers: list[nn.Module] = []
            for _ in range(config.unimodal_layers):
                layers += [nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, width)]
            self.layers = nn.Sequential(*layers)
        else:
            self.length = min(features.length, config.max_tokens)
            self.projection = nn.Linear(features.dim, width)
            self.layers = transformer(width, config.heads, config.unimodal_layers, config.dropout)

    def forward(self, part: ModalityBatch) -> Encoded:
        """Constrained features of the samples that have the modality."""
        if self.pooled:
            tokens = self.projection(self.scaler(part.pooled)).unflatten(1, (self.length, self.config.width))
            return self._constrained(
                self.layers(tokens), torch.ones(tokens.shape[:2], dtype=torch.bool).to(tokens.device)
            )
        # A sequence of padding only is read as one token.
        mask = part.mask.clone()
        mask[:, 0] |= ~mask.any(1)
        tokens, mask = cap_tokens(self.scaler(part.tokens), mask, self.config.max_tokens)
        hidden = self.projection(tokens)
        if len(hidden):
            assert isinstance(self.layers, nn.ModuleList)
            for layer in self.layers:
                hidden = layer(hidden, src_key_padding_mask=~mask)
        return self._constrained(hidden, mask)

    def _constrained(self, hidden: Tensor, mask: Tensor) -> Encoded:
        if self.config.norm == "hard":
            hidden = to_norm(hidden, math.sqrt(self.config.width))
        return Encoded(hidden * mask.unsqueeze(2), mask)


class FusionTransformer(nn.Module):
    """Full attention over `[CLS]` and the tokens of all modalities; a missing one is a learned token of norm √d.

    Args:
        lengths: Tokens T per modality, in spec order.
        num_outputs: Logits C.
        config: Options.
    """

    def __init__(self, lengths: Mapping[str, int], num_outputs: int, config: RamlStyleConfig) -> None:
        super().__init__()
        width = config.width
        self.lengths = dict(lengths)
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.absent = nn.ParameterDict({name: nn.Parameter(torch.randn(width)) for name in lengths})
        self.modality = nn.ParameterDict({name: nn.Parameter(0.02 * torch.randn(width)) for name in lengths})
        self.position = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(length, width)) for name, length in lengths.items() if length > 1}
        )
        self.layers = transformer(width, config.heads, config.fusion_layers, config.dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)

    def absent_token(self, name: str) -> Tensor:
        """`[d]`, of norm √d."""
        token = self.absent[name]
        return to_norm(token, math.sqrt(len(token)))

    def forward(self, encoded: Mapping[str, Encoded], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Fuses a batch.

        Returns:
            Logits `[B, C]` and per modality the outputs at its tokens `[B, T, d]`; that of a missing one is the first.
        """
        sequence = [self.cls.expand(len(batch), -1, -1).float()]
        masks = [torch.ones(len(batch), 1, dtype=torch.bool, device=batch.device)]
        for name, length in self.lengths.items():
            part, rows = encoded[name], batch.inputs[name].rows
            tokens = part.tokens.float()
            if name in self.position:
                tokens = tokens + self.position[name]
            first = torch.arange(length, device=batch.device) == 0
            stand_in = self.absent_token(name) * first.unsqueeze(1)
            sequence.append(scatter_rows(tokens, rows, len(batch), stand_in) + self.modality[name])
            masks.append(scatter_rows(part.mask, rows, len(batch), first))
        hidden, mask = torch.cat(sequence, dim=1), torch.cat(masks, dim=1)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~mask)
        hidden = self.norm(hidden)
        pieces = hidden[:, 1:].split(list(self.lengths.values()), dim=1)
        return self.head(hidden[:, 0]), dict(zip(self.lengths, pieces, strict=True))
