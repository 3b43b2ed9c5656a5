"""Published numbers, to stand beside reproduced ones: `reports/published/*.csv`, one row per number.

Values are fractions, as metrics here return them (59.94 % is 0.5994).  Names are those of the registries, or of the
tables below for what is not registered.  A number may be compared with a run only if data set, protocol, condition and
metric are the same: F1-micro is not F1-macro, and a mean over patterns is not their pool.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from harness.errors import DataError

FOLDER = Path(__file__).with_name("published")

#: How sure it is that the source states this number for this method and setting; best first.
CONFIDENCES = ("high", "medium", "low")
#: Printed where it was read, measured from a picture, or repeated there after another source.
HOW_READ = ("printed", "digitised", "quoted")
#: Protocol, or data set, of a number whose source does not state it.  Nothing compares with it.
UNKNOWN = "unknown"

#: Methods that are not registered here, as their papers call them.
EXTERNAL_METHODS: Mapping[str, str] = {
    "acmae": "AcMAE",
    "anga": "ANGA",
    "aoept": "AOEPT",
    "cif_mmin": "CIF-MMIN",
    "corrkd": "CorrKD",
    "drfuse": "DrFuse",
    "gcnet": "GCNet",
    "hardy_mer": "HARDY-MER",
    "mctn": "MCTN",
    "memprompt": "MemPrompt",
    "momke": "MoMKE",
    "nmer": "NMER",
    "no_prompt": "ViLT without prompts (AOEPT's lower bound)",
    "primd": "PriMD",
    "smil": "SMIL",
    "tfr_net": "TFR-Net",
    "vilt": "ViLT (MAP's baseline)",
}
#: Data sets that are not registered here.
EXTERNAL_DATASETS: Mapping[str, str] = {
    "iemocap_six": "IEMOCAP, six classes",
    "mimic_iii": "MIMIC-III",
    "mimic_iv": "MIMIC-IV, mortality",
}
#: Metrics that are not registered here.
EXTERNAL_METRICS: Mapping[str, str] = {
    "f1": "F1, the average is not stated",
    "accuracy_two_class": "accuracy of two classes, positive or not",
}


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        method: Registered name, or a key of `EXTERNAL_METHODS`.
        dataset: Registered name, a key of `EXTERNAL_DATASETS`, or `UNKNOWN`.
        metric: Registered name, or a key of `EXTERNAL_METRICS`.
        protocol: Canonical name, or `UNKNOWN`.
        condition: Test condition, or aggregate over conditions, of protocols that have several; else empty.
        variant: Ablation or setting; empty for the method as its paper proposes it.
        value: Fraction.
        spread: Standard deviation over runs, a fraction; None where none is stated.
        paper: Where the number was read.
        table: Table or figure of it.
        confidence: One of `CONFIDENCES`.
        how_read: One of `HOW_READ`.
        note: Caveats.
    """

    method: str
    dataset: str
    metric: str
    protocol: str
    condition: str
    variant: str
    value: float
    spread: float | None
    paper: str
    table: str
    confidence: str
    how_read: str
    note: str

    @property
    def key(self) -> tuple[str, ...]:
        """What no two numbers of one table may share."""
        return (
            *(self.paper, self.table, self.method, self.variant),
            *(self.dataset, self.protocol, self.condition, self.metric),
        )


COLUMNS = tuple(field.name for field in fields(Published))
_MAY_BE_EMPTY = {"condition", "variant", "spread", "note"}


def read_published(path: Path) -> list[Published]:
    """Numbers of one file.

    Raises:
        DataError: If a column is missing or a value is not what `Published` says; it names file and line.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, restval="")
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path}: the columns must be {', '.join(COLUMNS)}.")
        found = []
        for row in reader:
            try:
                found.append(_parse(row))
            except ValueError as error:
                raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
    return found


def check_unique(numbers: Iterable[Published]) -> None:
    """Refuses two numbers for one cell of one table.

    Raises:
        DataError: It names the cell.
    """
    seen = set()
    for number in numbers:
        if number.key in seen:
            raise DataError(f"published numbers: {' / '.join(filter(None, number.key))} is there twice.")
        seen.add(number.key)


@cache
def published() -> tuple[Published, ...]:
    """Every number, file by file."""
    numbers = tuple(number for path in sorted(FOLDER.glob("*.csv")) for number in read_published(path))
    check_unique(numbers)
    return numbers


def lookup(
    method: str, dataset: str, protocol: str, metric: str, *, condition: str = "", variant: str = ""
) -> tuple[Published, ...]:
    """Numbers that may stand beside a run, the most reliable first; several when several papers or tables have one.

    Args:
        method: Registered name.
        dataset: Registered name.
        protocol: Canonical name.
        metric: Registered name.
        condition: Test condition or aggregate, where the protocol has several.
        variant: Ablation, as the tables call it.
    """
    wanted = (method, dataset, protocol, metric, condition, variant)
    found = [
        number
        for number in published()
        if (number.method, number.dataset, number.protocol, number.metric, number.condition, number.variant) == wanted
        and UNKNOWN not in (number.dataset, number.protocol)
    ]
    return tuple(
        sorted(found, key=lambda number: (CONFIDENCES.index(number.confidence), HOW_READ.index(number.how_read)))
    )


def _parse(row: Mapping[str | None, str]) -> Published:
    if None in row:
        raise ValueError(f"more than {len(COLUMNS)} cells")
    text = {name: row[name] for name in COLUMNS}
    for name, cell in text.items():
        if cell != cell.strip():
            raise ValueError(f"{name} begins or ends with a space")
        if not cell and name not in _MAY_BE_EMPTY:
            raise ValueError(f"{name} is empty")
    for name, choices in (("confidence", CONFIDENCES), ("how_read", HOW_READ)):
        if text[name] not in choices:
            raise ValueError(f"{name} is {text[name]!r}, not one of {', '.join(choices)}")
    value = _fraction("value", text.pop("value"))
    spread = text.pop("spread")
    return Published(**text, value=value, spread=_fraction("spread", spread) if spread else None)


def _fraction(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} is {text!r}, not a fraction between 0 and 1")
    return value
