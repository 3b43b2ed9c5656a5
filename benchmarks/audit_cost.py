"""What the audits cost: their share of a run's time, from the records of runs on this machine.

    python benchmarks/audit_cost.py [OPTION=VALUE …]

Defaults: `dataset=openmoji protocol=both_0.7 method=redeem,mmin,ramer,zero_fill overwrite=always`.  Seconds and total
are of one and the same run, so a busy machine slows both.  The first run on a data set also looks for near-copies; the
table shows that run too, and then the rest, for which it is remembered.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from harness.compose import compose
from harness.runner import run_cells

DEFAULTS = ("dataset=openmoji", "protocol=both_0.7", "method=redeem,mmin,ramer,zero_fill", "overwrite=always")


def main(arguments: Sequence[str]) -> None:
    """Runs and prints the table."""
    overrides = list({text.partition("=")[0]: text for text in [*DEFAULTS, *arguments]}.values())
    print("| method | epochs | audits, s | whole run, s | share |")
    print("|---|---|---|---|---|")
    for config in compose(overrides):
        (outcome,) = run_cells([config])
        record, cost = outcome.record, outcome.record.cost
        if record.status != "finished":
            raise SystemExit(record.error)
        audits, whole = cost.audit_seconds, cost.total_seconds
        print(
            f"| {record.display_name} | {cost.epochs} | {audits:.2f} | {whole:.1f} | {audits / whole:.1%} |", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
