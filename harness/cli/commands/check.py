"""`harness check`: the contract tests that ship with the harness, on anybody's plugin, as a table."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.errors import EXIT_CELL_FAILED, EXIT_OK, DependencyError, HarnessError, UsageError
from harness.progress import say

_EPILOG = """\
examples:
  harness check method=redeem
  harness check method=redeem method.k=3 method.router=mean
  harness check method=mine dataset=mine protocol=mine_0.5 metric=mine      (several plugins, one table each)
  harness --plugin my_method.py check method=mean_tokens
  harness check protocol=audio_0.5 --contract modalities=[audio,text] --contract incomplete=0.5

The tests are those of harness.testing, where a package finds them for its own test suite.  Exit code 0: all passed or
were skipped with a reason; 1: one failed."""


@dataclass
class MethodChoice:
    """A method and its options."""

    method: Any


@dataclass
class DatasetChoice:
    """A data set and its options."""

    dataset: Any


@dataclass
class ProtocolChoice:
    """A name that a protocol family parses."""

    protocol: str


@dataclass
class MetricChoice:
    """A metric."""

    metric: str


@dataclass(frozen=True)
class Contract:
    """A contract class of `harness.testing`, named rather than imported: pytest rewrites its asserts on import.

    Attributes:
        module: Its module.
        name: The class.
        choice: Schema of the overrides that name the plugin.
        attributes: Class attributes that `--contract` may set.
    """

    module: str
    name: str
    choice: type
    attributes: tuple[str, ...] = ()


CONTRACTS: Mapping[str, Contract] = {
    "method": Contract("harness.testing.methods", "MethodContract", MethodChoice, ("fits_incomplete", "overfit_steps")),
    "dataset": Contract("harness.testing.datasets", "DatasetContract", DatasetChoice, ("checked_values",)),
    "protocol": Contract(
        "harness.testing.protocols", "ProtocolContract", ProtocolChoice, ("modalities", "incomplete", "golden")
    ),
    "metric": Contract("harness.testing.metrics", "MetricContract", MetricChoice),
}


@dataclass(frozen=True)
class Subject:
    """A plugin under test.

    Attributes:
        kind: `method`, `dataset`, `protocol` or `metric`.
        name: Registered name; of a protocol the name that its family parses.
        attributes: What the derived contract class sets besides the name.
    """

    kind: str
    name: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How tables call it, options included."""
        options: Mapping[str, Any] = self.attributes.get("options", {})
        return " ".join([self.kind, self.name, *(f"{self.kind}.{key}={value}" for key, value in options.items())])


