"""What every registered plugin has: summary, citation, card, version, documented options, a contract run."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from harness import config as harness_config
from harness import registry
from harness.config import MethodConfig
from harness.plugin import PluginConfig

ALL = [(kind, name) for kind, plugins in registry.KINDS.items() for name in plugins.names()]
HERE = Path(__file__).parent


def documented(config: type) -> set[str]:
    """Names described under `Attributes:` in the docstrings of a class and its bases."""
    names: set[str] = set()
    for owner in config.__mro__:
        _, found, section = inspect.cleandoc(vars(owner).get("__doc__") or "").partition("Attributes:\n")
        if found:
            for line in re.findall(r"^    (\w[\w, ]*): \S", section, flags=re.MULTILINE):
                names.update(line.split(", "))
    return names


def test_the_reader_of_docstrings_can_fail() -> None:
    @dataclasses.dataclass
    class Poor(MethodConfig):
        """Says nothing of b.

        Attributes:
            a: Said.
        """

        a: int = 1
        b: int = 2

    fields = {field.name for field in dataclasses.fields(Poor)}
    assert {"a", "b"} <= fields
    assert "b" in fields - documented(Poor)
    assert "a" in documented(Poor)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_plugin_is_documented(kind: str, name: str) -> None:
    config = registry.KINDS[kind].get(name)
    assert config.summary, f"{kind} {name}: set `summary`"
    assert "\n" not in config.summary
    assert config.citation, f"{kind} {name}: set `citation`, or say why there is nothing to cite"
    assert config.version
    assert config.__doc__
    if config.card:
        card = config.card_path()
        assert card.is_file(), f"{kind} {name}: write its card {card.name}"
        assert len(card.read_text()) > 200, f"{kind} {name}: its card says nothing"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_options_are_documented(kind: str, name: str) -> None:
    config = registry.KINDS[kind].get(name)
    options = {field.name for field in dataclasses.fields(config) if not field.name.startswith("_")}
    assert not options - documented(config), f"{config.__name__}: describe them under `Attributes:`"


@pytest.mark.parametrize(
    "config",
    [
        value
        for value in vars(harness_config).values()
        if dataclasses.is_dataclass(value) and value.__module__ == "harness.config" and isinstance(value, type)
    ],
    ids=lambda config: config.__name__,
)
def test_options_of_runs_are_documented(config: type) -> None:
    options = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    assert not options - documented(config), f"{config.__name__}: describe them under `Attributes:`"


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_implementation_is_named(kind: str, name: str) -> None:
    config = registry.KINDS[kind].get(name)
    assert issubclass(config, PluginConfig)
    if kind not in ("datasets", "protocols"):  # their configs are the implementation
        assert re.fullmatch(r"[\w.]+:\w+", config.target), f"{kind} {name}: set `target`"


@pytest.mark.parametrize("kind", ["datasets", "methods", "metrics", "protocols"])
def test_kind_has_a_contract_run(kind: str) -> None:
    file = HERE / f"test_{kind}.py"
    assert file.is_file(), f"write {file.name}: it runs the contract on every registered plugin"
    text = file.read_text()
    assert f"registry.{kind}" in text, f"{file.name} does not walk the registry"
