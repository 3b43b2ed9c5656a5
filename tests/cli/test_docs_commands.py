"""Every command that README, docs and cards show is one that this version takes: its names and options are resolved."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from harness import registry
from harness.cli import COMMANDS, main
from harness.cli.commands import check, describe, mask, report, reproduce, sweep, tune
from harness.cli.commands import list as listing
from harness.cli.store import read_store
from harness.compose import compose, compose_as
from harness.prepare import PrepareConfig
from harness.protocol import parse_protocol
from harness.reports.presets import select

from .shown_commands import FENCED, PAGES, ROOT, SHOWN, Shown, existing, words_of

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
def test_a_shown_command_is_one(
    each: Shown, harness: Callable[[list[str]], None], plugin_files: None, plugin_package: None
) -> None:
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


# -- do links lead somewhere? -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_files_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))
    for link in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", prose):
        assert (page.parent / link).exists(), f"{link} does not exist"
