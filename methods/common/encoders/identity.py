"""Encoder of data that are features already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError
from harness.types import FloatArray


class IdentityEncoder(Encoder):
    """Passes arrays through: `[D]` becomes one token, `[L, D]` becomes L tokens; pooled is the mean token."""

    batch_size = 1024
    storage = "float32"

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes arrays `[D]` or `[L, D]` (D the same for all, L >= 1).

        Raises:
            DataError: If an array has another shape.
        """
        sequences = [_as_sequence(value) for value in values]
        widths = sorted({sequence.shape[1] for sequence in sequences})
        if len(widths) > 1:
            raise DataError(f"encoder identity: feature vectors of different widths ({', '.join(map(str, widths))}).")
        tokens, mask = pad_tokens(sequences)
        pooled = np.stack([sequence.mean(axis=0, dtype=np.float64) for sequence in sequences]).astype(np.float32)
        return Encoded(tokens, mask, pooled)


def _as_sequence(value: Any) -> FloatArray:
    array = np.asarray(value, dtype=np.float32)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"encoder identity takes arrays [D] or [L, D], not one of shape {list(np.shape(value))}.")
    return array
