"""`python -m harness` is the command; `accelerate launch -m harness` relies on it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False)


def test_lists_and_ends_with_the_commands_exit_code(tmp_path: Path) -> None:
    listed = run(tmp_path, "list", "methods")
    assert listed.returncode == 0, listed.stderr
    assert "redeem" in listed.stdout
    wrong = run(tmp_path, "run", "method=redem")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("harness: error: unknown method 'redem'")


def test_importing_it_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.cli.main", lambda: pytest.fail("ran on import"))
    importlib.import_module("harness.__main__")
