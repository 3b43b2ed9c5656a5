"""`harness sweep`: a grid of cells, planned as a whole and run by several processes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_board, print_json, print_table
from harness.cli.parents import conclude, describe_cells, parent_run
from harness.cli.parsing import OVERRIDES_HELP, Parser, add_json_option
from harness.errors import EXIT_CELL_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from harness.sweep import Plan, SweepConfig

_EPILOG = """\
examples:
  harness sweep method=all protocol=both_0.7,text_0.7,image_0.7 train_seed=0,1,2,3,4 dataset=openmoji,cdda workers=2
  harness sweep method=redeem,zero_fill train_seed=range(0,5) --report report
  harness sweep method=all dataset=openmoji --dry-run
  harness sweep --cells cells.yaml dataset=openmoji workers=2
  harness sweep method=all dataset=openmoji executor=slurm executor.gpus=1 executor.minutes=120 workers=50

method=all stands for every registered method that can run on the data set; a method that reads one modality
(unimodal) is run once per modality unless method.modality is set.  --cells FILE is a YAML list of grids, each a
mapping of options to a value or a list of values; what the command line says holds for all of them.

executor=local (default) runs workers=N cells at a time in processes of this machine, workers=0 as many as there are
GPUs or cores; executor=slurm and executor=ray hand cells to a cluster: `harness describe executor slurm` shows the
options.  cell_timeout=SECONDS stops a cell that takes longer and records it as failed.

The plan is shown before anything starts.  Finished cells are skipped, so the same command goes on after Ctrl-C, a
crash or a failed cell.  A cell that fails is recorded, the sweep goes on, and the exit code is 1 at the end.
In MLflow the runs of the cells are nested below one of the sweep, which has the table and the report; the same command
finds it again, and tracking.sweep=NAME names it."""

_OWN_HELP = "executor, executor.OPTION, workers, cell_timeout"


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=f"{OVERRIDES_HELP}; {_OWN_HELP}")
    result.add_argument("--cells", metavar="FILE", type=Path, help="YAML list of grids to run as one sweep")
    result.add_argument("--dry-run", action="store_true", help="print the plan and every cell, start nothing")
    result.add_argument("--report", metavar="DIR", type=Path, help="write a report of these runs to DIR")
    result.add_argument("--no-table", action="store_true", help="do not print the comparison tables")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Plans the grid, shows the plan, runs what is left and prints the tables."""
    from harness.cell_files import read_cells
    from harness.sweep import estimate, plan_sweep, run_plan

    sweep, overrides = split_options(arguments.overrides)
    plan = plan_sweep([overrides] if arguments.cells is None else read_cells(arguments.cells, overrides))
    expected = estimate(plan, sweep.places)
    if arguments.dry_run and arguments.json:
        print_json(_as_dict(plan, expected))
        return EXIT_OK
    with contextlib.redirect_stdout(sys.stdout if arguments.dry_run else sys.stderr):
        _print_plan(plan, sweep.places, expected)
    if arguments.dry_run:
        _print_cells(plan)
        return EXIT_OK

    with parent_run(plan, ["sweep", *arguments.overrides]) as parent:
        outcomes = run_plan(plan, sweep, plugins=arguments.plugin or ())
        board, files = None, list[Path]()
        if arguments.report is not None:
            from harness.progress import say
            from harness.reports.build import build_report

            board, files = build_report(outcomes, arguments.report)
            for file in files:
                say(f"wrote {file}")
        if parent is not None:
            board = conclude(parent, outcomes, board, files)
    print_board(board, outcomes, json=arguments.json, table=not arguments.no_table)
    failed = [
        (cell, outcome.record)
        for cell, outcome in zip(plan.cells, outcomes, strict=True)
        if outcome.record.status != "finished"
    ]
    if failed:
        # JSON says it too, in its own place.
        with contextlib.redirect_stdout(sys.stderr if arguments.json else sys.stdout):
            print(f"\n{len(failed)} of {len(plan.cells)} cells failed:")
            print_table(
                ["run", "cell", "error"],
                [[record.run_id[:12], cell.title, record.error.partition("\n")[0]] for cell, record in failed],
            )
    return EXIT_CELL_FAILED if failed else EXIT_OK


def split_options(texts: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """How cells are run, and the overrides that say which.

    Raises:
        UsageError: If an option of the sweep is unknown, a grid or out of range.
    """
    from harness.compose import compose_as
    from harness.sweep import SweepConfig

    own = [text for text in texts if re.match(r"\+*(executor(\.[\w.]+)?|workers|cell_timeout)\s*=", text)]
    sweeps = compose_as(SweepConfig, own)
    if len(sweeps) != 1:
        raise UsageError("a sweep has one executor, one number of workers and one cell_timeout.")
    (sweep,) = sweeps
    sweep.validate()
    return sweep, [text for text in texts if text not in own]


def _print_plan(plan: Plan, places: int, expected: str) -> None:
    cells, left = len(plan.cells), len(plan.todo)
    at_once = min(places, max(left, 1)) if places else "as many as the cluster takes"
    print(f"{cells} cells, {cells - left} finished, {left} to run, {at_once} at a time")
    print_table(
        ["dataset", "protocol", "supervision", "masks", "methods", "cells", "finished", "to run"],
        [[*group.values(), group["cells"] - group["finished"]] for group in plan.groups()],
    )
    if plan.left_out:
        print_table(["left out", "on", "because"], [[gone.method, gone.where, gone.reason] for gone in plan.left_out])
    print(f"estimated time: {expected}")


def _as_dict(plan: Plan, expected: str) -> dict[str, Any]:
    return {
        "name": plan.name,
        "cells": describe_cells(plan, plan.finished),
        "left_out": [dataclasses.asdict(gone) for gone in plan.left_out],
        "estimated_time": expected,
    }


def _print_cells(plan: Plan) -> None:
    from harness.sweep import variant

    print()
    print_table(
        ["run", "state", "dataset", "protocol", "method", "variant", "mask_seed", "train_seed"],
        [
            [
                cell.run_id[:12],
                plan.finished[cell.run_id].record.status if cell.run_id in plan.finished else "to run",
                cell.table.spec.name,
                cell.protocol.name,
                cell.method_name,
                variant(cell),
                cell.config.mask_seed,
                cell.config.train_seed,
            ]
            for cell in plan.cells
        ],
    )
