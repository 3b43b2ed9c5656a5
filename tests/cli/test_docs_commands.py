"""Every command that README, docs and cards show is one that this version takes; the cheap ones are run."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from harness import registry
from harness.cli import COMMANDS, main
from harness.cli.commands import check, describe, mask, report, reproduce, sweep, tune
from harness.cli.commands import list as listing
from harness.cli.store import read_store
from harness.compose import compose, compose_as, encoder_config
from harness.prepare import PrepareConfig
from harness.protocol import parse_protocol
from harness.reports.presets import select

ROOT = Path(__file__).parents[2]
PLUGIN_PACKAGE = ROOT / "tests" / "plugin_package"
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "reports/published/*.md",
        "datasets/cards/*.md",
        "methods/*/card.md",
        "methods/*/cards/*.md",
        "methods/common/*/cards/*.md",
    )
    for path in ROOT.glob(pattern)
)
FENCED = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)

#: What readers put something of their own for, and what these tests put there.  Names of files and folders stay.
PLACEHOLDERS = {
    "dataset=NAME": "dataset=synthetic",
    "dataset=DATA": "dataset=synthetic",
    "dataset=…": "dataset=synthetic",
    "protocol=NAME": "protocol=both_0.7",
    "protocol=…": "protocol=both_0.7",
    "method=NAME": "method=zero_fill",
    "run_id=…": "run_id=3f2a9c1e",
    "workers=N": "workers=2",
    "…": None,
}
#: Programs beside ours that a line may start with.
OTHERS = {
    "mlflow",
    "git",
    "cd",
    "source",
    ".",
    "pip",
    "pytest",
    "pre-commit",
    "apt-get",
    "dpkg-deb",
    "curl",
    "tar",
    "#",
}
LAUNCHERS = {"accelerate", "torchrun"}


@dataclass(frozen=True)
class Shown:
    """A line that a page tells its reader to type."""

    where: str
    line: str
    in_text: bool = False


def shown(page: Path) -> Iterator[Shown]:
    """Lines of `console` and `sh` blocks, and code spans in the text that begin with `harness`."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    for block in FENCED.finditer(text):
        body = textwrap.dedent(block["body"]).replace("\\\n", " ")
        if block["language"] == "console":
            lines = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
        elif block["language"] in ("sh", "bash"):
            lines = [line for line in body.splitlines() if line.strip()]
        else:
            continue
        number = text.count("\n", 0, block.start()) + 1
        yield from (Shown(f"{name}:{number}", line) for line in lines)
    prose = FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)
    for span in re.finditer(r"`(harness [^`]+)`", prose):
        number = prose.count("\n", 0, span.start()) + 1
        yield Shown(f"{name}:{number}", " ".join(span[1].split()), in_text=True)


SHOWN = [each for page in PAGES for each in shown(page)]


# -- is it a command? -------------------------------------------------------------------------------------------------


def words_of(line: str) -> list[str]:
    """The words of one command, with placeholders filled."""
    line = re.sub(r"\$\(sh (scripts/\S+) \w+\)", lambda call: existing(call[1]) and "FOLDER", line)
    words = shlex.split(line.replace("$DIR", "DIR"), comments=True)
    filled = [PLACEHOLDERS.get(word, word) for word in words]
    return [word for word in filled if word is not None and not re.fullmatch(r"[A-Z]+=\S+", word)]


def existing(path: str) -> str:
    assert (ROOT / path).is_file(), f"{path} does not exist"
    return path


def check_line(line: str, harness: Callable[[list[str]], None]) -> None:
    """Fails if a line of a page is no command of this repository."""
    for part in line.split(" && "):
        words = words_of(part)
        if not words:
            continue
        program, *rest = words
        if program in LAUNCHERS:
            assert rest[rest.index("-m") + 1] == "harness"
            program, *rest = rest[rest.index("-m") + 1 :]
        if program == "harness":
            harness(rest)
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in rest if "=" not in word} <= set(targets)
        elif program in ("python", "sh"):
            existing(next(word for word in rest if not word.startswith("-")))
        else:
            assert program in OTHERS, f"{program}: what is this?"


# -- would it run? ----------------------------------------------------------------------------------------------------


