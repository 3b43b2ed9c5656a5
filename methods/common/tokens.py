"""Moving between the observed rows of a modality and the rows of a batch."""

from __future__ import annotations

from torch import Tensor

from harness.backbone import Backbone
from harness.method import MethodContext
from harness.types import Batch


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


def embed_observed(backbone: Backbone, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeds what is present; absent modalities are zero and masked out.

    Returns:
        Per modality of the backbone tokens `[B, L, d]` and mask `[B, L]`.
    """
    embedded = {}
    for name in backbone.modalities:
        part = batch.inputs[name]
        tokens, mask = backbone.embed(name, part.tokens, part.mask)
        embedded[name] = (
            scatter_rows(tokens, part.rows, len(batch)),
            scatter_rows(mask, part.rows, len(batch), False),
        )
    return embedded


def backbone_for(context: MethodContext, modality: str) -> Backbone:
    """A new backbone that embeds one modality only, of the kind and options of the run's backbone."""
    whole = context.build_backbone()
    return type(whole)(whole.config, {modality: context.features[modality]})
