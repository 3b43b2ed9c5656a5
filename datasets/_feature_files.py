"""What the data sets that read published feature files share: where the files are, what is in them, long sequences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from harness.errors import DataError, UsageError, first_few
from harness.files import atomic_write, file_sha256
from harness.types import FloatArray, IntArray, Split

#: Modalities in the order that the MMIN family writes its patterns in: acoustic, visual, lexical.
MODALITIES = ("audio", "video", "text")
NAMED = 5  # of what is missing

T = TypeVar("T")


def home(folder: str, data_dir: Path, name: str, obtain: str) -> Path:
    """The folder of a data set: the option, or the place below the data folder.

    Raises:
        DataError: If there is no such folder, naming how to get it.
    """
    found = Path(folder).expanduser().absolute() if folder else data_dir / name
    if not found.is_dir():
        raise DataError(f"there is no folder {found}; {obtain}")
    return found


def check_files(folder: Path, names: Sequence[str], obtain: str) -> None:
    """Checks that files are there.

    Raises:
        DataError: Naming those that are not, and how to get them.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {first_few(missing, NAMED)}; {obtain}")


def read(load: Callable[[Path], T], path: Path, obtain: str) -> T:
    """What `load` makes of a file.

    Raises:
        DataError: As `load`, and how to get the file.
    """
    try:
        return load(path)
    except DataError as error:
        raise DataError(f"{str(error).rstrip('.')}; {obtain}") from error


def check_keys(where: str, found: Iterable[Any], expected: Sequence[str], obtain: str) -> None:
    """Checks the keys of a file or of a part of it.

    Raises:
        DataError: Naming the keys that are there and those that should be.
    """
    keys = [str(key) for key in found]
    if not set(expected) <= set(keys):
        raise DataError(
            f"{where} has the keys {', '.join(sorted(keys)[:20]) or '(none)'}, expected {', '.join(expected)}; {obtain}"
        )


def file_digests(paths: Sequence[Path], cache_dir: Path) -> str:
    """sha256 over the contents of files, in order; a file of unchanged size and time is read once.

    Args:
        paths: The files.
        cache_dir: Where what was found is kept.
    """
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
        memo = cache_dir / "feature_files" / f"{name}.json"
        try:
            known = json.loads(memo.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if not isinstance(known, dict) or known.get("state") != state or not isinstance(known.get("sha256"), str):
            known = {"state": state, "sha256": file_sha256(path)}
            with atomic_write(memo) as temporary:
                temporary.write_text(json.dumps(known), encoding="utf-8")
        digest.update(bytes.fromhex(known["sha256"]))
    return digest.hexdigest()


def shortened(sequence: FloatArray, most: int) -> FloatArray:
    """A sequence of at most `most` tokens: a longer one is cut into so many windows, and each becomes its mean.

    Windows differ by one token in length at most.

    Args:
        sequence: `[L, D]`.
        most: Tokens; 0 leaves every sequence as it is.
    """
    if not most or len(sequence) <= most:
        return sequence
    edges = np.arange(most + 1) * len(sequence) // most
    sums = np.add.reduceat(sequence, edges[:-1], axis=0, dtype=np.float64)
    return (sums / np.diff(edges)[:, None]).astype(np.float32)


def check_finite(value: FloatArray, where: str) -> FloatArray:
    """The value, if every number of it is one.

    Raises:
        DataError: Naming where it comes from.
    """
    if not np.isfinite(value).all():
        raise DataError(f"{where} holds NaN or infinite values; take the file from where it was published.")
    return value


def check_most(max_tokens: int) -> None:
    """Checks the option `max_tokens`; raises `UsageError`."""
    if max_tokens < 0:
        raise UsageError(f"dataset.max_tokens={max_tokens} must be at least 0 (0: sequences as they are).")


def class_counts(labels: IntArray, classes: Sequence[str]) -> dict[str, int]:
    """How often each class occurs."""
    return {name: int((labels == number).sum()) for number, name in enumerate(classes)}


def shared_between_splits(sources: Mapping[Split, Sequence[str]]) -> int:
    """How many sources (videos, dialogues) lie in more than one split.

    Args:
        sources: Split to the source of each of its samples.
    """
    homes: dict[str, set[str]] = {}
    for split, names in sources.items():
        for name in names:
            homes.setdefault(name, set()).add(split)
    return sum(len(splits) > 1 for splits in homes.values())
