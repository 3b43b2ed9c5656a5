"""Whom REDEEM asks, how its router weighs them, and what its experts make of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.common.inspector import MemoryInspector
from harness.methods.common.memory import Embedded, Retrieved
from harness.methods.common.pooling import masked_mean
from harness.methods.redeem.model import Redeem
from harness.methods.redeem.modules import ExpertGenerator
from harness.types import Batch


class RedeemInspector(MemoryInspector):
    """Generated tokens, and the router's weights.

    Args:
        method: Trained, with experts.
    """

    def __init__(self, method: Redeem) -> None:
        super().__init__(method)
        self._method = method

    def fill(self, batch: Batch, embedded: Embedded, retrieved: Retrieved) -> None:
        """Steps 3-4 of the method."""
        observed = self._method._pooled(embedded, batch.present)
        self._method._fill_missing(batch, embedded, observed, retrieved)

    def weights(self, batch: Batch, retrieved: Retrieved) -> Mapping[str, Tensor]:
        """The router's."""
        method = self._method
        observed = method._pooled(method._embed(batch), batch.present)
        found = {}
        for name, generator in method.generators.items():
            assert isinstance(generator, ExpertGenerator)
            tokens, mask = retrieved.items[name]
            index, valid = retrieved.index[name], retrieved.found[name]
            there = (
                mask[index] & valid[..., None] if generator.mask_padding else valid[..., None].expand_as(mask[index])
            )
            found[name] = generator.router(observed, masked_mean(tokens[index], there), valid)
        return found


def inspector(method: Method) -> Inspector | None:
    """The inspector of REDEEM; None where nothing is generated."""
    return RedeemInspector(method) if isinstance(method, Redeem) and method.config.generator == "experts" else None
