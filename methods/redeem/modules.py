"""The parts of REDEEM that no other method has: conditional soft router and experts.

Shapes: B samples, K neighbours, L tokens of a modality, width d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.methods.common.pooling import masked_mean


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
