"""Pretrained models in the hub's format: a local folder first, then the hub's cache, the hub only if allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError


@dataclass(frozen=True)
class Pretrained:
    """Where the files of one pretrained model are.

    Attributes:
        name: What it is called in messages, e.g. `"ViLT"`.
        weights: Hub id, or a local folder in the hub's format.
        option: Config node that holds `weights` and `allow_download`, e.g. `"backbone"`.
        allow_download: Whether the hub may be contacted.
    """

    name: str
    weights: str
    option: str
    allow_download: bool = False

    def load(self, kind: Any, **options: Any) -> Any:
        """`kind.from_pretrained` of the folder, the hub's cache, or, only if allowed, the hub.

        Args:
            kind: A class of transformers with `from_pretrained`.
            options: Passed on.

        Raises:
            DataError: Naming the three ways to provide the files, or what is wrong with a folder.
        """
        own = Path(self.weights).expanduser()
        folder = own if own.is_dir() else self.cached_folder()
        if folder is not None:
            try:
                return kind.from_pretrained(str(folder), local_files_only=True, **options)
            except Exception as error:
                # transformers raises OSError, ValueError and safetensors' own error alike.
                if folder is own or not self.allow_download:
                    raise DataError(
                        f"{folder} is not a whole {self.name} in the hub's format: {_line(error)}"
                    ) from error
        if not self.allow_download:
            raise DataError(
                f"{self.name} weights {self.weights!r} are neither a local folder nor in the hub's cache; give a "
                f"folder with {self.option}.weights=DIR, fill the cache with `hf download {self.weights}`, or let this "
                f"run download them with {self.option}.allow_download=true."
            )
        try:
            return kind.from_pretrained(self.weights, **options)
        except Exception as error:
            raise DataError(f"{self.name} weights {self.weights!r} cannot be downloaded: {_line(error)}") from error

    def load_model(self, kind: Any, **options: Any) -> Any:
        """`load` of a network that must find every one of its weights, without progress bars or reports.

        Raises:
            DataError: Also if weights are missing.
        """
        with _quiet():
            model, report = self.load(kind, output_loading_info=True, **options)
        if report["missing_keys"] or report["mismatched_keys"]:
            missing = sorted(map(str, report["missing_keys"] or report["mismatched_keys"]))
            raise DataError(
                f"{self.weights!r} is not a whole {self.name}: {len(missing)} weights are missing, e.g. {missing[0]}."
            )
        return model

    def cached_folder(self) -> Path | None:
        """Snapshot of a hub id in the local cache; found without the hub's client, which may open connections."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(self.weights, "config.json")
        except HFValidationError:
            return None
        return Path(found).parent if isinstance(found, str) else None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report of unused heads while weights are read."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
