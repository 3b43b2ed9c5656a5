"""Torch files of others: tensors in plain containers, on the CPU; nothing in them is run."""

from __future__ import annotations

import pickle
import pickletools
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
        if file.read(4) == b"PK\x03\x04":
            with ZipFile(file) as archive:
                for member in archive.infolist():
                    if member.filename.endswith("data.pkl"):
                        if member.file_size > _LARGEST:
                            raise pickle.UnpicklingError(
                                f"its {member.filename[:100]!r} has more than {_LARGEST} bytes"
                            )
                        with archive.open(member) as content:
                            _check_words(content)
        else:
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check_words(file)
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_words(stream: IO[bytes]) -> None:
    """Walks over one pickle without running it."""
    for opcode, argument, _ in pickletools.genops(stream):
        if isinstance(argument, str | bytes | bytearray) and any(len(word) > _LONGEST for word in argument.split()):
            raise pickle.UnpicklingError(f"{opcode.name} has a word of more than {_LONGEST} characters")
