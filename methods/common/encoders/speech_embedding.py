"""Google's speech embedding as a frozen audio encoder; networks and runtime from the package `pyopen-wakeword`.

Only the mel and the embedding network are opened.  The package's wake-word heads, whose licence is another, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import EncoderConfig
from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError
from harness.methods.common.encoders.config import SpeechEmbeddingConfig
from harness.methods.common.encoders.log_mel import check_clip
from harness.packages import package_file, package_folder
from harness.types import FloatArray

_DISTRIBUTION, _VERSION, _MODULE = "pyopen-wakeword", "1.1.0", "pyopen_wakeword"
_INSTALL = "pip install 'missing-modality-harness[audio]'"
_SHA256 = {
    "models/melspectrogram.tflite": "96fa0adccb6e8cf95cb14465409a1a2898ee4a96a85bb9ed3c7eb0e68bf163e8",
    "models/embedding_model.tflite": "c0aea21eb84a4ce90a08c870da41b7a7173b45269e6a3207c71d67c40f3a59d8",
}
_STEP = 1280  # samples between embeddings, 80 ms
_TAIL = 3  # steps after the end, so that the last sound is also seen with what came before it
_SILENCE = 16  # steps between clips; an embedding sees 775 ms, under 10 steps
_SCALE = 20.0  # brings values to the order of one


class SpeechEmbeddingEncoder(Encoder):
    """Tokens `[n, L, 96]`: one embedding per 80 ms, averaged to at most `max_tokens`; pooled `[n, 192]`: mean and sd.

    The networks are stateful: they run over a stream of sound.  Clips go through it one by one with silence between
    them, longer than what an embedding sees, so that the output for a clip is bit-identical whatever came before it.
    """

    batch_size = 32

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert isinstance(config, SpeechEmbeddingConfig)
        self._limit = config.max_tokens
        self._stream: Any = None

    def fingerprint(self) -> str:
        """sha256 of the two pinned networks."""
        return ",".join(_SHA256.values())

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes mono clips at 16 kHz, float32 `[T]` in [-1, 1].

        Raises:
            DataError: If a value is no such clip, or the package is missing, of another version, or not the published
                files.
        """
        clips = [check_clip("speech_embedding", value) for value in values]
        if self._stream is None:
            stream = _open()
            _feed(stream, np.zeros(_STEP * _SILENCE, dtype=np.int16))  # uses up the silence it starts with
            self._stream = stream
        sequences = [self._embed(clip) for clip in clips]
        tokens, mask = pad_tokens(
            [
                np.stack([part.mean(axis=0) for part in np.array_split(sequence, min(self._limit, len(sequence)))])
                for sequence in sequences
            ]
        )
        pooled = np.stack([np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in sequences])
        return Encoded(tokens, mask, pooled)

    def _embed(self, clip: FloatArray) -> FloatArray:
        """Embeddings `[steps, 96]` of one clip, filled up to whole steps."""
        steps = -(-len(clip) // _STEP) + _TAIL
        sound = np.zeros(steps * _STEP, dtype=np.int16)
        sound[: len(clip)] = np.clip(clip * 32768, -32768, 32767).astype(np.int16)
        embeddings = _feed(self._stream, sound)
        _feed(self._stream, np.zeros(_STEP * _SILENCE, dtype=np.int16))
        if len(embeddings) != steps:
            raise DataError(f"pyopen-wakeword gave {len(embeddings)} embeddings for {steps} steps of sound.")
        return np.stack(embeddings) / np.float32(_SCALE)


def _feed(stream: Any, sound: npt.NDArray[np.int16]) -> list[FloatArray]:
    """Runs whole steps of sound through the stream; once it has started, each gives one embedding `[96]`."""
    chunks = sound.reshape(-1, _STEP)
    return [part[0, 0, 0].copy() for chunk in chunks for part in stream.process_streaming(chunk.tobytes())]


def _open() -> Any:
    """The stream over the checked networks, run by the library that the package brings."""
    mel, embedding = (
        package_file(_DISTRIBUTION, _VERSION, _MODULE, name, sha256, _INSTALL) for name, sha256 in _SHA256.items()
    )
    folder = package_folder(_DISTRIBUTION, _VERSION, _MODULE, _INSTALL) / "lib"
    libraries = sorted(folder.glob("*tensorflowlite_c.*"))
    if not libraries:
        raise DataError(f"{folder} holds no TensorFlow Lite library; reinstall it: {_INSTALL} --force-reinstall")
    from pyopen_wakeword import OpenWakeWordFeatures

    return OpenWakeWordFeatures(mel, embedding, libraries[0])
