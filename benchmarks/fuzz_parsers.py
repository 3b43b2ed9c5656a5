"""Feeds every reader of foreign text and files with hostile input; prints what came of it as a Markdown table.

    python -P benchmarks/fuzz_parsers.py [--count N] [--only PART_OF_NAME] [--first I]

Input number I of a reader depends on its name and I alone, so `--only NAME --first I --count 1` repeats one.  Each
reader runs in a process of its own, with 4 GiB more memory than it starts with and 20 CPU seconds for an input.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from harness.errors import HarnessError
from harness.testing.hostile import READERS, Reader

MEMORY, SECONDS = 4 << 30, 20


class Hang(BaseException):
    """An input took too long."""


def feed(reader: Reader, data: bytes, folder: Path) -> bool:
    """Whether an input was accepted; what is neither accepted nor refused in words is raised."""
    try:
        reader.read(data, folder)
    except HarnessError as error:
        if not str(error).strip():
            raise AssertionError("refused without a word") from error
        return False
    return True


def work(name: str, first: int, count: int, at: Any, results: Any) -> None:
    """Reads `count` inputs; puts findings, then a summary."""

    def stop(*_: int | FrameType | None) -> None:
        raise Hang(f"more than {SECONDS} CPU seconds")

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, stop)
    (reader,) = [reader for reader in READERS if reader.name == name]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(50):  # imports
            feed_quietly(reader, Random(f"warm|{name}|{number}"), Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, -1))
        accepted, slowest, found = 0, (0.0, -1), set[str]()
        for number in range(first, first + count):
            at.value = number
            data = reader.make(Random(f"{name}|{number}"))
            start = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                accepted += feed(reader, data, Path(folder))
            except (Exception, Hang) as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                if place not in found:
                    found.add(place)
                    results.put(("finding", f"{name} #{number}: {place}: {str(error)[:200]!r}, input {data[:160]!r}"))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, (time.process_time() - start, number))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    results.put(("summary", (accepted, count - accepted, slowest, grown)))


def feed_quietly(reader: Reader, random: Random, folder: Path) -> None:
    try:
        feed(reader, reader.make(random), folder)
    except Exception:
        return


def run(name: str, first: int, count: int) -> bool:
    """Fuzzes one reader and prints its line; False when something was found."""
    context = multiprocessing.get_context("spawn")
    at, results = context.Value("q", first), context.Queue()
    process = context.Process(target=work, args=(name, first, count, at, results))
    process.start()
    sound = True
    while True:
        try:
            kind, what = results.get(timeout=1.0)
        except Exception:
            if process.is_alive():
                continue
            print(f"{name} #{at.value}: the process died ({process.exitcode})", file=sys.stderr)
            return False
        if kind == "summary":
            break
        sound = False
        print(what, file=sys.stderr, flush=True)
    process.join()
    accepted, refused, (seconds, number), grown = what
    print(f"| {name} | {count:,} | {accepted:,} | {refused:,} | {seconds:.2f} (#{number}) | {grown:.0f} |", flush=True)
    return sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    print("| reader | inputs | read | refused | slowest, CPU s | memory, MB more |")
    print("|---|---|---|---|---|---|", flush=True)
    names = [reader.name for reader in READERS if options.only in reader.name]
    sound = [run(name, options.first, options.count) for name in names]
    return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
