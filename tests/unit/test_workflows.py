"""The files of the CI service: sound by their schemas, and about this project as it is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
pytestmark = pytest.mark.skipif(not GITHUB.is_dir(), reason="needs the source tree")


def workflow(name: str) -> dict[str, Any]:
    content = yaml.load((GITHUB / "workflows" / name).read_text(), yaml.BaseLoader)
    assert isinstance(content, dict)
    return content


def commands(name: str) -> str:
    """Everything that the jobs of a workflow run."""
    return "\n".join(step.get("run", "") for job in workflow(name)["jobs"].values() for step in job["steps"])


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", "workflows/*.yml"),
        ("github-actions", "actions/*/action.yml"),
        ("dependabot", "depend*.yml"),
    ],
)
def test_schemas(schema: str, files: str) -> None:
    found = [str(path) for path in GITHUB.glob(files)]
    command = [sys.executable, "-P", "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *found]
    done = subprocess.run(command, capture_output=True, text=True)
    assert found
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_what_they_run_exists(name: str) -> None:
    text = commands(name)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for line in re.findall(r"make (.+)", text) for word in line.split()}
    assert asked
    assert asked <= targets
    files = set(re.findall(r"(?:scripts|benchmarks|tests)/[\w./]+", text))
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_extra_that_is_asked_for_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "".join(path.read_text() for path in GITHUB.rglob("*.yml"))
    asked = {name for names in re.findall(r"(?:extras|default): ([\w,]+,[\w,]+)", text) for name in names.split(",")}
    assert asked
    assert asked <= set(extras)


def test_the_matrix_has_the_oldest_python_and_the_lowest_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = workflow("ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    oldest = project["requires-python"].removeprefix(">=")
    assert matrix["python"] == [oldest, "3.12", "3.13"]
    assert matrix["include"] == [{"python": oldest, "resolution": "lowest-direct"}]


def test_only_the_publishing_job_may_do_more_than_read() -> None:
    for path in (GITHUB / "workflows").glob("*.yml"):
        content = workflow(path.name)
        assert content["permissions"] == {"contents": "read"}
        more = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
        assert more == ({"publish": {"id-token": "write"}} if path.name == "release.yml" else {})
        assert "secrets." not in path.read_text()
