"""Every registered data set keeps the contract; those that are not on this machine are skipped with the reason."""

from __future__ import annotations

from harness import registry
from harness.testing.datasets import DatasetContract

for _name in registry.datasets.names():
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (DatasetContract,), {"dataset": _name})
