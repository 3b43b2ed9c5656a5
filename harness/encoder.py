"""Contract of frozen encoders: raw values of one modality in, token arrays out, no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import EncoderConfig
from harness.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Encoded:
    """Encoder output for n values.

    Attributes:
        tokens: `[n, L, *token_shape]`; L may differ between calls, the feature store pads to the longest.
        mask: `[n, L]` bool, True for real tokens.
        pooled: `[n, P]` float32; P may be 0 for encoders that only prepare a backbone's input.
    """

    tokens: npt.NDArray[Any]
    mask: BoolArray
    pooled: FloatArray


class Encoder(ABC):
    """A frozen encoder; deterministic, and each value's output must not depend on its batch companions.

    On a GPU, where values go in batches, it may depend on them by rounding.

    Attributes:
        batch_size: Values per `encode` call that suits the encoder.
        storage: numpy dtype in which tokens are kept on disk.
        precision: Of the encoder's products, after `use`; anything but `float32` is part of the features' identity.
    """

    batch_size: int = 16
    storage: str = "float16"
    precision: str = "float32"

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config

    def use(self, device: str) -> None:  # noqa: B027 - most encoders have nothing to do
        """Encodes on a device from now on (`cpu`, `cuda`, …); encoders that know the CPU only stay there."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes raw values (see `DataTable.values`).

        Raises:
            DataError: If weights are missing or do not have the pinned checksum.
        """

    def fingerprint(self) -> str:
        """Identity of weights and code beyond the config, e.g. a weight file's sha256."""
        return ""


def pad_tokens(sequences: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], BoolArray]:
    """Stacks sequences `[L_i, ...]` to `[n, max L_i, ...]` with zeros, and the mask of real positions."""
    longest = max((len(sequence) for sequence in sequences), default=0)
    first = sequences[0]
    tokens = np.zeros((len(sequences), longest, *first.shape[1:]), dtype=first.dtype)
    mask = np.zeros((len(sequences), longest), dtype=np.bool_)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return tokens, mask
