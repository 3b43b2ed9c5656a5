"""Builds a recorded run again from its record: data, masks, views, and the method with its stored weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness import audit
from harness.cell import Cell, CellFeatures, cell_features, resolve
from harness.compose import from_dict
from harness.config import PathsConfig
from harness.errors import HarnessError
from harness.execution import build_method
from harness.files import Folders
from harness.method import Method
from harness.record import RunRecord
from harness.tracking import StoredRun
from harness.trainer import Trainer, restore_state
from harness.workspace import Workspace

_WEIGHTS = "checkpoint/model.safetensors"


@dataclass(frozen=True)
class Rebuilt:
    """The cell of a recorded run on the data that are here.

    Attributes:
        record: Of the run.
        cell: Its cell.
        features: All values.
    """

    record: RunRecord
    cell: Cell
    features: CellFeatures

    @property
    def same(self) -> bool:
        """Whether config, data and code are the run's."""
        return self.cell.run_id == self.record.run_id

    @property
    def changed(self) -> str:
        """What is not as it was in the run, in one line; empty where nothing is known to differ."""
        if self.same:
            return ""
        names = [name for name, source in self.cell.plugins.items() if self.record.fingerprints.get(name) != source]
        return f"the code is not the run's ({', '.join(names) or 'metrics or options'} changed since)"


def rebuild(record: RunRecord, folders: Folders) -> Rebuilt:
    """The run's cell.

    Raises:
        HarnessError: If plugins or data are not here, or the data are of another version.
    """
    workspace = Workspace(folders)
    paths = PathsConfig(home=str(folders.home), data=str(folders.data))
    recorded = from_dict(record.config)
    # A run of a GPU can be looked at where there is none.
    config = replace(recorded, paths=paths, device="cpu" if recorded.device == "cpu" else "auto")
    cell = resolve(config, workspace)
    if cell.table.spec.fingerprint != record.dataset["fingerprint"]:
        raise HarnessError(f"{record.dataset['name']} has another version here than the run had.")
    return Rebuilt(record, cell, cell_features(cell, workspace))


def untrained(rebuilt: Rebuilt, views: audit.Views) -> tuple[Method, Trainer]:
    """The prepared method as it was before training, and what asks it."""
    config = rebuilt.cell.config
    trainer = Trainer(config.trainer, config.train_seed, config.device)
    return build_method(config, rebuilt.cell.table, rebuilt.features, views).to(trainer.device), trainer


def load_weights(method: Method, run: StoredRun) -> None:
    """Gives a method what the run has learned; nothing for methods that are not trained.

    Raises:
        HarnessError: If the run kept no weights, or they do not fit.
    """
    if method.config.trains:
        from safetensors.torch import load

        restore_state(method, load(run.artifact(_WEIGHTS)), f"the checkpoint of run {run.record.run_id[:12]}")
