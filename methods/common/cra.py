"""Cascaded residual autoencoder (MMIN, ACL 2021; after Tran et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """One autoencoder of the cascade: LeakyReLU(0.01) between encoder layers, ReLU between decoder layers.

    Args:
        width: Input and output width.
        hidden: Widths of the encoder's layers; the decoder mirrors them.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        down = [width, *hidden]
        self.encoder = _perceptron(down, nn.LeakyReLU(0.01))
        self.decoder = _perceptron(down[::-1], nn.ReLU())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Maps `[..., width]` to the output `[..., width]` and the code `[..., hidden[-1]]`."""
        code: Tensor = self.encoder(features)
        return self.decoder(code), code


class CascadedResidualAutoencoder(nn.Module):
    """K residual blocks and a two-layer map; the codes met on the way are the joint representation.

    Block k reads the sum of the input and all former blocks' outputs.

    Args:
        width: Input width.
        hidden: Encoder widths of every block.
        blocks: K.
        out_width: Width of the output; `width` when not given.

    Attributes:
        latent_width: Width of the latent, K times the last of `hidden`.
    """

    def __init__(
        self, width: int, *, hidden: Sequence[int] = (256, 128, 64), blocks: int = 5, out_width: int | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, hidden) for _ in range(blocks))
        self.transition = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out_width or width))
        self.latent_width = blocks * hidden[-1]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the cascade.

        Args:
            features: `[..., width]`.

        Returns:
            Output `[..., out_width]` and latent `[..., latent_width]`.
        """
        codes = []
        total = features
        for block in self.blocks:
            output, code = block(total)
            total = total + output
            codes.append(code)
        return self.transition(total), torch.cat(codes, dim=-1)


def _perceptron(widths: Sequence[int], activation: nn.Module) -> nn.Sequential:
    """Linear layers with an activation between them and none at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation]
    return nn.Sequential(*layers[:-1])
