"""Fixtures of the command-line tests: a home of their own, and toy plugins."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from harness import registry

from .shown_commands import ROOT, blocks

PLUGIN_FILE = Path(__file__).with_name("plugin_file.py")
PLUGIN_PACKAGE = ROOT / "tests" / "plugin_package"

#: Overrides that name only plugins of `plugin_file.py`, so that a test needs no data and no weights.
TOY = [
    "dataset=toy_data",
    "backbone=toy_backbone",
    "protocol=toy_0.5",
    "encoders={text: toy_encoder, image: toy_encoder, features: toy_encoder, tabular: toy_encoder}",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and no tracking server from the environment."""
    folder = tmp_path / "home"
    monkeypatch.setenv("HARNESS_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def toy() -> None:
    """Loads the toy plugins."""
    registry.load_plugin_file(PLUGIN_FILE)


@pytest.fixture(scope="session")
def database(mlflow_template: Path) -> bytes:
    """A fresh MLflow database."""
    return mlflow_template.read_bytes()


@pytest.fixture
def store(home: Path, database: bytes) -> Path:
    """The home folder with an empty database in it."""
    home.mkdir()
    (home / "mlflow.db").write_bytes(database)
    return home


@pytest.fixture
def plugin_files(tmp_path: Path) -> None:
    """The plugin files of README's and of the docs' examples, as their readers have them."""
    (code,) = blocks(ROOT / "README.md", "python")
    (tmp_path / "my_method.py").write_text(code)
    page = (ROOT / "docs" / "encoders-and-backbones.md").read_text(encoding="utf-8")
    for name, code in re.findall(r'^```python title="(\w+\.py)"\n(.*?)^```', page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)


@pytest.fixture
def plugin_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of docs/plugins.md as if it were installed, but for processes that are started."""
    monkeypatch.syspath_prepend(PLUGIN_PACKAGE / "src")
    points = tomllib.loads((PLUGIN_PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    for group, entries in points.items():
        for name, target in entries.items():
            registry.KINDS[group.removeprefix("harness.")].register(name, target)
