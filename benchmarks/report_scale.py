"""What `harness report` costs over thousands of runs in an MLflow store: seconds, memory, and size of the page.

    python -P benchmarks/report_scale.py [--runs 5000] [--samples 200] [--folder DIR]

The records are generated: 20 methods under up to 50 pairs of data set and protocol with 5 train seeds, each with the
predictions of its test samples.  With `--folder` the store is kept, and a second call only reads it.  Wall time
depends on what else the machine does; CPU time hardly does.  Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness.config import PathsConfig, TrackingConfig
from harness.files import Folders, ensure_folder
from harness.predictions import save_predictions
from harness.progress import say
from harness.testing.records import make_predictions, make_record
from harness.tracking import PREDICTIONS_FILE, Tracker, experiment_name

METHODS = tuple(f"method_{number:02d}" for number in range(20))
DATASETS = ("openmoji", "cdda", "mmimdb", "food101", "hateful_memes")
PROTOCOLS = tuple(f"{what}_0.{rate}" for what in ("both", "text") for rate in (1, 3, 5, 7, 9))
SEEDS = range(5)


def fill(home: Path, runs: int, samples: int) -> None:
    """Logs the runs as `harness run` does; those that an earlier call logged are not logged again."""
    folders, uri = Folders.resolve(PathsConfig(home=str(home))), f"sqlite:///{home / 'mlflow.db'}"
    trackers = {name: Tracker(uri, experiment_name(TrackingConfig(), name), folders) for name in DATASETS}
    predictions = ensure_folder(home / "made") / PREDICTIONS_FILE
    cells = itertools.product(DATASETS, PROTOCOLS, METHODS, SEEDS)
    for number, (dataset, protocol, method, seed) in enumerate(itertools.islice(cells, runs)):
        accuracy = 0.5 + 0.01 * METHODS.index(method) + 0.02 * np.random.default_rng(number).standard_normal()
        mask = hashlib.sha256(f"{dataset} {protocol}".encode()).hexdigest()
        made = make_predictions(float(accuracy), samples, seed=number)
        record = make_record(method, made, train_seed=seed, dataset=dataset, protocol=protocol, mask=mask)
        record = dataclasses.replace(record, run_id=hashlib.sha256(str((number, samples)).encode()).hexdigest())
        if trackers[dataset].find(record.run_id) is None:
            save_predictions(made, predictions)
            trackers[dataset].log(record, {PREDICTIONS_FILE: predictions})
        if (number + 1) % 500 == 0:
            say(f"{number + 1} of {runs} runs stored")


def report(home: Path, names: str) -> dict[str, float]:
    """Lets the command write its files; what it took, and their sizes."""
    command = [sys.executable, "-P", "-m", "harness", "report", "--out", str(home / "report")]
    command += [f"tracking.uri=sqlite:///{home / 'mlflow.db'}", *(["--format", names] if names else [])]
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_megabytes": after.ru_maxrss / 1024,
    }
    files = sorted((home / "report").glob("report.*"))
    return result | {f"{path.suffix[1:]}_kilobytes": path.stat().st_size / 1e3 for path in files}


def main() -> None:
    """Fills a store and lets `harness report` read it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="keep the store here")
    parser.add_argument("--format", default="", help="as of `harness report`; all unless given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = ensure_folder((options.folder or Path(temporary)).resolve())
        fill(home, options.runs, options.samples)
        counts = {"runs": options.runs, "samples": options.samples}
        print(json.dumps(counts | report(home, options.format) | {"load": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
