"""Where runs are recorded, for the commands that read or send them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.compose import compose_as
from harness.config import PathsConfig, TrackingConfig
from harness.errors import UsageError
from harness.files import Folders

STORE_HELP = "paths.home=DIR or tracking.uri=URI, as in `harness run`"


@dataclass
class StoreConfig:
    """The part of a run config that says where records are."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @staticmethod
    def keys() -> tuple[str, ...]:
        """Keys that choose a store."""
        return "paths.home", "tracking.uri"


@dataclass(frozen=True)
class Store:
    """A resolved place of records.

    Attributes:
        uri: Tracking URI; may hold credentials.
        folders: Resolved folders.
    """

    uri: str
    folders: Folders

    @property
    def shown(self) -> str:
        """The URI without credentials."""
        from harness.mlflow_store import redact

        return redact(self.uri)

    def exists(self) -> bool:
        """False for a local database that no run has created yet."""
        return not self.uri.startswith("sqlite:///") or Path(self.uri.removeprefix("sqlite:///")).is_file()


def read_store(overrides: Sequence[str]) -> Store:
    """Resolves overrides, environment variables and defaults.

    Raises:
        UsageError: For other keys than those of `StoreConfig`.
    """
    from harness.tracking import tracking_uri

    configs = compose_as(StoreConfig, overrides)
    if len(configs) != 1:
        raise UsageError("one place of records at a time, please.")
    folders = Folders.resolve(configs[0].paths)
    return Store(tracking_uri(configs[0].tracking, folders), folders)
