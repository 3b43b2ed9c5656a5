"""`harness reproduce`: the cells of published tables, ours beside the printed numbers."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.commands.sweep import split_options
from harness.cli.output import print_json, print_table
from harness.cli.parents import conclude, parent_run
from harness.cli.parsing import Parser, add_json_option
from harness.config import NOT_IDENTITY
from harness.errors import EXIT_CELL_FAILED, EXIT_DATA, EXIT_OK, UsageError
from harness.run_files import override_key

if TYPE_CHECKING:
    from harness.record import RunRecord
    from harness.reports.presets import Preset
    from harness.reports.reproduction import Line
    from harness.reproduce import Reproduction

_EPILOG = """\
examples:
  harness reproduce redeem/table1 --dry-run
  harness reproduce redeem/table1 workers=2 paths.data=/data
  harness reproduce redeem/table1/hateful_memes_both_0.7 backbone.weights=models/vilt
  harness reproduce 'redeem/table1/*_0.7' ragpt/table1 train_seed=0,1,2

`harness list presets` shows the cells.  A folder stands for all cells below it, `*` for one part of a name.  Options
are those of `harness run` and replace the preset's; method and dataset are the cell's.  The plan is shown before
anything starts, runs are recorded as by `harness sweep` and finished ones are not run again, so the same command goes
on where it stopped.  A cell whose data or weights are not here is named with what to do, and the others run.

The table says whether each printed number lies where the mean of as many runs of ours would fall (95 %).  A number is
not compared where data set, protocol, supervision, backbone or metric are others.  It is printed and written to --out
as md, csv and json.

exit code: 0 all cells ran, 1 a run failed, 3 data or weights of a cell are missing."""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument(
        "arguments", nargs="+", metavar="PRESET | OPTION=VALUE", help="cells, and options for all of them"
    )
    result.add_argument("--dry-run", action="store_true", help="print the plan, start nothing")
    result.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path("reproduction"),
        help="where to write the table (./reproduction)",
    )
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Plans the cells, runs what is left and compares."""
    from harness.reports.presets import select

    names = [text for text in arguments.arguments if "=" not in text]
    if not names:
        raise UsageError("name what to reproduce, e.g. redeem/table1; `harness list presets` shows the cells.")
    chosen = select(names)
    sweep, own = split_options([text for text in arguments.arguments if "=" in text])

    from harness.reproduce import plan_grids

    grids = {preset.name: merge(preset, own) for preset in chosen}
    found = plan_grids(grids)
    if arguments.dry_run and arguments.json:
        print_json({"presets": _rows(chosen, found), "problems": _problems(found)})
        return EXIT_OK
    with contextlib.redirect_stdout(sys.stdout if arguments.dry_run else sys.stderr):
        _print_plan(chosen, found)
    if arguments.dry_run:
        if len(grids) == 1:
            print(f"\nthe same runs: harness sweep {shlex.join(*grids.values())}")
        return EXIT_OK

    from harness.files import atomic_write
    from harness.progress import say
    from harness.reports.reproduction import HEADERS, RENDERERS, cells, compare, summary
    from harness.sweep import run_plan

    plan = found.check_features()
    with parent_run(plan, ["reproduce", *arguments.arguments]) as parent:
        outcomes = run_plan(plan, sweep, found.workspace, plugins=arguments.plugin or ()) if plan.cells else []
        if parent is not None:
            conclude(parent, outcomes)
    records = {outcome.record.run_id: outcome.record for outcome in outcomes}
    lines: list[Line] = []
    for preset, part in zip(chosen, found.parts, strict=True):
        ours = [records[cell.run_id] for cell in part.cells if cell.run_id in records]
        lines += compare(preset, ours, len(part.configs), part.problem)

    notes = _notes(chosen, own, records.values())
    if arguments.json:
        print(RENDERERS["json"](" ".join(names), lines, notes), end="")
    else:
        print_table(HEADERS, [cells(line) for line in lines])
        print(f"\n{summary(lines)}")
        for note in notes:
            print(f"note: {note}")
    stem = re.sub(r"[^\w.+-]+", "-", "+".join(names)).strip("-")[:100]
    for form, render in RENDERERS.items():
        path = arguments.out / f"{stem}.{form}"
        with atomic_write(path) as temporary:
            temporary.write_text(render(" ".join(names), lines, notes), encoding="utf-8")
        say(f"wrote {path}")
    if any(line.verdict == "failed" for line in lines):
        return EXIT_CELL_FAILED
    return EXIT_DATA if any(part.problem for part in found.parts) else EXIT_OK


