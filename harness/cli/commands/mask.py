"""`harness mask`: mask tables as files."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.commands.describe import DrawConfig, counts_table, print_remarks
from harness.cli.output import print_facts, print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.config import PathsConfig
from harness.errors import EXIT_OK, DataError, UsageError
from harness.protocol import parse_rate
from harness.types import SPLITS, Split

if TYPE_CHECKING:
    from harness.masking import MaskTable
    from harness.types import DataTable

_EPILOG = """\
actions:
  build    draw a table:   harness mask build protocol=both_0.7 dataset=openmoji mask_seed=0 -o masks/both_0.7
  show     print one:      harness mask show masks/both_0.7
  verify   check one:      harness mask verify masks/both_0.7 dataset=openmoji
  diff     compare two:    harness mask diff masks/both_0.5 masks/both_0.7
  export   write as CSV:   harness mask export masks/both_0.7 --format csv -o both_0.7.csv
  import   read a file:    harness mask import both_0.7.csv --format csv dataset=openmoji -o masks/mine
                           harness mask import missing_table.pkl --format redeem --missing both \\
                               --column missing_mask_7 dataset=mmimdb -o masks/released
                           harness mask import train.pt val.pt test.pt --format map --split train,valid,test \\
                               dataset=mmimdb -o masks/map
  official draw released:  harness mask official --counts train=15552,valid=2608,test=7799 --missing both \\
                               --rate 0.7 --seed 2024 --out codes.npy

A table is two files, NAME.parquet (presence per sample) and NAME.json (definition, counts, sha256).  A protocol with
several test conditions has one block of test rows for each, named in the column `condition:`.  `verify` checks
the sha256, and with dataset=NAME also that the table belongs to that data set and is what its protocol draws there.
An imported table is checked against the data set that it is read for: every id, length and code must fit.  Files of
REDEEM and RAGPT (pickles) and of MAP (.pt) are read without running them; MAP's hold no ids and go by position.

