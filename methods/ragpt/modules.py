"""The parts of RAGPT: missing modality generator and context-aware prompter.

Shapes: B samples, K neighbours, L tokens of a modality, width d, prompt length l.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.methods.common.attention import CrossModalAttention
from harness.methods.common.pooling import adaptive_pool, masked_mean, mean_over_found


class FilterGenerator(nn.Module):
    """Missing modality generator (Eq. 4-7): the mean of the neighbours, denoised in the frequency domain.

    Args:
        length: Tokens L of the modality.
        width: Token width d.
        dropout: Dropout of the filtered signal.
        mask_padding: Leave padding out of the mean.

    Attributes:
        filter: `[L, d, 2]`, real and imaginary parts (kept real, so that any optimiser and precision takes it).
    """

    def __init__(self, length: int, width: int, dropout: float, mask_padding: bool) -> None:
        super().__init__()
        # Complex numbers of unit variance, as released.
        self.filter = nn.Parameter(math.sqrt(0.5) * torch.randn(length, width, 2))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, width)
        self.mask_padding = mask_padding

    def forward(self, retrieved: Tensor, mask: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Recovers a missing modality.

        Args:
            retrieved: `[B, K, L, d]`, retrieved copies of it.
            mask: `[B, K, L]` bool.
            found: `[B, K]` bool.

        Returns:
            Tokens `[B, L, d]`, zero where unknown, and which of them are known `[B, L]`.
        """
        mean, known = average(retrieved, mask, found, self.mask_padding)
        with torch.autocast(mean.device.type, enabled=False):
            spectrum = torch.fft.fft(mean.float(), dim=1) * torch.view_as_complex(self.filter.float())
            filtered = torch.fft.ifft(spectrum, dim=1).real.to(mean.dtype)
        recovered: Tensor = self.linear(self.norm(mean + self.dropout(filtered)))
        return recovered * known.unsqueeze(-1), known


class MeanGenerator(nn.Module):
    """The neighbours' mean as it is (ablation "no filter").

    Args:
        mask_padding: Leave padding out of the mean.
    """

    def __init__(self, mask_padding: bool) -> None:
        super().__init__()
        self.mask_padding = mask_padding

    def forward(self, retrieved: Tensor, mask: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """See `FilterGenerator.forward`."""
        return average(retrieved, mask, found, self.mask_padding)


def average(retrieved: Tensor, mask: Tensor, found: Tensor, mask_padding: bool) -> tuple[Tensor, Tensor]:
    """Mean `[B, L, d]` over the neighbours that were found, position by position, and which positions are known."""
    there = mask & found[..., None] if mask_padding else found[..., None].expand_as(mask)
    return masked_mean(retrieved.transpose(1, 2), there.transpose(1, 2)), there.any(1)


class ContextPrompter(CrossModalAttention):
    """Context-aware prompter (Eq. 2-3): a sample's tokens attend to those of its neighbours in the same modality.

    Args:
        width: Token width d.
        length: Prompt length l.
        per_neighbour: One attention per neighbour, then the mean over neighbours and prompt tokens, instead of one
            over all their tokens.
    """

    def __init__(self, width: int, length: int, per_neighbour: bool) -> None:
        super().__init__(width)
        self.length = length
        self.per_neighbour = per_neighbour

    def prompt(self, own: Tensor, own_mask: Tensor, retrieved: Tensor, mask: Tensor, found: Tensor) -> Tensor:
        """Prompts of one modality, zero for samples without neighbours.

        Args:
            own: `[B, L, d]`, the sample's tokens, recovered ones included.
            own_mask: `[B, L]` bool, those that are pooled over.
            retrieved: `[B, K, L, d]`.
            mask: `[B, K, L]` bool, tokens that may be attended to.
            found: `[B, K]` bool.

        Returns:
            `[B, l, d]`, or `[B, 1, d]` if `per_neighbour`.
        """
        batch, k = found.shape
        if self.per_neighbour:
            query = own.repeat_interleave(k, 0)
            attended = self(query, retrieved.flatten(0, 1), mask.flatten(0, 1))
            pooled = adaptive_pool(attended, own_mask.repeat_interleave(k, 0), self.length)
            return mean_over_found(pooled.view(batch, k, self.length, -1), found).mean(1, keepdim=True)
        shown = mask & found[..., None]
        attended = self(own, retrieved.flatten(1, 2), shown.flatten(1, 2))
        return adaptive_pool(attended, own_mask, self.length) * found.any(1)[:, None, None]
