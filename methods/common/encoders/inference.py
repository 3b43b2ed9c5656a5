"""How the pretrained encoders run inference: one value at a time, values in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def map_one_by_one(function: Callable[[Any], T], values: Sequence[Any]) -> list[T]:
    """Applies `function` to every value without gradients, in as many workers as torch has threads.

    Each value is a batch of its own and each worker uses one torch thread: the result for a value does not depend
    on its companions nor on the number of cores, and threads that share one small product only wait for each other.
    """
    threads = torch.get_num_threads()

    @torch.inference_mode()
    def call(value: Any) -> T:
        return function(value)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(call, values))
    finally:
        torch.set_num_threads(threads)  # MKL's setting is shared by all threads
