"""The docs site: pages made from the registries, pictures from mask tables, a build that is strict and offline."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness import registry
from harness.datasets.synthetic import SyntheticConfig
from harness.masking import MaskTable
from harness.protocol import parse_protocol

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocs", reason="needs the extra docs: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The hook that makes pages."""
    spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_picture_shows_every_cell_of_the_mask_table(pages: ModuleType) -> None:
    svg = pages.picture("both_0.7")
    data = SyntheticConfig(samples=60).load(ROOT, ROOT / "build")
    masks = MaskTable.build(parse_protocol("both_0.7"), data, mask_seed=0)
    shown = sum(int(rows.sum()) for _, rows in masks.parts().values())
    assert svg.count('fill="#3f6fb5"') == shown
    assert svg.count("stroke-dasharray") == 2 * 60 - shown


def test_a_plugin_page_has_card_options_and_presets(pages: ModuleType) -> None:
    page = pages.plugin_page("methods", "redeem")
    config = registry.methods.get("redeem")
    assert page.startswith(config.card_path().read_text(encoding="utf-8"))
    for option in ("router", "prompt&#95;length"):
        assert f"| <code>{option}</code> |" in page
    assert "| option | clean | paper | official |" in page


@pytest.mark.parametrize(
    ("here", "link", "expected"),
    [
        ("index.md", "docs/leaks.md", "leaks.md"),
        ("reproduce.md", "../reports/published/README.md", "published.md"),
        ("concepts.md", "../methods", "methods/index.md"),
        ("leaks.md", "statistics.md#ties", "statistics.md#ties"),
        ("leaks.md", "https://example.org/docs/x.md", "https://example.org/docs/x.md"),
    ],
)
def test_links_between_files_become_links_between_pages(pages: ModuleType, here: str, link: str, expected: str) -> None:
    text = f"See [it]({link}).\n\n```python\nx = layers[name](part.pooled)\n```\n"
    page = type("Page", (), {"file": type("File", (), {"src_uri": here})})
    assert pages.on_page_markdown(text, page) == text.replace(link, expected)


def test_a_bar_in_a_cell_does_not_end_it(pages: ModuleType) -> None:
    made = pages.table(("a", "b"), [("`x | y`", "one | two"), (pages.code("int | None"), "")])
    assert made.splitlines()[2:] == ["| `x | y` | one &#124; two |", "| <code>int &#124; None</code> |  |"]


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", *map(str, arguments)],
        cwd=ROOT,
        env={"PATH": "", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_site_is_built_whole_and_needs_no_network(tmp_path: Path) -> None:
    done = build("--site-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    for kind in ("methods", "datasets", "encoders", "backbones"):
        for name in registry.KINDS[kind].names():
            assert (tmp_path / kind / f"{name}.html").is_file()
    assert "training_step" in (tmp_path / "api" / "harness.method.html").read_text(encoding="utf-8")
    assert (tmp_path / "concepts.html").read_text(encoding="utf-8").count("<svg role=") == 5
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"(?:https?:)?//", text), page
        shown = re.sub(r"<(pre|svg|nav)\b.*?</\1>", "", text, flags=re.DOTALL)
        for paragraph in re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", shown, re.DOTALL):
            assert not re.search(r"^(?:[-*] |\d+\. |\|)|```", paragraph, re.MULTILINE), f"{page}: {paragraph[:200]}"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_a_broken_link_fails(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Site\n\nSee [the rest](rest.md).\n")
    # The site's own rules on links, without its theme and pages.
    rules = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nvalidation:")[1].split("\n\n")[0]
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"site_name: broken\nvalidation:{rules}\n")
    done = build("--config-file", config)
    assert done.returncode != 0
    assert "rest.md" in done.stderr
