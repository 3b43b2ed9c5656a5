"""`harness doctor`: what works here, and how to mend what does not."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from harness import registry
from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.cli.store import STORE_HELP, Store, read_store
from harness.errors import EXIT_CELL_FAILED, EXIT_OK, DependencyError, HarnessError

_EPILOG = """\
examples:
  harness doctor
  harness doctor --json paths.home=/data/harness

`missing` is a data set or encoder that can be added, `failed` something that every run needs; only the latter
makes the exit code 1."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    status: Literal["ok", "missing", "failed"]
    detail: str


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument("overrides", nargs="*", metavar="OPTION=VALUE", help=STORE_HELP)
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Prints one line per check."""
    store = read_store(arguments.overrides)
    checks = list(_checks(store))
    if arguments.json:
        from harness.environment import describe_environment

        print_json({"checks": [asdict(check) for check in checks], "environment": describe_environment()})
    else:
        print_table(["check", "status", "detail"], [[check.name, check.status, check.detail] for check in checks])
    return EXIT_CELL_FAILED if any(check.status == "failed" for check in checks) else EXIT_OK


def _checks(store: Store) -> Iterator[Check]:
    yield _check("python", lambda: f"{sys.version.split()[0]}")
    yield _check("torch", _torch)
    yield _check("transformers", _transformers)
    yield _check("faiss", _faiss)
    yield _check("home folder", lambda: _home(store))
    yield _check("tracking", lambda: _tracking(store))
    for entry in registry.encoders:
        yield _check(f"encoder {entry.name}", partial(_encoder, entry.name), "missing")
    for entry in registry.datasets:
        yield _check(f"data set {entry.name}", partial(_dataset, entry.name, store), "missing")


def _check(name: str, look: Callable[[], str], worst: Literal["missing", "failed"] = "failed") -> Check:
    try:
        return Check(name, "ok", look())
    except HarnessError as error:
        return Check(name, worst, " ".join(str(error).split()))
    except Exception as error:
        # A broken package can raise anything; naming it here is what this command is for.
        return Check(name, worst, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _torch() -> str:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return f"{torch.__version__}, runs on {names}"
    return f"{torch.__version__}, runs on the CPU with {torch.get_num_threads()} threads of {os.cpu_count()} cores"


def _transformers() -> str:
    import transformers

    return str(transformers.__version__)


def _faiss() -> str:
    try:
        import faiss
    except ImportError as error:
        raise DependencyError(
            "not installed; pip install 'missing-modality-harness[cpu]' or 'missing-modality-harness[gpu]'."
        ) from error
    return f"{faiss.__version__}, {faiss.get_num_gpus()} GPUs"


def _home(store: Store) -> str:
    from harness.files import ensure_folder

    return f"{ensure_folder(store.folders.home)} can be written"


def _tracking(store: Store) -> str:
    from harness.mlflow_store import connect
    from harness.outbox import entries

    waiting = len(entries(store.folders))
    note = f"; {waiting} runs wait for `harness sync`" if waiting else ""
    if not store.exists():
        return f"{store.shown} will be created by the first run{note}"
    connect(store.uri, store.folders)
    return f"{store.shown} answers{note}"


def _encoder(name: str) -> str:
    config = registry.encoders.get(name)()
    digest = config.implementation()(config).fingerprint()
    return f"weights {digest[:16]}" if digest else "needs no weights"


def _dataset(name: str, store: Store) -> str:
    config: Any = registry.datasets.get(name)()
    config.validate()
    table = config.load(store.folders.data, store.folders.cache / "datasets")
    sizes = ", ".join(f"{len(rows)} {split}" for split, rows in table.splits.items())
    return f"{sizes}; {table.spec.task.num_outputs} outputs; {', '.join(table.spec.modality_names)}"
