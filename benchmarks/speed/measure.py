"""Time, memory and matmul rate, measured so that two sides can be compared on a machine that may be shared.

Seconds on the clock count where the machine was idle but for us.  Where other programs computed as well, it is CPU
seconds of this process, which hardly change by that, while the clock does.  Both are kept.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import psutil
import torch

#: Share of the machine's cores that others may take while we call it idle.
IDLE = 0.05


@dataclass
class Timing:
    """Repetitions of one thing.

    Attributes:
        cpu: CPU seconds of this process, all threads.
        wall: Seconds on the clock.
        others: Share of the machine's cores that other programs took meanwhile.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def idle(self) -> bool:
        """Whether the machine was ours."""
        return statistics.median(self.others) < IDLE

    def median(self, clock: bool) -> float:
        """Median seconds, on the clock or of the processor."""
        return statistics.median(self.wall if clock else self.cpu)

    def map(self, change: Callable[[float], float]) -> Timing:
        """All times changed, e.g. to those of one sample."""
        return Timing(list(map(change, self.cpu)), list(map(change, self.wall)), self.others)

    def add(self, work: Callable[[], Any]) -> None:
        busy, cpu, wall = _busy(), time.process_time(), time.perf_counter()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        spent = max(0.0, _busy() - busy - self.cpu[-1])
        self.others.append(spent / self.wall[-1] / (psutil.cpu_count() or 1))


def _busy() -> float:
    """Seconds that all cores together have been busy since the machine was started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def on_the_clock(*timings: Timing) -> bool:
    """Whether these are compared on the clock: the machine was idle in all of them."""
    return all(timing.idle for timing in timings)


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
    """Memory of this process beyond what it had on entry, sampled every few milliseconds: `peak.bytes`.

    Pages of mapped files are not counted: the system takes them back when it needs them.  What was freed before is
    given back first, where the C library can, so that it is not used again unseen.
    """

    bytes: int = 0

    def __enter__(self) -> Self:
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        self._process = psutil.Process()
        self._start = self._own()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, self._own() - self._start)

    def _own(self) -> int:
        info = self._process.memory_info()
        return int(info.rss - getattr(info, "shared", 0))


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
