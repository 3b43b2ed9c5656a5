"""Every registered metric keeps the contract."""

from __future__ import annotations

from harness import registry
from harness.testing.metrics import MetricContract

for _name in registry.metrics.names():
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (MetricContract,), {"metric": _name})
