"""Feature store: outputs of frozen encoders, computed once, content-addressed and memory-mapped.

The key of a block is (data set fingerprint, modality, encoder name, version, options, weights, and the precision where
it is not float32); a second run computes nothing.  Values are encoded and written batch by batch (`harness.blocks`), so
memory does not grow with the data set and a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.blocks import BlockWriter, is_block, open_block
from harness.config import EncoderConfig, digest_of
from harness.devices import available_device
from harness.encoder import Encoder
from harness.errors import DataError, UsageError
from harness.files import ensure_folder, locked
from harness.progress import say, track
from harness.types import BoolArray, DataTable, FeatureSpec, FloatArray, IntArray, ModalitySpec

STORE_VERSION = 1
_PARTS = ("tokens", "mask", "pooled", "digest")
_RAGGED = ("tokens", "mask")


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

    @property
    def stored_bytes(self) -> int:
        """Bytes of one row's tokens and mask as they are stored."""
        return int(self.tokens[:1].nbytes + self.mask[:1].nbytes)

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

    def get(
        self, table: DataTable, modality: ModalitySpec, name: str, config: EncoderConfig, device: str = "cpu"
    ) -> FeatureArray:
        """Features of one modality, from the cache or computed now.

        Where the encoder is less precise on `device` than on the CPU, features that a CPU has stored are preferred.

        Args:
            table: The loaded data set.
            modality: Which modality.
            name: Registered name of the encoder.
            config: Its options.
            device: Where to encode; `auto` is the GPU, or the CPU where there is none.

        Raises:
            UsageError: If the encoder does not take this kind of modality, an option is out of range, or the device is
                not here.
            DataError: If raw values, weights or the cache are corrupt, or encoded values are not finite.
        """
        config.validate()
        if modality.kind not in config.kinds:
            raise UsageError(
                f"encoder {name!r} takes {', '.join(config.kinds)}, but modality {modality.name!r} is {modality.kind}; "
                f"set encoders.{modality.name}=…"
            )
        encoder: Encoder = config.implementation()(config)
        encoder.use(available_device(device))
        key: dict[str, Any] = {
            "store": STORE_VERSION,
            "dataset": table.spec.fingerprint,
            "modality": modality.name,
            "encoder": name,
            "version": config.version,
            "options": config.to_dict(),
            "weights": encoder.fingerprint(),
        }
        block = self._block(table, modality, name, key)
        if encoder.precision != "float32" and not is_block(block):
            key["precision"] = encoder.precision
            block = self._block(table, modality, name, key)
        with locked(block, f"waiting for another process that stores {block.name}"):
            if not is_block(block):
                self._compute(table, modality, encoder, key, block)
            return FeatureArray(**open_block(block, _PARTS))

    def _block(self, table: DataTable, modality: ModalitySpec, name: str, key: Mapping[str, Any]) -> Path:
        return self.folder / table.spec.name / f"{modality.name}-{name}-{digest_of(key, 16)}"

    def _compute(
        self, table: DataTable, modality: ModalitySpec, encoder: Encoder, key: Mapping[str, Any], block: Path
    ) -> None:
        ensure_folder(block.parent)
        column = table.spec.modality_names.index(modality.name)
        values = table.values[modality.name]
        order = _order(modality, values, np.flatnonzero(table.available[:, column]))
        writer = BlockWriter(block, len(table.ids), order, digest_of([key, encoder.storage]), _RAGGED)
        if writer.done:
            say(f"{block.name}: going on after {writer.done:,} of {len(order):,} values.")
        starts = range(writer.done, len(order), encoder.batch_size)
        with _reader(modality, values) as read:
            for start in track(starts, f"{table.spec.name}: {modality.name} features ({key['encoder']})"):
                chunk = order[start : start + encoder.batch_size]
                arrays = _encode(encoder, read(chunk))
                bad = _not_finite(arrays)
                if bad.size:
                    writer.discard()  # mended data are another data set, with another block
                    raise DataError(
                        f"data set {table.spec.name}: features of {modality.name!r} are NaN or infinite for "
                        f"{bad.size} samples, e.g. id {table.ids[int(chunk[bad[0]])]!r}, and perhaps for later ones; "
                        "mend or drop them."
                    )
                writer.add(arrays)
        if not len(order):
            writer.add(_nothing(np.dtype(encoder.storage)))
        writer.finish({"key": key})


def _order(modality: ModalitySpec, values: Sequence[Any], rows: IntArray) -> IntArray:
    """Rows in the order of encoding: texts by falling length, so that batches have little padding, others as they come.

    The longest text comes first, so the store knows early how long rows are, and memory does not grow later on.
    """
    if modality.kind != "text":
        return rows
    return rows[np.argsort([-len(values[int(row)]) for row in rows], kind="stable")] if len(rows) else rows


@contextmanager
def _reader(modality: ModalitySpec, values: Sequence[Any]) -> Iterator[Callable[[IntArray], list[tuple[Any, int]]]]:
    """Values and content digests of some rows; pictures are decoded by as many threads as torch has."""

    def one(row: int) -> tuple[Any, int]:
        value = values[row]
        return value, content_digest(value)

    if modality.kind != "image":
        yield lambda rows: list(map(one, rows.tolist()))
        return
    import torch

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield lambda rows: list(pool.map(one, rows.tolist()))


def _encode(encoder: Encoder, raw: Sequence[tuple[Any, int]]) -> dict[str, npt.NDArray[Any]]:
    """One batch of values and their digests as it is stored."""
    part = encoder.encode([value for value, _ in raw])
    return {
        "tokens": part.tokens.astype(encoder.storage, copy=False),
        "mask": part.mask.astype(np.bool_, copy=False),
        "pooled": part.pooled.astype(np.float32, copy=False),
        "digest": np.array([digest for _, digest in raw], dtype=np.int64),
    }


def _not_finite(arrays: Mapping[str, npt.NDArray[Any]]) -> IntArray:
    """Positions of values of which a token or the pooled vector is NaN or infinite."""
    bad = np.zeros(len(arrays["digest"]), dtype=np.bool_)
    for part in ("tokens", "pooled"):
        if arrays[part].dtype.kind == "f":
            bad |= ~np.isfinite(arrays[part]).reshape(len(bad), -1).all(axis=1)
    return np.flatnonzero(bad)


def _nothing(storage: np.dtype[Any]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a modality that no sample has."""
    return {
        "tokens": np.zeros((0, 1, 1), dtype=storage),
        "mask": np.zeros((0, 1), dtype=np.bool_),
        "pooled": np.zeros((0, 1), dtype=np.float32),
        "digest": np.zeros(0, dtype=np.int64),
    }
