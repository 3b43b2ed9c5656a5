"""The command `harness`: sub-commands, exit codes, one-line errors.

Starting up is light: only the module of the command that was typed is imported, and none of them imports torch,
transformers or mlflow before it has to.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from harness import processes
from harness.cli.parsing import Parser, add_plugin_option
from harness.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TERMINATED,
    EXIT_USAGE,
    HarnessError,
    Terminated,
    UnknownNameError,
    UsageError,
)
from harness.progress import printable, say

#: Sub-commands and what they do; each is the module of the same name in `harness.cli.commands`.
COMMANDS: Mapping[str, str] = {
    "run": "train and score methods under a missing-modality protocol",
    "sweep": "run a grid of methods, protocols, data sets and seeds in several processes",
    "tune": "search options of methods, the same number of trials for each, on validation only",
    "reproduce": "run cells of published tables and put ours beside the printed numbers",
    "list": "list methods, datasets, protocols, metrics, encoders or backbones",
    "describe": "show one of them: options, presets, citation, licence, card",
    "prepare": "check a data set completely, index it, and compute its features if asked to",
    "mask": "build, show, verify, compare, import or export a mask table; replay the released draw",
    "check": "run the contract tests on a plugin, yours or ours, and print what passed",
    "import-checkpoint": "load released weights into a method, by a table of names",
    "report": "make tables, statistics and pages from recorded runs",
    "compare": "test two methods or runs against each other on identical masks",
    "export": "bundle runs into one file that anyone can score again",
    "verify": "check such a bundle: every hash, every score",
    "audit": "make the leak checks of a recorded run again, on data, weights and predictions",
    "inspect": "look into a recorded run: what was reconstructed, and who was asked",
    "ui": "open MLflow's pages on the recorded runs",
    "sync": "send runs that could not reach the tracking server",
    "doctor": "check the installation, data sets, encoders and tracking",
}

#: Characters of an error line: an error may quote a file, and files of others may hold anything.
_LONGEST = 4000

_EPILOG = """\
commands:
{commands}

examples:
  harness run method=redeem protocol=both_0.7
  harness run method=redeem,zero_fill train_seed=0,1,2
  harness sweep method=all protocol=both_0.7,text_0.7 workers=2
  harness describe method redeem
  harness report --out report

exit codes: 0 ok, 1 a run failed, 2 wrong usage, 3 data or packages missing, 4 a leak check or a bundle failed.
`harness COMMAND --help` says more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _sigterm_as_interrupt(), _results_of_main_only():
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except HarnessError as error:
        # Before the processes are connected they do the same, and fail alike.
        if processes.is_main() or (processes.connected() and not error.known_to_all):
            from harness.mlflow_store import redact

            # An error may quote the command line, and that the address of a tracking server.
            line = redact(" ".join(printable(str(error)).split()))
            print(f"harness: error: {line if len(line) <= _LONGEST else line[:_LONGEST] + ' …'}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        say("harness: interrupted; the same command goes on from the last checkpoint.")
        return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep the interpreter from flushing into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is running is recorded as interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _results_of_main_only() -> Iterator[None]:
    """Of several processes that work on one run, the main one alone prints."""
    if processes.is_main():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def _dispatch(arguments: list[str]) -> int:
    own, rest = _split(arguments)
    parser = _parser()
    options = parser.parse_args(own)
    if options.version:
        from harness import __version__

        print(f"harness {__version__}")
        return EXIT_OK
    if not rest:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    name, *rest = rest
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    if processes.count() > 1 and name != "run":
        raise UsageError(f"harness {name} is one process; only `harness run` is started as several.")
    module = importlib.import_module(f"harness.cli.commands.{name.replace('-', '_')}")
    command: Parser = module.parser(prog=f"harness {name}", description=COMMANDS[name])
    add_plugin_option(command)
    parsed = command.parse_intermixed_args(rest)
    files = [*(options.plugin or []), *(parsed.plugin or [])]
    parsed.plugin = files
    if files:
        from harness.registry import load_plugin_file

        for file in files:
            load_plugin_file(file)
    code: int = module.execute(parsed)
    return code


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options before the command, and the command with everything after it."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        index += 2 if arguments[index] == "--plugin" else 1
    return arguments[:index], arguments[index:]


def _parser() -> Parser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="harness",
        usage="harness [--plugin FILE] COMMAND …",
        description="Benchmark for learning with missing modalities.",
        epilog=_EPILOG.format(commands=listing),
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    add_plugin_option(parser)
    return parser
