"""`harness prepare`: check a data set completely before anything runs on it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_facts, print_json
from harness.cli.parsing import OVERRIDES_HELP, Parser, add_json_option
from harness.errors import EXIT_DATA, EXIT_OK, DataError, UsageError

if TYPE_CHECKING:
    from harness.prepare import Prepared

_SHOWN = 20  # problems and remarks on the screen; the report file has all

_EPILOG = """\
examples:
  harness prepare dataset=mmimdb dataset.folder=DIR
  harness prepare dataset=mmimdb,hateful_memes,food101
  harness prepare dataset=hateful_memes dataset.folder=DIR features=true backbone=vilt_b32
  harness prepare dataset=food101 dataset.folder=DIR subset=true

A data set that you download is checked file by file: numbers of samples against the release, every picture decoded,
labels, duplicates across splits.  All problems are named at once, on the screen the first ones.  What was checked is
kept: a command that was stopped goes on, unchanged files are not read again, and two at once do not disturb each other.
`subset=true` accepts a folder with other numbers of samples.  Other data sets are loaded.  `features=true` also
computes the features of the encoders, and with `backbone=NAME` the backbone's inputs.  Exit code 3 if there are
problems."""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="+", metavar="OPTION=VALUE", help=OVERRIDES_HELP)
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prepares the data sets one after the other."""
    from harness.compose import compose_as
    from harness.prepare import PrepareConfig, prepare
    from harness.progress import say

    if not any(override.startswith("dataset=") for override in arguments.overrides):
        raise UsageError("name a data set: harness prepare dataset=NAME.")
    configs = compose_as(PrepareConfig, arguments.overrides)
    outcomes, failed = [], False
    for config in configs:
        try:
            outcomes.append(prepare(config))
        except DataError as error:
            if len(configs) == 1:
                raise
            say(f"harness: error: {error}")
            failed = True
    if arguments.json:
        print_json([_plain(outcome) for outcome in outcomes])
    else:
        for number, outcome in enumerate(outcomes):
            if number:
                print()
            _show(outcome)
    return EXIT_DATA if failed or any(outcome.problems for outcome in outcomes) else EXIT_OK


def _show(outcome: Prepared) -> None:
    if outcome.facts:
        print_facts(list(outcome.facts.items()))
    checked = outcome.checked
    if checked is None:
        return
    for summary in checked.remarks:
        print(f"remark: {summary}")
    if outcome.problems:
        count = len(outcome.problems)
        print(f"{outcome.name}: {count:,} problem{'s' if count > 1 else ''} in {checked.folder}")
        for problem in outcome.problems[:_SHOWN]:
            print(f"  {problem}")
        if count > _SHOWN:
            print(f"  … and {count - _SHOWN:,} more")
        print(f"all of them: {checked.report}")
        if not checked.problems:
            print("every file is sound; if this is meant to be a part of the release, subset=true accepts it.")


def _plain(outcome: Prepared) -> dict[str, Any]:
    checked = outcome.checked
    details: dict[str, Any] = {}
    if checked is not None:
        details = {
            "counts": {
                what: {"found": found, "release": released} for what, (found, released) in checked.counts.items()
            },
            "remarks": {summary: list(files) for summary, files in checked.remarks.items()},
            "report": str(checked.report),
        }
    problems = [{"where": problem.where, "what": problem.what} for problem in outcome.problems]
    return {"name": outcome.name, "facts": dict(outcome.facts), "problems": problems, **details}
