"""`harness run`: one cell, or a grid of cells one after the other."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from harness.cli.output import json_text, print_board
from harness.cli.parsing import OVERRIDES_HELP, Parser, add_json_option
from harness.errors import EXIT_CELL_FAILED, EXIT_OK

_EPILOG = """\
examples:
  harness run method=redeem protocol=both_0.7
  harness run method=redeem,zero_fill,complete train_seed=0,1,2
  harness run method=redeem method.k=3 trainer.epochs=5 dataset=cdda
  harness run method=redeem preset=paper dataset=hateful_memes backbone=vilt_b32
  harness run method=unimodal method.modality=image,text --report report
  harness run from=tuned/redeem_openmoji_both_0.7.yaml train_seed=0,1,2
  harness run method=redeem --dry-run

A run that is recorded as finished is not run again (overwrite=always does), and one that was killed goes on
from its last checkpoint.  `preset=NAME` stands for method.preset=NAME and the supervision that the preset declares.
`from=FILE` stands for the options in a file that `harness tune` wrote.
`harness describe method NAME` lists a method's options; `--dry-run` shows all others."""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=OVERRIDES_HELP)
    result.add_argument("--dry-run", action="store_true", help="print the resolved configs and stop")
    result.add_argument("--report", metavar="DIR", type=Path, help="write a report of these runs to DIR")
    result.add_argument("--no-table", action="store_true", help="do not print the comparison table")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Runs the cells and prints their comparison table."""
    from harness.compose import compose, to_dict
    from harness.progress import say

    configs = compose(arguments.overrides)
    if arguments.dry_run:
        from omegaconf import OmegaConf

        from harness.mlflow_store import redact

        if arguments.json:
            print(redact(json_text([to_dict(config) for config in configs])))
        else:
            shown = "---\n".join(OmegaConf.to_yaml(OmegaConf.create(to_dict(config))) for config in configs)
            print(redact(shown), end="")
        say(f"{len(configs)} run{'s' if len(configs) != 1 else ''}; nothing was started.")
        return EXIT_OK

    from harness.runner import run_cells

    # stdout is for the table: what a method prints goes the way of progress.
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = run_cells(configs)
    records = [outcome.record for outcome in outcomes]
    board = None
    if arguments.report is not None:
        from harness.reports.build import build_report

        board, files = build_report(outcomes, arguments.report)
        for file in files:
            say(f"wrote {file}")
    print_board(board, outcomes, json=arguments.json, table=not arguments.no_table)
    return EXIT_OK if all(record.status == "finished" for record in records) else EXIT_CELL_FAILED
