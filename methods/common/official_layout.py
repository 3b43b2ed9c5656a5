"""Order of the modalities in weights that the MMIN family released, where they differ from a data set's order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from harness.errors import UsageError

#: Embeddings are joined in this order in MMIN, IF-MMIN and RedCore.
AUDIO_TEXT_VIDEO = ("audio", "text", "video")
#: ... and in this one in RAMER.
AUDIO_VIDEO_TEXT = ("audio", "video", "text")

_READS = re.compile(r"(encoder_\d+|transition)\.0\.weight")
_WRITES = re.compile(r"(decoder_\d+\.4|transition\.2)\.(weight|bias)")


def block_order(released: Sequence[str], here: Sequence[str]) -> list[int]:
    """Where each modality of a data set stands in the released order.

    Raises:
        UsageError: If the data set has other modalities, so that nobody knows which is which.
    """
    if sorted(released) != sorted(here):
        raise UsageError(
            f"the file joins the embeddings of {', '.join(released)}; this data set has {', '.join(here)}.  "
            "Use a data set whose modalities have these names, or leave the joined layers out of the file."
        )
    return [released.index(name) for name in here]


def reorder_blocks(value: Tensor, dim: int, order: Sequence[int], width: int) -> Tensor:
    """Reorders runs of `len(order)` blocks of `width` along a dimension; of another size it stays as it is."""
    if value.shape[dim] % (len(order) * width):
        return value
    blocks = value.chunk(value.shape[dim] // width, dim)
    runs = range(0, len(blocks), len(order))
    return torch.cat([blocks[start + index] for start in runs for index in order], dim)


def reorder_cascade(theirs: Mapping[str, Tensor], prefix: str, order: Sequence[int], width: int) -> dict[str, Tensor]:
    """The tensors of a released residual autoencoder that read or write joined embeddings, reordered.

    Args:
        theirs: Released state dict.
        prefix: Of the autoencoder's names, with the dot.
        order: See `block_order`.
        width: Embedding width d.
    """
    found = {}
    for name, value in theirs.items():
        rest = name.removeprefix(prefix)
        if name == rest:
            continue
        if _READS.fullmatch(rest):
            found[name] = reorder_blocks(value, 1, order, width)
        elif _WRITES.fullmatch(rest):
            found[name] = reorder_blocks(value, 0, order, width)
    return found
