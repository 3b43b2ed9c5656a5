"""`harness report`: tables, statistics and pages out of MLflow's records."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.cli.parsing import Parser, add_json_option
from harness.cli.store import StoreConfig, read_store
from harness.errors import EXIT_OK, UnknownNameError, UsageError

#: What runs can be filtered by.
FILTERS = (
    "method",
    "label",
    "preset",
    "backbone",
    "dataset",
    "protocol",
    "supervision",
    "mask_seed",
    "train_seed",
    "eval_seed",
    "status",
    "experiment",
    "sweep",
    "run_id",
)

_EPILOG = """\
examples:
  harness report
  harness report dataset=openmoji protocol=both_0.7 method=redeem,zero_fill
  harness report --out report --format html,md,csv
  harness report --out report --samples dataset=openmoji
  harness report tracking.uri=https://mlflow.example.org --json

Filters, each with one value or a comma list: {filters}; of a run id its beginning is enough.
Of a run that was made again only the newest counts."""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG.format(filters=", ".join(FILTERS)), **options)
    result.add_argument("filters", nargs="*", metavar="FILTER=VALUE", help="which runs; also paths.home, tracking.uri")
    result.add_argument("--out", metavar="DIR", type=Path, help="write report files to DIR")
    result.add_argument(
        "--format", metavar="LIST", default="", help="files, e.g. html,md,csv,parquet,json,tex,svg,pdf,png"
    )
    samples = "show texts and pictures of the worst test samples on the page; loads the data sets, mind their licences"
    result.add_argument("--samples", action="store_true", help=samples)
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints the comparison table, and writes files with `--out`."""
    if arguments.format and arguments.out is None:
        raise UsageError("--format says which files to write; add --out DIR.")
    if arguments.samples and arguments.out is None:
        raise UsageError("--samples is for the HTML page; add --out DIR.")
    overrides = [text for text in arguments.filters if text.startswith(("paths.", "tracking."))]
    filters = read_filters([text for text in arguments.filters if text not in overrides])
    store = read_store(overrides)

    from harness.progress import say
    from harness.reports.build import build_report, formats
    from harness.reports.leaderboard import Leaderboard
    from harness.reports.render import to_json, to_terminal
    from harness.tracking import load_runs

    names = formats([name.strip() for name in arguments.format.split(",") if name.strip()])
    runs = load_runs(store.uri, filters=filters) if store.exists() else []
    if arguments.out is not None:
        show = None
        if arguments.samples:
            from harness.cli.samples import sample_finder

            show = sample_finder([run.record for run in runs], store.folders)
        board, files = build_report(runs, arguments.out, names, show)
        for file in files:
            say(f"wrote {file}")
    else:
        board = Leaderboard.build(runs)
    if arguments.json:
        print(to_json(board), end="")
    elif runs:
        print(to_terminal(board))
    else:
        wanted = " ".join(f"{name}={value}" for name, value in filters.items())
        say(f"no runs {'with ' + wanted + ' ' if wanted else ''}are recorded in {store.shown}.")
    return EXIT_OK


def read_filters(texts: list[str], allowed: Sequence[str] = FILTERS) -> dict[str, str]:
    """Reads `FILTER=VALUE` texts.

    Raises:
        UsageError: For an unknown filter, one that is given twice, or bad grammar.
    """
    filters: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not value:
            raise UsageError(f"cannot read {text!r}: write FILTER=VALUE, e.g. method=redeem.")
        if name not in allowed:
            raise UnknownNameError("filter", name, [*allowed, *StoreConfig.keys()])
        if name in filters:
            raise UsageError(f"{name} is given twice; a comma list means any of them, e.g. {name}=A,B.")
        filters[name] = value
    return filters
