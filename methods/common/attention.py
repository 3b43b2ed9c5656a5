"""Attention between two sequences, as prompts are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CrossModalAttention(nn.Module):
    """Single-head attention from one sequence to another, each with its own projection (REDEEM Eq. 5, RAGPT Eq. 2).

    Args:
        width: Token width d.
        output: Adds an output projection (REDEEM's released code).
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
