"""What MMIN imagines."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.common.inspector import ImaginationInspector
from harness.methods.mmin.model import Mmin
from harness.types import Batch


class MminInspector(ImaginationInspector):
    """The forward imagination module's output.

    Args:
        method: Trained.
    """

    def __init__(self, method: Mmin) -> None:
        super().__init__(method)
        self._method = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Imagined embeddings."""
        embedded = self._method.encoded(batch)
        return self._named(self._method.imagination(embedded.flatten(1))[0])


def inspector(method: Method) -> Inspector | None:
    """The inspector of MMIN."""
    return MminInspector(method) if isinstance(method, Mmin) else None
