"""Search spaces: which options of a method `harness tune` searches, and where.

A method declares its own in YAML beside its card, `space.yaml` for `card.md` and `NAME.space.yaml` for `NAME.md`; what
it names is added to the common space, which every method that trains has:

    method.k: {low: 1, high: 20, log: true}
    method.dropout: {low: 0.0, high: 0.5}
    method.head: {choices: [mlp, linear]}

It is no code of the plugin: a run has its options from its config alone, so a changed space changes no run id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import MethodConfig, RunConfig
from harness.errors import UsageError
from harness.files import read_yaml

Value = bool | int | float | str


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both included; whole ones if both ends are.

    Attributes:
        low: Lower end.
        high: Upper end.
        log: Whether orders of magnitude, not values, are searched evenly.
    """

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of a few values.

    Attributes:
        choices: The values.
    """

    choices: tuple[Value, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return ", ".join(map(str, self.choices))


Space = Mapping[str, Span | Choice]

#: Whole numbers up to here are floats, too.
_LARGEST = 2**53

#: What is searched for every method that trains, around the defaults.
COMMON: Space = {
    "trainer.lr": Span(1e-4, 1e-2, log=True),
    "trainer.weight_decay": Span(1e-6, 1e-1, log=True),
}


def space_path(method: type[MethodConfig]) -> Path | None:
    """Where a method's own space is declared; None if it has no card to lie beside."""
    if not method.card:
        return None
    card = method.card_path()
    return card.with_name("space.yaml" if card.name == "card.md" else f"{card.stem}.space.yaml")


def space_of(method: type[MethodConfig]) -> Space:
    """What is searched for a method: the common space, and what it declares itself.

    Raises:
        UsageError: If its file cannot be used.
    """
    common = COMMON if method.trains else {}
    path = space_path(method)
    return {**common, **read_space(path)} if path is not None and path.is_file() else common


def read_space(path: Path) -> Space:
    """The space that a file declares.

    Raises:
        UsageError: Naming the file and the entry that is wrong.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as YAML ({error}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: write lines of OPTION: {{low: …, high: …}} or OPTION: {{choices: […]}}.")
    return {str(key): _dimension(f"{path}: {key}", entry) for key, entry in content.items()}


def _dimension(where: str, entry: Any) -> Span | Choice:
    entry = entry if isinstance(entry, dict) else {}
    if set(entry) == {"choices"}:
        choices = entry["choices"]
        plain = isinstance(choices, list) and all(isinstance(value, (bool, int, float, str)) for value in choices)
        if not plain or len(set(choices)) < max(2, len(choices)):
            raise UsageError(f"{where}: choices must be a list of two or more different values.")
        return Choice(tuple(choices))
    if not {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
        raise UsageError(f"{where}: write {{low: …, high: …}}, with log: true if you like, or {{choices: […]}}.")
    low, high, log = entry["low"], entry["high"], entry.get("log", False)
    numbers = all(
        isinstance(end, (int, float)) and not isinstance(end, bool) and abs(end) <= _LARGEST for end in (low, high)
    )
    if not numbers or not isinstance(log, bool) or low >= high or (log and low <= 0):
        raise UsageError(f"{where}: low and high must be numbers of at most 2^53, low below high, and above 0 for log.")
    return Span(low, high, log)


def value_of(config: RunConfig, option: str) -> Any:
    """The value of an option that a space names.

    Raises:
        UsageError: If the config has no such option.
    """
    owner, _, name = option.partition(".")
    try:
        return getattr(getattr(config, owner), name)
    except AttributeError:
        raise UsageError(f"the search space names {option!r}, which is no option of this run.") from None
