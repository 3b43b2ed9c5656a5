"""A network that reads one modality."""

from __future__ import annotations

from torch import Tensor

from harness.method import MethodContext
from harness.methods.common.token_network import TokenNetwork
from harness.methods.common.tokens import backbone_for
from harness.types import ModalityBatch


class ModalityNetwork(TokenNetwork):
    """A network that reads one modality.

    Args:
        context: Of the method.
        modality: Which one.
    """

    def __init__(self, context: MethodContext, modality: str) -> None:
        super().__init__(backbone_for(context, modality), context.dataset.task.num_outputs)
        self.modality = modality

    def logits(self, part: ModalityBatch) -> Tensor:
        """Logits `[n, C]` of the samples that have the modality."""
        result: Tensor = self({self.modality: self.backbone.embed(self.modality, part.tokens, part.mask)})
        return result
