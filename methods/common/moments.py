"""Mean and spread of what training shows of a modality."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.masking import ObservedDataset

_CHUNK = 256
#: Share of the mean square below which a variance is the rounding error of a constant.
_ROUNDING = 1e-10


def observed_moments(train: ObservedDataset, modality: str, of: Literal["pooled", "tokens"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per dimension over the observed training values.

    Args:
        train: The training split as a method may see it.
        modality: Which modality.
        of: Its pooled vectors, or its tokens that are not padding.

    Returns:
        Mean and standard deviation, float32 of the shape of one vector; a constant dimension has deviation 0, and so
        has everything where nothing was observed.
    """
    spec = train.feature_specs[modality]
    shape = (spec.pooled_dim,) if of == "pooled" else spec.token_shape
    total, square = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    count = 0
    rows = np.flatnonzero(train.present[:, train.modalities.index(modality)])
    for start in range(0, len(rows), _CHUNK):
        part = train.batch(rows[start : start + _CHUNK]).inputs[modality]
        values = (part.pooled if of == "pooled" else part.tokens[part.mask]).double()
        total += values.sum(0)
        square += values.square().sum(0)
        count += len(values)
    mean, power = total / max(1, count), square / max(1, count)
    variance = power - mean.square()
    variance = torch.where(variance > _ROUNDING * power, variance, 0.0)
    return mean.float(), variance.sqrt().float()
