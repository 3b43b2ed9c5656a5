"""Files of cells: the grids of a sweep as a YAML list, instead of on a command line.

- {method: redeem, method.preset: [clean, paper], protocol: both_0.7, train_seed: [0, 1, 2]}
- {method: all, dataset: openmoji, protocol: [text_0.7, "train:complete,test:both_0.7"]}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import read_yaml
from harness.run_files import override_key

#: What a command line need not quote; the words of YAML and Hydra for other values are.
_WORD = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z][\w.-]*", re.ASCII)


def read_cells(path: Path, common: Sequence[str] = ()) -> list[list[str]]:
    """The overrides of every grid in a file, as `harness run` takes them.

    Args:
        path: YAML list of mappings: option -> value, or a list of values, which makes a grid.
        common: Overrides of all grids; they replace those of the file that set the same option.

    Raises:
        UsageError: If the file cannot be read or is something else; it names the entry.
    """
    try:
        entries = read_yaml(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a YAML file ({error}).") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{path}: write a YAML list of grids, e.g. `- {{method: redeem, train_seed: [0, 1]}}`.")
    grids = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
            raise UsageError(f"{path}: entry {number} is not a mapping of options to values, e.g. {{method: redeem}}.")
        merged = {key: f"{key}={_override(key, value)}" for key, value in entry.items()}
        grids.append(list((merged | {override_key(text): text for text in common}).values()))
    return grids


def _override(key: str, value: Any) -> str:
    """What stands behind `key=` on a command line."""
    values = value if isinstance(value, list) else [value]
    # The names of protocols have commas and colons of their own, which are not those of a list.
    return ",".join(item if key == "protocol" and isinstance(item, str) else _text(item) for item in values)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    if not isinstance(value, str) or _WORD.fullmatch(text):
        return text
    # Hydra reads a backslash as one unless a quote follows.
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{quoted}'"
