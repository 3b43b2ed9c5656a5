"""`harness sync`: send what waits in the outbox."""

from __future__ import annotations

import argparse
from typing import Any

from harness.cli.output import print_json
from harness.cli.parsing import Parser, add_json_option
from harness.cli.store import STORE_HELP, read_store
from harness.errors import EXIT_CELL_FAILED, EXIT_OK

_EPILOG = """\
A run whose tracking server could not be reached waits, whole, in the outbox below the home folder.  This sends it.
It may be repeated at any time: what is recorded already is not recorded twice.

examples:
  harness sync
  harness sync tracking.uri=https://mlflow.example.org"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=STORE_HELP)
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Sends waiting runs; the exit code says whether any still waits."""
    from harness.outbox import sync
    from harness.progress import say

    store = read_store(arguments.overrides)
    report = sync(store.uri, store.folders)
    if arguments.json:
        print_json({"store": store.shown, "sent": report.sent, "failed": report.failed})
    else:
        print("\n".join(report.sent), end="\n" * bool(report.sent))
    for run_id, reason in report.failed.items():
        say(f"{run_id} still waits: {reason}")
    say(f"{len(report.sent)} sent to {store.shown}, {len(report.failed)} waiting.")
    return EXIT_CELL_FAILED if report.failed else EXIT_OK
