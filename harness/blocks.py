"""Blocks: folders of `.npy` arrays that are written piece by piece, go on where a killed process stopped, and are
checked when they are opened.

A `BlockWriter` works in a hidden folder beside the block.  Rows go straight into files of their full size, so that
memory holds one piece at a time; a journal says which pieces have reached the disk, with their checksums.  A finished
block appears by a rename.  The caller holds the block's lock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.files import atomic_write, ensure_folder, file_sha256
from harness.types import IntArray

#: What may be lost by a kill: this many bytes, or this many seconds of work, whichever is reached first.
COMMIT_BYTES = 2**25
COMMIT_SECONDS = 2.0
#: Rows that are copied at a time when rows get longer.
_COPIED_BYTES = 2**25
#: A file that is as young as this when it is checked can change again without another time stamp.
_CLOCK_TICK = 50_000_000

_JOURNAL, _META, _STAMPS = "journal.jsonl", "meta.json", "verified.json"

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Layout:
    """How rows lie in a `.npy` file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def row(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row, dtype=np.int64)) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        return self.offset + self.shape[0] * self.row_bytes


class BlockWriter:
    """Writes a block of arrays with a common first axis.

    Args:
        block: Folder of the block.
        total: Rows of every array; rows that are never written are zero.
        order: The rows that will be written, in the order of writing.
        identity: What decides the content; pieces that were written under another one are dropped.
        ragged: Parts whose rows may differ along their first axis, e.g. tokens; what is shorter than the longest ends
            in zeros.

    Attributes:
        done: How many of `order` are written already.
    """

    def __init__(self, block: Path, total: int, order: IntArray, identity: str, ragged: Collection[str] = ()) -> None:
        self.block = block
        self.done = 0
        self._total = total
        self._order = order
        self._ragged = ragged
        self._folder = block.with_name(f".{block.name}.partial")
        self._uncommitted: list[dict[str, Any]] = []
        self._bytes, self._since = 0, time.monotonic()
        plan = hashlib.sha256(f"{identity}:{total}:".encode() + order.astype("<i8").tobytes()).hexdigest()
        # Leftovers of writers that were killed before they had a journal.
        for leftover in block.parent.glob(f".{block.name}.*"):
            if leftover != self._folder:
                shutil.rmtree(leftover, ignore_errors=True)
        if not self._resume(plan):
            self.discard()
            ensure_folder(self._folder)
            with self._writing(), (self._folder / _JOURNAL).open("w") as journal:
                _append(journal, [{"plan": plan}])

    def add(self, arrays: Arrays) -> None:
        """Writes the next rows of `order`; they are safe at the latest when `finish` returns.

        Args:
            arrays: Per part the values of these rows, `[n, ...]`; the same parts in every call.

        Raises:
            DataError: If the disk is full or cannot be written, or rows have another shape or type than those before.
        """
        count = len(next(iter(arrays.values())))
        rows = self._order[self.done : self.done + count]
        with self._writing():
            for part, values in arrays.items():
                self._fit(part, values)
                _put(self._folder / f"{part}.npy", rows, values)
        self.done += count
        self._uncommitted.append({"stop": self.done, "shapes": _shapes(arrays), "sha256": _digest(arrays)})
        self._bytes += sum(values.nbytes for values in arrays.values())
        if self._bytes >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self._commit()

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Makes the block appear, with `meta` in its `meta.json`.

        Raises:
            DataError: If the disk is full or cannot be written.
        """
        self._commit()
        with self._writing():
            files = sorted(self._folder.glob("*.npy"))
            content = {**meta, "sha256": {file.stem: file_sha256(file) for file in files}}
            with (self._folder / _META).open("w") as target:
                target.write(json.dumps(content, indent=2) + "\n")
                _sync(target)
            _stamp(self._folder, files)
            shutil.rmtree(self.block, ignore_errors=True)
            self._folder.rename(self.block)
            (self.block / _JOURNAL).unlink()

    def discard(self) -> None:
        """Drops everything that was written."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _resume(self, plan: str) -> bool:
        """Takes over the pieces of an earlier writer that are whole; False if there are none to take over."""
        try:
            lines = (self._folder / _JOURNAL).read_text().splitlines(keepends=True)
        except (OSError, UnicodeDecodeError):
            return False
        entries = list(_entries(lines))
        if not entries or entries[0] != {"plan": plan}:
            return False
        kept = 1
        for entry in entries[1:]:
            if not self._is_whole(entry):
                break
            self.done, kept = entry["stop"], kept + 1
        if kept < len(lines):
            # A torn line or a torn piece: what follows is written again.
            with atomic_write(self._folder / _JOURNAL) as journal:
                journal.write_text("".join(lines[:kept]))
        return True

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        rows = self._order[self.done : entry["stop"]]
        try:
            arrays = {part: self._read(part, rows, shape) for part, shape in entry["shapes"].items()}
        except (OSError, ValueError):
            return False
        return _digest(arrays) == str(entry["sha256"])

    def _read(self, part: str, rows: IntArray, shape: Sequence[int]) -> npt.NDArray[Any]:
        array = np.load(self._folder / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        return np.ascontiguousarray(array[rows][(slice(None), *map(slice, shape))])

    def _fit(self, part: str, values: npt.NDArray[Any]) -> None:
        """Creates the file of a part, or gives it longer rows."""
        path = self._folder / f"{part}.npy"
        if not path.is_file():
            self._create(path, values.dtype, values.shape[1:])
            return
        old, row = _layout(path), values.shape[1:]
        start = 1 if part in self._ragged else 0
        if row[start:] != old.row[start:] or values.dtype != old.dtype:
            self.discard()
            raise DataError(
                f"{self.block.name}: {part} of different shapes: {values.dtype} {row} after {old.dtype} {old.row}."
            )
        if row[:start] <= old.row[:start]:
            return
        longer = path.with_suffix(".longer")
        self._create(longer, old.dtype, row)
        source = np.load(path, mmap_mode="r", allow_pickle=False)
        step = max(1, _COPIED_BYTES // max(1, old.row_bytes))
        for start in range(0, self.done, step):
            rows = self._order[start : min(start + step, self.done)]
            _put(longer, rows, source[rows])
        _sync_file(longer)
        longer.replace(path)

    def _create(self, path: Path, dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
        """A file of zeros whose space on the disk is reserved; it has its name only when it is whole."""
        young = path.with_suffix(".new")
        try:
            with young.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": (self._total, *row)})
                file.flush()
                _reserve(file, _Layout((self._total, *row), dtype, file.tell()).file_bytes)
            young.replace(path)
        except OSError:
            young.unlink(missing_ok=True)
            raise

    def _commit(self) -> None:
        """Files first, then the journal: what the journal names is on the disk."""
        with self._writing():
            for file in self._folder.glob("*.npy"):
                _sync_file(file)
            with (self._folder / _JOURNAL).open("a") as journal:
                _append(journal, self._uncommitted)
        self._uncommitted.clear()
        self._bytes, self._since = 0, time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One line for whatever the file system refuses."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free = shutil.disk_usage(self.block.parent).free / 2**30
                raise DataError(
                    f"no space left for {self.block} ({free:.1f} GiB are free there); free some, or choose another "
                    "folder with paths.home=DIR.  What is written is kept, and the same command goes on from it."
                ) from error
            raise DataError(f"cannot write {self.block} ({error.strerror or error}).") from error


def is_block(block: Path) -> bool:
    """Whether a finished block is there."""
    return (block / _META).is_file()


def open_block(block: Path, parts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a finished block, memory-mapped.

    Checksums are verified once per file as it lies on this disk: a file with another size, time of change or inode
    than at the last check is read again.

    Raises:
        DataError: If a file is missing or is not the one that was written.
    """
    try:
        files = [block / f"{part}.npy" for part in parts]
        expected = json.loads((block / _META).read_text())["sha256"]
        wanted = {file.stem: expected[file.stem] for file in files}
        known = _known_stamps(block)
        unknown = [file for file in files if known.get(file.stem) != _stat(file)]
        for file in unknown:
            if file_sha256(file) != wanted[file.stem]:
                raise ValueError(f"{file.name} does not have its checksum")
        if unknown:
            _stamp(block, files)
        return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"feature cache {block} is damaged ({error}); delete the folder and run again.") from error


def _stat(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _known_stamps(block: Path) -> dict[str, Any]:
    try:
        stamps = json.loads((block / _STAMPS).read_text())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _stamp(folder: Path, files: Sequence[Path]) -> None:
    """Notes that files were checked, unless they are so young that their time stamps could still hide a change."""
    stamps = {file.stem: _stat(file) for file in files}
    old = time.time_ns() - _CLOCK_TICK
    try:
        (folder / f"{_STAMPS}.{os.getpid()}").write_text(
            json.dumps({part: stamp for part, stamp in stamps.items() if stamp[1] < old}) + "\n"
        )
        (folder / f"{_STAMPS}.{os.getpid()}").replace(folder / _STAMPS)
    except OSError:
        pass  # A cache that only others can write is checked every time.


def _layout(path: Path) -> _Layout:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return _Layout(shape, dtype, file.tell())


def _reserve(file: BinaryIO, size: int) -> None:
    """Takes the space now: a full disk is noticed before anything is computed."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # not on macOS
        if shutil.disk_usage(Path(file.name).parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    file.truncate(size)


def _put(path: Path, rows: IntArray, values: npt.NDArray[Any]) -> None:
    """Writes rows at their places, zeros behind what is shorter; neighbouring rows go in one piece."""
    layout = _layout(path)
    if not len(rows) or not layout.row_bytes:
        return
    full = values
    if values.shape[1:] != layout.row:
        full = np.zeros((len(rows), *layout.row), dtype=layout.dtype)
        full[(slice(None), *map(slice, values.shape[1:]))] = values
    with path.open("r+b") as file:
        starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1).tolist()
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            file.seek(layout.offset + int(rows[start]) * layout.row_bytes)
            file.write(_raw(full[start:stop]))


def _shapes(arrays: Arrays) -> dict[str, list[int]]:
    return {part: list(values.shape[1:]) for part, values in arrays.items()}


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for part in sorted(arrays):
        digest.update(f"{part}{arrays[part].dtype}{arrays[part].shape}".encode())
        digest.update(_raw(arrays[part]))
    return digest.hexdigest()


def _raw(values: npt.NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _entries(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Lines of a journal up to the first torn one."""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            return
        if not line.endswith("\n") or not isinstance(entry, dict):
            return
        yield entry


def _append(journal: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    journal.write("".join(json.dumps(entry) + "\n" for entry in entries))
    _sync(journal)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
