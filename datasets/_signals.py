"""What several data sets share: sound files as 16 kHz clips, and noise that is frozen by a name."""

from __future__ import annotations

import hashlib
import math
import wave
from pathlib import Path
from statistics import NormalDist

import numpy as np

from harness.errors import DataError, DependencyError
from harness.types import FloatArray

#: Samples per second of every audio value in the harness.
RATE = 16_000
INSTALL_AUDIO = "pip install 'missing-modality-harness[audio]'"


def frozen_noise(name: str, count: int) -> FloatArray:
    """Standard normal numbers `[count]` that depend on `name` alone: no seed of a run, no library's random stream."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    # PCG64's raw output is fixed by its definition; numpy may change how it turns it into normal numbers.
    raw = np.random.PCG64(seed).random_raw(count)
    normal = NormalDist()
    return np.array([normal.inv_cdf((int(bits >> 11) + 0.5) / 2**53) for bits in raw], dtype=np.float32)


def read_wav(path: Path) -> FloatArray:
    """A 16-bit WAV file as a mono clip `[T]` at 16 kHz, in [-1, 1].

    Raises:
        DataError: If the file is missing, corrupt or of another format.
    """
    try:
        with wave.open(str(path)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{path} is missing or corrupt ({error}); get the data set again.") from error
    if width != 2 or not raw:
        raise DataError(f"{path} is not a 16-bit WAV file with sound in it; get the data set again.")
    frames = np.frombuffer(raw, dtype="<i2").reshape(-1, channels)
    return _clip(frames.astype(np.float64) / 32768, rate)


def read_sound(path: Path) -> FloatArray:
    """A sound file of any format that libsndfile reads (Ogg Vorbis, FLAC, …) as a mono clip `[T]` at 16 kHz.

    Raises:
        DependencyError: If soundfile is not installed.
        DataError: If the file is missing, corrupt or silent by being empty.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: a build of it without libsndfile
        raise DependencyError(f"soundfile is not installed ({error}); get it with: {INSTALL_AUDIO}") from error
    try:
        frames, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is missing or corrupt ({error}); get the data set again.") from error
    if not len(frames):
        raise DataError(f"{path} holds no sound; get the data set again.")
    return _clip(frames, rate)


def _clip(frames: np.ndarray[tuple[int, int], np.dtype[np.float64]], rate: int) -> FloatArray:
    """Mean of the channels of `[T, channels]`, resampled by a polyphase filter."""
    mono = frames.mean(axis=1)
    if rate != RATE:
        from scipy.signal import resample_poly

        common = math.gcd(rate, RATE)
        mono = resample_poly(mono, RATE // common, rate // common)
    return np.asarray(mono, dtype=np.float32)