`official` needs no data: it writes the int8 codes that the released code of REDEEM and RAGPT draws for data sets of
these sizes, one per sample, train, valid and test one after the other.  --missing both: 0 text missing, 1 image
missing, 2 complete; --missing text or image: 0 missing, 1 complete.  (MAP's files have other codes: 0 complete, 1 text
missing, 2 image missing.)  A split may be left out: the released code has no valid split of Food-101."""


#: Actions, and the options that each takes.
_ACTIONS: dict[str, tuple[str, ...]] = {
    "build": ("output",),
    "show": (),
    "verify": (),
    "diff": (),
    "export": ("output", "format"),
    "import": ("output", "format", "split", "missing", "column"),
    "official": ("output", "missing", "counts", "rate", "seed"),
}
_FORMATS = ("csv", "redeem", "map")
#: What the released code seeds everything with.
RELEASED_SEED = 2024


@dataclass
class ImportConfig:
    """The data set that a file's masks are for."""

    dataset: Any
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class BuildConfig:
    """What a mask table is drawn from."""

    dataset: Any
    protocol: str = "both_0.7"
    mask_seed: int = 0
    paths: PathsConfig = field(default_factory=PathsConfig)


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("action", choices=tuple(_ACTIONS), help="what to do")
    result.add_argument("arguments", nargs="*", metavar="FILE | OPTION=VALUE", help="see below")
    result.add_argument("-o", "--output", "--out", metavar="FILE", type=Path, help="where to write it")
    result.add_argument("--format", choices=_FORMATS, help="import, export: what kind of file")
    result.add_argument("--split", help="import map: the split of each file, e.g. train,valid,test")
    result.add_argument(
        "--missing", choices=("both", "text", "image"), help="import redeem, official: what is hidden (default: both)"
    )
    result.add_argument("--column", help="import redeem: the column of codes, e.g. missing_mask_7")
    result.add_argument("--counts", metavar="SPLIT=N,…", help="official: samples of train, valid and test")
    result.add_argument("--rate", metavar="R", help="official: share of all samples that miss something, e.g. 0.7")
    result.add_argument("--seed", metavar="S", help=f"official: seed of the draw (default: {RELEASED_SEED})")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Runs one action."""
    for option in dict.fromkeys(option for options in _ACTIONS.values() for option in options):
        if getattr(arguments, option) is not None and option not in _ACTIONS[arguments.action]:
            name = "-o" if option == "output" else f"--{option}"
            owners = " and ".join(f"`harness mask {action}`" for action, own in _ACTIONS.items() if option in own)
            raise UsageError(f"{name} belongs to {owners}, not to {arguments.action}.")
    if arguments.action == "diff":
        _diff(arguments)
        return EXIT_OK
    if arguments.action == "export":
        _export(arguments)
        return EXIT_OK
    if arguments.action == "official":
        _official(arguments)
        return EXIT_OK
    masks = {"build": _build, "import": _import}.get(arguments.action, _read)(arguments)
    if arguments.json:
        print_json(masks.header() | {"missing_rates": masks.missing_rates()})
        return EXIT_OK
    print_facts(
        [
            ("protocol", masks.protocol),
            ("definition", masks.definition),
            ("dataset", masks.dataset),
            ("mask_seed", masks.mask_seed),
            ("sha256", masks.fingerprint),
        ]
    )
    print()
    print_table(*counts_table(masks.counts()))
    print_remarks(masks.remarks)
    return EXIT_OK


def _build(arguments: argparse.Namespace) -> MaskTable:
    from harness.compose import compose_as
    from harness.masking import MaskTable
    from harness.protocol import parse_protocol

    configs = compose_as(BuildConfig, arguments.arguments)
    if len(configs) != 1:
        raise UsageError(f"mask build draws one table at a time, these options describe {len(configs)}.")
    config = configs[0]
    protocol = parse_protocol(config.protocol)
    masks = MaskTable.build(protocol, _load(config), config.mask_seed)
    # Names such as `train:X,test:Y` hold characters that some file systems refuse.
    safe = re.sub(r"[^\w.+-]+", "-", protocol.name)
    path: Path = arguments.output or Path(f"{masks.dataset}-{safe}-mask{config.mask_seed}")
    _save(masks, path)
    return masks


def _save(masks: MaskTable, path: Path) -> None:
    from harness.progress import say

    say(f"wrote {masks.save(path.with_suffix('') if path.suffix in ('.parquet', '.json') else path)}")


def _import(arguments: argparse.Namespace) -> MaskTable:
    from harness.compose import compose_as
    from harness.mask_files import import_csv, import_map, import_redeem

    form, files = arguments.format, [Path(text) for text in arguments.arguments if "=" not in text]
    if form is None or arguments.output is None or not files:
        raise UsageError(
            "mask import needs a file, --format, dataset=NAME and -o: harness mask import FILE --format csv …"
        )
    strange = "--split" if arguments.split is not None and form != "map" else ""
    strange = strange or (
        "--missing and --column" if form != "redeem" and (arguments.missing or arguments.column) else ""
    )
    if strange:
        raise UsageError(f"{strange}: not for --format {form}; --split is for map, --missing and --column for redeem.")
    if form != "map" and len(files) > 1:
        raise UsageError(f"mask import --format {form} reads one file, not {len(files)}.")
    splits = (arguments.split or "").split(",")
    if form == "map" and (
        not set(splits) <= set(SPLITS) or len(set(splits)) != len(files) or len(splits) != len(files)
    ):
        raise UsageError(
            f"--split names one of {', '.join(SPLITS)} for each of the {len(files)} files, e.g. train,test."
        )
    configs = compose_as(ImportConfig, [text for text in arguments.arguments if "=" in text])
    if len(configs) != 1:
        raise UsageError("mask import reads for one data set at a time.")
    table = _load(configs[0])
    if form == "csv":
        masks = import_csv(files[0], table)
    elif form == "redeem":
        masks = import_redeem(files[0], table, arguments.missing or "both", arguments.column or "")
    else:
        masks = import_map({split: files[splits.index(split)] for split in SPLITS if split in splits}, table)
    _save(masks, arguments.output)
    return masks


def _files(arguments: argparse.Namespace, count: int, usage: str) -> list[MaskTable]:
    from harness.masking import MaskTable

    if len(arguments.arguments) != count or any("=" in text for text in arguments.arguments):
        raise UsageError(f"mask {arguments.action} takes {count} saved table{'s' * (count > 1)}: harness mask {usage}.")
    return [MaskTable.load(Path(file)) for file in arguments.arguments]


def _export(arguments: argparse.Namespace) -> None:
    from harness.mask_files import export_csv
    from harness.progress import say

    if arguments.format not in (None, "csv"):
        raise UsageError(f"mask export writes --format csv, not {arguments.format}.")
    (masks,) = _files(arguments, 1, "export FILE --format csv")
    file = Path(arguments.arguments[0])
    stem = file.with_suffix("") if file.suffix in (".parquet", ".json") else file
    path = export_csv(masks, arguments.output or stem.with_name(stem.name + ".csv"))
    say(f"wrote {path}")
    if arguments.json:
        print_json({"file": str(path), "sha256": masks.fingerprint})


def _official(arguments: argparse.Namespace) -> None:
    import numpy as np

    from harness.files import atomic_write
    from harness.mask_files import released_codes
    from harness.progress import say

    if arguments.arguments:
        raise UsageError(f"mask official takes no {arguments.arguments[0]!r}; its options begin with --.")
    absent = [name for name in ("counts", "rate", "output") if getattr(arguments, name) is None]
    if absent:
        names = ", ".join("--out" if name == "output" else f"--{name}" for name in absent)
        raise UsageError(
            f"mask official needs {names}, e.g. harness mask official --counts train=8500,valid=500,test=1000 "
            f"--missing both --rate 0.7 --seed {RELEASED_SEED} --out codes.npy"
        )
    counts, path = _counts(arguments.counts), arguments.output
    missing: str = arguments.missing or "both"
    seed = RELEASED_SEED if arguments.seed is None else _number("--seed", arguments.seed)
    codes = released_codes(counts, missing, parse_rate(arguments.rate, f"concat_{missing}_{arguments.rate}"), seed)
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; name a file, e.g. {path / 'codes.npy'}.")
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, codes)
    say(f"wrote {path}")
    meaning = dict(enumerate(("text missing", "image missing", "complete")))
    if missing != "both":
        meaning = {0: f"{missing} missing", 1: "complete"}
    bounds = np.cumsum([0, *(counts.get(split, 0) for split in SPLITS)])
    parts = {split: codes[bounds[row] : bounds[row + 1]] for row, split in enumerate(SPLITS)} | {"all": codes}
    found = {
        split: {name: int((part == code).sum()) for code, name in meaning.items()} for split, part in parts.items()
    }
    if arguments.json:
        print_json({"file": str(path), "codes": meaning, "counts": found})
        return
    headers = ["split", "samples", *(f"{code} {name}" for code, name in meaning.items())]
    print_table(headers, [[split, len(parts[split]), *row.values()] for split, row in found.items()])


def _counts(text: str) -> dict[Split, int]:
    """Reads `train=15552,valid=2608,test=7799`."""
    counts: dict[Split, int] = {}
    for part in text.split(","):
        name, sign, size = part.strip().partition("=")
        split = next((split for split in SPLITS if split == name), None)
        if split is None or not sign:
            raise UsageError(f"--counts {text}: {part!r} is not SPLIT=N with a split of {', '.join(SPLITS)}.")
        if split in counts:
            raise UsageError(f"--counts {text}: {split} is there twice.")
        counts[split] = _number(f"--counts {split}", size)
    return counts


def _number(option: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise UsageError(f"{option}: {text!r} is not a whole number from 0.")
    return int(text)


def _diff(arguments: argparse.Namespace) -> None:
    from harness.mask_files import difference

    one, other = _files(arguments, 2, "diff FILE FILE")
    found = difference(one, other)
    if arguments.json:
        print_json(found)
        return
    print_facts(
        [
            ("first", f"{one.protocol} mask_seed={one.mask_seed} on {one.dataset} (sha256 {one.fingerprint[:16]}…)"),
            (
                "second",
                f"{other.protocol} mask_seed={other.mask_seed} on {other.dataset} (sha256 {other.fingerprint[:16]}…)",
            ),
            ("data set", "the same" if found["same_dataset"] else "differs in name, version or modalities"),
            ("masks", "the same" if found["same"] else "differ"),
            *(
                (f"values of {part}", " against ".join(text or "as they came" for text in texts))
                for part, texts in found["changes"].items()
            ),
        ]
    )
    print()
    rows: list[list[object]] = []
    for part, facts in found["parts"].items():
        changes = ", ".join(f"{change}: {count}" for change, count in facts["changes"].items()) or "-"
        alone = f"{facts['only_first']}/{facts['only_second']}"
        rows.append([part, facts["shared"], alone, facts["differ"], changes, ", ".join(facts["ids"]) or "-"])
    print_table(["split", "shared", "only first/second", "differ", "changes", "e.g."], rows)


def _read(arguments: argparse.Namespace) -> MaskTable:
    from harness.masking import MaskTable
    from harness.progress import say

    if not arguments.arguments or "=" in arguments.arguments[0]:
        raise UsageError(f"mask {arguments.action} needs a file: harness mask {arguments.action} FILE.")
    file, *overrides = arguments.arguments
    if arguments.action == "show" and overrides:
        raise UsageError(f"mask show takes one file, not {overrides[0]!r}; mask verify takes dataset=NAME.")
    masks = MaskTable.load(Path(file))
    if arguments.action == "verify":
        say(f"{file}: content matches its sha256.")
        if overrides:
            say(f"{file}: {_verify(masks, overrides, file)}")
    return masks


def _verify(masks: MaskTable, overrides: list[str], file: str) -> str:
    """Checks a table against a data set and against a new draw; returns what was found."""
    from harness.compose import compose_as
    from harness.mask_files import IMPORTED
    from harness.masking import MaskTable
    from harness.protocol import parse_protocol

    if any(override.startswith("mask_seed=") for override in overrides):
        raise UsageError("mask verify reads mask_seed from the file; leave it out.")
    configs = compose_as(DrawConfig, overrides)
    if len(configs) != 1:
        raise UsageError("mask verify checks against one data set at a time.")
    table = _load(configs[0])
    masks.check_against(table)
    if masks.protocol == IMPORTED:
        return f"fits {masks.dataset}; an imported table is not drawn again."
    again = MaskTable.build(parse_protocol(masks.protocol), table, masks.mask_seed)
    if again.fingerprint != masks.fingerprint:
        raise DataError(
            f"mask table {file} is intact, but it is not what {masks.protocol} draws with "
            f"mask_seed={masks.mask_seed} (sha256 {again.fingerprint[:16]}…)."
        )
    return f"is what {masks.protocol} draws on {masks.dataset} with mask_seed={masks.mask_seed}."


def _load(config: Any) -> DataTable:
    from harness.files import Folders

    config.dataset.validate()
    folders = Folders.resolve(config.paths)
    table: DataTable = config.dataset.load(folders.data, folders.cache / "datasets")
    return table
