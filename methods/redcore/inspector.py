"""What RedCore's decoders predict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.redcore.model import RedCore, Representation
from harness.types import Batch


class RedCoreInspector(Inspector):
    """Codes as the other modalities' codes predict them, beside the modality's own.

    Args:
        method: Trained.
    """

    def __init__(self, method: RedCore) -> None:
        self._method = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Predicted codes."""
        return self._named(self._represent(batch).predicted)

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """Codes as they are classified: means, or the sample's fixed draw."""
        return self._named(self._represent(batch).sampled)

    def _represent(self, batch: Batch) -> Representation:
        method = self._method
        return method.represent(batch, method._fixed_noise(batch) if method.config.eval_sample else None)

    def _named(self, codes: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._method.modalities, codes.unbind(1), strict=True))


def inspector(method: Method) -> Inspector | None:
    """The inspector of RedCore."""
    return RedCoreInspector(method) if isinstance(method, RedCore) else None
