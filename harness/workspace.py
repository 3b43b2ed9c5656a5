"""What cells of one process share: loaded data sets, drawn masks and opened feature blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import registry
from harness.config import EncoderConfig, digest_of
from harness.features import FeatureArray, FeatureStore
from harness.files import Folders
from harness.masking import MaskTable
from harness.plugin import PluginConfig
from harness.protocol import Protocol
from harness.types import DataTable


class Workspace:
    """What cells of one process share: loaded data sets and opened feature blocks.

    Args:
        folders: Resolved folders.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self._tables: dict[str, DataTable] = {}
        self._features: dict[str, FeatureArray] = {}
        self._masks: dict[tuple[str, str, int, bool], tuple[MaskTable, str]] = {}
        self._sources: dict[type[PluginConfig], str] = {}

    def table(self, config: Any) -> DataTable:
        """The loaded data set of a config."""
        key = digest_of({"name": registry.datasets.name_of(type(config)), **config.to_dict()})
        if key not in self._tables:
            self._tables[key] = config.load(self.folders.data, self.folders.cache / "datasets")
        return self._tables[key]

    def masks(
        self, protocol: Protocol, table: DataTable, mask_seed: int, revealed: bool = False
    ) -> tuple[MaskTable, str]:
        """The mask table of a protocol with its fingerprint, drawn once; `revealed`: as an oracle is shown it."""
        key = (protocol.name, table.spec.fingerprint, mask_seed, revealed)
        if key not in self._masks:
            if revealed:
                masks = self.masks(protocol, table, mask_seed)[0].revealed(table)
            else:
                masks = MaskTable.build(protocol, table, mask_seed)
            # Sorting the ids of a large data set takes longer than all else that a plan does for a cell.
            self._masks[key] = masks, masks.fingerprint
        return self._masks[key]

    def source_fingerprint(self, plugin: type[PluginConfig]) -> str:
        """Digest of a plugin's sources, read once: what is imported does not change either."""
        if plugin not in self._sources:
            self._sources[plugin] = plugin.source_fingerprint()
        return self._sources[plugin]

    def features(
        self, table: DataTable, encoders: Mapping[str, tuple[str, EncoderConfig]], device: str = "auto"
    ) -> dict[str, FeatureArray]:
        """Feature arrays of every modality, from the store or computed now, on `device` if the encoder knows it."""
        store = FeatureStore(self.folders.cache / "features")
        result = {}
        for modality in table.spec.modalities:
            name, config = encoders[modality.name]
            key = digest_of([table.spec.fingerprint, modality.name, name, config.to_dict(), device])
            if key not in self._features:
                self._features[key] = store.get(table, modality, name, config, device)
            result[modality.name] = self._features[key]
        return result
