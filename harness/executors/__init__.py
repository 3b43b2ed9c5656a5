"""Executors: where the cells of a sweep run.  Each hands work to an existing engine; none is a scheduler of its own."""

from __future__ import annotations

from collections.abc import Mapping

#: Name -> config class.  Other packages add theirs through the entry-point group `harness.executors`.
BUILTIN: Mapping[str, str] = {
    "local": "harness.executors.local:LocalConfig",
    "ray": "harness.executors.ray:RayConfig",
    "slurm": "harness.executors.slurm:SlurmConfig",
}
