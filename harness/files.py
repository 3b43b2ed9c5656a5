"""Atomic writes, locks and folders: what keeps caches and results whole when a process dies."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import PathsConfig
from harness.errors import DataError
from harness.progress import say

_MOMENT = 3.0  # seconds
#: Bounds of tables of others, in values and in bytes of text.
MAX_VALUES, MAX_TEXT = 200_000_000, 1 << 30

#: What a file system says when it takes no more: full, quota, read-only, broken, file too large.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)

#: Ends what is said of folders that cannot be written.
_HOME = "that of runs and caches: paths.home=DIR or HARNESS_HOME"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder and renames it to `path` when the block succeeds.

    Raises:
        DataError: If the folder cannot be written, or the disk is full; what was there stays.
    """
    ensure_folder(path.parent)
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp" + path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise DataError(
            f"cannot write {path} ({os.strerror(error.errno)}); free space there, or choose another folder ({_HOME})."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def ensure_folder(path: Path) -> Path:
    """Creates a folder and checks that it can be written.

    Raises:
        DataError: Naming the folder and the options that choose another one.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot write to {path} ({error.strerror or error}); choose another folder ({_HOME})."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataError(f"no permission to write to {path}; choose another folder ({_HOME}).")
    return path


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Holds an inter-process lock on `<path>.lock` while the block runs.

    Args:
        path: What the lock is about.
        waiting: Shown on stderr when another process holds the lock for longer than a moment.
    """
    from filelock import FileLock, Timeout

    ensure_folder(path.parent)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=_MOMENT if waiting else -1)
    except Timeout:
        say(f"{waiting} …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_yaml(path: Path, texts: bool = False) -> Any:
    """Reads a small YAML file of others as plain data.

    References (`*name`) are refused: a few lines of them can stand for gigabytes, or for themselves.

    Args:
        path: The file.
        texts: Leave every scalar the text that it is.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no such YAML; one line.
    """
    import yaml  # type: ignore[import-untyped]

    kind = yaml.BaseLoader if texts else yaml.SafeLoader

    class Loader(kind):  # type: ignore[misc, valid-type]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("references to other parts are not read")
            return super().compose_node(parent, index)

    text = path.read_text(encoding="utf-8")
    try:
        return yaml.load(text, Loader)
    except Exception as error:  # its readers of numbers and dates fail in several ways
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def check_parquet(path: Path) -> None:
    """Refuses a Parquet file that would take far more memory than it has bytes, before it is read.

    A few bytes can claim any number of rows, and one long text can stand in all of them.

    Raises:
        DataError: If it claims more than 200 million values, or texts of more than 1 GiB together.
        Exception: Whatever pyarrow makes of a damaged file.
    """
    from pyarrow import compute, parquet, types

    with parquet.ParquetFile(path) as file:
        count = file.metadata.num_rows * file.metadata.num_columns
        if count > MAX_VALUES:
            raise DataError(f"{path} claims {count:,} values; at most {MAX_VALUES:,} are read.")
        kinds = {field.name: field.type for field in file.schema_arrow}
    texts = [name for name, kind in kinds.items() if types.is_string(kind) or types.is_large_string(kind)]
    # As codes into the different texts, which are then measured without being written out.
    size = 0
    for name, column in zip(texts, parquet.read_table(path, columns=texts, read_dictionary=texts).columns, strict=True):
        for chunk in column.chunks:
            lengths = compute.binary_length(chunk.dictionary)
            size += compute.sum(lengths.take(chunk.indices).cast("int64")).as_py() or 0
        if size > MAX_TEXT:
            raise DataError(f"{path} holds more than {MAX_TEXT:,} bytes of text up to column {name!r}.")


def is_file(path: Path) -> bool:
    """Whether there is such a file; unlike `Path.is_file` also where the file system takes no such name."""
    return os.path.isfile(path)  # noqa: PTH113


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Folders:
    """Resolved folders of a run.

    Attributes:
        home: Base folder.
        data: Data sets that users supply.
        cache: Derived files, safe to delete.
        runs: Per run: checkpoints and the record while a run is unfinished.
        outbox: Records that a tracking server has not taken yet.
    """

    home: Path
    data: Path
    cache: Path
    runs: Path
    outbox: Path

    @classmethod
    def resolve(cls, paths: PathsConfig) -> Folders:
        """Applies config, `HARNESS_HOME`, and the default below `~/.cache`."""
        chosen = paths.home or os.environ.get("HARNESS_HOME", "")
        home = Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "missing-modality-harness"
        home = home.absolute()
        data = Path(paths.data).expanduser().absolute() if paths.data else home / "data"
        return cls(home, data, home / "cache", home / "runs", home / "outbox")
