"""Pages of the docs site that are made when it is built, as a hook of MkDocs (`mkdocs.yml`).

Cards, options and presets come from the registries, pictures of protocols from real mask tables, commands from their
parsers, the API's pages from the modules.  Nothing of it is written into the tree, so nothing can go stale.
"""

from __future__ import annotations

import ast
import html
import importlib
import posixpath
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from harness import registry
from harness.cli import COMMANDS
from harness.cli.commands.describe import describe
from harness.datasets.synthetic import SyntheticConfig
from harness.masking import MaskTable
from harness.protocol import parse_protocol

ROOT = Path(__file__).parents[1]
#: Files and folders of the repository that the site shows as pages.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "reports/published/README.md": "published.md",
    "methods": "methods/index.md",
    "datasets": "datasets/index.md",
}
#: Kinds of plugins with a page each, and those whose plugins share one page: title and page.
CARDS = {"methods": "Methods", "datasets": "Data sets", "encoders": "Encoders", "backbones": "Backbones"}
LISTS = {
    "protocols": ("Protocol families", "protocol-families.md"),
    "metrics": ("Metrics", "metrics.md"),
    "executors": ("Executors", "executors.md"),
}
#: What plugins and scripts import, apart from the modules in `harness/` itself.
API_FOLDERS = ("audit", "executors", "testing")
FACTS = ("citation", "license", "obtain", "kinds", "tasks", "higher_is_better", "examples", "reference", "version")
_PICTURE = re.compile(r"<!-- masks: (\S+) -->")
_INDENT = re.compile(r"^ {2,3}(?=\S)", re.MULTILINE)
_NAMED = re.compile(r"(?<!\[)`docs/([\w-]+\.md)`(?!\])")
_LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and their names to the navigation."""
    pages: dict[str, str] = {
        page: (ROOT / source).read_text("utf-8") for source, page in ROOT_PAGES.items() if source.endswith(".md")
    }
    folders: dict[str, list[str]] = {}
    for kind, title in CARDS.items():
        made = {f"{kind}/{name}.md": plugin_page(kind, name) for name in registry.KINDS[kind].names()}
        folders[f"{kind}/"] = [f"{kind}/index.md", *made]
        pages |= {f"{kind}/index.md": index_page(kind, title), **made}
    for kind, (title, page) in LISTS.items():
        pages[page] = list_page(kind, title)
    pages["commands.md"] = commands_page()
    modules = api_modules()
    pages["api/index.md"] = api_index(modules)
    pages |= {
        f"api/{name}.md": f"# {name}\n\n::: {name}\n    options: {{show_root_heading: false}}\n" for name in modules
    }
    folders["api/"] = ["api/index.md", *(f"api/{name}.md" for name in modules)]
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    config.nav = _filled(config.nav, folders)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Points links between files of the repository at their pages, and draws the pictures.

    GitHub takes two or three spaces for the inside of a list item, Python-Markdown wants four.
    """
    here = page.file.src_uri
    source = next((file for file, made in ROOT_PAGES.items() if made == here), f"docs/{here}")
    # Cards link to each other as neighbours, which their pages are as well.
    if here.partition("/")[0] not in CARDS:
        markdown = _outside_code(markdown, lambda text: _LINK.sub(lambda link: _relinked(link, source, here), text))
    top = posixpath.relpath(".", posixpath.dirname(here) or ".")
    markdown = _outside_code(markdown, lambda text: _NAMED.sub(rf"[`docs/\1`]({top}/\1)", text))
    markdown = _outside_code(markdown, lambda text: _INDENT.sub("    ", text))
    return _PICTURE.sub(lambda match: picture(match[1]), markdown)


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Changes what is not in fenced blocks."""
    parts = re.split(r"(^```.*?^```[^\n]*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _relinked(link: re.Match[str], source: str, here: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
    page = ROOT_PAGES.get(target, target.removeprefix("docs/"))
    return f"]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{link[2] or ''})"


def _filled(nav: Any, folders: dict[str, list[str]]) -> Any:
    """The navigation with the folders' pages in place of their names."""
    if isinstance(nav, list):
        return [_filled(item, folders) for item in nav]
    if isinstance(nav, dict):
        return {title: _filled(item, folders) for title, item in nav.items()}
    return folders.get(nav, nav)


# -- plugins ------------------------------------------------------------------------------------------------------


def plugin_page(kind: str, name: str) -> str:
    """A plugin's card, then what its config class says: facts, options, presets."""
    facts = describe(registry.KINDS[kind], name)
    return f"{facts['card'] or '# ' + name}\n\n{_details(facts, '##')}"


def index_page(kind: str, title: str) -> str:
    """Table of one kind's plugins, each with a link to its page."""
    plugins = registry.KINDS[kind]
    rows = [(f"[`{name}`]({name}.md)", plugins.get(name).summary) for name in plugins.names()]
    head = f"# {title}\n\nMade from the registry; `harness list {kind}` prints it."
    return f"{head}\n\n{table(('name', 'what it is'), rows)}"


