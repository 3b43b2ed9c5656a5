"""Near-copies over splits: perceptual hashes of pictures, shingles of texts, fingerprints of sounds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.progress import track
from harness.types import IntArray

#: How near is measured, in words, by kind of modality; all other kinds are compared exactly.
NEAR: Mapping[str, str] = {
    "image": "pictures: perceptual hash within 4 of 64 bits and like colours",
    "text": "texts: 0.8 of their 5-character shingles in common",
    "audio": "sounds: 0.6 correlation of spectral fingerprints",
}

#: Pictures: largest Hamming distance of 64-bit hashes, and largest mean difference of 8 x 8 colour thumbnails (of 255).
_BITS, _COLOUR = 4, 8.0
#: Texts: least Jaccard similarity of shingles of this many characters, and hash functions that find candidates.
_JACCARD, _SHINGLE, _HASHES = 0.8, 5, 64
#: Sounds: bands and frames that a clip is brought to, and the least correlation of fingerprints.
_BANDS, _FRAMES, _CORRELATION = 17, 33, 0.6
#: Energy below this share of a clip's mean is no sound, smaller changes of a logarithm are none, and with fewer changes
#: a clip has too little to be known by.
_FLOOR, _CHANGE, _CHANGES = 1e-3, 0.1, 16
_CHUNK = 256

#: Row of valid or test -> training rows.
Found = dict[int, set[int]]


class NearCopies:
    """Training values that are near-copies of values of valid and test, in one modality.

    Every different value is looked at once, so a caption that half of the samples have makes no pairs of samples.

    Args:
        kind: Kind of the modality.
        values: Raw values of all rows.
        digest: `[N]` hashes of the raw values.
        held: Rows of valid and test that have the modality.
        train: Training rows that have it.
    """

    def __init__(self, kind: str, values: Sequence[Any], digest: IntArray, held: IntArray, train: IntArray) -> None:
        looks: Mapping[str, Callable[[Sequence[Any], IntArray, IntArray], Found]] = {
            "image": _pictures,
            "text": _texts,
            "audio": _sounds,
        }
        self._digest = digest
        self._rows: dict[int, list[int]] = {}
        for row in train.tolist():
            self._rows.setdefault(int(digest[row]), []).append(row)
        mine, theirs = (rows[np.unique(digest[rows], return_index=True)[1]] for rows in (held, train))
        if kind in looks and len(mine) and len(theirs):
            found = looks[kind](values, mine, theirs)
        else:
            found = {row: {self._rows[int(digest[row])][0]} for row in mine.tolist() if int(digest[row]) in self._rows}
        self._near = {int(digest[row]): {int(digest[other]) for other in others} for row, others in found.items()}

    def number(self, row: int) -> int:
        """How many training rows nearly copy a row of valid or test."""
        return sum(len(self._rows[value]) for value in self._of(row))

    def rows(self, row: int) -> Iterator[int]:
        """The training rows that do."""
        return (other for value in sorted(self._of(row)) for other in self._rows[value])

    def holds(self, row: int, other: int) -> bool:
        """Whether a training row is one of them."""
        return int(self._digest[other]) in self._of(row)

    def _of(self, row: int) -> Set[int]:
        return self._near.get(int(self._digest[row]), frozenset())


def _pictures(values: Sequence[Any], held: IntArray, train: IntArray) -> Found:
    import imagehash
    from PIL import Image

    def looked(rows: IntArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]:
        hashes, thumbs = np.zeros(len(rows), np.uint64), np.zeros((len(rows), 8 * 8 * 3), np.float32)
        for place, row in enumerate(track(rows.tolist(), "audit: perceptual hashes")):
            picture = Image.fromarray(np.asarray(values[row]))
            # 64 bits, row by row.
            hashes[place] = np.packbits(imagehash.phash(picture).hash).view(np.uint64)[0]
            small = picture.convert("RGB").resize((8, 8), Image.Resampling.BOX)
            thumbs[place] = np.asarray(small, dtype=np.float32).reshape(-1)
        return hashes, thumbs

    (mine, my_thumbs), (theirs, their_thumbs) = looked(held), looked(train)
    found: Found = {}
    for start in range(0, len(held), _CHUNK):
        part = slice(start, start + _CHUNK)
        near = np.argwhere(np.bitwise_count(mine[part, None] ^ theirs[None]) <= _BITS)
        for one, two in near.tolist():
            if np.abs(my_thumbs[start + one] - their_thumbs[two]).mean() <= _COLOUR:
                found.setdefault(int(held[start + one]), set()).add(int(train[two]))
    return found


def _texts(values: Sequence[Any], held: IntArray, train: IntArray) -> Found:
    from datasketch import MinHash, MinHashLSH

    def shingles(row: int) -> set[bytes]:
        text = re.sub(r"\W+", " ", str(values[row]).lower()).strip()
        return {text[at : at + _SHINGLE].encode() for at in range(max(1, len(text) - _SHINGLE + 1))} if text else set()

    sets = {row: known for row in [*train.tolist(), *held.tolist()] if (known := shingles(row))}
    rows = list(sets)
    hashes = dict(zip(rows, MinHash.bulk(list(sets.values()), num_perm=_HASHES), strict=True))
    index = MinHashLSH(threshold=_JACCARD - 0.1, num_perm=_HASHES)
    for row in train.tolist():
        if row in hashes:
            index.insert(row, hashes[row])
    found: Found = {}
    for row in held.tolist():
        if row in hashes:
            near = {other for other in index.query(hashes[row]) if _jaccard(sets[row], sets[other]) >= _JACCARD}
            if near:
                found[row] = near
    return found


def _jaccard(one: set[bytes], other: set[bytes]) -> float:
    return len(one & other) / len(one | other)


def _sounds(values: Sequence[Any], held: IntArray, train: IntArray) -> Found:
    mine, theirs = (
        np.stack(
            [fingerprint(np.asarray(values[row], dtype=np.float64)) for row in track(rows.tolist(), "audit: sounds")]
        )
        for rows in (held, train)
    )
    found: Found = {}
    for start in range(0, len(held), _CHUNK):
        part = mine[start : start + _CHUNK]
        near = np.argwhere(part @ theirs.T >= _CORRELATION)
        for one, two in near.tolist():
            found.setdefault(int(held[start + one]), set()).add(int(train[two]))
    return found


def fingerprint(clip: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Signs of how the energy difference of neighbouring bands changes over time, after Haitsma and Kalker (2002).

    A clip is cut into a fixed number of frames whatever its length, so clips compare whole.

    Args:
        clip: `[samples]`.

    Returns:
        `[(_FRAMES - 1) * (_BANDS - 1)]` of -1, 0 and 1, over their norm; all 0 for a clip in which nothing happens.
    """
    clip = np.asarray(clip, dtype=np.float64).reshape(-1)
    hop = max(1, len(clip) // (_FRAMES + 1))
    padded = np.pad(clip, (0, max(0, hop * (_FRAMES + 1) - len(clip))))
    frames = np.stack([padded[at * hop : (at + 2) * hop] for at in range(_FRAMES)])
    power = np.abs(np.fft.rfft(frames * np.hanning(2 * hop), n=max(2 * hop, 4 * _BANDS), axis=1)) ** 2
    edges = np.geomspace(1, power.shape[1], _BANDS + 1).astype(int)
    bands = np.stack([power[:, low : max(high, low + 1)].sum(axis=1) for low, high in pairwise(edges.tolist())])
    energy = np.log(bands.T + _FLOOR * bands.mean() + 1e-12)
    change = np.diff(np.diff(energy, axis=1), axis=0)
    signs = (np.sign(change) * (np.abs(change) > _CHANGE)).astype(np.float32).reshape(-1)
    count = np.count_nonzero(signs)
    return signs / np.sqrt(np.float32(count)) if count >= _CHANGES else np.zeros_like(signs)
