"""What a sweep costs beside its cells: seconds per cell, seconds to find that 1,000 cells are finished, speed-up.

    python -P benchmarks/sweep_overhead.py [--parts overhead,finished,parallel] [--cells 1000] [--few 4] [--many 16]

Wall time, and with it the speed-up, depends on what else the machine does; CPU time hardly does.  Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.files import Folders
from harness.progress import say
from harness.sweep import SweepConfig, make_plan, run_plan
from harness.tracking import Tracker, experiment_name, tracking_uri

#: A method without training: what remains is loading, audits, scores with their intervals, and records.
GRID = ["method=majority", "dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu"]


def cpu_seconds() -> float:
    """CPU time of this process and its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


#: A method that trains for seconds on one core.
TRAINED = ["method=zero_fill", "dataset=synthetic", "dataset.samples=600", "protocol=any_0.5", "device=cpu"]
TRAINED += ["trainer.epochs=30", "trainer.patience=30"]


def timed_sweep(grid: list[str], workers: int = 1) -> tuple[float, float, float]:
    """Wall and CPU seconds of a sweep of new cells, and what the cells themselves took."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    outcomes = run_plan(make_plan(grid), SweepConfig(workers=workers))
    assert all(outcome.record.status == "finished" and not outcome.skipped for outcome in outcomes)
    inside = sum(outcome.record.cost.total_seconds for outcome in outcomes)
    return time.perf_counter() - wall, cpu_seconds() - cpu, inside


def per_cell(home: str, few: int, many: int) -> dict[str, float]:
    """Slope over the number of cells, so that starting a worker does not count."""
    grid = [*GRID, f"paths.home={home}"]
    timed_sweep([*grid, "train_seed=100000"])  # makes the database
    a = timed_sweep([*grid, f"train_seed=range(200000,{200000 + few})"])
    b = timed_sweep([*grid, f"train_seed=range(300000,{300000 + many})"])
    wall, cpu, inside = ((late - early) / (many - few) for early, late in zip(a, b, strict=True))
    return {
        "wall_seconds_per_cell": wall,
        "cpu_seconds_per_cell": cpu,
        "wall_seconds_inside_cells": inside,
        "wall_seconds_beside_cells": wall - inside,
    }


def parallel(home: str, few: int, many: int) -> dict[str, float]:
    """How much faster two workers are than one with cells of one thread; slopes, so starting them does not count."""
    grid = [*TRAINED, f"paths.home={home}"]
    timed_sweep([*grid, "train_seed=100000"])  # makes the database
    slopes = []
    for workers in (1, 2):
        start = 1000 * workers
        early, *_ = timed_sweep([*grid, f"train_seed=range({start},{start + few})"], workers)
        start += few
        late, *_ = timed_sweep([*grid, f"train_seed=range({start},{start + many})"], workers)
        slopes.append((late - early) / (many - few))
    return {
        "wall_seconds_per_cell_1_worker": slopes[0],
        "wall_seconds_per_cell_2_workers": slopes[1],
        "speed_up": slopes[0] / slopes[1],
    }


def nothing_to_do(home: str, cells: int) -> dict[str, float]:
    """Stores a finished record for every cell of a grid, then lets the command find that nothing is left."""
    grid = [*GRID, f"paths.home={home}"]
    (first,) = run_plan(make_plan([*grid, "train_seed=0"]), SweepConfig())
    grid = [*grid, f"train_seed=range(0,{cells})"]
    plan = make_plan(grid)
    folders = Folders.resolve(plan.cells[0].config.paths)
    tracker = Tracker(
        tracking_uri(plan.cells[0].config.tracking, folders),
        experiment_name(plan.cells[0].config.tracking, "synthetic"),
        folders,
    )
    predictions = folders.runs / first.record.run_id / "predictions.parquet"
    for number, cell in enumerate(plan.todo, start=1):
        record = dataclasses.replace(
            first.record, run_id=cell.run_id, seeds=first.record.seeds | {"train_seed": cell.config.train_seed}
        )
        tracker.log(record, {"predictions.parquet": predictions})
        if number % 100 == 0:
            say(f"{number} records stored")
    wall, cpu = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-P", "-m", "harness", "sweep", "--no-table", *grid]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"{cells} cells, {cells} finished, 0 to run" in done.stderr, done.stderr
    return {"cells": cells, "wall_seconds": time.perf_counter() - wall, "cpu_seconds": cpu_seconds() - cpu}


def main() -> None:
    """Runs the parts in a temporary home folder."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="overhead,finished,parallel")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--many", type=int, default=16)
    options = parser.parse_args()
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts.split(","):
            home = str(Path(folder) / part)
            if part == "finished":
                result[part] = nothing_to_do(home, options.cells)
            else:
                result[part] = {"overhead": per_cell, "parallel": parallel}[part](home, options.few, options.many)
            say(f"{part}: {result[part]}")
    print(json.dumps(result | {"load": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":  # workers import this module again
    main()