def options(texts: list[str]) -> list[str]:
    return [text for text in texts if "=" in text]


def check_run(arguments: argparse.Namespace) -> None:
    if arguments.overrides:
        compose(without_files(arguments.overrides))


def without_files(overrides: list[str]) -> list[str]:
    """A run file that `harness tune` would have written names a method."""
    return ["method=zero_fill" if text.startswith("from=") else text for text in overrides]


def check_tune(arguments: argparse.Namespace) -> None:
    budget, overrides = tune.split_options(arguments.overrides)
    budget.validate()
    if overrides:
        compose(overrides)


def check_sweep(arguments: argparse.Namespace) -> None:
    _, overrides = sweep.split_options(arguments.overrides)
    if overrides:
        named = without_files(["method=zero_fill" if text == "method=all" else text for text in overrides])
        compose([*(["method=zero_fill"] if arguments.cells else []), *named])


def check_reproduce(arguments: argparse.Namespace) -> None:
    cells = select([text for text in arguments.arguments if "=" not in text])
    _, own = sweep.split_options(options(arguments.arguments))
    compose(reproduce.merge(cells[0], own))


def check_list(arguments: argparse.Namespace) -> None:
    if arguments.kind not in (None, listing.PUBLISHED, listing.PRESETS):
        listing.find_kind(arguments.kind)


def check_describe(arguments: argparse.Namespace) -> None:
    plugins = listing.find_kind(arguments.kind)
    name = plugins.names()[0] if arguments.name == "NAME" else arguments.name
    if name not in plugins:
        assert plugins is registry.protocols
        parse_protocol(name)
    compose_as(describe.DrawConfig, arguments.overrides)


def check_mask(arguments: argparse.Namespace) -> None:
    schema = {"build": mask.BuildConfig, "import": mask.ImportConfig}.get(arguments.action)
    if schema is not None:
        for config in compose_as(schema, options(arguments.arguments)):
            parse_protocol(getattr(config, "protocol", "complete"))


def check_check(arguments: argparse.Namespace) -> None:
    check.choose(arguments.overrides, arguments.contract)


def check_report(arguments: argparse.Namespace) -> None:
    stores = [text for text in arguments.filters if text.startswith(("paths.", "tracking."))]
    report.read_filters([text for text in arguments.filters if text not in stores])
    read_store(stores)


def check_compare(arguments: argparse.Namespace) -> None:
    for method in (arguments.a, arguments.b):
        registry.methods.get(method.partition(":")[0])


