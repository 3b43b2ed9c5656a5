"""How busy the machine is while a run works: read by MLflow's monitors, kept in a file, sent with the record."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DependencyError

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

#: One JSON object a sample: `time` in milliseconds, and what the monitors read.
SYSTEM_METRICS_FILE = "system_metrics.jsonl"
INTERVAL_SECONDS = 10.0


def require_monitors() -> None:
    """Checks that what the monitors read with is there.

    Raises:
        DependencyError: If it is not.
    """
    if importlib.util.find_spec("psutil") is None:
        raise DependencyError(
            "tracking.system_metrics=true needs psutil, which is not installed: pip install "
            "'missing-modality-harness[monitor]', or leave the option out."
        )


@contextmanager
def sampled(file: Path | None, interval: float = INTERVAL_SECONDS) -> Iterator[None]:
    """Appends a sample to a file at once, every `interval` seconds, and when the block ends; None samples nothing.

    A run that goes on from its checkpoint goes on in the same file.
    """
    if file is None:
        yield
        return
    monitors = _monitors()
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(interval):
            _append(file, monitors)

    _append(file, monitors)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _append(file, monitors)


def read_samples(file: Path) -> list[tuple[int, dict[str, float]]]:
    """Samples of a file as (milliseconds, values by name); a line that was cut when a process died is skipped."""
    samples = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            values = json.loads(line)
            samples.append((int(values.pop("time")), {name: float(value) for name, value in values.items()}))
        except (ValueError, KeyError, AttributeError):
            continue
    return samples


def _monitors() -> list[BaseMetricsMonitor]:
    """Processor, memory, disk, network, and the GPUs where `nvidia-ml-py` finds some."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # no package, or no GPU
        monitors.append(GPUMonitor())
    return monitors


def _append(file: Path, monitors: list[BaseMetricsMonitor]) -> None:
    values: dict[str, float] = {"time": int(time.time() * 1000)}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    with file.open("a") as lines:
        lines.write(json.dumps(values) + "\n")