def list_page(kind: str, title: str) -> str:
    """All plugins of a kind that has no cards."""
    plugins = registry.KINDS[kind]
    sections = [f"# {title}\n\nMade from the registry; `harness list {kind}` prints it."]
    for name in plugins.names():
        facts = describe(plugins, name)
        about = facts["description"]
        sections.append(f"## `{name}`\n\n{facts['summary']}\n\n{about}\n\n{_details(facts, '###')}")
    return "\n\n".join(sections)


def _details(facts: dict[str, Any], level: str) -> str:
    parts = [f"{level} Facts" if level == "##" else "", _facts(facts)]
    if facts["options"]:
        rows = [
            (
                code(row["option"]),
                code(row["type"]),
                "required" if row["required"] else code(row["default"]),
                row["doc"],
            )
            for row in facts["options"]
        ]
        parts += [
            f"{level} Options" if level == "##" else "",
            table(("option", "type", "default", "what it does"), rows),
        ]
    presets = facts["presets"]
    changed = list(dict.fromkeys(option for values in presets.values() for option in values))
    if changed:
        defaults = {row["option"]: row["default"] for row in facts["options"]}
        rows = [
            (code(option), *(code(values.get(option, defaults.get(option))) for values in presets.values()))
            for option in changed
        ]
        parts += [f"{level} Options set by presets", table(("option", *presets), rows)]
    return "\n\n".join(part for part in parts if part)


def _facts(facts: dict[str, Any]) -> str:
    shown = [(name, facts[name]) for name in FACTS if facts.get(name) not in (None, "", [])]
    texts = [(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)) for name, value in shown]
    return "\n".join(f"- **{name.replace('_', ' ')}**: {_plain(' '.join(text.split()))}" for name, text in texts)


def _plain(text: str) -> str:
    """Text in which names such as `f1_macro` and `<modality>` are not taken for Markdown or HTML."""
    return re.sub(r"([*_<\[])", r"\\\1", text)


def code(value: object) -> str:
    """A value as code that is safe in a table."""
    text = "''" if value == "" else "null" if value is None else str(value)
    return f"<code>{html.escape(text).replace('|', '&#124;').replace('*', '&#42;').replace('_', '&#95;')}</code>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell does not end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    # A bar in a code span does not divide cells, and escaped it would show its backslash.
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else piece.replace("|", "&#124;") for piece in pieces)


# -- commands and modules -----------------------------------------------------------------------------------------


def commands_page() -> str:
    """The help of every command."""
    sections = ["# Commands\n\nWhat `harness COMMAND --help` prints."]
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"harness.cli.commands.{name.replace('-', '_')}")
        text = module.parser(prog=f"harness {name}", description=summary).format_help()
        sections.append(f"## harness {name}\n\n```text\n{text.rstrip()}\n```")
    return "\n\n".join(sections)


def api_modules() -> dict[str, str]:
    """Public modules of the framework by dotted name, with the first line of their docstrings."""
    files = [
        *(ROOT / "harness").glob("*.py"),
        *(f for name in API_FOLDERS for f in (ROOT / "harness" / name).rglob("*.py")),
    ]
    found = {}
    for file in sorted(files):
        parts = file.relative_to(ROOT).with_suffix("").parts
        dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not any(part.startswith("_") for part in dotted.split(".")) and dotted != "harness":
            found[dotted] = (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]
    return found


def api_index(modules: dict[str, str]) -> str:
    """Table of the documented modules."""
    rows = [(f"[`{name}`]({name}.md)", about) for name, about in modules.items()]
    head = "# Python API\n\nMade from the docstrings, without importing the modules."
    return f"{head}\n\n{table(('module', 'what it is'), rows)}"


# -- pictures -----------------------------------------------------------------------------------------------------

_CELL, _STEP, _LEFT, _MOST = 11, 14, 150, 36


def picture(name: str) -> str:
    """A protocol's mask table on `synthetic` as SVG: one column a sample, filled where its value is shown."""
    data = SyntheticConfig(samples=60).load(ROOT, ROOT / "build" / "docs")
    masks = MaskTable.build(parse_protocol(name), data, mask_seed=0)
    drawn, y = [], 6
    for part, (_, rows) in masks.parts().items():
        for index, modality in enumerate(masks.modalities):
            label = f"{part}, {modality}"
            drawn.append(
                f'<text x="{_LEFT - 8}" y="{y + 10}" text-anchor="end" font-size="11">{html.escape(label)}</text>'
            )
            for column, shown in enumerate(rows[:_MOST, index]):
                paint = 'fill="#3f6fb5"' if shown else 'fill="none" stroke="#8a8a8a" stroke-dasharray="2 2"'
                drawn.append(f'<rect x="{_LEFT + column * _STEP}" y="{y}" width="{_CELL}" height="{_CELL}" {paint}/>')
            y += _STEP
        y += 8
    said = "; ".join(
        f"{part}: " + ", ".join(f"{rate:.0%} lack {modality}" for modality, rate in rates.items())
        for part, rates in masks.missing_rates().items()
    )
    width = _LEFT + _MOST * _STEP
    svg = (
        f'<svg role="img" aria-label="{html.escape(f"{name}. {said}")}" viewBox="0 0 {width} {y}" width="{width}" '
        f'style="max-width: 100%; height: auto" fill="currentColor">{"".join(drawn)}</svg>'
    )
    caption = f"<code>{html.escape(name)}</code>: filled is shown, dashed is hidden. {html.escape(said)}."
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
