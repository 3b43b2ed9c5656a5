"""What ShaSpec puts in the place of a missing modality's fused feature."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.shaspec.model import ShaSpec
from harness.types import Batch


class ShaSpecInspector(Inspector):
    """Fused features, those of a missing modality being the others' shared ones.

    Args:
        method: Trained.
    """

    def __init__(self, method: ShaSpec) -> None:
        self._method = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Fused features as they are classified."""
        fused = self._method.fuse(self._method.encode(batch), batch.present)
        return dict(zip(self._method.modalities, fused.unbind(1), strict=True))

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """The same of samples that have the modality."""
        return self.recovered(batch)


def inspector(method: Method) -> Inspector | None:
    """The inspector of ShaSpec."""
    return ShaSpecInspector(method) if isinstance(method, ShaSpec) else None
