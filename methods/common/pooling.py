"""Means over the tokens and neighbours that are there."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens `[..., L, d]` whose mask `[..., L]` is True; zero where none is."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(-2) / weights.sum(-2).clamp(min=1.0)


def mean_over_found(values: Tensor, found: Tensor) -> Tensor:
    """Mean over dimension 1 of `[B, K, ...]` where `found` `[B, K]`; zero where no neighbour was found."""
    weights = found.view(*found.shape, *(1,) * (values.ndim - 2)).to(values.dtype)
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1.0)


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