#: How far a command gets without data, weights or records.
CHECKS: Mapping[str, Callable[[argparse.Namespace], object]] = {
    "run": check_run,
    "sweep": check_sweep,
    "tune": check_tune,
    "reproduce": check_reproduce,
    "list": check_list,
    "describe": check_describe,
    "prepare": lambda arguments: compose_as(PrepareConfig, arguments.overrides),
    "mask": check_mask,
    "check": check_check,
    "import-checkpoint": lambda arguments: compose(options(arguments.arguments)),
    "report": check_report,
    "compare": check_compare,
    "export": lambda arguments: read_store(options(arguments.runs)),
    "audit": lambda arguments: read_store(options(arguments.runs)),
    "inspect": lambda arguments: read_store(options(arguments.runs)),
    "verify": lambda arguments: arguments.file,
    "ui": lambda arguments: read_store(arguments.overrides),
    "sync": lambda arguments: read_store(arguments.overrides),
    "doctor": lambda arguments: read_store(arguments.overrides),
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugins of README's and of the docs' examples, as their readers have them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [block["body"] for block in FENCED.finditer(readme) if block["language"] == "python"]
    (tmp_path / "my_method.py").write_text(code)
    page = (ROOT / "docs" / "encoders-and-backbones.md").read_text(encoding="utf-8")
    for name, code in re.findall(r'^```python title="(\w+\.py)"\n(.*?)^```', page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(PLUGIN_PACKAGE / "src")
    points = tomllib.loads((PLUGIN_PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    for group, entries in points.items():
        for name, target in entries.items():
            registry.KINDS[group.removeprefix("harness.")].register(name, target)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], None]:
    """The real command line, its work replaced by its check."""

    def replace(name: str) -> None:
        def execute(arguments: argparse.Namespace) -> int:
            CHECKS[name](arguments)
            return 0

        monkeypatch.setattr(
            importlib.import_module(f"harness.cli.commands.{name.replace('-', '_')}"), "execute", execute
        )

    for name in COMMANDS:
        replace(name)

    def call(words: list[str]) -> None:
        # A name in running text: "`harness sweep` plans …".
        if len(words) == 1 and words[0] in COMMANDS:
            return
        if words[:1] == ["--plugin"] and len(words) == 2:
            return
        assert main(words) == 0, capsys.readouterr().err

    return call


def test_every_command_has_a_check() -> None:
    assert CHECKS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("each", SHOWN, ids=lambda each: f"{each.where} {each.line[:40]}")
def test_a_shown_command_is_one(each: Shown, harness: Callable[[list[str]], None], plugins: None) -> None:
    check_line(each.line, harness)


@pytest.mark.parametrize(
    "line",
    [
        "harness rnu method=redeem",
        "harness run metod=redeem",
        "harness run method=redeem method.rooter=mean",
        "harness run method=redeem protocol=both",
        "harness run method=redeem --fast",
        "harness sweep method=all wokers=2",
        "harness reproduce redeem/table99",
        "harness list methodes",
        "harness describe method radeem",
        "harness mask build protocol=both_0.7 dataset=cddda",
        "harness check method=redeem method.k=many",
        "harness report metod=redeem",
        "harness compare redeem zero",
        "harness doctor method=redeem",
        "make tests",
        "python benchmarks/leeks.py",
        "accelerate launch -m harness run method=radeem",
    ],
)
def test_what_is_no_command_is_found(line: str, harness: Callable[[list[str]], None]) -> None:
    with pytest.raises(AssertionError):
        check_line(line, harness)


# -- does it run? -----------------------------------------------------------------------------------------------------


def cheap(words: list[str]) -> bool:
    """Needs neither real data nor training, and ends by itself."""
    match words:
        case ["list", *_] | ["describe", "method", *_] | ["mask", "official", *_]:
            return True
        case ["reproduce", *rest]:
            return "--dry-run" in rest
        case ["describe", "protocol", *_]:
            return "dataset=synthetic" in words
    return False


@pytest.mark.slow
def test_the_quick_start_runs_from_top_to_bottom(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = ROOT / "docs" / "quickstart.md"
    lines = [each.line for each in shown(page) if each.line.startswith("harness ") and not each.in_text]
    assert len(lines) >= 10
    for line in lines:
        assert main(words_of(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "bundle.zip").is_file()


def test_the_example_encoder_keeps_the_contract(plugins: None, tmp_path: Path) -> None:
    registry.load_plugin_file(tmp_path / "letters.py")
    config = encoder_config("letters", {"width": 32})
    encoder = config.implementation()(config)
    texts = ["a red apple", "", "apple", "Apple " * 100]
    together = encoder.encode(texts)
    assert together.tokens.shape == (4, 32, 32)
    assert together.mask.sum(axis=1).tolist() == [3, 1, 1, 32]
    assert together.tokens[0, 2].tolist() == together.tokens[2, 0].tolist() == together.tokens[3, 31].tolist()
    for row, text in enumerate(texts):
        alone = encoder.encode([text])
        assert np.array_equal(alone.pooled[0], together.pooled[row])


@pytest.mark.slow
def test_the_example_backbone_runs(home: Path, plugins: None, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [each.line for each in SHOWN if "mixing.py run" in each.line]
    assert main(words_of(line)[1:]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_cheap_commands_run(plugins: None, capsys: pytest.CaptureFixture[str]) -> None:
    typed = {each.line for each in SHOWN if each.line.startswith("harness ") and not each.in_text}
    lines = {line for line in typed if cheap(words_of(line)[1:])}
    assert len(lines) >= 6
    for line in sorted(lines):
        assert main(words_of(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        assert capsys.readouterr().out, line


# -- do links lead somewhere? -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", prose):
        assert (page.parent / link).exists(), f"{link} does not exist"
