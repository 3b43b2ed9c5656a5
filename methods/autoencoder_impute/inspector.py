"""What the autoencoder imputes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.autoencoder_impute.model import AutoencoderImpute
from harness.types import Batch


class AutoencoderImputeInspector(Inspector):
    """Standardised pooled features.

    Args:
        method: Trained.
    """

    def __init__(self, method: AutoencoderImpute) -> None:
        self._method = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """The autoencoder's."""
        return self._named(self._method.impute(batch))

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """The encoder's own."""
        return self._named(self._method._features(batch))

    def _named(self, features: Tensor) -> dict[str, Tensor]:
        parts = torch.split(features, self._method._widths, dim=1)
        return dict(zip(self._method.modalities, parts, strict=True))


def inspector(method: Method) -> Inspector | None:
    """The inspector of the method."""
    return AutoencoderImputeInspector(method) if isinstance(method, AutoencoderImpute) else None
