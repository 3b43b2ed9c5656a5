"""Hateful Memes: a meme's picture and the text on it; whether it is hateful.

Reads `train.jsonl`, `dev.jsonl` and `test_seen.jsonl` of the challenge, and the PNG files they name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.datasets._released import (
    Description,
    Listing,
    ReleasedConfig,
    Sample,
    archives_in,
    as_text,
    first_of,
    inside,
)
from harness.errors import DataError
from harness.types import Split, TaskSpec

CLASSES = ("not hateful", "hateful")
#: Name of the file -> split and number of memes.
RELEASE: dict[str, tuple[Split, int]] = {"train": ("train", 8_500), "dev": ("valid", 500), "test_seen": ("test", 1_000)}

# Beside the pictures, or where the released code of REDEEM wants them.
_PLACES = ("", "meta_data/", "metadata/")
# The second phase of the challenge calls the same 500 memes `dev_seen`.
_FILES = {"train": ("train",), "dev": ("dev", "dev_seen"), "test_seen": ("test_seen",)}


@dataclass
class HatefulMemesConfig(ReleasedConfig):
    """Picture and text of a meme, two classes; tested on the labelled `test_seen`."""

    name: ClassVar[str] = "hateful_memes"
    summary: ClassVar[str] = "meme + its text, hateful or not, test_seen (Hateful Memes; you supply the files)"
    citation: ClassVar[str] = (
        "Kiela et al.: The Hateful Memes Challenge: Detecting Hate Speech in Multimodal Memes, NeurIPS 2020"
    )
    license: ClassVar[str] = "Hateful Memes dataset licence agreement (Meta; research, no redistribution)"
    obtain: ClassVar[str] = (
        "accept the licence at https://hatefulmemeschallenge.com and unpack the release with test_seen.jsonl and img/, "
        "then dataset.folder=DIR"
    )
    card: ClassVar[str] = "cards/hateful_memes.md"

    def task(self) -> TaskSpec:
        """Two classes."""
        return TaskSpec("binary", 2, CLASSES, "auroc")

    def find(self, folder: Path) -> Path:
        """The folder with all three lists."""
        for place in (folder, folder / "data", folder / "hateful_memes"):
            if any((place / inner / "train.jsonl").is_file() for inner in _PLACES):
                break
        else:
            raise DataError(f"no train.jsonl of Hateful Memes in {folder}{archives_in(folder)}; {self.obtain}")
        for names in _FILES.values():
            if not any((place / inner / f"{name}.jsonl").is_file() for inner in _PLACES for name in names):
                hint = ""
                if any((place / inner / "test.jsonl").is_file() for inner in _PLACES) and names == ("test_seen",):
                    hint = " (test.jsonl has no labels and cannot replace it)"
                raise DataError(f"no {' or '.join(f'{name}.jsonl' for name in names)} in {place}{hint}; {self.obtain}")
        return place

    def describe(self, folder: Path, files: Listing) -> Description:
        """Reads the three lists."""
        found = Description()
        for name, (split, released) in RELEASE.items():
            file = first_of(files, [f"{place}{own}.jsonl" for own in _FILES[name] for place in _PLACES])
            try:
                lines = (folder / file).read_text(encoding="utf-8-sig").split("\n")
            except (OSError, ValueError) as error:
                found.problem(file, f"cannot be read ({error})")
                continue
            rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
            found.counts[name] = (len(rows), released)
            for number, line in rows:
                self._add(found, f"{file}, line {number}", line, split, files)
        return found

    def _add(self, found: Description, where: str, line: str, split: Split, files: Listing) -> None:
        """Adds the meme of one line, or what is wrong with the line."""
        try:
            content: Any = json.loads(line)
        except (ValueError, RecursionError):
            found.problem(where, "is not whole JSON")
            return
        if not isinstance(content, dict):
            found.problem(where, "is not a meme")
            return
        meme, picture, label, text = (content.get(key) for key in ("id", "img", "label", "text"))
        number = str(meme)
        if isinstance(meme, bool) or not isinstance(meme, int | str) or not (number.isascii() and number.isdigit()):
            found.problem(where, f"id {meme!r} is not a number")
        elif isinstance(label, bool) or label not in (0, 1):
            found.problem(where, "has no label" if label is None else f"label {label!r} is neither 0 nor 1")
        elif not isinstance(picture, str) or not inside(picture):
            found.problem(where, f"img {picture!r} is not a path in the folder")
        elif not isinstance(text, str):
            found.problem(where, "has no text")
        else:
            own = Path(picture).name
            path = first_of(files, [picture, f"image/{own}", f"img/{own}"])
            found.samples.append(Sample(f"{int(meme):05d}", split, path, (int(label),), (as_text(text),)))
