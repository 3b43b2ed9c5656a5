"""Several processes that work on one run: which of them writes, and how they stay in step.

`accelerate launch` or `torchrun` starts them and names them in the environment.  What processes tell each other goes
through the functions here, and each of them is a plain call where there is one process only.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from harness.errors import HarnessError, PeerError, ProcessLostError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_connected = False
#: The main process may compute features for hours while the others wait.
_PATIENCE = datetime.timedelta(days=7)


def count() -> int:
    """Number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files, records and progress."""
    return rank() == 0


def connected() -> bool:
    """Whether `start` has been called where there are several processes."""
    return _connected


def start(device: str) -> None:
    """Connects the processes; does nothing where there is one, or when they are connected already.

    Args:
        device: The run's `device`; `auto` means the GPUs, or the CPU where there is none.

    Raises:
        UsageError: If there are more processes on this machine than GPUs, or they cannot be connected.
    """
    if count() == 1:
        return
    global _connected
    _connected = True
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", count())), torch.cuda.device_count()
    if not on_cpu and here > gpus:
        raise UsageError(f"{here} processes on this machine, but it has {gpus} GPUs; start as many, or set device=cpu.")
    if not torch.distributed.is_initialized():
        with _collective():
            PartialState(cpu=on_cpu, timeout=_PATIENCE)


def stop() -> None:
    """Disconnects the processes at the end of a run."""
    if count() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def everywhere(work: Callable[[], T]) -> list[T]:
    """Runs `work` in every process and returns all results in the order of processes, in all of them.

    Args:
        work: Must not communicate itself.

    Raises:
        PeerError: If it failed in another process; where it failed, its own error is raised.
    """
    if count() == 1:
        return [work()]
    error: Exception | None = None
    result: T | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    return _exchange(result, error)


def together(work: Callable[[], T]) -> T:
    """Runs `work` in every process and returns this one's result; an error of one is raised in all."""
    if count() == 1:
        return work()
    kept: list[T] = []
    everywhere(lambda: kept.append(work()))
    return kept[0]


def from_main(work: Callable[[], T]) -> T:
    """Runs `work` in the main process only and returns its result, or raises its error, in all."""
    return everywhere(work if is_main() else lambda: None)[0]  # type: ignore[return-value]


def main_first(work: Callable[[], T]) -> T:
    """Runs `work` in the main process, then in the others, which find what it has left on disk."""
    kept: list[T] = []
    from_main(lambda: kept.append(work()))
    return together(lambda: kept[0] if kept else work())


def fail_together(error: Exception | None) -> None:
    """Raises in all processes when one has failed; every process calls it, with its own error or None.

    Raises:
        PeerError: In those that have not failed themselves.
    """
    _exchange(None, error)


def _exchange(result: T | None, error: Exception | None) -> list[T]:
    from torch.distributed import all_gather_object

    own = None if error is None else (_reason(error), getattr(error, "exit_code", HarnessError.exit_code))
    gathered: list[tuple[T, tuple[str, int] | None]] = [None] * count()  # type: ignore[list-item]
    with _collective():
        all_gather_object(gathered, (result, own))
    failed = [(number, *why) for number, (_, why) in enumerate(gathered) if why is not None]
    if failed:
        if error is not None:
            if isinstance(error, HarnessError):
                error.known_to_all = True
            raise error
        number, reason, code = failed[0]
        raise PeerError(number, count(), reason, code)
    return [value for value, _ in gathered]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"


def add_up(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in all of them."""
    if count() > 1:
        from torch.distributed import all_reduce

        with _collective():
            all_reduce(values)
    return values


def as_in_main(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors with those of the main process."""
    if count() > 1:
        from torch.distributed import broadcast

        for tensor in tensors:
            with _collective():
                broadcast(tensor.detach(), 0)


@contextmanager
def _collective() -> Iterator[None]:
    """Turns what torch raises when a connection breaks into one line."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        raise ProcessLostError(
            f"process {rank()} of {count()}: another process of this run has ended; "
            "the same command goes on from the last checkpoint."
        ) from error
