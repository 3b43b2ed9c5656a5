"""Corruptions of raw values at severities 1 to 5: pictures, texts, sound and feature arrays.

Every function takes a raw value, a level and a generator seeded by the sample id, and returns a value of the same kind.
It draws the same numbers whatever the level, so that a higher severity goes on with the damage of a lower one.
Generators are NumPy's legacy `RandomState`, whose streams are frozen for ever.

Levels follow ImageNet-C (Hendrycks and Dietterich, ICLR 2019) where it has the corruption; sizes are shares of the
picture, so that small pictures are not wiped out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.types import FloatArray

Pixels = npt.NDArray[np.uint8]
Random = np.random.RandomState

#: Samples of a piece of sound that drops out: 50 ms at 16 kHz.
_PIECE = 800
#: The shorter side of the pictures that ImageNet-C's radii are for.
_SIDE = 224


@dataclass(frozen=True)
class Corruption:
    """One way to damage a value.

    Attributes:
        apply: `(value, level, random) -> value`; the level is that of the severity.
        levels: What severities 1 to 5 mean.
        means: What it does, with the unit of its levels, for `describe`.
    """

    apply: Callable[[Any, float, Random], Any]
    levels: tuple[float, float, float, float, float]
    means: str


def noise_image(value: Pixels, level: float, random: Random) -> Pixels:
    """Adds normal noise to every channel of every pixel."""
    noisy = value + level * 255.0 * random.standard_normal(value.shape)
    return np.asarray(np.rint(np.clip(noisy, 0, 255)), dtype=np.uint8)


def blur_image(value: Pixels, level: float, random: Random) -> Pixels:  # noqa: ARG001
    """Gaussian blur; the radius is a share of the shorter side."""
    from PIL import Image, ImageFilter

    radius = level * min(value.shape[:2])
    return np.asarray(Image.fromarray(value).filter(ImageFilter.GaussianBlur(radius)))


def jpeg_image(value: Pixels, level: float, random: Random) -> Pixels:  # noqa: ARG001
    """Compresses and decodes."""
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(value).save(stream, "JPEG", quality=int(level))
    with Image.open(stream) as picture:
        return np.asarray(picture.convert("RGB"))


def contrast_image(value: Pixels, level: float, random: Random) -> Pixels:  # noqa: ARG001
    """Draws all pixels towards the mean colour."""
    mean = value.reshape(-1, value.shape[2]).mean(axis=0)
    return np.asarray(np.rint(mean + level * (value - mean)), dtype=np.uint8)


def occlude_image(value: Pixels, level: float, random: Random) -> Pixels:
    """Covers a rectangle of the picture's own shape with grey."""
    result = value.copy()
    spans = []
    for side, place in zip(value.shape[:2], random.uniform(size=2), strict=True):
        length = max(1, round(side * level**0.5))
        start = int(place * (side - length + 1))
        spans.append(slice(start, start + length))
    result[spans[0], spans[1]] = 128
    return result


def mistype(value: str, level: float, random: Random) -> str:
    """Replaces letters by others."""
    letters = [index for index, character in enumerate(value) if character.isalpha()]
    order, others = random.permutation(len(letters)), random.randint(0, 26, len(letters))
    result = list(value)
    for place in order[: _count(level, len(letters))]:
        index = letters[place]
        other = chr(ord("a") + others[place])
        result[index] = other.upper() if value[index].isupper() else other
    return "".join(result)


def drop_words(value: str, level: float, random: Random) -> str:
    """Leaves words out; one stays."""
    words = value.split()
    order = random.permutation(len(words))
    gone = set(order[: min(_count(level, len(words)), len(words) - 1)].tolist()) if words else set()
    return " ".join(word for place, word in enumerate(words) if place not in gone)


def swap_letters(value: str, level: float, random: Random) -> str:
    """Exchanges two neighbouring characters of a word."""
    words = value.split(" ")
    able = [place for place, word in enumerate(words) if len(word) > 1]
    order, places = random.permutation(len(able)), random.uniform(size=len(able))
    for chosen in order[: _count(level, len(able))]:
        word = words[able[chosen]]
        at = int(places[chosen] * (len(word) - 1))
        words[able[chosen]] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