@dataclass
class Check:
    """One contract test and what became of its cases.

    Attributes:
        subject: Number of the plugin.
        test: Name of the test.
        checks: What it checks, in words.
        outcomes: Case (empty for a test without cases) -> `pass`, `fail` or `skip`.
        reasons: Case -> why it failed or was skipped.
    """

    subject: int
    test: str
    checks: str
    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def result(self) -> str:
        """`fail` if a case failed, `pass` if one passed, else `skip`."""
        return next((word for word in ("fail", "pass") if word in self.outcomes.values()), "skip")

    @property
    def reason(self) -> str:
        """Why the first failed case failed, else why the test was skipped; empty for a test that passed."""
        if self.result == "pass":
            return ""
        case = next(case for case, outcome in self.outcomes.items() if outcome == self.result)
        return f"[{case}] {self.reasons[case]}" if case else self.reasons[case]


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    kinds = ", ".join(f"{kind}=NAME" for kind in CONTRACTS)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=f"{kinds}, and their options")
    result.add_argument("--all", action="store_true", help="slow cases too: every task with 2, 3 and 4 modalities")
    result.add_argument(
        "--contract", action="append", default=[], metavar="NAME=VALUE", help="set an attribute of the contract class"
    )
    result.add_argument("--traceback", action="store_true", help="print the whole report of every failure to stderr")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Runs the contracts and prints one table per plugin."""
    subjects = choose(arguments.overrides, arguments.contract)
    if find_spec("pytest") is None:
        raise DependencyError("harness check runs on pytest, which is not installed; get it with: pip install pytest")
    say(f"checking {', '.join(subject.title for subject in subjects)}")
    checks = run_contracts(subjects, slow=arguments.all, tracebacks=arguments.traceback)
    if arguments.json:
        print_json([_as_dict(subject, number, checks) for number, subject in enumerate(subjects)])
    else:
        for number, subject in enumerate(subjects):
            print(f"{chr(10) if number else ''}{subject.title}:")
            _print_checks([check for check in checks if check.subject == number])
    counts = {word: sum(check.result == word for check in checks) for word in ("pass", "fail", "skip")}
    say(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    return EXIT_CELL_FAILED if counts["fail"] else EXIT_OK


def choose(overrides: Sequence[str], settings: Sequence[str] = ()) -> list[Subject]:
    """Plugins that overrides such as `method=redeem` and `method.k=3` name.

    Args:
        overrides: Hydra's grammar; comma lists check several plugins.
        settings: `NAME=VALUE` of contract attributes, values as in YAML.

    Raises:
        UsageError: For unknown names, options and attributes, or when nothing is named.
    """
    from harness import registry
    from harness.compose import compose_as
    from harness.protocol import parse_protocol

    attributes = _attributes(settings)
    subjects = []
    for kind, contract in CONTRACTS.items():
        mine = [text for text in overrides if re.match(rf"{kind}\s*[.=]", text)]
        if not mine:
            continue
        if any(text.startswith(f"{kind}.preset=") for text in mine):
            raise UsageError(f"{kind}.preset: every preset is checked; leave it out.")
        own = {name: value for name, value in attributes.items() if name in contract.attributes}
        choices: list[Any] = compose_as(contract.choice, mine)
        for choice in choices:
            value = getattr(choice, kind)
            if kind == "protocol":
                subjects.append(Subject(kind, parse_protocol(value).name, own))
            elif kind == "metric":
                registry.metrics.get(value)
                subjects.append(Subject(kind, value, own))
            else:
                value.validate()
                options = _changed(value)
                name = registry.KINDS[f"{kind}s"].name_of(type(value))
                subjects.append(Subject(kind, name, own | ({"options": options} if options else {})))
    strange = [text for text in overrides if not any(re.match(rf"{kind}\s*[.=]", text) for kind in CONTRACTS)]
    if strange or not subjects:
        given = f"{strange[0]!r} names no plugin" if strange else "name a plugin"
        raise UsageError(f"check: {given}; write {', '.join(f'{kind}=NAME' for kind in CONTRACTS)}.")
    used = {name for subject in subjects for name in CONTRACTS[subject.kind].attributes}
    if unused := sorted(set(attributes) - used):
        known = ", ".join(sorted(used)) or "(none)"
        raise UsageError(f"--contract {unused[0]}: these contracts have no such attribute; they have {known}.")
    return subjects


def _attributes(settings: Sequence[str]) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    attributes = {}
    for text in settings:
        name, equals, value = text.partition("=")
        try:
            attributes[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--contract {text}: {value!r} cannot be read.") from error
        if not equals:
            raise UsageError(f"--contract {text}: write NAME=VALUE.")
    return attributes


def _changed(config: Any) -> dict[str, Any]:
    """Options that are not the defaults."""
    default = type(config)()
    return {
        option.name: getattr(config, option.name)
        for option in dataclasses.fields(config)
        if getattr(config, option.name) != getattr(default, option.name)
    }


def run_contracts(subjects: Sequence[Subject], *, slow: bool = False, tracebacks: bool = False) -> list[Check]:
    """Runs every subject's contract in this process, so that plugins loaded from files are known.

    Args:
        subjects: What to check.
        slow: Whether cases marked as slow are run.
        tracebacks: Whether pytest's whole reports of failures go to stderr.

    Returns:
        One entry per test and subject, in the order of the contracts.

    Raises:
        HarnessError: If the tests could not be started.
        KeyboardInterrupt: If the user stopped them.
    """
    import pytest

    with tempfile.TemporaryDirectory(prefix="harness-check-") as temporary, _quiet_pytest():
        folder = Path(temporary)
        # A name of its own: pytest reuses a module that an earlier call in this process has imported.
        module = folder / f"test_{folder.name.replace('-', '_')}.py"
        module.write_text(_source(subjects))
        (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: left out unless --all is given\n")
        recorder = Recorder(subjects, tracebacks)
        code = pytest.main(
            # Nothing of the folder that the user stands in has a say: no ini file, no conftest, no cache.
            [
                *("-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--confcutdir", str(folder)),
                *("--basetemp", str(folder / "tmp"), "--import-mode=importlib", "--capture=sys"),
                *("-p", "no:terminal", "-p", "no:cacheprovider"),
                *(() if slow else ("-m", "not slow")),
                str(module),
            ],
            plugins=[recorder],
        )
        recorder.close()
    if code == pytest.ExitCode.INTERRUPTED and not recorder.problem:
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise HarnessError(f"the contract tests could not be run: {recorder.problem or f'pytest ended with {code!r}'}.")
    return list(recorder.checks.values())


def _source(subjects: Sequence[Subject]) -> str:
    """A test module as a plugin's author would write it, one class per subject."""
    contracts = {CONTRACTS[subject.kind].module: CONTRACTS[subject.kind].name for subject in subjects}
    lines = [f"from {module} import {name}" for module, name in contracts.items()]
    for number, subject in enumerate(subjects):
        lines.append(f"class Test{number}({CONTRACTS[subject.kind].name}):")
        values = {subject.kind: subject.name, **subject.attributes}
        lines += [f"    {name} = {value!r}" for name, value in values.items()]
    # The contracts themselves name no plugin and are no tests.
    lines += [f"del {name}" for name in contracts.values()]
    return "\n".join(lines) + "\n"


