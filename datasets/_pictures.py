"""What picture data sets share: formats that are read, small versions, and which pictures are nearly the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: What pictures of others are opened as, whatever their suffix says.  Pillow knows more formats, and one of them starts
#: another program (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
THUMB = 32  # side of the thumbnails that near-identical pictures are told by
SAME_PICTURE = 0.98


def thumbnail(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Ink on white paper, `[32 * 32 * 3]` sums over squares of a picture whose sides are multiples of 32."""
    step = picture.shape[0] // THUMB
    ink = 255 - picture.astype(np.int64)  # white paper counts as nothing
    sums: npt.NDArray[np.float64] = ink.reshape(THUMB, step, THUMB, step, 3).sum(axis=(1, 3)).reshape(-1).astype(float)
    return sums


def near_identical(thumbs: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pairs of thumbnails `[N, 32 * 32 * 3]` with a cosine above the threshold, as they are or one mirrored.

    The entries are integers below 2^53 in every sum, so the products are exact on any machine.
    """
    mirrored = thumbs.reshape(-1, THUMB, THUMB, 3)[:, :, ::-1].reshape(thumbs.shape)
    lengths = np.sqrt(np.maximum((thumbs * thumbs).sum(axis=1), 1.0))
    products = np.maximum(thumbs @ thumbs.T, thumbs @ mirrored.T)
    first, second = np.nonzero(np.triu(products / lengths[:, None] / lengths > SAME_PICTURE, k=1))
    return list(zip(first.tolist(), second.tolist(), strict=True))
