"""`harness list`: what is registered, and by whom."""

from __future__ import annotations

import argparse
from typing import Any

from harness import registry
from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.errors import EXIT_OK, UnknownNameError, UsageError
from harness.registry import Registry

_EPILOG = """\
examples:
  harness list methods
  harness list protocols --json
  harness list methods --plugin my_method.py"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("kind", nargs="?", metavar="KIND", help=f"{', '.join(registry.KINDS)}; all of them without it")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints one table, or one per kind."""
    kinds = [arguments.kind] if arguments.kind else list(registry.KINDS)
    listing = {kind: _rows(find_kind(kind)) for kind in kinds}
    if arguments.json:
        print_json(listing[arguments.kind] if arguments.kind else listing)
        return EXIT_OK
    for number, (kind, rows) in enumerate(listing.items()):
        if len(listing) > 1:
            print(f"{'' if number == 0 else chr(10)}{kind}:")
        examples = any(row.get("examples") for row in rows)
        headers = ["name", *(["write"] if examples else []), "by", "summary"]
        print_table(
            headers,
            [
                [row["name"], *([", ".join(row["examples"])] if examples else []), row["owner"], row["summary"]]
                for row in rows
            ],
        )
    return EXIT_OK


def find_kind(kind: str) -> Registry[Any]:
    """Registry by its plural or singular name.

    Raises:
        UnknownNameError: If there is no such kind.
    """
    for plural, plugins in registry.KINDS.items():
        if kind in (plural, plugins.kind):
            return plugins
    raise UnknownNameError("kind", kind, registry.KINDS)


def _rows(plugins: Registry[Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in plugins:
        row: dict[str, Any] = {"name": entry.name, "owner": entry.owner}
        try:
            config = plugins.get(entry.name)
        except UsageError as error:
            # One broken plugin of somebody else must not hide the others.
            rows.append(row | {"summary": f"cannot be loaded: {error}"})
            continue
        row |= {"summary": config.summary, "version": config.version}
        if plugins is registry.protocols:
            row["examples"] = list(config.examples)
        rows.append(row)
    return rows
