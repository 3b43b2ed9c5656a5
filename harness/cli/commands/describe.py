"""`harness describe`: everything a plugin says about itself."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import registry
from harness.cli.commands.list import find_kind
from harness.cli.output import print_facts, print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.config import PathsConfig
from harness.errors import EXIT_OK, HarnessError, UsageError
from harness.plugin import PluginConfig
from harness.registry import Registry

_EPILOG = """\
examples:
  harness describe method redeem
  harness describe dataset openmoji --json
  harness describe protocol both_0.7
  harness describe protocol both_0.7 dataset=openmoji mask_seed=1
  harness describe protocol train:complete,test:patterns dataset=openmoji"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("kind", metavar="KIND", help="method, dataset, protocol, metric, encoder or backbone")
    result.add_argument("name", metavar="NAME", help="a name that `harness list KIND` shows, or any protocol")
    result.add_argument(
        "overrides", nargs="*", metavar="OPTION=VALUE", help="protocols: count on dataset=NAME, mask_seed=N"
    )
    add_json_option(result)
    return result


@dataclass
class DrawConfig:
    """What a protocol is drawn on."""

    dataset: Any
    mask_seed: int = 0
    paths: PathsConfig = field(default_factory=PathsConfig)


def execute(arguments: argparse.Namespace) -> int:
    """Prints one plugin or one protocol."""
    plugins = find_kind(arguments.kind)
    if plugins is registry.protocols and (arguments.overrides or arguments.name not in plugins):
        _describe_protocol(arguments)
        return EXIT_OK
    if arguments.overrides:
        raise UsageError(f"{arguments.overrides[0]!r}: options are for protocols; a {plugins.kind} takes none here.")
    facts = describe(plugins, arguments.name)
    if arguments.json:
        print_json(facts)
    else:
        _print(facts)
    return EXIT_OK


def describe(plugins: Registry[Any], name: str) -> dict[str, Any]:
    """Plain data about one plugin; nothing but its light config module is imported.

    Raises:
        UsageError: If the name is unknown.
    """
    config: type[PluginConfig] = plugins.get(name)
    facts: dict[str, Any] = {
        "kind": plugins.kind,
        "name": name,
        "summary": config.summary,
        "description": description(config),
        "version": config.version,
        "owner": plugins.entry(name).owner,
        "target": config.target,
        "citation": config.citation,
    }
    for fact in ("license", "obtain", "real", "kinds", "tasks", "higher_is_better", "examples", "oracle", "reference"):
        value = getattr(config, fact, None)
        if value not in (None, "", ()) and not inspect.isroutine(value):
            facts[fact] = list(value) if isinstance(value, tuple) else value
    facts["options"] = option_table(config)
    facts["presets"] = {preset: dict(values) for preset, values in config.presets.items()}
    facts["card"] = card.read_text() if config.card and (card := config.card_path()).is_file() else ""
    return facts


def description(config: type) -> str:
    """The class docstring up to its first section."""
    text = inspect.cleandoc(config.__doc__ or "")
    return re.split(r"\n\s*(?:Attributes|Args|Raises|Returns):", text)[0].strip()


