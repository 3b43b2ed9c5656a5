"""`harness compare`: two methods or runs against each other, on identical masks."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.cli.commands.report import FILTERS, read_filters
from harness.cli.output import print_facts, print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.cli.store import read_store
from harness.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from harness.reports.comparison import PairedCell
    from harness.reports.statistics import Difference

_EPILOG = """\
A and B are methods, with options that tell variants apart, or beginnings of run ids (8 digits at least, a comma list is
a set of seeds).  They are compared in every cell that both have: the same data version, masks, supervision rule, metric
version and train seeds.  Difference of the score with a 95 % interval and p-value (paired bootstrap over test samples
and seeds, 10,000 draws; never surer than Student's t for so few seeds), p-values adjusted by Holm over cells, and over
patterns within a cell.

examples:
  harness compare redeem zero_fill
  harness compare redeem redeem:generator=padding dataset=openmoji protocol=both_0.7
  harness compare 3f2a9c1e 77b0d4aa --json

Filters: {filters}."""

#: A and B choose method, variant and runs.
_FILTERS = tuple(name for name in FILTERS if name not in ("method", "label", "preset", "status", "run_id"))


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG.format(filters=", ".join(_FILTERS)), **options)
    result.add_argument("a", metavar="A", help="a method, METHOD:option=value, or a run id")
    result.add_argument("b", metavar="B", help="the other one")
    result.add_argument("filters", nargs="*", metavar="FILTER=VALUE", help="which runs; also paths.home, tracking.uri")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints one comparison per cell."""
    overrides = [text for text in arguments.filters if text.startswith(("paths.", "tracking."))]
    filters = read_filters([text for text in arguments.filters if text not in overrides], _FILTERS)
    store = read_store(overrides)

    from harness.reports.comparison import pair, select
    from harness.tracking import load_runs

    runs = load_runs(store.uri, filters=filters) if store.exists() else []
    if not runs:
        raise UsageError(f"no such runs are recorded in {store.shown}.")
    cells = pair(select(runs, arguments.a), select(runs, arguments.b))
    if arguments.json:
        print_json({"cells": [asdict(cell) for cell in cells]})
        return EXIT_OK
    for number, cell in enumerate(cells):
        if number:
            print()
        _show(cell, len(cells))
    return EXIT_OK


def _show(cell: PairedCell, cells: int) -> None:
    better, equal, worse = cell.wins
    masks = f"masks {cell.key.mask_fingerprint[:8]}"
    print_facts(
        [
            ("A", cell.name_a),
            ("B", cell.name_b),
            ("cell", f"{cell.key.dataset} · {cell.key.protocol} · {cell.key.supervision} supervision · {masks}"),
            ("score", f"{cell.key.metric}, {'higher' if cell.higher_is_better else 'lower'} is better"),
            ("samples", f"{cell.samples}, train seeds {', '.join(map(str, cell.seeds))}"),
            ("A over seeds", f"{better} better, {equal} equal, {worse} worse"),
            ("McNemar", "" if cell.mcnemar is None else f"p = {cell.mcnemar:.4f} (exact)"),
            ("detectable", f"a true difference of {cell.detectable:.4f} would be found 4 times out of 5"),
            *(("note", note) for note in cell.notes),
        ]
    )
    print()
    head = ("over all", cell.samples, cell.score_a, cell.score_b, cell.difference, cell.p_holm if cells > 1 else None)
    parts = [(part.name, part.count, part.score_a, part.score_b, part.difference, part.p_holm) for part in cell.parts]
    print_table(
        ("part", "n", "A", "B", "A - B", "95 % interval", "p", "p (Holm)"), [_row(*row) for row in (head, *parts)]
    )


def _row(name: str, count: int, a: float, b: float, difference: Difference, adjusted: float | None) -> list[str]:
    span = f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    last = "" if adjusted is None else f"{adjusted:.4f}"
    return [name, str(count), f"{a:.4f}", f"{b:.4f}", f"{difference.value:+.4f}", span, f"{difference.p:.4f}", last]
