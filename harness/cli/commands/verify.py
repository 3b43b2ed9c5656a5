"""`harness verify`: scores a bundle again and checks every hash."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.errors import EXIT_AUDIT, EXIT_OK

_EPILOG = """\
Checks every sha256, the run ids, that each prediction was shown what the mask table says, and computes every score
and interval again.  Needs no GPU, no data set and no torch.  A digest that was published with the bundle shows that it
is the same one: without it, a bundle shows that it is consistent in itself.  Exit code 4 when anything does not hold.

examples:
  harness verify bundle.zip
  harness verify bundle.zip --digest 5e884898da28…
  harness verify bundle.zip --json"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("file", metavar="FILE.zip", type=Path, help="a bundle that harness export wrote")
    result.add_argument("--digest", metavar="SHA256", default="", help="what harness export printed")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints what was checked; the exit code says whether all of it holds."""
    from harness.bundle import Check, verify_bundle
    from harness.progress import say

    result = verify_bundle(arguments.file)
    checks = list(result.checks)
    if arguments.digest:
        same = arguments.digest.lower() == result.digest
        checks.append(Check("", "digest", same, "the one that was given" if same else "not the one that was given"))
    passed = all(check.passed for check in checks)
    if arguments.json:
        print_json({"passed": passed, "digest": result.digest, "checks": [asdict(check) for check in checks]})
    else:
        rows = [(check.run[:8] or "bundle", check.name, _mark(check), check.detail) for check in checks]
        print_table(("part", "check", "", "detail"), rows)
    failed = sum(not check.passed for check in checks)
    say(f"{arguments.file}: {'everything holds' if passed else f'{failed} checks failed: do not trust this bundle'}.")
    return EXIT_OK if passed else EXIT_AUDIT


def _mark(check: Any) -> str:
    return "ok" if check.passed else "FAILED"
