"""A sweep whose workers and driver are killed again and again, beside the same sweep left alone.

    python -P benchmarks/kill_sweep.py [--cells 300] [--workers 2] [--every 20] [--seed 0] [--home DIR]

Every few seconds of CPU time (so that a busy machine does not kill it before it has begun) `kill -9` hits a worker, or
one time in four the driver, which is then started again with the same command.  Starting the workers anew takes a
dozen of these seconds, which must be less than `--every`.  In the end there must be exactly one finished record a cell,
equal to that of the sweep left alone in its scores, losses and predictions.  Prints JSON; exits with 1 if a record is
lost, doubled or different.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.mlflow_store import RUN_ID, listed
from harness.progress import say
from harness.tracking import StoredRun, load_runs

GRID = ["method=zero_fill", "dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "device=cpu"]
GRID += ["trainer.epochs=3", "trainer.batch_size=16", "--no-table"]


class Sweep:
    """The command, running; notes when its cells end.

    Args:
        home: Its home folder.
        arguments: Further arguments.
    """

    def __init__(self, home: Path, arguments: list[str]) -> None:
        command = [sys.executable, "-P", "-m", "harness", "sweep", *GRID, f"paths.home={home}", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.ended: list[float] = []
        self.lines: list[str] = []
        self._ticks: dict[int, int] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("["):
                self.ended.append(time.monotonic())

    def workers(self) -> list[int]:
        """Its worker processes."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == self.process.pid and b"spawn_main" in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def seconds(self) -> float:
        """CPU time that it and its workers have taken so far, those that are gone included."""
        for process in (self.process.pid, *self.workers()):
            with contextlib.suppress(OSError):
                fields = (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()
                self._ticks[process] = int(fields[11]) + int(fields[12])
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def wait(self) -> int:
        """Waits for its end; returns the exit code."""
        code = self.process.wait()
        self._reader.join()
        return code


def disturbed(home: Path, arguments: list[str], every: float, seed: int) -> dict[str, Any]:
    """Runs the sweep to its end under kills; returns what was done to it and how long it needed to get over it."""
    draw = random.Random(seed)
    kills: Counter[str] = Counter()
    hit: list[float] = []
    ended: list[float] = []
    starts = 1
    sweep = Sweep(home, arguments)
    began = time.monotonic()
    while True:
        until = sweep.seconds() + draw.uniform(0.25, 1.75) * every
        while sweep.process.poll() is None and sweep.seconds() < until:
            time.sleep(0.2)
        workers = sweep.workers()
        if sweep.process.poll() is not None:
            code = sweep.wait()
            ended += sweep.ended
            if code == 0:
                break
            # Killed, or some cells died twice and are recorded as failed: the same command goes on.
            starts += 1
            sweep = Sweep(home, arguments)
            continue
        if draw.random() < 0.25:
            sweep.process.kill()
            kills["driver"] += 1
        elif workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
            kills["worker"] += 1
        hit.append(time.monotonic())
        say(f"{dict(kills)}, {len(ended) + len(sweep.ended)} cells ended")
    # From a kill to the next cell that ends, unless another kill came in between.
    recoveries = [
        min(end for end in ended if end > kill) - kill
        for kill, following in zip(hit, [*hit[1:], float("inf")], strict=True)
        if any(kill < end < following for end in ended)
    ]
    return {
        "seconds": time.monotonic() - began,
        "starts": starts,
        **kills,
        "recovery_seconds_worst": max(recoveries, default=0.0),
    }


def content(run: StoredRun) -> dict[str, Any]:
    """What two runs of one cell must agree in."""
    record = run.record
    return {
        "status": record.status,
        "results": [asdict(result) for result in record.results],
        "valid": record.valid,
        "history": record.history,
        "predictions": run.predictions().logits.tolist(),
    }


def main() -> int:
    """Runs both sweeps in temporary home folders and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=20.0, help="mean CPU seconds between kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="keep both home folders here, and go on with what is there")
    options = parser.parse_args()
    arguments = [f"train_seed=range(0,{options.cells})", f"workers={options.workers}"]
    with tempfile.TemporaryDirectory() as folder:
        left_alone, killed = (Path(options.home or folder).absolute() / name for name in ("alone", "killed"))
        began = time.monotonic()
        alone = Sweep(left_alone, arguments)
        assert alone.wait() == 0, alone.lines
        seconds = time.monotonic() - began
        say(f"left alone: {seconds:.0f} s")
        faults = disturbed(killed, arguments, options.every, options.seed)
        uris = [f"sqlite:///{home / 'mlflow.db'}" for home in (left_alone, killed)]
        first, second = ({run.record.run_id: content(run) for run in load_runs(uri)} for uri in uris)
        stored = Counter(run.tags[RUN_ID] for run in listed(uris[1]))
    result = {
        "cells": options.cells,
        "seconds_left_alone": seconds,
        "faults": faults,
        "records_lost": len(first.keys() - second.keys()),
        "records_doubled": sum(count > 1 for count in stored.values()),
        "records_different": sum(second[key] != first[key] for key in first.keys() & second.keys()),
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))
    whole = len(first) == len(second) == options.cells
    return int(not whole or any(result[key] for key in ("records_lost", "records_doubled", "records_different")))


if __name__ == "__main__":
    sys.exit(main())
