"""Time, memory and matmul rate, measured so that two sides can be compared on a machine that is shared.

The seconds that count are CPU seconds of this process: on one thread and an idle machine they are the time on the
clock, and where others compute as well they hardly change, while the clock does.  Both are kept.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import psutil
import torch


@dataclass
class Timing:
    """Repetitions of one thing.

    Attributes:
        cpu: CPU seconds of this process, all threads.
        wall: Seconds on the clock.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median CPU seconds."""
        return statistics.median(self.cpu)

    def add(self, work: Callable[[], Any]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


def interleave(sides: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1) -> dict[str, Timing]:
    """Runs all sides in turn, A B C A B C …, after `warm` unmeasured rounds."""
    timings = {name: Timing() for name in sides}
    for number in range(-warm, rounds):
        for name, work in sides.items():
            if number < 0:
                work()
            else:
                timings[name].add(work)
    return timings


class PeakMemory:
    """Memory of this process beyond what it had on entry, sampled every few milliseconds: `peak.bytes`."""

    bytes: int = 0

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._start = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._start)


def product(dtype: torch.dtype, device: str = "cpu", size: tuple[int, int, int] = (1536, 768, 3072)) -> Any:
    """A linear layer of a ViLT block on 8 samples, and its floating-point operations."""
    rows, inner, outer = size
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(outer, inner, device=device).to(dtype)

    @torch.no_grad()
    def run() -> None:
        torch.nn.functional.linear(left, right)

    return run, 2 * rows * inner * outer


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the products in `work`, backward included."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