#: Characters that are read for one another.
_LOOKALIKES = {
    **{"o": "0", "O": "0", "0": "O", "l": "1", "1": "l", "I": "l", "i": "j", "s": "5", "S": "5", "5": "S", "b": "6"},
    **{"B": "8", "8": "B", "z": "2", "Z": "2", "2": "Z", "g": "9", "9": "g", "q": "g", "e": "c", "c": "e", "u": "v"},
    **{"v": "u", "n": "h", "h": "n", "m": "rn", "w": "vv", "d": "cl", "t": "f", "f": "t", "a": "o", "D": "O", "G": "6"},
}


def misread(value: str, level: float, random: Random) -> str:
    """Replaces characters by look-alikes, as reading machines do."""
    able = [index for index, character in enumerate(value) if character in _LOOKALIKES]
    order = random.permutation(len(able))
    result = list(value)
    for place in order[: _count(level, len(able))]:
        result[able[place]] = _LOOKALIKES[value[able[place]]]
    return "".join(result)


def noise_audio(value: FloatArray, level: float, random: Random) -> FloatArray:
    """Adds white noise at a ratio of signal to noise, in dB; silence stays silence."""
    noise = random.standard_normal(value.shape)
    power = float(np.mean(np.square(value, dtype=np.float64)))
    return np.asarray(value + noise * (power / 10 ** (level / 10)) ** 0.5, dtype=np.float32)


def clip_audio(value: FloatArray, level: float, random: Random) -> FloatArray:  # noqa: ARG001
    """Limits the clip to a share of its peak."""
    peak = np.float32(level) * np.abs(value).max()
    return np.asarray(np.clip(value, -peak, peak), dtype=np.float32)


def drop_audio(value: FloatArray, level: float, random: Random) -> FloatArray:
    """Silences pieces of 50 ms; one stays."""
    pieces = -(-len(value) // _PIECE)
    order = random.permutation(pieces)
    result = value.copy()
    for piece in order[: min(_count(level, pieces), pieces - 1)]:
        result[piece * _PIECE : (piece + 1) * _PIECE] = 0.0
    return result


def _count(share: float, total: int) -> int:
    """Rounded up, so that a short value is damaged too."""
    return int(np.ceil(round(share * total, 9)))


_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
#: Corruptions that look at one value alone, by kind of modality and name.
CORRUPTIONS: Mapping[str, Mapping[str, Corruption]] = {
    "image": {
        "noise": Corruption(
            noise_image, (0.08, 0.12, 0.18, 0.26, 0.38), "adds normal noise of a standard deviation of {} of full scale"
        ),
        "blur": Corruption(
            blur_image,
            (1 / _SIDE, 2 / _SIDE, 3 / _SIDE, 4 / _SIDE, 6 / _SIDE),
            "blurs with a Gaussian whose radius is {} of the shorter side",
        ),
        "jpeg": Corruption(jpeg_image, (25, 18, 15, 10, 7), "compresses as JPEG at quality {}"),
        "contrast": Corruption(
            contrast_image, (0.4, 0.3, 0.2, 0.1, 0.05), "keeps {} of every pixel's distance from the mean colour"
        ),
        "occlusion": Corruption(occlude_image, _SHARES, "covers {} of the area with a grey rectangle"),
    },
    "text": {
        "typo": Corruption(mistype, (0.05, 0.1, 0.15, 0.2, 0.3), "replaces {} of the letters by other letters"),
        "drop": Corruption(drop_words, _SHARES, "leaves out {} of the words, but never all"),
        "swap": Corruption(swap_letters, _SHARES, "exchanges two neighbouring characters in {} of the words"),
        "ocr": Corruption(misread, _SHARES, "replaces {} of the characters that have look-alikes by these"),
    },
    "audio": {
        "noise": Corruption(noise_audio, (20, 15, 10, 5, 0), "adds white noise at {} dB of signal to noise"),
        "clipping": Corruption(clip_audio, (0.5, 0.3, 0.2, 0.1, 0.05), "limits the clip to {} of its peak"),
        "dropout": Corruption(drop_audio, _SHARES, "silences {} of the pieces of 50 ms, but never all"),
    },
}