def merge(preset: Preset, own: Sequence[str]) -> list[str]:
    """Overrides of a cell with a user's in place of those that set the same key.

    Raises:
        UsageError: If the user's would make another cell of it.
    """
    merged = {key: f"{key}={value}" for key, value in preset.run.items()}
    for text in own:
        key = override_key(text)
        if key in ("method", "dataset"):
            raise UsageError(f"{text}: the {key} is the preset's; choose cells by name (`harness list presets`).")
        if key == "preset":
            del merged["method.preset"]
        merged[key] = text
    return list(merged.values())


def _print_plan(chosen: Sequence[Preset], found: Reproduction) -> None:
    rows, finished = _rows(chosen, found), found.plan.finished
    missing = sum(bool(part.problem) for part in found.parts)
    without = f"; {_count(missing)} cannot run here" if missing else ""
    print(f"{_count(len(rows))}, {len(finished)} runs finished, {len(found.plan.todo)} to run{without}")
    print_table(
        ["preset", "method", "published", "runs", "finished", "state"],
        [
            [
                row["preset"],
                row["method"],
                ", ".join(f"{number['metric']} {number['value']:.4f}" for number in row["published"]),
                *(row[key] for key in ("runs", "finished", "state")),
            ]
            for row in rows
        ],
    )
    for problem, names in _problems(found).items():
        print(f"\n{_count(len(names))} cannot run, e.g. {names[0]}: {problem}")


def _rows(chosen: Sequence[Preset], found: Reproduction) -> list[dict[str, Any]]:
    """What is planned of each preset."""
    return [
        {
            "preset": preset.name,
            "method": preset.run["method"],
            "published": [{"metric": number.metric, "value": number.value} for number in preset.numbers],
            "runs": len(part.configs),
            "finished": sum(cell.run_id in found.plan.finished for cell in part.cells),
            "state": _state(part.problem),
        }
        for preset, part in zip(chosen, found.parts, strict=True)
    ]


def _count(number: int) -> str:
    return f"{number} preset{'s' * (number != 1)}"


def _state(problem: str) -> str:
    return "data missing" if problem else "ready"


def _problems(found: Reproduction) -> dict[str, list[str]]:
    problems: dict[str, list[str]] = {}
    for part in found.parts:
        if part.problem:
            problems.setdefault(part.problem, []).append(part.name)
    return problems


def _notes(chosen: Sequence[Preset], own: Sequence[str], records: Any) -> list[str]:
    """What a reader of the table must know: changed options, the presets' own notes, failed leak checks."""
    notes = []
    changed = [text for text in own if override_key(text).partition(".")[0] not in NOT_IDENTITY]
    if changed:
        notes.append(f"run with {' '.join(changed)}, which is not the preset's own setting")
    notes += dict.fromkeys(preset.note for preset in chosen if preset.note)
    audits: dict[str, int] = {}
    runs: list[RunRecord] = list(records)
    for record in runs:
        for audit in record.audits:
            if not audit.passed:
                text = f"{audit.severity}: {audit.name} ({audit.detail})"
                audits[text] = audits.get(text, 0) + 1
    notes += [f"{count} of {len(runs)} runs have an audit that says {text}" for text, count in audits.items()]
    return notes
