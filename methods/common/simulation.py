"""Simulated missingness in training, for methods that learn from samples whose values are known."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_patterns(present: Tensor, *, full: bool) -> Tensor:
    """Draws for every sample a uniformly distributed non-empty subset of its observed modalities.

    All subsets of a sample are equally likely, whatever their size (MMIN draws one of its six patterns that way).
    The draw happens on the CPU, so that it does not depend on the device.

    Args:
        present: `[B, M]` bool, observed modalities.
        full: Whether keeping all of them is one of the outcomes.  Where only one is observed it is always kept.

    Returns:
        `[B, M]` bool on the device of `present`, a subset of it.
    """
    observed = present.cpu()
    count = observed.sum(1)
    outcomes = 2**count - (1 if full else 2)
    outcomes = torch.where(count > 1, outcomes, 1)
    code = 1 + (torch.rand(len(observed), dtype=torch.float64) * outcomes).long()
    rank = observed.long().cumsum(1) - 1
    chosen = (code.unsqueeze(1) >> rank.clamp(min=0)) & 1
    return (observed & chosen.bool()).to(present.device)
