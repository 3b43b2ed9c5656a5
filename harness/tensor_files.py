"""Torch files of others: tensors in plain containers, on the CPU; nothing in them is run."""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile

#: Characters without a blank in a text of a pickle.  torch searches the message of its own refusal, which may quote the
#: text, with an expression that takes the square of a word's length: for ever where somebody has chosen the word.
_LONGEST = 4_000
#: Bytes of the part of an archive that says what is in the others.
_LARGEST = 64 << 20
#: What the format before archives begins with: magic number, version, machine, content, keys of the values that follow.
_LEGACY_PICKLES = 5


def load_tensors(path: Path) -> Any:
    """What `torch.save` has written.

    Raises:
        pickle.UnpicklingError: If it asks for anything but tensors and plain containers, or holds an overlong word.
        OSError: If the file cannot be read.
        Exception: Whatever torch and zipfile raise on damaged files; they have no error in common.
    """
    import torch

    with path.open("rb") as file:
        for stream in _pickles(file):
            _check_words(stream)
    return torch.load(path, map_location="cpu", weights_only=True)


def _pickles(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """The pickles of a torch file, each to be read to its end before the next."""
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        yield from repeat(file, _LEGACY_PICKLES)
        return
    with ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.filename.endswith("data.pkl"):
                continue
            if member.file_size > _LARGEST:
                raise pickle.UnpicklingError(f"its {member.filename[:100]!r} has more than {_LARGEST} bytes")
            with archive.open(member) as stream:
                yield stream


def _check_words(stream: IO[bytes]) -> None:
    """Walks over one pickle without running it."""
    for opcode, argument, _ in pickletools.genops(stream):
        if isinstance(argument, str | bytes | bytearray) and any(len(word) > _LONGEST for word in argument.split()):
            raise pickle.UnpicklingError(f"{opcode.name} has a word of more than {_LONGEST} characters")
