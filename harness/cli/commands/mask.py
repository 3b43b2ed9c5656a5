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

if TYPE_CHECKING:
    from harness.masking import MaskTable
    from harness.types import DataTable

_EPILOG = """\
actions:
  build    draw a table:   harness mask build protocol=both_0.7 dataset=openmoji mask_seed=0 -o masks/both_0.7
  show     print one:      harness mask show masks/both_0.7
  verify   check one:      harness mask verify masks/both_0.7 dataset=openmoji

A table is two files, NAME.parquet (presence per sample) and NAME.json (definition, counts, sha256).  A protocol with
several test conditions has one block of test rows for each, named in the column `condition:`.  `verify` checks
the sha256, and with dataset=NAME also that the table belongs to that data set and is what its protocol draws there."""


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
    result.add_argument("action", choices=("build", "show", "verify"), help="what to do")
    result.add_argument("arguments", nargs="*", metavar="FILE | OPTION=VALUE", help="see below")
    result.add_argument("-o", "--output", metavar="FILE", type=Path, help="build: where to write it, without suffix")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Runs one action."""
    if arguments.action == "build":
        masks = _build(arguments)
    else:
        if arguments.output is not None:
            raise UsageError(f"-o belongs to `harness mask build`, not to {arguments.action}.")
        masks = _read(arguments)
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
    from harness.progress import say
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
    say(f"wrote {masks.save(path.with_suffix('') if path.suffix in ('.parquet', '.json') else path)}")
    return masks


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
            _verify(masks, overrides, file)
            say(f"{file}: is what {masks.protocol} draws on {masks.dataset} with mask_seed={masks.mask_seed}.")
    return masks


def _verify(masks: MaskTable, overrides: list[str], file: str) -> None:
    """Checks a table against a data set and against a new draw."""
    from harness.compose import compose_as
    from harness.masking import MaskTable
    from harness.protocol import parse_protocol

    if any(override.startswith("mask_seed=") for override in overrides):
        raise UsageError("mask verify reads mask_seed from the file; leave it out.")
    configs = compose_as(DrawConfig, overrides)
    if len(configs) != 1:
        raise UsageError("mask verify checks against one data set at a time.")
    table = _load(configs[0])
    masks.check_against(table)
    again = MaskTable.build(parse_protocol(masks.protocol), table, masks.mask_seed)
    if again.fingerprint != masks.fingerprint:
        raise DataError(
            f"mask table {file} is intact, but it is not what {masks.protocol} draws with "
            f"mask_seed={masks.mask_seed} (sha256 {again.fingerprint[:16]}…)."
        )


def _load(config: Any) -> DataTable:
    from harness.files import Folders

    config.dataset.validate()
    folders = Folders.resolve(config.paths)
    table: DataTable = config.dataset.load(folders.data, folders.cache / "datasets")
    return table
