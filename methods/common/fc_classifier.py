"""Fully connected classifier of the MMIN family."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class FcClassifier(nn.Module):
    """(Linear, ReLU, optional BatchNorm, Dropout) per hidden width, then Linear to C.

    Args:
        in_features: Input width.
        num_outputs: Logits C.
        hidden: Widths of the hidden layers, at least one.
        dropout: Rate after every hidden layer.
        batch_norm: Whether hidden layers are normalised over the batch.
    """

    def __init__(
        self,
        in_features: int,
        num_outputs: int,
        *,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([in_features, *hidden]):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if batch_norm:
                layers.append(_BatchNorm(after))
            layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(hidden[-1], num_outputs)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[B, in_features]` to logits `[B, C]` and the penultimate feature `[B, hidden[-1]]`."""
        feature: Tensor = self.layers(features)
        return self.output(feature), feature


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm that takes a single training sample, e.g. in an epoch's last batch, by its running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)
