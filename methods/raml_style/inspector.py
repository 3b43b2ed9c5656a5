"""What the repair head makes of a missing modality."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from harness.inspector import Inspector
from harness.method import Method
from harness.methods.common.pooling import masked_mean
from harness.methods.common.tokens import scatter_rows
from harness.methods.raml_style.model import RamlStyle
from harness.types import Batch


class RamlStyleInspector(Inspector):
    """Repaired features beside the mean clean ones, as the repair loss compares them.

    Args:
        method: Trained.
        repair: Its repair head.
    """

    def __init__(self, method: RamlStyle, repair: nn.Linear) -> None:
        self._method = method
        self._repair = repair

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:
        """The repair head at the first fused token of each modality."""
        _, outputs = self._method._fuse(self._method.encode(batch), batch)
        return {name: self._repair(tokens[:, 0]) for name, tokens in outputs.items()}

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mean clean features."""
        return {
            name: scatter_rows(masked_mean(part.tokens, part.mask), batch.inputs[name].rows, len(batch))
            for name, part in self._method.encode(batch).items()
        }


def inspector(method: Method) -> Inspector | None:
    """The inspector of the method; None without a repair head."""
    if not isinstance(method, RamlStyle) or method.repair is None:
        return None
    return RamlStyleInspector(method, method.repair)
