"""Published tables as runs: `presets/<paper>/<table>/…/<cell>.yaml`, one file per cell.

A cell says which run it is (Hydra overrides), where its numbers were printed and what they are.  `table.yaml` in the
folder of a table says what its cells share.  The numbers of a cell are those of `reports/published/*.csv`, which is
where they come from: a cell with another number is refused, so the two cannot disagree.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from harness.errors import DataError, UsageError
from harness.presets import FOLDER
from harness.reports.published import Published, published

#: What the cells of a table share.
SHARED = "table.yaml"
_CELL = {"paper", "table", "published", "run", "note", "differs"}
_TABLE = {"repetitions", "run", "note"}


@dataclass(frozen=True)
class Preset:
    """One cell of a published table, as a run.

    Attributes:
        name: Its path below `presets/`, e.g. `redeem/table1/hateful_memes_both_0.7`.
        run: Overrides of `harness run`, those that all cells of the table share first.
        numbers: What is printed in the cell, one number per metric.
        repetitions: Runs behind each printed mean.
        note: Where the settings come from, and what is known to differ.
        differs: Why the numbers are not about what our runs measure; empty where they are.
    """

    name: str
    run: Mapping[str, str]
    numbers: tuple[Published, ...]
    repetitions: int
    note: str
    differs: str

    @property
    def overrides(self) -> list[str]:
        """`run` as arguments of `harness run`."""
        return [f"{key}={value}" for key, value in self.run.items()]

    @property
    def source(self) -> str:
        """Paper and table."""
        return f"{self.numbers[0].paper}, {self.numbers[0].table}"


@cache
def presets(folder: Path = FOLDER) -> Mapping[str, Preset]:
    """Every cell by its name, in the order of names.

    Raises:
        DataError: If a file is not what this module says; it names the file.
    """
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        if path.name != SHARED:
            name = path.relative_to(folder).as_posix().removesuffix(".yaml")
            found[name] = _read_cell(path, name, folder)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Shared:
    """What is known of the runs behind a published table.

    Attributes:
        repetitions: Runs behind each printed mean.
        run: Overrides of `harness run` that all its cells share.
    """

    repetitions: int
    run: Mapping[str, str]


@cache
def shared_settings() -> Mapping[tuple[str, str], Shared]:
    """What the cells of a table share, by its paper and name."""
    cells: dict[tuple[str, str], list[Preset]] = {}
    for preset in presets().values():
        cells.setdefault((preset.numbers[0].paper, preset.numbers[0].table), []).append(preset)
    return {
        table: Shared(found[0].repetitions, dict(sorted(set.intersection(*(set(one.run.items()) for one in found)))))
        for table, found in cells.items()
    }


def select(names: Iterable[str], known: Mapping[str, Preset] | None = None) -> list[Preset]:
    """Cells by name, by the name of a folder, or by a pattern of one (`redeem/table1/*_both_0.7`), each once.

    Raises:
        UsageError: If a name stands for no cell.
    """
    known = presets() if known is None else known
    chosen: dict[str, Preset] = {}
    for name in names:
        wanted = name.rstrip("/")
        hits = {
            cell: preset
            for cell, preset in known.items()
            if f"{cell}/".startswith(f"{wanted}/") or _matches(cell, wanted)
        }
        if not hits:
            close = difflib.get_close_matches(wanted, [*known, *tables(known)], n=3, cutoff=0.6)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            listed = ", ".join(tables(known))
            raise UsageError(f"no preset {name!r}.{hint} Tables: {listed}; `harness list presets` shows their cells.")
        chosen |= hits
    return list(chosen.values())


def tables(known: Mapping[str, Preset]) -> list[str]:
    """Names of the tables that the cells are of: the first two parts of their names."""
    return list(dict.fromkeys("/".join(PurePosixPath(cell).parts[:2]) for cell in known))


def _matches(cell: str, pattern: str) -> bool:
    """Whether a cell fits a pattern part by part: `*` does not reach into folders."""
    return len(PurePosixPath(cell).parts) == len(PurePosixPath(pattern).parts) and PurePosixPath(cell).match(pattern)


def _read_cell(path: Path, name: str, root: Path) -> Preset:
    cell = _read(path, _CELL, {"paper", "table", "published", "run"})
    above = [folder / SHARED for folder in path.parents if folder != root and root in folder.parents]
    shared_path = next((file for file in above if file.is_file()), None)
    if shared_path is None:
        raise DataError(f"{path}: there is no {SHARED} in its folder or above it.")
    shared = _read(shared_path, _TABLE, {"repetitions", "run"})
    double = sorted(set(shared["run"]) & set(cell["run"]))
    if double:
        raise DataError(f"{path}: {', '.join(double)} is set here and in {shared_path}.")
    run = {**shared["run"], **cell["run"]}
    absent = [key for key in ("method", "dataset", "protocol") if key not in run]
    if absent or not cell["published"]:
        raise DataError(f"{path}: it names no {', '.join(absent) or 'published number'}.")
    if not shared["repetitions"].isdecimal() or int(shared["repetitions"]) < 1:
        raise DataError(f"{shared_path}: repetitions is {shared['repetitions']!r}, not a number of runs.")
    return Preset(
        name=name,
        run=run,
        numbers=tuple(_number(path, cell, run, metric, text) for metric, text in cell["published"].items()),
        repetitions=int(shared["repetitions"]),
        note=" ".join(f"{shared.get('note', '')} {cell.get('note', '')}".split()),
        differs=" ".join(cell.get("differs", "").split()),
    )


def _number(path: Path, cell: Mapping[str, Any], run: Mapping[str, str], metric: str, text: str) -> Published:
    """The published number that a cell names, which must have the value that the cell states."""
    source = (cell["paper"], cell["table"], run["method"], "", run["dataset"], run["protocol"], "", metric)
    number = next((number for number in published() if number.key == source), None)
    where = " / ".join(filter(None, source))
    if number is None:
        raise DataError(f"{path}: there is no published number {where}.")
    try:
        stated = float(text)
    except ValueError:
        stated = math.nan
    if stated != number.value:
        raise DataError(f"{path}: states {metric} {text}, but the published number {where} is {number.value}.")
    return number


def _read(path: Path, allowed: set[str], needed: set[str]) -> dict[str, Any]:
    """The mapping in a file: texts, or mappings of texts under `run` and `published`."""
    import yaml  # type: ignore[import-untyped]

    try:
        # Every scalar stays the text that it is: an override is a text, and so is a number to be compared.
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not needed <= set(content) <= allowed:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{path} has {found}; of {', '.join(sorted(allowed))} it must have {', '.join(sorted(needed))}."
        )
    for key, value in content.items():
        listing = key in ("run", "published")
        texts = value.values() if listing and isinstance(value, dict) else [value]
        if listing != isinstance(value, dict) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}: {key} must be {'lines of NAME: VALUE' if listing else 'a text'}.")
    return content
