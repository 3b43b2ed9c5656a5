"""The network that plain competitors share: a backbone, its pooled first token, and REDEEM's head."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from harness.backbone import Backbone
from harness.method import task_loss
from harness.methods.common.heads import ClassificationHead
from harness.types import TaskSpec

#: Parameters without weight decay, as in the other methods on these backbones.
NO_DECAY = ("position", "cls")


class TokenNetwork(nn.Module):
    """Embedded modalities in, logits out.

    Args:
        backbone: Owned by this network.
        num_outputs: Logits C.
    """

    def __init__(self, backbone: Backbone, num_outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ClassificationHead(backbone.hidden_size, num_outputs)

    def forward(self, embedded: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Logits `[B, C]` from tokens `[B, L, d]` and masks `[B, L]` per modality."""
        hidden, mask = self.backbone.assemble(embedded)
        logits: Tensor = self.head(self.backbone.encode_pooled(hidden, mask))
        return logits


def observed_loss(task: TaskSpec, logits: Tensor, labels: Tensor) -> Tensor:
    """Task loss over n samples; zero, with the graph kept, when there are none."""
    return task_loss(task, logits, labels) if len(logits) else logits.sum()
