"""`harness list`: what is registered, and by whom."""

from __future__ import annotations

import argparse
from dataclasses import asdict
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
  harness list methods KDD
  harness list published method=redeem mmimdb f1_micro
  harness list presets redeem/table1 mmimdb
  harness list methods --plugin my_method.py

Rows are shown in which every WORD occurs, or occurs in the column with COLUMN=WORD.  `published` are numbers of papers,
as fractions, with where and how they were read; its columns are method, dataset, metric, protocol, condition, variant,
value, spread, paper, table, confidence, how_read and note.  `presets` are cells of published tables as runs, for
`harness reproduce`."""

#: What is not registered but listed when asked for: too long to be part of "all of them".
PUBLISHED = "published"
PRESETS = "presets"


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    kinds = ", ".join(registry.KINDS)
    result.add_argument(
        "kind", nargs="?", metavar="KIND", help=f"{kinds}; all of them without it; or {PUBLISHED}, {PRESETS}"
    )
    result.add_argument("words", nargs="*", metavar="WORD", help="show only rows with this text, or COLUMN=WORD")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints one table, or one per kind."""
    if arguments.kind == PUBLISHED:
        return _list_published(arguments)
    if arguments.kind == PRESETS:
        return _list_presets(arguments)
    kinds = [arguments.kind] if arguments.kind else list(registry.KINDS)
    listing = {kind: _with_words(_rows(find_kind(kind)), arguments.words) for kind in kinds}
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


def _list_published(arguments: argparse.Namespace) -> int:
    from harness.reports.published import published

    rows = _with_words([asdict(number) for number in published()], arguments.words)
    if arguments.json:
        print_json(rows)
        return EXIT_OK
    print_table(
        ["method", "data set", "protocol", "metric", "value", "confidence", "source"],
        [
            [
                row["method"] + (f" ({row['variant']})" if row["variant"] else ""),
                row["dataset"],
                row["protocol"] + (f" {row['condition']}" if row["condition"] else ""),
                row["metric"],
                f"{row['value']:.4f}",
                f"{row['confidence']}, {row['how_read']}",
                f"{row['paper']}, {row['table']}" + (f": {row['note']}" if row["note"] else ""),
            ]
            for row in rows
        ],
    )
    return EXIT_OK


def _list_presets(arguments: argparse.Namespace) -> int:
    from harness.reports.presets import presets

    rows = _with_words(
        [
            {
                "name": preset.name,
                "method": preset.run["method"],
                "dataset": preset.run["dataset"],
                "protocol": preset.run["protocol"],
                "published": {number.metric: number.value for number in preset.numbers},
                "source": preset.source,
                "overrides": preset.overrides,
                "note": preset.note,
                "differs": preset.differs,
            }
            for preset in presets().values()
        ],
        arguments.words,
    )
    if arguments.json:
        print_json(rows)
        return EXIT_OK
    print_table(
        ["preset", "method", "data set", "protocol", "published", "source"],
        [
            [
                *(row[key] for key in ("name", "method", "dataset", "protocol")),
                ", ".join(f"{metric} {value:.4f}" for metric, value in row["published"].items()),
                row["source"],
            ]
            for row in rows
        ],
    )
    return EXIT_OK


def _with_words(rows: list[dict[str, Any]], words: list[str]) -> list[dict[str, Any]]:
    """Rows in which every word occurs, in capitals or not."""
    return [row for row in rows if all(_has(row, word) for word in words)]


def _has(row: dict[str, Any], word: str) -> bool:
    column, _, text = word.partition("=")
    cells, text = ([row[column]], text) if "=" in word and column in row else (list(row.values()), word)
    return any(text.lower() in str(cell).lower() for cell in cells)


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
