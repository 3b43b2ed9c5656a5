"""Run ids: sha256 over everything that can change a result, and over nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.config import digest_of

#: Raised when the framework (trainer, views, retrieval, scoring) changes results for equal plugins and configs.
CORE_VERSION = "1"


def run_id(
    config: Mapping[str, Any],
    *,
    dataset_fingerprint: str,
    mask_fingerprint: str,
    plugins: Mapping[str, str],
    metrics: Mapping[str, str],
) -> str:
    """Identity of one cell.

    Args:
        config: Plain config without paths, device and tracking (see `harness.config.NOT_IDENTITY`).
        dataset_fingerprint: Of the loaded data set.
        mask_fingerprint: Of the mask table in force.
        plugins: Source fingerprints of method, backbone and encoders.
        metrics: Versions of the metrics that will be computed.
    """
    return digest_of(
        {
            "core": CORE_VERSION,
            "config": dict(config),
            "dataset": dataset_fingerprint,
            "masks": mask_fingerprint,
            "plugins": dict(plugins),
            "metrics": dict(metrics),
        }
    )
