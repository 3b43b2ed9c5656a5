"""A package of plugins outside the harness: installed as users do, listed, run, held to the contracts, documented."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "plugin_package"
DOCS = ROOT / "docs" / "plugins.md"
OWN = {"methods": "reliability_vote", "datasets": "wine", "protocols": "single", "metrics": "worst_class_recall"}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs the source tree")


class Installed:
    """The package in a folder of its own, and commands that see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        # setuptools leaves build products beside the sources, so it is given a copy.
        shutil.copytree(PACKAGE, self.source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        self.environment = os.environ | {
            "PYTHONPATH": str(folder / "site"),
            "HARNESS_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        quiet = ["--isolated", "--disable-pip-version-check", "install", "--quiet"]
        offline = ["--no-index", "--no-deps", "--no-build-isolation"]
        self.python("-m", "pip", *quiet, *offline, "--target", str(folder / "site"), str(self.source))

    def python(self, *arguments: str) -> str:
        """Runs Python in the package's folder; it must end with 0."""
        command = [sys.executable, "-P", *arguments]
        done = subprocess.run(
            command, cwd=self.source, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def harness(self, *arguments: str) -> str:
        """Runs the command."""
        return self.python("-m", "harness", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("package"))


def test_the_harness_does_not_know_it_by_itself() -> None:
    from harness import registry

    assert not [name for kind, name in OWN.items() if name in registry.KINDS[kind]]


def test_its_plugins_are_listed_with_their_owner(installed: Installed) -> None:
    listing = json.loads(installed.harness("list", "--json"))
    for kind, name in OWN.items():
        (row,) = [row for row in listing[kind] if row["name"] == name]
        assert row["owner"] == "harness-wine"
        assert row["summary"]
    assert not [row for rows in listing.values() for row in rows if "cannot be loaded" in row["summary"]]


def test_method_data_set_protocol_and_metric_make_a_run(installed: Installed) -> None:
    command = next(line for line in (PACKAGE / "README.md").read_text().splitlines() if line.startswith("harness run"))
    installed.harness(*command.split()[1:])
    (file,) = (installed.folder / "home" / "runs").glob("*/record.json")
    record = json.loads(file.read_text())
    assert record["status"] == "finished", record["error"]
    assert (record["method"], record["dataset"]["name"]) == ("reliability_vote", "wine")
    assert record["protocol"]["name"] == "single_0.5"
    assert not [audit for audit in record["audits"] if not audit["passed"]]
    scores = record["results"][0]["metrics"]
    assert 0.0 <= scores["worst_class_recall"] <= scores["accuracy"]
    assert scores["accuracy"] > 0.8
    counts = record["protocol"]["counts"]["test"]
    assert sum(counts.values()) - counts["chemistry+phenols+colour"] == sum(counts.values()) // 2


def test_it_keeps_the_contracts(installed: Installed) -> None:
    closing = installed.python("-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider").splitlines()[-1]
    assert int(re.findall(r"(\d+) passed", closing)[0]) > 60
    assert "failed" not in closing


def blocks() -> dict[str, str]:
    """Titled code blocks of the page, those of one file joined in order."""
    found: dict[str, str] = {}
    for title, code in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', DOCS.read_text(), re.MULTILINE | re.DOTALL):
        found[title] = found.get(title, "") + code
    return found


def test_the_page_walks_through_every_line() -> None:
    shown = blocks()
    commands = shown.pop("README.md")
    assert commands in (PACKAGE / "README.md").read_text()
    files = {
        path.relative_to(PACKAGE).as_posix(): path.read_text()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.stat().st_size and path.name != "README.md"
    }
    assert sorted(shown) == sorted(files)
    for name, text in files.items():
        assert shown[name] == text, f"docs/plugins.md and tests/plugin_package/{name} differ"
