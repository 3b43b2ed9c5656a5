"""Our stages beside a peer that costs what the released REDEEM pipeline costs, in one run.

    python -P benchmarks/compare.py                      every stage, minutes on two cores
    python -P benchmarks/compare.py --full               larger sizes, and approximate search
    python -P benchmarks/compare.py --only step search   some stages; the page keeps what it has of the others

Results go to `docs/speed.json` after every stage, and as a table into `docs/speed.md`.  Data and weights are generated
(2 GB below the folder, used again by the next run).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="larger sizes and more repetitions")
    parser.add_argument("--tiny", action="store_true", help="a small network: shows that it runs, measures nothing")
    parser.add_argument("--only", nargs="+", metavar="STAGE", default=[], help="these stages alone")
    parser.add_argument("--repetitions", type=int, default=0, help="measured rounds (default: by size)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="CPU threads of both sides (default: all cores)"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "harness-benchmark")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where speed.json and speed.md lie")
    chosen = parser.parse_args(arguments)
    # Before torch and FAISS are loaded, which read it once.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(chosen.threads)

    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    from speed import report, stages

    unknown = set(chosen.only) - set(stages.STAGES)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(stages.STAGES)}")
    torch.set_num_threads(chosen.threads)
    sizes = stages.TINY if chosen.tiny else stages.FULL if chosen.full else stages.QUICK
    if chosen.repetitions:
        sizes = replace(sizes, rounds=chosen.repetitions)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    bench = stages.Bench(sizes, chosen.folder)
    target = chosen.docs / "speed.json"
    kept = json.loads(target.read_text())["rows"] if target.is_file() and chosen.only else []
    conditions = report.machine()
    found: dict[str, list[dict[str, object]]] = {}
    for row in kept:
        found.setdefault(row["origin"], []).append(row)
    for name, stage in stages.STAGES.items():
        if chosen.only and name not in chosen.only:
            continue
        print(f"{name} …", flush=True)
        rows = [{**row.to_dict(), "origin": name, "rounds": sizes.rounds} for row in stage(bench)]
        if not rows:
            print(f"{name}: skipped, it needs {'a CUDA device' if name == 'gpu' else '--full'}")
        found[name] = rows
        ordered = [row for part in stages.STAGES for row in found.get(part, [])]
        report.save(target, conditions, ordered)
        print(report.markdown({}, rows).partition("\n\n")[2], flush=True)
    page = chosen.docs / "speed.md"
    if page.is_file():
        report.update(page, report.markdown(conditions, ordered))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
