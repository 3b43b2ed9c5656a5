"""How the pretrained encoders run inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread, then restores the number.

    One value at a time leaves little to share, two threads on a busy machine were up to ten times slower than one,
    and the result does not depend on the number of cores.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