def option_table(config: type[PluginConfig]) -> list[dict[str, Any]]:
    """Name, type, default and documentation of each option."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__):
        docs |= attribute_docs(base.__doc__ or "")
    rows = []
    for option in dataclasses.fields(config):
        required = option.default is dataclasses.MISSING and option.default_factory is dataclasses.MISSING
        default = option.default if option.default_factory is dataclasses.MISSING else option.default_factory()
        rows.append(
            {
                "option": option.name,
                "type": option.type if isinstance(option.type, str) else option.type.__name__,
                "default": None if required else default,
                "required": required,
                "doc": docs.get(option.name, ""),
            }
        )
    return rows


def attribute_docs(docstring: str) -> dict[str, str]:
    """Reads the `Attributes:` section of a Google-style docstring: name -> text on one line."""
    lines = inspect.cleandoc(docstring).splitlines()
    docs: dict[str, str] = {}
    inside, name = False, ""
    for line in lines:
        if line.strip() == "Attributes:":
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and (match := re.match(r" {4}(\w+)(?: \([^)]*\))?: *(.*)", line)):
            name = match[1]
            docs[name] = match[2].strip()
        elif inside and name and line.strip():
            docs[name] = f"{docs[name]} {line.strip()}".strip()
    return docs


def _print(facts: Mapping[str, Any]) -> None:
    print(f"{facts['kind']} {facts['name']}: {facts['summary']}\n")
    if facts["description"]:
        print(f"{facts['description']}\n")
    shown = ("citation", "license", "obtain", "kinds", "tasks", "examples", "reference", "version", "owner", "target")
    print_facts([(name, _text(facts.get(name, ""))) for name in shown])
    if facts["options"]:
        print("\noptions")
        print_table(
            ["option", "type", "default", "what it does"],
            [
                [row["option"], row["type"], "(required)" if row["required"] else _value(row["default"]), row["doc"]]
                for row in facts["options"]
            ],
        )
    presets: Mapping[str, Mapping[str, Any]] = facts["presets"]
    changed = list(dict.fromkeys(option for values in presets.values() for option in values))
    if changed:
        defaults = {row["option"]: row["default"] for row in facts["options"]}
        print("\npresets")
        print_table(
            ["option", *presets],
            [
                [option, *(_value(values.get(option, defaults.get(option))) for values in presets.values())]
                for option in changed
            ],
        )
    if facts["card"]:
        print(f"\ncard\n\n{facts['card'].rstrip()}")


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(value: Any) -> str:
    return "''" if value == "" else "null" if value is None else str(value)


def _describe_protocol(arguments: argparse.Namespace) -> None:
    from harness.protocol import parse_protocol

    protocol = parse_protocol(arguments.name)
    facts: dict[str, Any] = {
        "kind": "protocol",
        "name": protocol.name,
        "family": registry.protocols.name_of(type(protocol)),
        "definition": protocol.describe(),
        "citation": protocol.citation,
        "ranked_by": next(iter(protocol.aggregates), ""),
    }
    try:
        facts |= _realised(arguments)
    except HarnessError as error:
        # Nobody asked for the default data set by name, and the definition stands without it.
        if arguments.overrides:
            raise
        facts["no_counts"] = f"{error} Another data set: dataset=NAME."
    if arguments.json:
        print_json(facts)
        return
    shown = ("name", "family", "definition", "ranked_by", "citation", "dataset", "mask_seed", "sha256", "no_counts")
    print_facts([(name.replace("_", " "), facts.get(name, "")) for name in shown])
    if "counts" in facts:
        print()
        print_table(*counts_table(facts["counts"]))
        print_remarks(facts["remarks"])


def _realised(arguments: argparse.Namespace) -> dict[str, Any]:
    from harness.compose import compose_as
    from harness.files import Folders
    from harness.masking import MaskTable
    from harness.protocol import parse_protocol

    configs = compose_as(DrawConfig, arguments.overrides)
    if len(configs) != 1:
        raise UsageError("describe counts one data set and mask_seed at a time.")
    config = configs[0]
    config.dataset.validate()
    folders = Folders.resolve(config.paths)
    table = config.dataset.load(folders.data, folders.cache / "datasets")
    masks = MaskTable.build(parse_protocol(arguments.name), table, config.mask_seed)
    return {
        "dataset": masks.dataset,
        "mask_seed": masks.mask_seed,
        "sha256": masks.fingerprint,
        "counts": masks.counts(),
        "missing_rates": masks.missing_rates(),
        "remarks": list(masks.remarks),
    }


def print_remarks(remarks: Sequence[str]) -> None:
    """Lines below a table of counts: exceptions that a protocol made."""
    for line in remarks:
        print(f"  {line}")


def counts_table(counts: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[list[object]]]:
    """Header and rows of a table of samples per split, or test condition, and pattern."""
    patterns = list(dict.fromkeys(pattern for split in counts.values() for pattern in split))
    patterns.sort(key=lambda pattern: pattern == "skipped")
    rows = [
        [split, *(values.get(pattern, 0) for pattern in patterns), sum(values.values())]
        for split, values in counts.items()
    ]
    return ["split", *patterns, "all"], rows
