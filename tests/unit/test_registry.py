"""Registries: collisions, unknown names, wrong types, plugins given by file and by entry point."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness import registry
from harness.config import MetricConfig
from harness.errors import UnknownNameError, UsageError
from harness.plugin import PluginConfig
from harness.registry import Registry, load_plugin_file

HERE = __name__


@dataclass
class Mine(MetricConfig):
    """A metric of somebody else."""

    target: ClassVar[str] = "somewhere:score"


@dataclass
class Other(MetricConfig):
    """Another one."""


class NoMetric(PluginConfig):
    """Not derived from `MetricConfig`."""


@pytest.fixture
def metrics() -> Registry[Any]:
    return Registry("metric", "harness.config:MetricConfig", "harness.metrics:BUILTIN")


def test_built_in_names_resolve_lazily(metrics: Registry[Any]) -> None:
    assert "accuracy" in metrics
    assert "acuracy" not in metrics
    assert metrics.get("accuracy").__name__ == "Accuracy"
    assert metrics.entry("accuracy").owner == "missing-modality-harness"
    assert metrics.name_of(metrics.get("accuracy")) == "accuracy"
    assert metrics.names() == sorted(metrics.names()) == [entry.name for entry in metrics]
    assert metrics.group == "harness.metrics"


def test_registered_classes_are_found(metrics: Registry[Any]) -> None:
    metrics.register("mine", Mine, "my-package")
    assert metrics.get("mine") is Mine
    assert metrics.name_of(Mine) == "mine"
    metrics.register("mine", f"{HERE}:Mine", "my-package")  # the same target again is no collision


def test_collision_names_both_owners(metrics: Registry[Any]) -> None:
    metrics.register("mine", Mine, "package-one")
    with pytest.raises(UsageError, match=r"'mine' is registered twice: by package-one .* and by package-two"):
        metrics.register("mine", Other, "package-two")
    assert metrics.get("mine") is Mine
    with pytest.raises(UsageError, match=r"by missing-modality-harness .* and by package-two"):
        metrics.register("accuracy", Other, "package-two")


def test_unknown_name_suggests_and_lists(metrics: Registry[Any]) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'acuracy'\. Did you mean 'accuracy'") as caught:
        metrics.get("acuracy")
    assert "log_loss" in str(caught.value)
    assert caught.value.suggestions[0] == "accuracy"
    with pytest.raises(UnknownNameError) as caught:
        metrics.get("zzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_wrong_base_class(metrics: Registry[Any]) -> None:
    with pytest.raises(UsageError, match=r"'bad' .* is not a subclass of MetricConfig"):
        metrics.register("bad", NoMetric)
    with pytest.raises(UnknownNameError):
        metrics.get("bad")
    metrics.register("late", f"{HERE}:NoMetric")
    with pytest.raises(UsageError, match="is not a subclass of MetricConfig"):
        metrics.get("late")
    metrics.register("function", f"{HERE}:test_wrong_base_class")
    with pytest.raises(UsageError, match="is not a subclass of MetricConfig"):
        metrics.get("function")


@pytest.mark.parametrize("target", ["no_such_module:Thing", f"{HERE}:NoSuchClass"])
def test_targets_that_cannot_be_loaded_name_the_owner(metrics: Registry[Any], target: str) -> None:
    metrics.register("broken", target, "their-package")
    with pytest.raises(UsageError, match="'broken' of their-package cannot be loaded from"):
        metrics.get("broken")


def test_unregistered_config_has_no_name(metrics: Registry[Any]) -> None:
    with pytest.raises(UsageError, match="not registered as a metric"):
        metrics.name_of(Other)


def test_entry_points_are_discovered(metrics: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def entry_points(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("mine", f"{HERE}:Mine", group)]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert metrics.get("mine").__qualname__ == "Mine"
    assert metrics.entry("mine").owner == "an installed package"
    assert asked == ["harness.metrics"]


def test_every_kind_resolves_every_name() -> None:
    for kind, plugins in registry.KINDS.items():
        assert plugins.names(), kind
        for name in plugins.names():
            assert plugins.name_of(plugins.get(name)) == name


@pytest.fixture
def _fresh_metrics(monkeypatch: pytest.MonkeyPatch, metrics: Registry[Any]) -> Iterator[None]:
    monkeypatch.setattr(registry, "metrics", metrics)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("harness_plugin_"):
            del sys.modules[name]


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from harness import registry
from harness.config import MetricConfig

@dataclass
class Always(MetricConfig):
    summary: ClassVar[str] = "always one"
    tasks: ClassVar[tuple[str, ...]] = ("binary",)

registry.metrics.register("always", Always, __file__)
"""


@pytest.mark.usefixtures("_fresh_metrics")
def test_plugin_file(tmp_path: Path) -> None:
    file = tmp_path / "my plugin.py"
    file.write_text(PLUGIN)
    load_plugin_file(file)
    load_plugin_file(file)
    assert registry.metrics.get("always").summary == "always one"
    assert registry.metrics.entry("always").owner == str(file)


@pytest.mark.usefixtures("_fresh_metrics")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        (PLUGIN.replace('"always"', '"accuracy"'), "registered twice"),
    ],
)
def test_plugin_file_that_fails(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(content)
    for _ in range(2):  # a failed import is tried again, not taken for done
        with pytest.raises(UsageError, match=message) as caught:
            load_plugin_file(file)
        assert str(file) in str(caught.value)


def test_plugin_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.py: no such file"):
        load_plugin_file(tmp_path / "none.py")
    with pytest.raises(UsageError, match="no such file"):
        load_plugin_file(tmp_path)
    (tmp_path / "data.csv").write_text("a")
    with pytest.raises(UsageError, match="not a Python file"):
        load_plugin_file(tmp_path / "data.csv")
