"""Verifies thousands of damaged and forged bundles: how many pass, crash the verifier, or make it write elsewhere.

    python -P benchmarks/fuzz_bundles.py [BUNDLE.zip] [--cases 10000] [--seed 0]

Without a bundle it makes one: a run of `majority` on `synthetic`, exported.  A mutant that passes is harmless if its
hashes were made anew, so that it is a bundle of another digest, and what it proves of its runs is the same.
Prints a Markdown table; ends with 1 if anything else passed, crashed or was written.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness.bundle import verify_bundle
from harness.cli import main as harness
from harness.progress import say
from harness.testing.bundles import KINDS, Guard, claims, mutant


def make_bundle(folder: Path) -> Path:
    """A bundle of one small run."""
    place = f"paths.home={folder / 'home'}"
    path = folder / "bundle.zip"
    run = ["run", "method=majority", "dataset=synthetic", "dataset.samples=120", "protocol=any_0.5", place]
    with contextlib.redirect_stdout(sys.stderr):
        assert harness([*run, "--no-table"]) == 0
        assert harness(["export", "--last", place, "-o", str(path)]) == 0
    return path


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = (options.bundle or make_bundle(folder)).read_bytes()
        own = folder / "verifier"
        own.mkdir()
        tempfile.tempdir = str(own)
        spoiled, guard = folder / "mutant.zip", Guard(own)
        spoiled.write_bytes(content)
        began = time.process_time()
        whole = verify_bundle(spoiled)
        once = time.process_time() - began
        assert whole.passed
        proven = {run: claims(record) for run, record in whole.records.items()}
        refused, harmless, bad = Counter[str](), Counter[str](), Counter[str]()
        seconds = Counter[str]()
        for number in range(options.cases):
            kind, mutated = mutant(content, number, options.seed)
            spoiled.write_bytes(mutated)
            began = time.process_time()
            try:
                with guard.watching():
                    result = verify_bundle(spoiled)
                found = {run: claims(record) for run, record in result.records.items()}
                if not result.passed:
                    refused[kind] += 1
                elif kind.endswith("_mended") and result.digest != whole.digest and found == proven:
                    harmless[kind] += 1
                else:
                    bad[kind] += 1
                    say(f"mutant {number} ({kind}) passed")
            except Exception as error:
                bad[kind] += 1
                say(f"mutant {number} ({kind}): {type(error).__name__}: {error}")
            seconds[kind] += time.process_time() - began
    print("| kind | mutants | refused | passed, of another digest, the same claims | passed or crashed | CPU ms each |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        count = refused[kind] + harmless[kind] + bad[kind]
        each = 1000 * seconds[kind] / max(1, count)
        print(f"| {kind} | {count} | {refused[kind]} | {harmless[kind]} | {bad[kind]} | {each:.1f} |")
    total = sum(refused.values()), sum(harmless.values()), sum(bad.values())
    print(f"| all | {options.cases} | {total[0]} | {total[1]} | {total[2]} | |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"\n{len(content):,} bytes, {once:.3f} s to verify; all mutants {sum(seconds.values()):.0f} CPU s; "
        f"peak memory {memory} MiB; paths written outside: {len(guard.written)}"
    )
    return 1 if total[2] or guard.written else 0


if __name__ == "__main__":
    sys.exit(main())
