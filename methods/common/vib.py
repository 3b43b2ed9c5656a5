"""Variational encoders: a modality becomes a Gaussian code (RedCore, AAAI 2024; after Alemi et al., ICLR 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.methods.common.modality_encoders import token_width
from harness.methods.common.pooling import masked_mean
from harness.methods.common.tokens import scatter_rows
from harness.types import FeatureSpec, ModalityBatch

_ATTENTION_DROPOUT = 0.2
_FEEDFORWARD_DROPOUT = 0.1


@dataclass(frozen=True)
class GaussianCode:
    """A diagonal Gaussian per sample.

    Attributes:
        mean: `[..., d]` float32.
        log_variance: `[..., d]` float32.
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The code for standard normal noise `[..., d]`."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def divergence(self) -> Tensor:
        """Twice the Kullback-Leibler divergence from the standard normal, summed over d: `[...]`."""
        return (self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance).sum(-1)


class VariationalPooledEncoder(nn.Module):
    """Linear, ReLU, Linear to mean and log-variance, on the pooled vector.

    Args:
        features: Shape of the modality.
        width: Code width d.
    """

    def __init__(self, features: FeatureSpec, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(features.pooled_dim, width)
        self.code = nn.Linear(width, 2 * width)

    def forward(self, part: ModalityBatch, batch_size: int) -> GaussianCode:
        """Codes of all B samples; those without the modality are encoded as an all-zero input."""
        pooled = scatter_rows(part.pooled, part.rows, batch_size)
        return _code(self.code(self.projection(pooled).relu()))


class VariationalTokenEncoder(nn.Module):
    """Attention blocks over the tokens, mean over time, sigmoid, Linear to mean and log-variance.

    There are no positions.  A sample without the modality is a sequence of zero tokens that are all read, and so is
    the first token of a sequence of padding only.

    Args:
        features: Shape of the modality.
        width: Code width d, a multiple of `heads`.
        blocks: Attention blocks.
        heads: Attention heads.
        masked: Whether padding is left out; else it is read as zero tokens, as the released code does.
    """

    def __init__(
        self, features: FeatureSpec, width: int, *, blocks: int = 3, heads: int = 8, masked: bool = True
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(token_width(features), width)
        self.blocks = nn.ModuleList(BranchNormBlock(width, heads) for _ in range(blocks))
        self.code = nn.Linear(width, 2 * width)
        self.masked = masked

    def forward(self, part: ModalityBatch, batch_size: int) -> GaussianCode:
        """Codes of all B samples; those without the modality are encoded as an all-zero input."""
        real = part.mask if self.masked else torch.ones_like(part.mask)
        tokens = scatter_rows(part.tokens.masked_fill(~part.mask.unsqueeze(2), 0.0), part.rows, batch_size)
        real = scatter_rows(real, part.rows, batch_size, True)
        real[:, 0] |= ~real.any(1)
        hidden = self.projection(tokens)
        for block in self.blocks:
            hidden = block(hidden, real)
        return _code(self.code(masked_mean(hidden, real).sigmoid()))


class BranchNormBlock(nn.Module):
    """Pre-norm attention and feed-forward branches whose outputs are normalised once more before they are added.

    Args:
        width: Token width d.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=_ATTENTION_DROPOUT, batch_first=True)
        nn.init.normal_(self.attention.in_proj_weight, std=width**-0.5)  # as the released code starts
        self.attention_branch_norm = nn.LayerNorm(width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Dropout(_FEEDFORWARD_DROPOUT), nn.Linear(4 * width, width)
        )
        self.feedforward_branch_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """Maps `[B, L, d]` to `[B, L, d]`; tokens where `real` `[B, L]` is False are not attended to."""
        normed = self.attention_norm(tokens)
        attended, _ = self.attention(normed, normed, normed, key_padding_mask=~real, need_weights=False)
        tokens = tokens + self.attention_branch_norm(attended)
        fed: Tensor = self.feedforward_branch_norm(self.feedforward(self.feedforward_norm(tokens)))
        return tokens + fed


def _code(values: Tensor) -> GaussianCode:
    mean, log_variance = values.float().chunk(2, dim=-1)
    return GaussianCode(mean, log_variance)
