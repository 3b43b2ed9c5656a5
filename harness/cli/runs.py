"""Finding recorded runs by what people type."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.parsing import Parser
from harness.cli.store import STORE_HELP, Store, read_store
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.tracking import StoredRun


def add_runs_argument(parser: Parser) -> None:
    """The runs that a command is about, as `runs`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN | OPTION=VALUE",
        help=f"run ids or MLflow ids, or their beginnings; {STORE_HELP}",
    )


def named_runs(arguments: argparse.Namespace, purpose: str) -> tuple[Store, list[StoredRun]]:
    """The runs that were typed, and the store that they are in.

    Args:
        arguments: Of a command with `add_runs_argument`.
        purpose: What is to be done with them, as a participle.

    Raises:
        UsageError: If none was named, or one cannot be found or used.
    """
    wanted = [text for text in arguments.runs if "=" not in text]
    if not wanted:
        raise UsageError("name a run (harness report --json lists their ids).")
    store = read_store([text for text in arguments.runs if "=" in text])

    from harness.tracking import load_runs

    runs = load_runs(store.uri) if store.exists() else []
    return store, [_named_run(runs, text, purpose) for text in wanted]


def _named_run(runs: Sequence[StoredRun], text: str, purpose: str) -> StoredRun:
    """The one finished run whose run id or MLflow id begins with a text.

    Args:
        runs: All runs.
        text: What was typed.
        purpose: What is to be done with it, as a participle.

    Raises:
        UsageError: If there are none or several, or it has not finished.
    """
    found = [run for run in runs if run.record.run_id.startswith(text.lower()) or run.mlflow_run_id.startswith(text)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} recorded runs have an id that begins with {text!r}; name exactly one.")
    if found[0].record.status != "finished":
        raise UsageError(f"run {text} is {found[0].record.status}; only finished runs can be {purpose}.")
    return found[0]
