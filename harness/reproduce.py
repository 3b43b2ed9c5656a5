"""Several named grids as one plan, in which what cannot run here is said and does not stop the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.cell import Cell, cell_features, resolve
from harness.compose import compose, to_dict
from harness.config import RunConfig, canonical_json
from harness.errors import DataError, HarnessError, UsageError
from harness.files import Folders
from harness.sweep import Plan, plan_cells
from harness.workspace import Workspace


@dataclass
class Part:
    """One named grid.

    Attributes:
        name: Its name.
        configs: Its runs.
        cells: The runs resolved against data; empty if the data are not there.
        problem: Why it cannot be run here; empty if it can.
    """

    name: str
    configs: list[RunConfig]
    cells: list[Cell]
    problem: str = ""


@dataclass
class Reproduction:
    """Named grids resolved against data.

    Attributes:
        parts: One per name.
        plan: The cells of all parts, each run id once.
        workspace: What was loaded.
    """

    parts: list[Part]
    plan: Plan
    workspace: Workspace

    def check_features(self) -> Plan:
        """Computes the features of what is left to run; a part whose encoders are not there gets a `problem`.

        Returns:
            The plan without the unfinished cells of such parts.
        """
        left = {cell.run_id for cell in self.plan.todo}
        for part in self.parts:
            todo = [cell for cell in part.cells if cell.run_id in left]
            try:
                for cell in todo:
                    cell_features(cell, self.workspace)
            except HarnessError as error:
                part.problem = str(error)
                left -= {cell.run_id for cell in todo}
        ready = [cell for cell in self.plan.cells if cell.run_id in left or cell.run_id in self.plan.finished]
        return Plan(ready, dict(self.plan.finished))


def plan_grids(grids: Mapping[str, Sequence[str]]) -> Reproduction:
    """Resolves named grids; trains nothing.

    Args:
        grids: Name -> overrides as of `harness run`, one name or more; all with one place for their files, and the
            runs of each alike but for `train_seed`.

    Raises:
        UsageError: For what a user can mend in an override; it names the grid.
    """
    parts = [Part(name, _named(name, overrides), []) for name, overrides in grids.items()]
    workspace = Workspace(Folders.resolve(parts[0].configs[0].paths))
    absent: dict[str, str] = {}
    for part in parts:
        for config in part.configs:
            # A folder that cannot be read is not read again for every cell.
            key = canonical_json(to_dict(config)["dataset"])
            if key not in absent:
                try:
                    part.cells.append(resolve(config, workspace))
                except DataError as error:
                    absent[key] = str(error)
                except UsageError as error:
                    raise UsageError(f"{part.name}: {error}") from error
            part.problem = absent.get(key, part.problem)
    return Reproduction(parts, plan_cells([cell for part in parts for cell in part.cells], workspace), workspace)


def _named(name: str, overrides: Sequence[str]) -> list[RunConfig]:
    """Runs of one grid, each once."""
    try:
        configs = compose(overrides)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    # Their mean is one result: runs that differ in anything else are not repetitions of each other.
    if any(replace(config, train_seed=configs[0].train_seed) != configs[0] for config in configs):
        raise UsageError(f"{name}: its runs may differ in train_seed only; the options make a grid of something else.")
    return list({config.train_seed: config for config in configs}.values())
