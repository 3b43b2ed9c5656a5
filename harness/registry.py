"""One generic registry for every kind of plugin: lazy, typed, open to other packages.

A plugin is registered under a name as `"package.module:ConfigClass"`.  Sources, in order:
the built-in tables of this repository, entry points of installed packages (groups `harness.methods`,
`harness.datasets`, …), and modules given with `--plugin file.py`, which call `registry.register`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from harness.errors import HarnessError, UnknownNameError, UsageError
from harness.plugin import PluginConfig

T = TypeVar("T", bound=PluginConfig)


@dataclass(frozen=True)
class Entry:
    """Where a registered name points and which package owns it."""

    name: str
    target: str
    owner: str


class Registry(Generic[T]):
    """Names of one kind of plugin, resolved to config classes on demand.

    Args:
        kind: Singular noun for messages, e.g. `"method"`.
        base: `"module:Class"` that every config class must derive from.
        builtin: `"module:TABLE"` of the names this repository ships, a mapping name -> target.
    """

    def __init__(self, kind: str, base: str, builtin: str) -> None:
        self.kind = kind
        self._base = base
        self._builtin = builtin
        self._entries: dict[str, Entry] = {}
        self._loaded: dict[str, type[T]] = {}
        self._discovered = False

    @property
    def group(self) -> str:
        """Entry-point group of this kind."""
        return f"harness.{self.kind}s"

    def register(self, name: str, target: str | type[T], owner: str = "plugin") -> None:
        """Adds one plugin.

        Args:
            name: What users type.
            target: `"module:ConfigClass"`, or the class itself.
            owner: Package or file that provides it, named when two plugins collide.

        Raises:
            UsageError: If another owner has registered the name.
        """
        self._discover()
        self._add(name, target, owner)

    def _add(self, name: str, target: str | type[T], owner: str) -> None:
        path = target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"
        known = self._entries.get(name)
        if known is not None and known.target != path:
            raise UsageError(
                f"{self.kind} {name!r} is registered twice: by {known.owner} ({known.target}) "
                f"and by {owner} ({path}); rename one of them."
            )
        if not isinstance(target, str):
            self._loaded[name] = self._checked(name, target)
        self._entries[name] = Entry(name, path, owner)

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        module, _, table = self._builtin.partition(":")
        builtin: Mapping[str, str] = getattr(importlib.import_module(module), table)
        for name, target in builtin.items():
            self._add(name, target, "missing-modality-harness")
        for point in entry_points(group=self.group):
            owner = point.dist.name if point.dist is not None else "an installed package"
            self._add(point.name, point.value, owner)

    def _checked(self, name: str, config: type[T]) -> type[T]:
        module, _, attribute = self._base.partition(":")
        base = getattr(importlib.import_module(module), attribute)
        if not (isinstance(config, type) and issubclass(config, base)):
            raise UsageError(f"{self.kind} {name!r} ({config!r}) is not a subclass of {base.__name__}.")
        return config

    def get(self, name: str) -> type[T]:
        """Config class registered under `name`.

        Raises:
            UnknownNameError: With suggestions and the list of all names.
            UsageError: If the target cannot be imported or is of the wrong type.
        """
        entry = self.entry(name)
        if name not in self._loaded:
            module, _, attribute = entry.target.partition(":")
            try:
                with redirect_stdout(sys.stderr):
                    config = getattr(importlib.import_module(module), attribute)
            except (Exception, SystemExit) as error:
                why = str(error) if isinstance(error, (ImportError, AttributeError)) else _what(error)
                raise UsageError(
                    f"{self.kind} {name!r} of {entry.owner} cannot be loaded from {entry.target!r}: {why}."
                ) from error
            self._loaded[name] = self._checked(name, config)
        return self._loaded[name]

    def name_of(self, config: type[PluginConfig]) -> str:
        """Name under which a config class is registered.

        Raises:
            UsageError: If it is not.
        """
        for name, loaded in self._loaded.items():
            if loaded is config:
                return name
        path = f"{config.__module__}:{config.__qualname__}"
        for entry in self:
            if entry.target == path:
                return entry.name
        raise UsageError(f"{path} is not registered as a {self.kind}.")

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def entry(self, name: str) -> Entry:
        """Where a name comes from.

        Raises:
            UnknownNameError: With suggestions and the list of all names.
        """
        self._discover()
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry]:
        self._discover()
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._entries


def load_plugin_file(path: str | Path) -> None:
    """Imports a file given with `--plugin`; it registers its plugins when it is executed, and may do anything else.

    Code of others is run by this option and by installed packages with entry points, and by nothing else.

    Raises:
        UsageError: If the file is missing or raises.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise UsageError(f"--plugin {path}: no such file.")
    # The digest tells files of the same name in different folders apart.
    name = f"harness_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except HarnessError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"--plugin {path}: {_what(error)}") from error


def _what(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _registry(kind: str, base: str, builtin: str) -> Registry[PluginConfig]:
    return Registry(kind, base, builtin)


methods = _registry("method", "harness.config:MethodConfig", "harness.methods:BUILTIN")
datasets = _registry("dataset", "harness.dataset:DatasetConfig", "harness.datasets:BUILTIN")
protocols = _registry("protocol", "harness.protocol:Protocol", "harness.protocols:BUILTIN")
encoders = _registry("encoder", "harness.config:EncoderConfig", "harness.methods.common.encoders:BUILTIN")
backbones = _registry("backbone", "harness.config:BackboneConfig", "harness.methods.common.backbones:BUILTIN")
metrics = _registry("metric", "harness.config:MetricConfig", "harness.metrics:BUILTIN")
executors = _registry("executor", "harness.executors.base:ExecutorConfig", "harness.executors:BUILTIN")

KINDS: Mapping[str, Registry[PluginConfig]] = {
    "methods": methods,
    "datasets": datasets,
    "protocols": protocols,
    "metrics": metrics,
    "encoders": encoders,
    "backbones": backbones,
    "executors": executors,
}
