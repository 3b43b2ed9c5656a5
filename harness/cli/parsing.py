"""Argument parsing shared by the commands."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from harness.errors import UsageError

OVERRIDES_HELP = "option=value in Hydra's grammar; a comma list makes a grid"


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line with our exit code, and whose help keeps its line breaks."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raises a `UsageError`."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_plugin_option(parser: argparse.ArgumentParser) -> None:
    """Adds the repeatable `--plugin FILE`, which every command takes."""
    parser.add_argument(
        "--plugin",
        action="append",
        metavar="FILE",
        help="run this Python file first, which registers plugins; repeatable",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--json` to a command that reads."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
