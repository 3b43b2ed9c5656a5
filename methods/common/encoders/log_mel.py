"""Log-mel spectrogram as an audio encoder: no weights, numpy only, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import EncoderConfig
from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError
from harness.methods.common.encoders.config import LogMelConfig
from harness.types import FloatArray

RATE = 16_000
_WINDOW, _HOP, _FFT = 400, 160, 512  # 25 ms, 10 ms
_LOWEST, _HIGHEST = 60.0, 7600.0  # Hz
_RANGE = 80.0  # dB below the loudest cell of a clip that still count
_PARTS = 3


class LogMelEncoder(Encoder):
    """Tokens `[n, L, bands]`: frames of 10 ms, averaged to at most `max_tokens`; pooled `[n, 6 bands]`: statistics.

    A clip's level does not matter: values are relative to its loudest cell, 80 dB of range mapped to [-1, 1].  Pooled
    is the mean and the standard deviation of each band in each third of the clip: over the whole clip they would not
    tell a word from its reverse.
    """

    batch_size = 64

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert isinstance(config, LogMelConfig)
        self._bands, self._limit = config.bands, config.max_tokens

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes mono clips at 16 kHz, float32 `[T]`; one shorter than a frame is filled up with silence.

        Raises:
            DataError: If a value is no finite, non-empty clip.
        """
        frames = [self._frames(check_clip("log_mel", value)) for value in values]
        tokens, mask = pad_tokens([_averaged(part, min(self._limit, len(part))) for part in frames])
        return Encoded(tokens, mask, np.stack([_statistics(part) for part in frames]).astype(np.float32))

    def _frames(self, clip: FloatArray) -> npt.NDArray[np.float64]:
        """Spectrogram `[frames, bands]` of one clip."""
        count = 1 + max(0, -(-(len(clip) - _WINDOW) // _HOP))
        filled = np.zeros(_WINDOW + _HOP * (count - 1))
        filled[: len(clip)] = clip
        windows = np.lib.stride_tricks.sliding_window_view(filled, _WINDOW)[::_HOP]
        power = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW + 1)[:-1], _FFT)) ** 2
        level = 10 * np.log10(np.maximum(power @ mel_filters(self._bands).T, 1e-10))
        return np.asarray(np.maximum(level - level.max(), -_RANGE) / (_RANGE / 2) + 1)


def check_clip(encoder: str, value: Any) -> FloatArray:
    """The value if it is a clip that audio encoders take: float32 `[T]`, finite, not empty.

    Raises:
        DataError: If it is not.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.ndim != 1 or not len(value):
        shape = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DataError(f"encoder {encoder} takes float32 clips [T] at 16 kHz with T > 0, not {shape}.")
    if not np.isfinite(value).all():
        raise DataError(f"encoder {encoder} was given a clip with NaN or infinity in it.")
    return value


@lru_cache(maxsize=4)
def mel_filters(bands: int) -> npt.NDArray[np.float64]:
    """Triangles `[bands, 257]` at equal distances on the mel scale (O'Shaughnessy's formula)."""
    low, high = (2595 * np.log10(1 + frequency / 700) for frequency in (_LOWEST, _HIGHEST))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    frequency = np.arange(_FFT // 2 + 1) * RATE / _FFT
    rising = (frequency - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequency) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)), dtype=np.float64)


def _averaged(frames: npt.NDArray[np.float64], count: int) -> FloatArray:
    """Mean of each of `count` near-equal runs of frames, `[count, bands]`; `count` is at most the number of frames."""
    return np.stack([part.mean(axis=0) for part in np.array_split(frames, count)]).astype(np.float32)


def _statistics(frames: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pooled vector `[6 bands]`; a clip of fewer than three frames repeats them."""
    thirds = np.array_split(frames if len(frames) >= _PARTS else frames.repeat(_PARTS, axis=0), _PARTS)
    return np.concatenate([part for third in thirds for part in (third.mean(axis=0), third.std(axis=0))])
