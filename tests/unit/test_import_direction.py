"""Dependency direction over the syntax tree of every module, and what the light parts leave unimported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent.parent
PLUGIN_FOLDERS = ("methods", "datasets", "protocols", "reports", "presets")

#: Packages that the light parts (registries, configs, command line, reports) must not import when they are imported.
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "mlflow",
    "pandas",
    "sklearn",
    "scipy",
    "matplotlib",
    "faiss",
    "PIL",
    "rich",
)


def modules() -> dict[str, Path]:
    """Import name -> file of every module of the distribution."""
    found = {}
    for folder in ("harness", *PLUGIN_FOLDERS):
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if folder == "harness" else ("harness", *parts))
            found[name.removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imports(name: str, type_checking: bool = True) -> Iterator[str]:
    """Modules that a module imports anywhere, inside functions too; `from a import b` is `a.b` if that is a module."""
    tree = ast.parse(MODULES[name].read_text())
    skipped: set[ast.AST] = set()
    if not type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped.update(inner for part in node.body for inner in ast.walk(part))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write absolute imports"
            assert node.module is not None
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                yield path if path in MODULES else node.module


def below(path: str, *packages: str) -> bool:
    return any(path == package or path.startswith(package + ".") for package in packages)


def of(*packages: str) -> list[str]:
    return [name for name in sorted(MODULES) if below(name, *packages)]


def framework() -> list[str]:
    plugins = [f"harness.{folder}" for folder in PLUGIN_FOLDERS]
    return [name for name in sorted(MODULES) if not below(name, *plugins)]


def test_the_walk_finds_the_distribution() -> None:
    assert {"harness.types", "harness.methods.redeem.config", "harness.protocols.fixed_rate"} <= set(MODULES)
    assert set(imports("harness.masking")) >= {"numpy", "torch", "harness.protocol", "pandas"}
    assert "harness.masking" in set(imports("harness.method"))
    assert "harness.masking" not in set(imports("harness.method", type_checking=False))


@pytest.mark.parametrize("name", [name for name in framework() if not below(name, "harness.testing")])
def test_framework_knows_no_concrete_plugin(name: str) -> None:
    plugins = [f"harness.{folder}" for folder in PLUGIN_FOLDERS if folder != "reports"]
    assert not [path for path in imports(name) if below(path, *plugins)]


@pytest.mark.parametrize(
    "name", [name for name in framework() if not below(name, "harness.__main__", "harness.cli", "harness.testing")]
)
def test_only_the_command_line_imports_reports(name: str) -> None:
    assert not [path for path in imports(name) if below(path, "harness.reports", "harness.cli", "harness.testing")]


#: What the bottom of the framework may import from it; everything else may not be below them.
LAYERS = {
    "harness.errors": set(),
    "harness.types": set(),
    "harness.plugin": {"harness.errors"},
    "harness.registry": {"harness.errors", "harness.plugin"},
    "harness.devices": {"harness.errors"},
    "harness.config": {"harness.devices", "harness.errors", "harness.plugin"},
    "harness.protocol": {"harness.errors", "harness.plugin", "harness.types", "harness.registry"},
    "harness.dataset": {"harness.errors", "harness.plugin", "harness.types"},
    "harness.measures": {"harness.types"},
    "harness.metrics": {"harness.errors", "harness.config", "harness.types", "harness.registry"},
    "harness.record": {"harness.errors", "harness.files"},
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_lower_layers(name: str) -> None:
    used = {path for path in imports(name) if below(path, "harness")} - {"harness"}
    assert used <= LAYERS[name]


@pytest.mark.parametrize("name", of("harness.protocols"))
def test_protocols_are_numpy_only(name: str) -> None:
    allowed = {f"harness.{part}" for part in ("protocol", "plugin", "errors", "types")}
    # One reads saved tables, one names changes of values.
    allowed |= {
        "harness.protocols.table": {"harness.masking", "harness.changes"},
        "harness.protocols.changed": {"harness.changes"},
    }.get(name, set())
    foreign = {path.partition(".")[0] for path in imports(name)} - set(sys.stdlib_module_names) - {"harness"}
    assert foreign <= {"numpy"}
    assert {path for path in imports(name) if below(path, "harness")} <= allowed


@pytest.mark.parametrize("name", of("harness.datasets"))
def test_data_sets_know_neither_each_other_nor_methods(name: str) -> None:
    shared = {"harness.datasets"}
    own = {name, *(path for path in MODULES if below(path, name))}
    for path in imports(name):
        assert not below(path, "torch", "transformers", "harness.methods", "harness.protocols", "harness.reports"), path
        helper = path.rpartition(".")[2].startswith("_")
        assert not below(path, "harness.datasets") or path in own | shared or helper, f"{name} imports {path}"


def plugin_of(name: str) -> str:
    """`harness.methods.redeem` for its modules; the shared parts are no plugin."""
    return ".".join(name.split(".")[:3])


@pytest.mark.parametrize("name", of("harness.methods"))
def test_methods_import_only_common_and_their_own(name: str) -> None:
    for path in imports(name):
        assert not below(path, "harness.datasets", "harness.protocols", "harness.reports", "harness.cli"), path
        assert not below(path, "harness.runner", "harness.trainer", "harness.tracking"), path
        assert not below(path, "harness.cell", "harness.execution", "harness.workspace"), path
        assert not below(path, "harness.audit", "harness.reaudit"), path
        if below(path, "harness.methods") and path != "harness.methods":
            assert plugin_of(path) in (plugin_of(name), "harness.methods.common"), f"{name} imports {path}"


@pytest.mark.parametrize("name", of("harness.reports"))
def test_reports_read_records_only(name: str) -> None:
    for path in imports(name):
        assert not below(path, "torch", "transformers", "accelerate", "faiss"), path
        assert not below(
            path,
            *(
                f"harness.{part}"
                for part in ("method", "trainer", "runner", "cell", "execution", "backbone", "retrieval")
            ),
            *(f"harness.{part}" for part in ("features", "masking", "methods", "datasets", "protocols", "cli")),
        ), path


LIGHT = """
import sys
from harness import registry
import harness.cli
import harness.config, harness.files, harness.identity, harness.metrics, harness.protocol, harness.record
for plugins in registry.KINDS.values():
    for name in plugins.names():
        plugins.get(name)
from harness.protocol import parse_protocol
parse_protocol("both_0.7").describe()
import pkgutil, importlib, harness.reports
for module in pkgutil.walk_packages(harness.reports.__path__, "harness.reports."):
    importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_light_parts_leave_heavy_packages_unimported(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY)


def test_measuring_needs_numpy_only(tmp_path: Path) -> None:
    code = "import sys, harness.scoring; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)
