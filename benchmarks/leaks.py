"""What the known bugs of released code do to a score: each switched on, alone, against the same method without it.

    python benchmarks/leaks.py --commands                  # the same runs as lines for a shell
    python benchmarks/leaks.py [OPTION=VALUE …]            # runs what is missing, prints the table of docs/leaks.md

Defaults: `dataset=openmoji protocol=both_0.7 train_seed=0,1,2`; every option can be given again (`paths.home=DIR`).
Runs are recorded like all others, so finished ones are not run again and a killed table goes on where it was.
Differences are paired: same masks, same seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.compose import compose
from harness.record import RunRecord
from harness.runner import run_cells

DEFAULTS = ("dataset=openmoji", "protocol=both_0.7", "train_seed=0,1,2")


@dataclass(frozen=True)
class Bug:
    """A bug of released code as options of this harness.

    Attributes:
        name: As docs/leaks.md calls it.
        without: The method without it.
        switch: Options that switch it on.
    """

    name: str
    without: tuple[str, ...]
    switch: tuple[str, ...]


REDEEM, COMPLETE = ("method=redeem",), ("method=redeem", "supervision=complete")
RAGPT, REDCORE, RAMER = ("method=ragpt",), ("method=redcore",), ("method=ramer",)
BUGS = (
    Bug("validation samples in the bank", REDEEM, ("method.bank_splits=train_valid",)),
    Bug(
        "validation samples retrieve themselves",
        REDEEM,
        ("method.bank_splits=train_valid", "method.exclude_self=row_number"),
    ),
    Bug(
        "... and their own labels are a prompt",
        (*REDEEM, "method.label_prompt=true", "method.head=label_table"),
        ("method.bank_splits=train_valid", "method.exclude_self=row_number"),
    ),
    Bug("hidden training values in the bank", COMPLETE, ("method.bank_missing=full",)),
    Bug("epoch chosen on test", ("method=zero_fill",), ("trainer.select_split=test",)),
    Bug("attention mask without effect", REDEEM, ("method.attention_mask=none",)),
    Bug("padding of retrieved texts is read", REDEEM, ("method.retrieved_padding=included",)),
    Bug("reconstruction loss is exactly zero", REDEEM, ("method.rec_loss=degenerate",)),
    Bug("recovered values with the wrong sign", RAGPT, ("method.recovered_sign=bitwise",)),
    Bug(
        "masks bound to positions",
        (*REDCORE, "supervision=complete"),
        ("method.mask_binding=position",),
    ),
    Bug("codes sampled at test", REDCORE, ("method.eval_sample=true",)),
    Bug("best neighbour dropped at test", RAMER, ("method.exclude=first_hit",)),
    Bug(
        "start token not in the optimiser",
        (*RAMER, "method.encoder=transformer"),
        ("method.start_token=zero",),
    ),
    Bug("all of REDEEM's release", COMPLETE, ("method.preset=official",)),
    Bug("all of RAGPT's release", (*RAGPT, "supervision=complete"), ("method.preset=official",)),
)


def records(overrides: Sequence[str]) -> dict[int, RunRecord]:
    """Finished records by train seed."""
    outcomes = run_cells(compose(_last(overrides)))
    failed = [outcome.record.error for outcome in outcomes if outcome.record.status != "finished"]
    if failed:
        raise SystemExit(f"{' '.join(overrides)}: {failed[0]}")
    return {outcome.record.seeds["train_seed"]: outcome.record for outcome in outcomes}


def row(bug: Bug, common: Sequence[str]) -> str:
    """One line of the table; scores are means over seeds, differences are paired, with their standard deviation."""
    clean, buggy = records([*common, *bug.without]), records([*common, *bug.without, *bug.switch])
    seeds = sorted(clean.keys() & buggy.keys())
    metric = clean[seeds[0]].primary_metric

    def change(of: dict[str, dict[int, float]]) -> str:
        before, after = (np.array([of[which][seed] for seed in seeds]) for which in ("clean", "buggy"))
        gap = after - before
        spread = f" ± {gap.std(ddof=1):.3f}" if len(seeds) > 1 else ""
        return f"{before.mean():.3f} → {after.mean():.3f} ({gap.mean():+.3f}{spread})"

    runs = {"clean": clean, "buggy": buggy}
    valid = {which: {seed: found[seed].valid.get(metric, np.nan) for seed in seeds} for which, found in runs.items()}
    test = {which: {seed: found[seed].results[0].metrics[metric] for seed in seeds} for which, found in runs.items()}
    quiet = {check.name for check in clean[seeds[0]].audits if not check.passed}
    caught = [check for check in buggy[seeds[0]].audits if not check.passed and check.name not in quiet]
    names = ", ".join(f"`{check.name}` ({check.severity})" for check in caught) or "none"
    masks = {record.protocol["mask_fingerprint"][:8] for found in runs.values() for record in found.values()}
    switch = " ".join(option for option in bug.switch)
    return (
        f"| {bug.name} | {clean[seeds[0]].method} | `{switch}` | {change(valid)} | {change(test)} | {names} | "
        f"{', '.join(sorted(masks))} |"
    )


def main(arguments: Sequence[str]) -> None:
    """Prints the commands, or the table."""
    given = [text for text in arguments if not text.startswith("-")]
    common = _last([*DEFAULTS, *given])
    if "--commands" in arguments:
        lines = [part for bug in BUGS for part in ([*common, *bug.without], [*common, *bug.without, *bug.switch])]
        print("\n".join(dict.fromkeys(f"harness sweep {' '.join(line)}" for line in map(_last, lines))))
        return
    print("| bug, switched on | method | option | valid | test | failed audits | masks |")
    print("|---|---|---|---|---|---|---|")
    for bug in BUGS:
        print(row(bug, common), flush=True)


def _last(overrides: Sequence[str]) -> list[str]:
    """The last value of every option."""
    return list({text.partition("=")[0]: text for text in overrides}.values())


if __name__ == "__main__":
    main(sys.argv[1:])
