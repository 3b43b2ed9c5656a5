"""Audio encoders: what they compute, independence of what came before, checked networks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import packages
from harness.config import default_encoders
from harness.errors import DataError, DependencyError, UsageError
from harness.methods.common.encoders import log_mel
from harness.methods.common.encoders.config import LogMelConfig, SpeechEmbeddingConfig

wakeword = pytest.mark.skipif(find_spec("pyopen_wakeword") is None, reason="pyopen-wakeword (extra audio) is missing")


def _encoder(config: Any) -> Any:
    return config.implementation()(config)


def _tone(frequency: float, seconds: float = 0.5, level: float = 0.3) -> np.ndarray[Any, Any]:
    time = np.arange(round(seconds * 16000)) / 16000
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def _speechlike(seed: int, seconds: float = 0.7) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    parts = [_tone(frequency, seconds / 5) for frequency in rng.uniform(100, 3000, 5)]
    return (np.concatenate(parts) + rng.normal(0, 0.01, sum(map(len, parts)))).astype(np.float32)


def test_the_default_needs_no_package() -> None:
    assert default_encoders()["audio"] == "log_mel"


def test_filters_are_triangles_that_overlap_by_half() -> None:
    filters = log_mel.mel_filters(40)
    assert filters.shape == (40, 257)
    assert (filters.max(axis=1) > 0.25).all()
    centres = filters.argmax(axis=1)
    assert (np.diff(centres) >= 0).all()
    frequency = np.arange(257) * 16000 / 512
    assert (filters[:, (frequency < 60) | (frequency > 7600)] == 0).all()
    inside = (frequency > frequency[centres[0]]) & (frequency < frequency[centres[-1]])
    sums = filters[:, inside].sum(axis=0)
    np.testing.assert_allclose(sums, 1.0, atol=1e-9)  # neighbours share each frequency between them


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 4000.0])
def test_a_tone_is_loudest_in_its_band(frequency: float) -> None:
    output = _encoder(LogMelConfig()).encode([_tone(frequency)])
    loudest = output.tokens[0, 16].argmax()
    assert loudest == log_mel.mel_filters(40)[:, round(frequency / 16000 * 512)].argmax()
    assert output.tokens.max() <= 1.0
    assert output.tokens.min() >= -1.0


def test_shapes_and_masks() -> None:
    clips = [_tone(500, 1.0), _tone(500, 0.1), _tone(500, 0.002)]
    output = _encoder(LogMelConfig(bands=16, max_tokens=20)).encode(clips)
    assert output.tokens.shape == (3, 20, 16)
    assert output.mask.sum(axis=1).tolist() == [20, 9, 1]  # 1,600 samples are 1 + 8 hops, the last one filled up
    assert output.pooled.shape == (3, 96)
    assert output.pooled.dtype == np.float32
    assert (output.tokens[~output.mask] == 0).all()


def test_tokens_are_means_of_frames_and_pooled_is_of_thirds() -> None:
    clip = _speechlike(1)
    encoder = _encoder(LogMelConfig(max_tokens=10_000))
    frames = encoder.encode([clip]).tokens[0]
    few = _encoder(LogMelConfig(max_tokens=2)).encode([clip])
    half = -(-len(frames) // 2)
    np.testing.assert_allclose(few.tokens[0], [frames[:half].mean(axis=0), frames[half:].mean(axis=0)], atol=1e-5)
    pooled = few.pooled[0].reshape(3, 2, 40)
    for third, part in zip(np.array_split(frames, 3), pooled, strict=True):
        np.testing.assert_allclose(part, [third.mean(axis=0), third.std(axis=0)], atol=1e-5)


def test_level_does_not_matter_and_silence_is_finite() -> None:
    encoder = _encoder(LogMelConfig())
    clip = _speechlike(2)
    loud, soft = encoder.encode([clip]), encoder.encode([clip * np.float32(0.25)])
    np.testing.assert_allclose(loud.tokens, soft.tokens, atol=1e-4)
    assert np.isfinite(encoder.encode([np.zeros(3000, np.float32)]).pooled).all()


def test_log_mel_ignores_batch_companions() -> None:
    encoder = _encoder(LogMelConfig())
    clips = [_speechlike(3), _tone(700, 2.0), _tone(200, 0.05)]
    together = encoder.encode(clips)
    for row, clip in enumerate(clips):
        alone = encoder.encode([clip])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row, : alone.tokens.shape[1]])
        np.testing.assert_array_equal(alone.pooled[0], together.pooled[row])


@pytest.mark.parametrize("config", [LogMelConfig(), SpeechEmbeddingConfig()])
@pytest.mark.parametrize(
    "value",
    ["text", np.zeros(9), np.zeros((9, 1), np.float32), np.zeros(0, np.float32), np.full(9, np.nan, np.float32)],
    ids=["text", "float64", "two_dimensions", "empty", "nan"],
)
def test_other_values_are_refused(config: Any, value: Any) -> None:
    with pytest.raises(DataError, match=r"encoder (log_mel|speech_embedding)") as caught:
        _encoder(config).encode([value])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [LogMelConfig(bands=7), LogMelConfig(max_tokens=0), SpeechEmbeddingConfig(0)])
def test_options_are_checked(config: Any) -> None:
    with pytest.raises(UsageError, match="must be"):
        config.validate()


@wakeword
def test_speech_embedding_shapes() -> None:
    output = _encoder(SpeechEmbeddingConfig()).encode([_tone(500, 0.4), _tone(500, 0.05)])
    assert output.tokens.shape == (2, 8, 96)  # five steps of 80 ms and three after the end
    assert output.mask.sum(axis=1).tolist() == [8, 4]
    assert output.pooled.shape == (2, 192)
    np.testing.assert_allclose(output.pooled[0, :96], output.tokens[0].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(output.pooled[0, 96:], output.tokens[0].std(axis=0), atol=1e-5)
    assert 0.05 < np.abs(output.tokens).mean() < 5
    short = _encoder(SpeechEmbeddingConfig(max_tokens=3)).encode([_tone(500, 0.4)])
    assert short.tokens.shape == (1, 3, 96)
    np.testing.assert_array_equal(short.pooled[0], output.pooled[0])


@wakeword
def test_speech_embedding_ignores_what_came_before() -> None:
    clips = [_speechlike(4), _tone(300, 1.5, level=0.99), _speechlike(5, 0.33)]
    encoder = _encoder(SpeechEmbeddingConfig())
    together = encoder.encode(clips)
    assert np.abs(together.pooled[0] - together.pooled[2]).max() > 0.01
    for row in (2, 0, 1):
        for alone in (encoder.encode([clips[row]]), _encoder(SpeechEmbeddingConfig()).encode([clips[row]])):
            np.testing.assert_array_equal(alone.pooled[0], together.pooled[row])
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[row, : alone.tokens.shape[1]])


@wakeword
def test_only_the_two_networks_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyopen_wakeword

    opened: list[Path] = []
    plain = pyopen_wakeword.OpenWakeWordFeatures.__init__

    def watched(self: Any, *files: Any) -> None:
        opened.extend(map(Path, files))
        plain(self, *files)

    monkeypatch.setattr(pyopen_wakeword.OpenWakeWordFeatures, "__init__", watched)
    _encoder(SpeechEmbeddingConfig()).encode([_tone(500)])
    assert {path.name for path in opened if path.suffix == ".tflite"} == {
        "melspectrogram.tflite",
        "embedding_model.tflite",
    }


@wakeword
def test_networks_of_another_content_or_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.methods.common.encoders import speech_embedding as module

    monkeypatch.setitem(module._SHA256, "models/embedding_model.tflite", "0" * 64)
    with pytest.raises(DataError, match=r"is not the published file.*\[audio\]"):
        _encoder(SpeechEmbeddingConfig()).encode([_tone(500)])
    monkeypatch.setattr(module, "_VERSION", "9.9.9")
    with pytest.raises(DataError, match=r"1\.1\.0 is installed, but 9\.9\.9 is needed.*\[audio\]"):
        _encoder(SpeechEmbeddingConfig()).encode([_tone(500)])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.methods.common.encoders import speech_embedding as module

    monkeypatch.setattr(module, "_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(DependencyError, match=r"pip install 'missing-modality-harness\[audio\]'"):
        _encoder(SpeechEmbeddingConfig()).encode([_tone(500)])


def test_a_version_that_is_not_pinned_is_any_version() -> None:
    assert packages.package_version("numpy", "") == np.__version__
