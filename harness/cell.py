"""One cell of a comparison: a run config resolved against data, what identifies it, and what its method may see.

What a user can mend (unknown names, missing data, options that do not fit) is raised here, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from harness import audit, registry
from harness.changes import parse_identity, spread
from harness.compose import encoder_config, identity_dict
from harness.config import BackboneConfig, EncoderConfig, MethodConfig, RunConfig
from harness.errors import UnknownNameError, UsageError
from harness.features import FeatureArray
from harness.identity import run_id
from harness.masking import MaskTable, ObservedDataset, observe
from harness.metrics import metric_for, metric_versions
from harness.protocol import Protocol, parse_protocol
from harness.types import SPLITS, DataTable, ModalityKind, Split
from harness.workspace import Workspace


@dataclass(frozen=True)
class Cell:
    """A run config resolved against data: everything that has an identity.

    Attributes:
        config: The run config.
        table: Loaded data set.
        protocol: Parsed protocol.
        masks: The protocol's mask table; groups results.
        shown: The table in force: `masks`, or nothing hidden for oracle methods.
        run_id: sha256 identity.
        plugins: Source fingerprints by plugin.
    """

    config: RunConfig
    table: DataTable
    protocol: Protocol
    masks: MaskTable
    shown: MaskTable
    run_id: str
    plugins: Mapping[str, str]

    @property
    def method_name(self) -> str:
        """Registered name of the method."""
        return registry.methods.name_of(type(self.config.method))

    @property
    def title(self) -> str:
        """How progress lines call the cell."""
        label = f"[{self.config.method.label}]" if self.config.method.label else ""
        return (
            f"{self.method_name}{label} · {self.table.spec.name} · {self.protocol.name} · "
            f"train_seed={self.config.train_seed}"
        )


def resolve(config: RunConfig, workspace: Workspace) -> Cell:
    """Loads the data set, draws the mask table and computes the run id.

    Raises:
        UsageError: If options do not fit the data set or the protocol.
        DataError: If the data set cannot be loaded.
    """
    method: MethodConfig = config.method
    table = workspace.table(config.dataset)
    method.validate_for(table.spec.modality_names)
    if config.trainer.select_on:
        metric_for(table.spec.task, config.trainer.select_on)
    if method.needs_complete_supervision() and config.supervision != "complete":
        raise UsageError(
            f"method.preset={method.preset} of {registry.methods.name_of(type(method))} reads true values of missing "
            "training modalities; run it with supervision=complete, or choose options that do not."
        )
    protocol = parse_protocol(config.protocol)
    masks, fingerprint = workspace.masks(protocol, table, config.mask_seed)
    if masks.conditions and config.trainer.select_split == "test":
        raise UsageError(
            f"trainer.select_split=test replays selection on the test split; {protocol.name!r} has "
            f"{len(masks.conditions)} test conditions, choose a protocol with one."
        )
    shown, shown_fingerprint = workspace.masks(protocol, table, config.mask_seed, method.oracle)
    plugins = {"method": workspace.source_fingerprint(type(method))}
    identity = identity_dict(config)
    # The fingerprint stands for the data set: where its files lie does not matter.
    identity.pop("dataset")
    if method.uses_backbone:
        plugins["backbone"] = workspace.source_fingerprint(type(config.backbone))
    else:
        identity.pop("backbone", None)
    for group in (token_encoder_names(config, table), backbone_encoder_names(config, table) or {}):
        plugins |= {f"encoder:{name}": workspace.source_fingerprint(type(encoder)) for name, encoder in group.values()}
    return Cell(
        config,
        table,
        protocol,
        masks,
        shown,
        run_id(
            identity,
            dataset_fingerprint=table.spec.fingerprint,
            mask_fingerprint=f"{fingerprint}:{shown_fingerprint}",
            plugins=plugins,
            metrics=metric_versions(table.spec.task, method.replays),
        ),
        plugins,
    )


def token_encoder_names(config: RunConfig, table: DataTable) -> dict[str, tuple[str, EncoderConfig]]:
    """Encoder of each modality that yields pooled keys and, unless the backbone has its own, tokens.

    Raises:
        UsageError: If a modality kind has no encoder, or one is given for what the data set does not have.
    """
    known = (*get_args(ModalityKind), *table.spec.modality_names)
    for key in config.encoders:
        if key not in known:
            raise UnknownNameError("modality in encoders", key, known)
    chosen = {}
    for modality in table.spec.modalities:
        # A features modality may be called "text": such a name is read as the kind it is elsewhere.
        own = "" if modality.name in get_args(ModalityKind) else config.encoders.get(modality.name, "")
        name = own or config.encoders.get(modality.kind, "")
        if not name:
            raise UsageError(
                f"no encoder for modality {modality.name!r} of kind {modality.kind}; set encoders.{modality.kind}=NAME."
            )
        chosen[modality.name] = (name, encoder_config(name, config.encoder_options.get(name, {})))
    unused = sorted(set(config.encoder_options) - {name for name, _ in chosen.values()})
    if unused:
        used = ", ".join(sorted({name for name, _ in chosen.values()}))
        raise UsageError(f"encoder_options.{unused[0]} is given, but {table.spec.name} is encoded by {used}.")
    return chosen


def backbone_encoder_names(config: RunConfig, table: DataTable) -> dict[str, tuple[str, EncoderConfig]] | None:
    """Encoders that prepare the backbone's own inputs, or None when it works on the run's encoders.

    Raises:
        UsageError: If the backbone does not take a modality of the data set.
    """
    backbone: BackboneConfig = config.backbone
    if not config.method.uses_backbone or backbone.token_encoders is None:
        return None
    options = backbone.encoder_options()
    chosen = {}
    for modality in table.spec.modalities:
        name = backbone.token_encoders.get(modality.kind)
        if name is None:
            raise UsageError(
                f"backbone {registry.backbones.name_of(type(backbone))!r} takes "
                f"{', '.join(backbone.token_encoders)}, but modality {modality.name!r} is {modality.kind}; "
                "use backbone=fusion."
            )
        chosen[modality.name] = (name, encoder_config(name, options.get(name, {})))
    return chosen


class CellFeatures(dict[str, FeatureArray]):
    """Features of every modality as the data came, with those of values that the protocol changes beside them.

    Args:
        plain: Per modality the whole data set's arrays.
        changed: Per changed part of the mask table the arrays of the changed modalities.
    """

    def __init__(
        self, plain: Mapping[str, FeatureArray], changed: Mapping[str, Mapping[str, FeatureArray]] | None = None
    ) -> None:
        super().__init__(plain)
        self.changed = dict(changed or {})


def cell_features(cell: Cell, workspace: Workspace, splits: Sequence[Split] = SPLITS) -> CellFeatures:
    """Tokens and pooled vectors of every modality as this method will see them, changed ones of `splits` only."""
    encoders = token_encoder_names(cell.config, cell.table)
    own = backbone_encoder_names(cell.config, cell.table)

    def encoded(table: DataTable) -> dict[str, FeatureArray]:
        features = workspace.features(table, encoders, cell.config.device)
        if own is not None:
            tokens = workspace.features(table, own, cell.config.device)
            features = {name: array.replace_tokens(tokens[name]) for name, array in features.items()}
        return features

    plain, changed = encoded(cell.table), {}
    for part, identity in cell.shown.changes.items():
        split = cell.shown.parts()[part][0]
        if split not in splits:
            continue
        rows = cell.table.splits[split]
        values = parse_identity(identity).apply(cell.table, split, cell.shown.mask_seed)
        changed[part] = {name: spread(array, rows, plain[name]) for name, array in encoded(values).items()}
    return CellFeatures(plain, changed)


def observed_views(cell: Cell, features: Mapping[str, FeatureArray], tests: bool = True) -> audit.Views:
    """The splits as the cell's method may see them; the test split once per condition, or not at all."""
    table, supervision = cell.table, cell.config.supervision
    changed = features.changed if isinstance(features, CellFeatures) else {}

    def view(split: Split, condition: str = "") -> ObservedDataset:
        return observe(table, cell.shown, features, split, supervision, condition, changed)

    conditions = cell.shown.condition_names if tests else ()
    return audit.Views(view("train"), view("valid"), {name: view("test", name) for name in conditions})
