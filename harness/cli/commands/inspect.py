"""`harness inspect`: what the method of a recorded run put in the place of missing modalities, and whom it asked."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.cli.runs import add_runs_argument, named_runs
from harness.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from harness.findings import Findings
    from harness.record import RunRecord

_EPILOG = """\
Builds the method again, gives it the weights that the run kept, and shows it the run's own test conditions.  Of a
method that reconstructs, what it puts in the place of a hidden modality is compared with what the same network makes of
the true values, which it is shown afterwards.  Of a method that retrieves, the training samples that it asked are
listed with their weights.  What is found is kept beside the record, and `harness report` shows it; the record itself
does not change.

examples:
  harness inspect 3f2a9c1e
  harness inspect 3f2a9c1e 77b0d4aa --examples 5 --json
  harness inspect 3f2a9c1e tracking.uri=http://server:5000"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    add_runs_argument(result)
    result.add_argument(
        "--examples", metavar="N", type=int, default=3, help="test samples to list per pattern and missing modality"
    )
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints what was found, and keeps it beside the records."""
    if arguments.examples < 0:
        raise UsageError(f"--examples {arguments.examples}: a number of samples, at least 0.")
    store, runs = named_runs(arguments, "inspected")

    from harness.findings import FINDINGS_FILE
    from harness.inspection import inspect_run
    from harness.progress import say

    shown = []
    for run in runs:
        findings = inspect_run(run, store.folders, arguments.examples)
        run.attach(FINDINGS_FILE, findings.to_json())
        shown.append(findings.to_dict())
        if not arguments.json:
            _print(run.record, findings)
        for remark in findings.remarks:
            say(f"{run.record.run_id[:12]}: {remark}")
        say(f"{run.record.run_id[:12]}: kept beside its record; harness report shows it.")
    if arguments.json:
        print_json(shown)
    return EXIT_OK


def _print(record: RunRecord, findings: Findings) -> None:
    print(f"{record.display_name} · {record.dataset['name']} · {record.protocol['name']} · {record.run_id[:12]}:")
    if findings.recoveries:
        headers = ("condition", "shown", "recovered", "samples", "cosine", "to others", "error")
        rows = [
            (
                each.condition,
                each.pattern,
                each.modality,
                each.count,
                f"{each.cosine:.4f}",
                _number(each.others),
                _number(each.error),
            )
            for each in findings.recoveries
        ]
        print_table(headers, rows)
    if findings.agreements:
        lines = [
            (
                each.condition,
                each.use or "the prediction",
                each.count,
                f"{each.plain:.4f}",
                f"{each.weighted:.4f}",
                " ".join(f"{weight:.3f}" for weight in each.weights[:8]),
            )
            for each in findings.agreements
        ]
        print_table(("condition", "asked for", "samples", "same label", "by weight", "weights by rank"), lines)
    for one in findings.examples:
        said = f", taken for {one.predicted}" if one.predicted else ""
        print(f"{one.sample} (shown {one.pattern}; is {one.label}{said}) asks for {one.use or 'the prediction'}:")
        rows_of = [
            (f"  {other.weight:.3f}", f"{other.score:.3f}", other.label, other.sample) for other in one.neighbours
        ]
        print_table(("  weight", "similar", "label", "training sample"), rows_of)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
