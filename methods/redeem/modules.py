"""The parts of REDEEM: conditional soft router, experts, and the inter-modal dynamic prompter.

Shapes: B samples, K neighbours, L tokens of a modality, width d, prompt length b.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens `[..., L, d]` whose mask `[..., L]` is True; zero where none is."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(-2) / weights.sum(-2).clamp(min=1.0)


def adaptive_pool(tokens: Tensor, mask: Tensor, length: int) -> Tensor:
    """Adaptive average pooling over the True positions of `mask` only.

    The bins are those of `AdaptiveAvgPool1d(length)` applied to each sequence's own True tokens, so padding never
    enters; sequences without a True token give zeros.

    Args:
        tokens: `[n, L, d]`.
        mask: `[n, L]` bool.
        length: Bins b.

    Returns:
        `[n, b, d]`.
    """
    rank = mask.long().cumsum(1) - 1
    count = mask.sum(1, keepdim=True)
    bins = torch.arange(length, device=tokens.device)
    first = (bins * count) // length
    last = ((bins + 1) * count + length - 1) // length
    inside = (rank[:, None, :] >= first[:, :, None]) & (rank[:, None, :] < last[:, :, None]) & mask[:, None, :]
    weights = inside.to(tokens.dtype)
    return weights @ tokens / weights.sum(-1, keepdim=True).clamp(min=1.0)


class SoftRouter(nn.Module):
    """Conditional soft router (Eq. 2-3): weights over K neighbours from the observed modalities.

    Args:
        width: Token width d.
        kind: `scaled`: `softmax(q W1 (k W2)^T / sqrt(d))` without biases; `unscaled_bias`: biases, no scale (released
            code); `mean`: equal weights (ablation).
    """

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.scale = 1.0 / math.sqrt(width) if kind == "scaled" else 1.0
        if kind != "mean":
            bias = kind == "unscaled_bias"
            self.query = nn.Linear(width, width, bias=bias)
            self.key = nn.Linear(width, width, bias=bias)

    def forward(self, observed: Tensor, retrieved: Tensor, found: Tensor) -> Tensor:
        """Weights that sum to one over the neighbours found.

        Args:
            observed: `[B, d]` pooled observed modalities.
            retrieved: `[B, K, d]` pooled retrieved copies of the missing modality.
            found: `[B, K]` bool.

        Returns:
            `[B, K]`.
        """
        if self.kind == "mean":
            scores = torch.zeros_like(retrieved[..., 0])
        else:
            scores = (self.key(retrieved) @ self.query(observed).unsqueeze(-1)).squeeze(-1) * self.scale
        # A finite floor keeps queries without any neighbour free of NaN; their output is masked anyway.
        return scores.masked_fill(~found, torch.finfo(scores.dtype).min).softmax(-1)


class ExpertGenerator(nn.Module):
    """Within-modal reconstruction (Eq. 4): one expert per neighbour rank, summed with the router's weights.

    Args:
        width: Token width d.
        k: Number of experts K.
        router: Kind of `SoftRouter`.
        mask_padding: Leave padding out of the sum and renormalise over neighbours that have a token there.
    """

    def __init__(self, width: int, k: int, router: str, mask_padding: bool) -> None:
        super().__init__()
        self.router = SoftRouter(width, router)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(k)
        )
        self.mask_padding = mask_padding

    def forward(self, observed: Tensor, retrieved: Tensor, mask: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructs a missing modality.

        Args:
            observed: `[B, d]`, mean of the observed modalities' tokens.
            retrieved: `[B, K, L, d]`, retrieved copies of the missing modality.
            mask: `[B, K, L]` bool.
            found: `[B, K]` bool.

        Returns:
            Tokens `[B, L, d]` and their mask `[B, L]`.
        """
        there = mask & found[..., None] if self.mask_padding else found[..., None].expand_as(mask)
        weights = self.router(observed, masked_mean(retrieved, there), found)
        share = weights.unsqueeze(-1) * there.to(weights.dtype)
        transformed = torch.stack([expert(retrieved[:, rank]) for rank, expert in enumerate(self.experts)], 1)
        total = (share.unsqueeze(-1) * transformed).sum(1)
        known = there.any(1)
        return total / share.sum(1).clamp(min=1e-6).unsqueeze(-1) * known.unsqueeze(-1), known


class CrossModalAttention(nn.Module):
    """One direction of the prompter (Eq. 5): queries from the other modalities, keys and values from its own.

    Args:
        width: Token width d.
        output: Adds the released code's extra output projection.
    """

    def __init__(self, width: int, output: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width) if output else nn.Identity()
        self.scale = 1.0 / math.sqrt(width)

    def forward(self, query: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Attends to real tokens.

        Args:
            query: `[n, Lq, d]`.
            tokens: `[n, L, d]`.
            mask: `[n, L]` bool.

        Returns:
            `[n, Lq, d]`, not yet pooled to prompt length.
        """
        scores = self.query(query) @ self.key(tokens).transpose(1, 2) * self.scale
        scores = scores.masked_fill(~mask[:, None, :], torch.finfo(scores.dtype).min)
        # Pooling averages, so projecting before it equals the released order (project the pooled tokens).
        attended: Tensor = self.output(scores.softmax(-1) @ self.value(tokens))
        return attended
