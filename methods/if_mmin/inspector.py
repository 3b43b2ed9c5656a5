"""What IF-MMIN imagines."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.common.inspector import ImaginationInspector
from harness.methods.if_mmin.model import IfMmin, imagine
from harness.types import Batch


class IfMminInspector(ImaginationInspector):
    """The cascade's output, conditioned on invariant features.

    Args:
        method: Trained.
    """

    def __init__(self, method: IfMmin) -> None:
        super().__init__(method)
        self._method = method

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """Imagined embeddings."""
        method = self._method
        embedded = method.encoded(batch)
        invariant = method.invariant(embedded).flatten(1)
        return self._named(imagine(method.imagination, embedded.flatten(1), invariant, method.config.recursion)[0])


def inspector(method: Method) -> Inspector | None:
    """The inspector of IF-MMIN."""
    return IfMminInspector(method) if isinstance(method, IfMmin) else None
