"""Progress on stderr for people; nothing when output is piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from harness import processes

T = TypeVar("T")


def track(items: Sequence[T], label: str) -> Iterable[T]:
    """Iterates with a rich progress bar on a terminal, silently elsewhere and in all processes but the main one."""
    if not processes.is_main() or not sys.stderr.isatty() or len(items) < 2:
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, description=label, console=Console(stderr=True), transient=True)


def say(message: str) -> None:
    """One line for the user on stderr, from the main process of a run; stdout is for results."""
    if processes.is_main():
        print(message, file=sys.stderr, flush=True)
