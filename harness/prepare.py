"""`harness prepare`: everything about a data set that can be checked and computed before a GPU is rented.

Data sets that users download derive from `PreparableConfig` and check their folder completely.  Every other one is
loaded, which is all the checking it has.  Features are computed only when they are asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import MethodConfig, PathsConfig, RunConfig, default_encoders
from harness.dataset import DatasetConfig
from harness.files import Folders
from harness.types import SPLITS

if TYPE_CHECKING:
    from harness.types import DataTable
    from harness.workspace import Workspace


@dataclass(frozen=True)
class Problem:
    """Something in a folder that has to be mended.

    Attributes:
        where: The file, relative to the folder, with the row where it has rows.
        what: What is wrong with it.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Preparation:
    """What checking a folder found.

    Attributes:
        name: The data set.
        folder: Where its files are.
        counts: What was counted, with the number found and that of the release.
        problems: All of them; with any there is no index, and the data set does not load.
        remarks: What is odd and yet part of the data, each with the files that it is about.
        report: File that spells out every problem and remark.
        index: The index; it exists if there are no problems.
    """

    name: str
    folder: Path
    counts: Mapping[str, tuple[int, int]]
    problems: tuple[Problem, ...]
    remarks: Mapping[str, tuple[str, ...]]
    report: Path
    index: Path

    @property
    def official(self) -> bool:
        """Whether all counts are those of the release."""
        return all(found == released for found, released in self.counts.values())

    def count_problems(self) -> tuple[Problem, ...]:
        """Counts that are not those of the release."""
        return tuple(
            Problem(what, f"{found:,} samples, the release has {released:,}")
            for what, (found, released) in self.counts.items()
            if found != released
        )

    def text(self) -> str:
        """The report: counts, one line a problem, then the remarks with every file they are about."""
        lines = [f"{self.name} in {self.folder}", ""]
        for what, (found, released) in self.counts.items():
            lines.append(f"{what}: {found:,}" + ("" if found == released else f", the release has {released:,}"))
        lines += ["", f"problems: {len(self.problems):,}", *(f"  {problem}" for problem in self.problems)]
        for summary, files in self.remarks.items():
            lines += ["", f"remark: {summary}", *(f"  {file}" for file in files)]
        return "\n".join(lines) + "\n"


@dataclass
class PreparableConfig(DatasetConfig):
    """Base of data sets whose folder a user supplies and `harness prepare` checks completely."""

    @abstractmethod
    def prepare(self, data_dir: Path, cache_dir: Path) -> Preparation:
        """Checks every file and writes the index; goes on where a killed one stopped, waits for one that runs.

        Args:
            data_dir: Folder with data sets that users supply.
            cache_dir: Folder for the index and the report.

        Raises:
            DataError: If there is no such data set in the folder at all.
        """


@dataclass
class PrepareConfig:
    """What is prepared.

    Attributes:
        dataset: Config of a registered data set.
        backbone: Config of a registered backbone; with `features`, its own inputs are stored too.
        encoders: Frozen encoder per modality kind or modality name.
        encoder_options: Options per encoder name.
        features: Also computes the features of the run's encoders.
        subset: Accepts a folder with other numbers of samples than the release.
        paths: Where files go.
    """

    dataset: Any
    backbone: Any
    encoders: dict[str, str] = field(default_factory=default_encoders)
    encoder_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: bool = False
    subset: bool = False
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass(frozen=True)
class Prepared:
    """Outcome of `prepare`.

    Attributes:
        name: Registered name of the data set.
        checked: What checking its folder found; None where the data set has no such check.
        problems: All problems, counts that differ from the release included unless a subset was allowed.
        facts: What the loaded data set holds and where its files are; empty if it has problems.
    """

    name: str
    checked: Preparation | None
    problems: tuple[Problem, ...]
    facts: Mapping[str, str]


def prepare(config: PrepareConfig) -> Prepared:
    """Checks a data set, loads it if it is sound, and computes features if asked to.

    Raises:
        DataError: If the data set is not there, or features cannot be computed.
        UsageError: If an option is out of range.
    """
    from harness import registry

    dataset: DatasetConfig = config.dataset
    dataset.validate()
    config.backbone.validate()
    folders = Folders.resolve(config.paths)
    name = registry.datasets.name_of(type(dataset))
    checked = None
    problems: tuple[Problem, ...] = ()
    if isinstance(dataset, PreparableConfig):
        checked = dataset.prepare(folders.data, folders.cache / "datasets")
        problems = checked.problems + (() if config.subset else checked.count_problems())
        if problems:
            return Prepared(name, checked, problems, {})
    from harness.workspace import Workspace

    workspace = Workspace(folders)
    table = workspace.table(dataset)
    facts = _facts(dataset, name, table, folders)
    if checked is not None:
        facts["files"], facts["index"], facts["report"] = str(checked.folder), str(checked.index), str(checked.report)
    if config.features:
        facts["features"] = _store_features(config, table, workspace)
    return Prepared(name, checked, (), facts)


def _facts(dataset: DatasetConfig, name: str, table: DataTable, folders: Folders) -> dict[str, str]:
    """What a loaded data set holds, in words."""
    own = getattr(dataset, "folder", None)
    place = "computed or in installed packages" if own is None else str(Path(own or folders.data / name).expanduser())
    return {
        "data set": table.spec.name,
        "splits": ", ".join(f"{split} {len(table.splits[split]):,}" for split in SPLITS),
        "modalities": ", ".join(
            f"{modality.name} ({int(present):,} present)"
            for modality, present in zip(table.spec.modalities, table.available.sum(axis=0), strict=True)
        ),
        **{key: _in_words(value) for key, value in table.card.items()},
        "files": place,
        "fingerprint": table.spec.fingerprint,
    }


def _in_words(value: Any) -> str:
    """A fact of a data card on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_words(part)}" for key, part in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _store_features(config: PrepareConfig, table: DataTable, workspace: Workspace) -> str:
    """Fills the feature store for the run's encoders and the backbone's own; says where."""
    from harness.cell import backbone_encoder_names, token_encoder_names

    run = RunConfig(
        method=MethodConfig(),
        dataset=config.dataset,
        backbone=config.backbone,
        encoders=config.encoders,
        encoder_options=config.encoder_options,
    )
    stored = []
    for encoders in (token_encoder_names(run, table), backbone_encoder_names(run, table)):
        if encoders is not None:
            workspace.features(table, encoders)
            stored += [f"{modality} by {name}" for modality, (name, _) in encoders.items()]
    return f"{', '.join(stored)}, below {workspace.folders.cache / 'features' / table.spec.name}"
