"""Seeds by purpose: every random stream is derived from a named seed, so one never moves another."""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, e.g. `derive_seed(train_seed, "epoch", 3)`."""
    text = "|".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def seed_everything(seed: int, *purpose: object) -> None:
    """Seeds Python, numpy and torch (all devices) for one purpose."""
    import torch

    value = derive_seed(seed, *purpose)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
