"""What every plugin is to the harness: a light, documented config dataclass that names its implementation.

The config is the plugin's code API, its Hydra schema and its entry in `harness list`; importing it must not
import torch or transformers.  The implementation is imported only when a run needs it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from harness.errors import UsageError


@dataclass
class PluginConfig:
    """Base of all plugin configs; subclasses are `@dataclass`es whose fields are the plugin's options.

    Attributes:
        target: `"package.module:Class"` of the implementation, imported lazily.
        summary: One line for `harness list`.
        citation: Who to cite: authors, title, venue, year; or why there is nothing to cite.
        version: Raised whenever results can change.
        card: Path of the Markdown card, relative to the module that defines the config.
        presets: Named sets of option values, e.g. fidelity presets of a method.
    """

    target: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    card: ClassVar[str] = "card.md"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @classmethod
    def from_preset(cls, name: str) -> Self:
        """Builds the config with the options of preset `name` set.

        Raises:
            UsageError: If the plugin has no such preset.
        """
        if name not in cls.presets:
            known = ", ".join(cls.presets) or "none"
            raise UsageError(f"{cls.__name__} has no preset {name!r}; presets: {known}.")
        return cls(**cls.presets[name])

    @classmethod
    def implementation(cls) -> Any:
        """Imports and returns the class or function that `target` names.

        Raises:
            UsageError: If it cannot be imported.
        """
        module, _, attribute = cls.target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{cls.__name__}: its target {cls.target!r} cannot be loaded: {error}.") from error

    @classmethod
    def card_path(cls) -> Path:
        """Absolute path of the plugin's card."""
        return Path(inspect.getfile(cls)).parent / cls.card

    @classmethod
    def source_files(cls) -> list[Path]:
        """Python files that make up the plugin.

        A plugin whose card is the `card.md` of its package owns that package, and all modules in it count; of a
        package shared by several plugins (`zero_fill.md`, `knn_vote.md`, …) only the config's and the target's do.
        What only looks at finished runs (`harness.inspector`) does not count.
        """
        config = Path(inspect.getfile(cls))
        if "." in cls.__module__ and cls.card == PluginConfig.card and cls.card_path().is_file():
            return _counted(config.parent.rglob("*.py"))
        module = cls.target.partition(":")[0]
        spec = importlib.util.find_spec(module) if module else None
        return sorted({config, *([Path(spec.origin)] if spec is not None and spec.origin is not None else [])})

    @classmethod
    def shared_files(cls) -> list[Path]:
        """Python files directly in the `common` package beside the plugin's own, which its modules may use."""
        return _counted((Path(inspect.getfile(cls)).parents[1] / "common").glob("*.py"))

    @classmethod
    def source_fingerprint(cls) -> str:
        """Digest of the plugin's version, sources and shared modules: an edited plugin gets new run ids."""
        digest = hashlib.sha256(f"{cls.__qualname__}:{cls.version}".encode())
        for file in [*cls.source_files(), *cls.shared_files()]:
            digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
        return digest.hexdigest()[:16]

    def validate(self) -> None:
        """Checks what types cannot say (ranges, combinations); raises `UsageError` with one clear line."""

    def to_dict(self) -> dict[str, Any]:
        """Options as plain data, in field order."""
        return dataclasses.asdict(self)


def _counted(files: Iterable[Path]) -> list[Path]:
    """Files that can change a result."""
    return sorted(file for file in files if file.name != "inspector.py")


def check_choice(owner: str, option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises a `UsageError` naming the choices when `value` is not one of them."""
    if value not in choices:
        raise UsageError(f"{_named(owner, option)}={value!r} is not one of {', '.join(choices)}.")


def check_range(owner: str, option: str, value: float, low: float, high: float | None = None) -> None:
    """Raises a `UsageError` when `value` lies outside [low, high], or is no finite number."""
    if not low <= value < math.inf or (high is not None and value > high):
        least = f">= {low} and finite" if value == math.inf else f">= {low}"
        span = least if high is None else f"between {low} and {high}"
        raise UsageError(f"{_named(owner, option)}={value} must be {span}.")


def _named(owner: str, option: str) -> str:
    """An option as it is typed; the run's own have no owner."""
    return f"{owner}.{option}" if owner else option
