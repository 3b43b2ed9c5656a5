"""Whom RAGPT asks, and what its generators make of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.common.inspector import MemoryInspector
from harness.methods.common.memory import Embedded, Retrieved
from harness.methods.ragpt.model import Ragpt
from harness.types import Batch


class RagptInspector(MemoryInspector):
    """Recovered tokens; the generators take plain means of the neighbours.

    Args:
        method: Trained, with generators.
    """

    def __init__(self, method: Ragpt) -> None:
        super().__init__(method)
        self._method = method

    def fill(self, batch: Batch, embedded: Embedded, retrieved: Retrieved) -> None:
        """Step 3 of the method."""
        for name in self._method.targets:
            embedded[name] = self._method._recover(name, batch, embedded[name], retrieved)

    def weights(self, batch: Batch, retrieved: Retrieved) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The same for every neighbour that was found."""
        shares = {}
        for name in self._method.targets:
            found = retrieved.found[name].float()
            shares[name] = found / found.sum(1, keepdim=True).clamp(min=1)
        return shares


def inspector(method: Method) -> Inspector | None:
    """The inspector of RAGPT; None where nothing is generated."""
    return RagptInspector(method) if isinstance(method, Ragpt) and method.config.generator != "padding" else None
