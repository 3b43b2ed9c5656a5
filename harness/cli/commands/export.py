"""`harness export`: runs as one file that anyone can score again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.output import print_json
from harness.cli.parsing import Parser, add_json_option
from harness.cli.store import STORE_HELP, read_store
from harness.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.tracking import StoredRun

_EPILOG = """\
The file holds record, config, environment, mask table and predictions of each run, and a manifest of sha256; no
weights, no data, no pickles.  `harness verify FILE.zip` scores it again, without a GPU and without torch.

examples:
  harness export --last -o bundle.zip
  harness export 3f2a9c1e 77b0d4aa -o bundle.zip"""


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument(
        "runs", nargs="*", metavar="RUN | OPTION=VALUE", help=f"run ids or their beginnings; {STORE_HELP}"
    )
    result.add_argument("--last", action="store_true", help="the run that finished last")
    result.add_argument("-o", "--output", metavar="FILE.zip", type=Path, required=True, help="the file to write")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Writes the bundle and prints its digest."""
    overrides = [text for text in arguments.runs if "=" in text]
    wanted = [text for text in arguments.runs if "=" not in text]
    if arguments.last == bool(wanted):
        raise UsageError("name run ids (harness report --json lists them), or --last, not both.")
    store = read_store(overrides)

    from harness.bundle import RUN_FILES, write_bundle
    from harness.progress import say
    from harness.tracking import load_runs

    runs = load_runs(store.uri) if store.exists() else []
    chosen = _last(runs) if arguments.last else [_named(runs, text) for text in wanted]
    for run in chosen:
        if run.record.status != "finished":
            raise UsageError(
                f"run {run.record.run_id[:12]} is {run.record.status}; only finished runs can be exported."
            )
    digest = write_bundle(
        arguments.output, {run.record.run_id: {name: run.artifact(name) for name in RUN_FILES} for run in chosen}
    )
    ids = list(dict.fromkeys(run.record.run_id for run in chosen))
    say(f"wrote {arguments.output}: {len(ids)} runs, sha256 of the manifest:")
    if arguments.json:
        print_json({"file": str(arguments.output), "runs": ids, "sha256": digest})
    else:
        print(digest)
    return EXIT_OK


def _last(runs: Sequence[StoredRun]) -> list[StoredRun]:
    done = [run for run in runs if run.record.status == "finished"]
    if not done:
        raise UsageError("no finished run is recorded.")
    return [max(done, key=lambda run: run.record.finished)]


def _named(runs: Sequence[StoredRun], text: str) -> StoredRun:
    found = [run for run in runs if run.record.run_id.startswith(text.lower())]
    if len(found) != 1:
        raise UsageError(f"{len(found)} recorded runs have an id that begins with {text!r}; name exactly one.")
    return found[0]
