"""`harness tune`: search the options of methods on validation, with one budget for all of them."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_json, print_table
from harness.cli.parsing import OVERRIDES_HELP, Parser, add_json_option
from harness.errors import EXIT_CELL_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from harness.tuning import Study, TuneConfig

_EPILOG = """\
examples:
  harness tune method=redeem,ramer protocol=both_0.7 trials=20
  harness tune method=redcore dataset=cdda train_seed=0,1,2 trials=40 tune_seed=1 --out tuned
  harness tune method=mmin trainer.lr=1e-3 --dry-run
  harness run from=tuned/redeem_openmoji_both_0.7.yaml train_seed=0,1,2,3,4

Every method gets the same number of trials.  The first has its defaults, the others are suggested by Optuna's TPE.
A trial trains as `harness run` does and is scored on the validation split; the test split is never opened.  A grid of
train seeds is one study, whose trials are scored by the mean.  What is given as OPTION=VALUE is not searched.

What is concluded is kept below the home folder: the same command goes on where it was stopped, and more trials=
continue the same search.  The best options of each method are written to --out as a file for `from=FILE` of
`harness run` and `harness sweep`; runs with it are marked as tuned in every report.

exit code: 0 every study has a best trial, 1 all trials of a study failed."""

_OWN_HELP = "trials, tune_seed"


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=f"{OVERRIDES_HELP}; {_OWN_HELP}")
    result.add_argument("--dry-run", action="store_true", help="print what would be searched, start nothing")
    result.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("tuned"), help="where to write the best options (./tuned)"
    )
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Runs the studies and writes, per study, the best options and a table of what was tried."""
    from harness.tuning import describe, make_studies, run_study

    tune, overrides = split_options(arguments.overrides)
    studies, workspace = make_studies(overrides, tune)
    if arguments.dry_run:
        _print_plan(studies, arguments.json)
        return EXIT_OK
    found: list[dict[str, Any]] = []
    for study, stem in zip(studies, _stems(studies), strict=True):
        # stdout is for the tables: what a method prints goes the way of progress.
        with contextlib.redirect_stdout(sys.stderr):
            run_study(study, workspace)
        file = arguments.out / f"{stem}.yaml" if study.best is not None else None
        if file is not None:
            study.run_file(file).save()
        _write_csv(study, arguments.out / f"{stem}.csv")
        found.append(describe(study, file))
        if not arguments.json:
            _print_study(study, file)
    if arguments.json:
        print_json({"studies": found})
    return EXIT_OK if all(study.best is not None for study in studies) else EXIT_CELL_FAILED


def split_options(texts: Sequence[str]) -> tuple[TuneConfig, list[str]]:
    """The budget, and the overrides that say what is tuned.

    Raises:
        UsageError: If an option of the search is unknown, or a grid.
    """
    from harness.compose import compose_as
    from harness.tuning import TuneConfig

    own = [text for text in texts if re.match(r"(trials|tune_seed)\s*=", text)]
    configs = compose_as(TuneConfig, own)
    if len(configs) != 1:
        raise UsageError("all methods of a search have one number of trials and one tune_seed.")
    return configs[0], [text for text in texts if text not in own]


def _stems(studies: Sequence[Study]) -> list[str]:
    """A file name per study, with a piece of its id where several would have the same."""
    names = [re.sub(r"[^\w.+-]+", "-", study.title.replace(" · ", "_")).strip("-")[:100] for study in studies]
    return [
        f"{name}_{study.id[:8]}" if names.count(name) > 1 else name for name, study in zip(names, studies, strict=True)
    ]


def _print_plan(studies: Sequence[Study], as_json: bool) -> None:
    from harness.tuning import describe

    if as_json:
        print_json({"studies": [describe(study, None) for study in studies]})
        return
    print_table(
        ["study", "method", "dataset", "protocol", "trials", "train seeds", "option", "start", "searched"],
        [[*_head(study), option, value, span] for study in studies for option, value, span in study.start()],
    )


def _head(study: Study) -> list[object]:
    cell = study.cells[0]
    seeds = ",".join(str(cell.config.train_seed) for cell in study.cells)
    return [study.id[:8], study.method, cell.table.spec.name, cell.protocol.name, study.tune.trials, seeds]


def _rows(study: Study) -> list[list[object]]:
    return [
        [
            trial.number,
            *(trial.values[option] for option in study.space),
            "" if trial.score is None else trial.score,
            trial.epochs,
            round(trial.seconds, 1),
            trial.error or ("best" if trial is study.best else ""),
        ]
        for trial in study.trials
    ]


def _headers(study: Study) -> list[str]:
    return ["trial", *study.space, f"valid {study.metric}", "epochs", "seconds", "remark"]


def _print_study(study: Study, file: Path | None) -> None:
    print(f"\n{study.title} · {len(study.trials)} trials · study {study.id[:16]}")
    shown = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in _rows(study)]
    print_table(_headers(study), shown)
    best, first = study.best, study.trials[0]
    if best is None or best.score is None:
        print(f"every trial failed, the first with: {first.error}")
        return
    start = "failed" if first.score is None else f"{first.score:.4f}"
    print(f"best: trial {best.number}, {study.metric} {best.score:.4f} on valid; with the defaults: {start}")
    print(f"its options are in {file}; run them: harness run from={file} train_seed=0,1,2,3,4")


def _write_csv(study: Study, path: Path) -> None:
    from harness.files import atomic_write

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_headers(study))
    writer.writerows(_rows(study))
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
