"""Prediction heads that several methods share."""

from __future__ import annotations

from torch import Tensor, nn


class ClassificationHead(nn.Module):
    """Linear d→h, LayerNorm, GELU, Linear h→C with normal(0, 0.02) weights and zero biases (MAP's head).

    Args:
        in_features: Input width d.
        num_outputs: Logits C.
        hidden_features: Inner width h; 2d when not given.
    """

    def __init__(self, in_features: int, num_outputs: int, hidden_features: int | None = None) -> None:
        super().__init__()
        hidden = hidden_features or 2 * in_features
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, num_outputs)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Maps `[..., d]` to `[..., C]`."""
        logits: Tensor = self.layers(features)
        return logits
