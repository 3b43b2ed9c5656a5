"""The commands that README, docs and cards tell their readers to type."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "reports/published/*.md",
        "datasets/cards/*.md",
        "methods/*/card.md",
        "methods/*/cards/*.md",
        "methods/common/*/cards/*.md",
    )
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)

#: What readers put something of their own for, and what these tests put there.  Names of files and folders stay.
PLACEHOLDERS = {
    "dataset=NAME": "dataset=synthetic",
    "dataset=DATA": "dataset=synthetic",
    "dataset=…": "dataset=synthetic",
    "protocol=NAME": "protocol=both_0.7",
    "protocol=…": "protocol=both_0.7",
    "method=NAME": "method=zero_fill",
    "run_id=…": "run_id=3f2a9c1e",
    "workers=N": "workers=2",
    "…": None,
}


@dataclass(frozen=True)
class Shown:
    """A line that a page tells its reader to type."""

    where: str
    line: str
    in_text: bool = False


def shown(page: Path) -> Iterator[Shown]:
    """Lines of `console` and `sh` blocks, and code spans in the text that begin with `harness`."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    for block in FENCED.finditer(text):
        body = textwrap.dedent(block["body"]).replace("\\\n", " ")
        if block["language"] == "console":
            lines = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
        elif block["language"] in ("sh", "bash"):
            lines = [line for line in body.splitlines() if line.strip()]
        else:
            continue
        number = text.count("\n", 0, block.start()) + 1
        yield from (Shown(f"{name}:{number}", line) for line in lines)
    prose = FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in re.finditer(r"`(harness [^`]+)`", prose):
        number = prose.count("\n", 0, span.start()) + 1
        yield Shown(f"{name}:{number}", " ".join(span[1].split()), in_text=True)


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return [block["body"] for block in FENCED.finditer(text) if block["language"] == language]


SHOWN = [each for page in PAGES for each in shown(page)]


def words_of(line: str) -> list[str]:
    """The words of one command, with placeholders filled."""
    line = re.sub(r"\$\(sh (scripts/\S+) \w+\)", lambda call: existing(call[1]) and "FOLDER", line)
    words = shlex.split(line.replace("$DIR", "DIR"), comments=True)
    filled = [PLACEHOLDERS.get(word, word) for word in words]
    return [word for word in filled if word is not None and not re.fullmatch(r"[A-Z]+=\S+", word)]


def existing(path: str) -> str:
    assert (ROOT / path).is_file(), f"{path} does not exist"
    return path
