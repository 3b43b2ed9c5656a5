"""Mean and spread of what training shows of a modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.masking import ObservedDataset
from harness.types import FeatureSpec, ModalityBatch

#: Which of a modality's arrays is meant.
Kind = Literal["pooled", "tokens"]
_CHUNK = 256
#: Share of the mean square below which a variance is the rounding error of a constant.
_ROUNDING = 1e-10


class Standardizer(nn.Module):
    """Brings a modality's features to mean 0 and deviation 1 per dimension over the observed training values.

    Args:
        features: Shape of the modality.
        of: Its pooled vectors or its tokens.

    Attributes:
        mean: Of the shape of one vector.
        std: 1 for a constant dimension, and before `fit`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: FeatureSpec, of: Kind) -> None:
        super().__init__()
        self.of: Kind = of
        shape = vector_shape(features, of)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, train: ObservedDataset, modality: str) -> None:
        """Measures a modality of the training split."""
        mean, std = observed_moments(train, modality, self.of)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Standardises `[..., *shape]`; returns float32."""
        return (values.float() - self.mean) / self.std


def standardizers(features: Mapping[str, FeatureSpec], of: Kind) -> nn.ModuleDict:
    """A standardizer per modality."""
    return nn.ModuleDict({name: Standardizer(spec, of) for name, spec in features.items()})


def fit_standardizers(modules: nn.ModuleDict, train: ObservedDataset) -> None:
    """Measures every modality of the training split."""
    for name, module in modules.items():
        assert isinstance(module, Standardizer)
        module.fit(train, name)


def standardized(modules: nn.ModuleDict, name: str, part: ModalityBatch) -> ModalityBatch:
    """A modality of a batch with its pooled vectors or tokens standardised."""
    module = modules[name]
    assert isinstance(module, Standardizer)
    return replace(part, **{module.of: module(getattr(part, module.of))})


def vector_shape(features: FeatureSpec, of: Kind) -> tuple[int, ...]:
    """Shape of one pooled vector or token."""
    return (features.pooled_dim,) if of == "pooled" else features.token_shape


def observed_moments(train: ObservedDataset, modality: str, of: Kind) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per dimension over the observed training values.

    Args:
        train: The training split as a method may see it.
        modality: Which modality.
        of: Its pooled vectors, or its tokens that are not padding.

    Returns:
        Mean and standard deviation, float32 of the shape of one vector; a constant dimension has deviation 0, and so
        has everything where nothing was observed.
    """
    shape = vector_shape(train.feature_specs[modality], of)
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
