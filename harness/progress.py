"""Progress on stderr for people: bars on a terminal, plain lines elsewhere; stdout is for results.

`rich` is imported when the first bar is drawn, so that a command whose stderr is no terminal never loads it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from harness import processes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")


@dataclass
class Pace:
    """How long the rest of equal pieces of work will take, from those that are done.

    Attributes:
        total: Number of pieces.
        began: When the first began, in seconds of any clock.
        done: Pieces that are done.
        last: When the last of them ended.
    """

    total: int
    began: float
    done: int = 0
    last: float = 0.0

    def step(self, now: float) -> None:
        """One more piece is done."""
        self.done += 1
        self.last = now

    def left(self, now: float) -> float | None:
        """Seconds left; None before the first piece is done.

        It counts down while a piece is worked on, and stands still when that takes longer than the others did.
        """
        if not self.done:
            return None
        each = (self.last - self.began) / self.done
        return max(0.0, each * (self.total - self.done) - min(each, now - self.last))


def duration_text(seconds: float) -> str:
    """Seconds in words, with no more digits than such estimates deserve."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def track(
    items: Iterable[T],
    label: str,
    *,
    total: int | None = None,
    left: Callable[[], str] | None = None,
    most: bool = False,
) -> Iterable[T]:
    """Iterates with a progress bar on a terminal, silently elsewhere, in workers and in all but the main process.

    Args:
        items: What to iterate over.
        label: Stands before the bar.
        total: Number of items, where they have no length.
        left: Says how much time is left, where the items are not alike.
        most: Whether there may be fewer items.
    """
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    if not _screen.is_shown() or count < 2:
        return items
    return _drawn(items, label, count, left, most)


def note(text: str) -> None:
    """Shows a text behind the innermost bar; nothing where no bar is drawn."""
    if _screen.notes:
        _screen.notes[-1](text)


def say(message: str) -> None:
    """One line for the user on stderr, from the main process of a run; stdout is for results."""
    if processes.is_main():
        print(printable(message), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text of others as a terminal may show it: no control codes, and no marks that turn the direction of writing."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def be_quiet() -> None:
    """Draws no bars in this process: a worker's would overwrite those of the program that started it."""
    _screen.quiet = True


@dataclass
class _Screen:
    """The bars of this process: one display, however many are nested.

    Attributes:
        quiet: Whether none are drawn.
        display: What draws them, while there are any.
        notes: Per bar, from the outermost, what sets the text behind it.
    """

    quiet: bool = False
    display: Progress | None = None
    notes: list[Callable[[str], None]] = field(default_factory=list)

    def is_shown(self) -> bool:
        """Whether somebody would see a bar."""
        # Under a running display stderr is a proxy, which not every version of rich calls a terminal.
        return not self.quiet and processes.is_main() and (self.display is not None or sys.stderr.isatty())

    def add(self, label: str, total: int, left: Callable[[], str]) -> tuple[Progress, TaskID]:
        """Adds a bar; the first one starts the display."""
        if self.display is None:
            self.display = _display()
            self.display.start()
        task = self.display.add_task(label, total=total, left=left, note="")
        display = self.display
        self.notes.append(lambda text: display.update(task, note=text))
        return display, task

    def remove(self, task: TaskID) -> None:
        """Removes a bar; the last one ends the display."""
        self.notes.pop()
        if self.display is not None:
            self.display.remove_task(task)
            if not self.notes:
                self.display.stop()
                self.display = None


_screen = _Screen()


def _drawn(items: Iterable[T], label: str, total: int, left: Callable[[], str] | None, most: bool) -> Iterator[T]:
    pace = Pace(total, time.monotonic())

    def expected() -> str:
        seconds = pace.left(time.monotonic())
        return "" if seconds is None else f"{'at most' if most else 'about'} {duration_text(seconds)} left"

    display, task = _screen.add(label, total, left or expected)
    try:
        for item in items:
            yield item
            pace.step(time.monotonic())
            display.advance(task)
    finally:
        _screen.remove(task)


def _display() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class LeftColumn(ProgressColumn):
        """What is left, asked for at every redraw."""

        def render(self, task: Any) -> Text:
            return Text(task.fields["left"](), style="progress.remaining")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        LeftColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
        # Results go to a file or a pipe untouched.
        redirect_stdout=sys.stdout.isatty(),
    )
