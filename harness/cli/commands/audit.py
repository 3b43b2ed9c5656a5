"""`harness audit`: the leak checks of a recorded run, made again."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.cli.runs import add_runs_argument, named_runs
from harness.errors import EXIT_AUDIT, EXIT_OK

if TYPE_CHECKING:
    from harness.reaudit import Reaudit
    from harness.record import AuditResult

_EPILOG = """\
Makes the checks of docs/leaks.md again: on the data set and the masks, on the method with the weights that the run
stored, and on its predictions.  Nothing is trained.  Where data or weights are not here, the record is what is left.
Exit code 4 when a check says leak.

examples:
  harness audit 3f2a9c1e
  harness --plugin my_method.py audit 77b0d4aa --json
  harness audit 3f2a9c1e tracking.uri=http://server:5000"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    add_runs_argument(result)
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints one table per run."""
    store, runs = named_runs(arguments, "audited")

    from harness.progress import say
    from harness.reaudit import reaudit

    found = [reaudit(run, store.folders) for run in runs]
    if arguments.json:
        print_json([_as_dict(each) for each in found])
    for each in found:
        if not arguments.json:
            _print(each)
        for remark in each.remarks:
            say(f"{each.record.run_id[:12]}: {remark}")
        leaks = ", ".join(check.name for check in each.leaks)
        say(f"{each.record.run_id[:12]}: {f'LEAK: {leaks}' if leaks else 'no leak found'}.")
    return EXIT_AUDIT if any(each.leaks for each in found) else EXIT_OK


def _print(found: Reaudit) -> None:
    record = found.record
    print(f"{record.display_name} · {record.dataset['name']} · {record.protocol['name']} · {record.run_id[:12]}:")
    rows: list[tuple[str, str, str, str]] = [(word(check), check.name, "now", check.detail) for check in found.again]
    rows += [(word(check), check.name, "recorded", check.detail) for check in found.recorded]
    order = {"LEAK": 0, "warning": 1, "note": 2, "ok": 3}
    print_table(("result", "check", "seen", "detail"), sorted(rows, key=lambda row: order[str(row[0])]))


def word(check: AuditResult) -> str:
    """What a check says, in one word."""
    if check.passed:
        return "note" if check.severity == "note" else "ok"
    return "LEAK" if check.severity == "leak" else check.severity


def _as_dict(found: Reaudit) -> dict[str, Any]:
    record = found.record
    return {
        "run_id": record.run_id,
        "method": record.display_name,
        "dataset": record.dataset["name"],
        "protocol": record.protocol["name"],
        "passed": not found.leaks,
        "checks": [
            asdict(check) | {"seen": seen}
            for checks, seen in ((found.again, "now"), (found.recorded, "recorded"))
            for check in checks
        ],
        "remarks": list(found.remarks),
    }
