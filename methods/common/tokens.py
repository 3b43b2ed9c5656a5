"""Small helpers for methods whose networks read some modalities of a batch."""

from __future__ import annotations

from torch import Tensor

from harness.backbone import Backbone
from harness.method import MethodContext


def scatter_rows(part: Tensor, rows: Tensor, batch_size: int, filler: Tensor | float = 0.0) -> Tensor:
    """Spreads the values of some samples over a batch.

    Args:
        part: `[n, ...]`.
        rows: `[n]` int64, their rows in the batch.
        batch_size: B.
        filler: What the other rows hold: a number, or a tensor that broadcasts to `[B, ...]`.

    Returns:
        `[B, ...]` of the dtype of `part`.
    """
    shape = (batch_size, *part.shape[1:])
    base = filler.to(part.dtype).expand(shape) if isinstance(filler, Tensor) else part.new_full(shape, filler)
    return base.index_copy(0, rows, part)


def backbone_for(context: MethodContext, modality: str) -> Backbone:
    """A new backbone that embeds one modality only, of the kind and options of the run's backbone."""
    whole = context.build_backbone()
    return type(whole)(whole.config, {modality: context.features[modality]})
