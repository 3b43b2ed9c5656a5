"""Initial weights that several methods share."""

from __future__ import annotations

from torch import nn


def kaiming_(module: nn.Module) -> None:
    """Sets every Linear and Conv weight below `module` to Kaiming-normal (fan-in, ReLU gain) and its bias to zero.

    This is how the MMIN family starts (MMIN, IF-MMIN, RedCore); recurrent layers keep PyTorch's default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.0, mode="fan_in")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