@contextmanager
def _quiet_pytest() -> Iterator[None]:
    """Keeps the user's pytest options and plugins out."""
    ours = {"PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Recorder:
    """A pytest plugin that turns reports into `Check`s and shows progress on a terminal.

    Args:
        subjects: What is checked; class `Test<number>` belongs to the subject of that number.
        tracebacks: Whether reports of failures are printed.
    """

    def __init__(self, subjects: Sequence[Subject], tracebacks: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.subjects = subjects
        self.tracebacks = tracebacks
        self.checks: dict[tuple[int, str], Check] = {}
        self.problem = ""
        self._items: dict[str, tuple[tuple[int, str], str]] = {}
        # Made before pytest takes stderr away.
        self._stderr = sys.stderr
        self._progress = Progress(
            console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty(), redirect_stderr=False
        )
        self._bar = self._progress.add_task("", total=None)
        self._progress.start()

    def close(self) -> None:
        """Removes the progress bar."""
        self._progress.stop()

    def pytest_collection_finish(self, session: Any) -> None:
        """Notes what every test is about."""
        for item in session.items:
            key = (int(item.cls.__name__.removeprefix("Test")), item.originalname.removeprefix("test_"))
            words = " ".join((item.function.__doc__ or "").strip().partition("\n\n")[0].split())
            self.checks.setdefault(key, Check(key[0], key[1].replace("_", " "), words))
            self._items[item.nodeid] = (key, item.callspec.id if hasattr(item, "callspec") else "")
        self._progress.update(self._bar, total=len(session.items))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Notes an outcome."""
        key, case = self._items[report.nodeid]
        check = self.checks[key]
        if report.when == "setup":
            self._progress.update(self._bar, description=f"{self.subjects[key[0]].name}: {check.test}")
        elif report.when == "teardown":
            self._progress.advance(self._bar)
        if report.failed:
            check.outcomes[case], check.reasons[case] = "fail", _why(report)
            if self.tracebacks:
                title = f"{self.subjects[key[0]].title}: {check.test} [{case}]"
                print(f"\n{title}\n{report.longreprtext}", file=self._stderr, flush=True)
        elif report.skipped:
            check.outcomes[case], check.reasons[case] = "skip", report.longrepr[2].removeprefix("Skipped: ")
        elif report.when == "call":
            check.outcomes[case] = "pass"

    def pytest_collectreport(self, report: Any) -> None:
        """Notes that the test module could not be imported."""
        if report.failed:
            self.problem = self.problem or report.longreprtext.strip().splitlines()[-1].removeprefix("E").strip()

    def pytest_internalerror(self, excrepr: Any) -> None:
        """Notes a failure of pytest itself."""
        self.problem = self.problem or str(excrepr).strip().splitlines()[-1]


def _why(report: Any) -> str:
    """First line of a failure, and where it was raised unless a contract's own assert says it all."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None:
        return str(report.longreprtext.strip().splitlines()[-1])
    line = crash.message.strip().splitlines()[0] if crash.message.strip() else "failed"
    file = Path(crash.path)
    where = "" if "testing" in file.parts and line.startswith(("AssertionError", "assert ")) else file.name
    return line.removeprefix("AssertionError: ") + (f" ({where}:{crash.lineno})" if where else "")


def _print_checks(checks: Sequence[Check]) -> None:
    rows: list[list[str]] = []
    for check in checks:
        passed = sum(outcome == "pass" for outcome in check.outcomes.values())
        cases = "" if list(check.outcomes) == [""] else f"{passed}/{len(check.outcomes)}"
        rows.append([check.result, cases, check.test, check.checks])
        if check.reason:
            rows.append(["", "", "", f"-> {check.reason}"])
    print_table(["result", "cases", "test", "what it checks"], rows)


def _as_dict(subject: Subject, number: int, checks: Sequence[Check]) -> dict[str, Any]:
    return {
        "kind": subject.kind,
        "name": subject.name,
        "options": subject.attributes.get("options", {}),
        "checks": [
            {
                "test": check.test,
                "checks": check.checks,
                "result": check.result,
                "cases": {case: outcome for case, outcome in check.outcomes.items() if case},
                "reason": check.reason,
            }
            for check in checks
            if check.subject == number
        ],
    }
