"""Feature store: outputs of frozen encoders, computed once, content-addressed and memory-mapped.

The key of a block is (data set fingerprint, modality, encoder name, version, options, weights); a second run
computes nothing.  Blocks are written to a temporary folder and renamed, so a killed run leaves no half block, and
their checksums are verified whenever they are opened.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config import EncoderConfig, digest_of
from harness.encoder import Encoded, Encoder
from harness.errors import DataError, UsageError
from harness.files import ensure_folder, file_sha256, locked
from harness.progress import track
from harness.types import BoolArray, DataTable, FeatureSpec, FloatArray, IntArray, ModalitySpec

STORE_VERSION = 1
_PARTS = ("tokens", "mask", "pooled", "digest")


@dataclass(frozen=True)
class FeatureArray:
    """Encoded values of one modality for all N rows of a data set; rows without the modality are zero.

    Attributes:
        tokens: `[N, L, *token_shape]`.
        mask: `[N, L]` bool.
        pooled: `[N, P]` float32.
        digest: `[N]` int64, hash of the raw value.
    """

    tokens: npt.NDArray[Any]
    mask: BoolArray
    pooled: FloatArray
    digest: IntArray

    @property
    def spec(self) -> FeatureSpec:
        """Shapes as methods see them."""
        return FeatureSpec(self.tokens.shape[1], tuple(self.tokens.shape[2:]), self.pooled.shape[1])

    def replace_tokens(self, other: FeatureArray) -> FeatureArray:
        """Tokens of another encoder, pooled vector of this one."""
        return FeatureArray(other.tokens, other.mask, self.pooled, self.digest)


def content_digest(value: Any) -> int:
    """64-bit hash of a raw value (text, picture, array), as signed int64."""
    if isinstance(value, str):
        raw = b"s" + value.encode()
    else:
        array = np.ascontiguousarray(value)
        raw = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "little", signed=True)


class FeatureStore:
    """Encodes the modalities of data sets and keeps the results below `folder`.

    Args:
        folder: Cache folder, safe to delete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, table: DataTable, modality: ModalitySpec, name: str, config: EncoderConfig) -> FeatureArray:
        """Features of one modality, from the cache or computed now.

        Args:
            table: The loaded data set.
            modality: Which modality.
            name: Registered name of the encoder.
            config: Its options.

        Raises:
            UsageError: If the encoder does not take this kind of modality, or an option is out of range.
            DataError: If raw values, weights or the cache are corrupt, or encoded values are not finite.
        """
        config.validate()
        if modality.kind not in config.kinds:
            raise UsageError(
                f"encoder {name!r} takes {', '.join(config.kinds)}, but modality {modality.name!r} is {modality.kind}; "
                f"set encoders.{modality.name}=…"
            )
        encoder: Encoder = config.implementation()(config)
        key = {
            "store": STORE_VERSION,
            "dataset": table.spec.fingerprint,
            "modality": modality.name,
            "encoder": name,
            "version": config.version,
            "options": config.to_dict(),
            "weights": encoder.fingerprint(),
        }
        block = self.folder / table.spec.name / f"{modality.name}-{name}-{digest_of(key, 16)}"
        with locked(block):
            if not (block / "meta.json").is_file():
                self._compute(table, modality, encoder, key, block)
            return self._open(block)

    def _compute(
        self, table: DataTable, modality: ModalitySpec, encoder: Encoder, key: Mapping[str, Any], block: Path
    ) -> None:
        ensure_folder(block.parent)
        column = table.spec.modality_names.index(modality.name)
        rows = np.flatnonzero(table.available[:, column])
        values = table.values[modality.name]
        storage = np.dtype(encoder.storage)
        encoded: list[Encoded] = []
        digest = np.zeros(len(table.ids), dtype=np.int64)
        label = f"{table.spec.name}: {modality.name} features ({key['encoder']})"
        for start in track(range(0, len(rows), encoder.batch_size), label):
            chunk = rows[start : start + encoder.batch_size]
            raw = [values[int(row)] for row in chunk]
            digest[chunk] = [content_digest(value) for value in raw]
            part = encoder.encode(raw)
            encoded.append(replace(part, tokens=part.tokens.astype(storage, copy=False)))
        arrays = _stack(encoded, rows, len(table.ids), storage) | {"digest": digest}
        for part_name in ("tokens", "pooled"):
            array = arrays[part_name]
            if array.dtype.kind == "f":
                bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
                if bad.size:
                    raise DataError(
                        f"data set {table.spec.name}: features of {modality.name!r} are NaN or infinite for "
                        f"{bad.size} samples, e.g. id {table.ids[int(bad[0])]!r}; mend or drop them."
                    )
        _write(block, arrays, key)

    def _open(self, block: Path) -> FeatureArray:
        try:
            meta = json.loads((block / "meta.json").read_text())
            for part in _PARTS:
                if file_sha256(block / f"{part}.npy") != meta["sha256"][part]:
                    raise ValueError(f"{part}.npy does not have its checksum")
            parts = {part: np.load(block / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in _PARTS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"feature cache {block} is damaged ({error}); delete the folder and run again.") from error
        return FeatureArray(**parts)


def _write(block: Path, arrays: Mapping[str, npt.NDArray[Any]], key: Mapping[str, Any]) -> None:
    """Writes a block at once; leftovers of killed runs go first (the caller holds the lock)."""
    for leftover in block.parent.glob(f".{block.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(block, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=block.parent, prefix=f".{block.name}."))
    try:
        for part in _PARTS:
            np.save(temporary / f"{part}.npy", arrays[part], allow_pickle=False)
        meta = {"key": key, "sha256": {part: file_sha256(temporary / f"{part}.npy") for part in _PARTS}}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        temporary.chmod(0o755)
        temporary.rename(block)
    except OSError as error:
        raise DataError(f"cannot write the feature cache {block} ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stack(
    encoded: Sequence[Encoded], rows: IntArray, total: int, storage: np.dtype[Any]
) -> dict[str, npt.NDArray[Any]]:
    """Pads all chunks to the longest and spreads them over the rows of the data set.

    Raises:
        DataError: If values are encoded to tokens of different widths.
    """
    shapes = {part.tokens.shape[2:] for part in encoded}
    if len(shapes) > 1:
        raise DataError(
            f"values of one modality have tokens of different shapes: {', '.join(map(str, sorted(shapes)))}."
        )
    longest = max((part.tokens.shape[1] for part in encoded), default=1)
    token_shape = encoded[0].tokens.shape[2:] if encoded else (1,)
    pooled_dim = encoded[0].pooled.shape[1] if encoded else 1
    tokens = np.zeros((total, longest, *token_shape), dtype=storage)
    mask = np.zeros((total, longest), dtype=np.bool_)
    pooled = np.zeros((total, pooled_dim), dtype=np.float32)
    start = 0
    for part in encoded:
        count, length = part.mask.shape
        target = rows[start : start + count]
        tokens[target, :length] = part.tokens
        mask[target, :length] = part.mask
        pooled[target] = part.pooled
        start += count
    return {"tokens": tokens, "mask": mask, "pooled": pooled}
