"""Errors that a user can mend: one line each, with the exit code the command line ends with.

Anything that is not a `HarnessError` is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_CELL_FAILED = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_AUDIT = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


def first_few(items: Iterable[str], most: int = 3) -> str:
    """The first of a list for a message, and how many more there are."""
    every = list(items)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


class HarnessError(Exception):
    """Base of every error that ends in one line on stderr.

    The message says what is wrong, where, and how to mend it.
    """

    exit_code = EXIT_CELL_FAILED
    #: Of several processes that work on one run all have raised it, so that the main one tells the user.
    known_to_all = False


class UsageError(HarnessError):
    """A name, key, value or combination that the command line or a config does not allow."""

    exit_code = EXIT_USAGE


class UnknownNameError(UsageError):
    """A name that no plugin is registered under."""

    def __init__(self, kind: str, name: str, options: Iterable[str]) -> None:
        known = sorted(options)
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Available: {', '.join(known) or '(none)'}.")
        self.kind, self.name, self.suggestions = kind, name, close


class DataError(HarnessError):
    """A data set, encoder weight or mask file that is missing, corrupt or of another version."""

    exit_code = EXIT_DATA


class DependencyError(DataError):
    """An optional package that is needed here and is not installed; names the extra to install."""


class AuditError(HarnessError):
    """A leak check that failed."""

    exit_code = EXIT_AUDIT


class SupervisionError(AuditError):
    """A method asked for values that the protocol's supervision rule hides from it."""


class TrainingError(HarnessError):
    """Training cannot go on: a loss that is not finite, or a checkpoint of another configuration."""


class PeerError(HarnessError):
    """What another process of the same run has failed with.

    Args:
        number: Number of that process.
        count: Number of processes.
        reason: Its error.
        exit_code: Its exit code.
    """

    known_to_all = True

    def __init__(self, number: int, count: int, reason: str, exit_code: int) -> None:
        super().__init__(f"process {number} of {count}: {reason}")
        self.exit_code = exit_code


class ProcessLostError(HarnessError):
    """Another process of the same run was killed or is gone; nothing is recorded, the checkpoint stays."""

    known_to_all = True


class CellBusyError(HarnessError):
    """Another program runs the same cell at this moment."""


class CellTimeout(BaseException):
    """A cell has run for longer than it may; no `except Exception` of a plugin stops it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the same as Ctrl-C but for the exit code."""


class TrackingError(HarnessError):
    """The tracking server cannot be reached or refused a record."""
