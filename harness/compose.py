"""From command-line overrides to run configs: Hydra's grammar and typed merging, our names and messages.

The registries supply the schemas: the light config class of every named plugin becomes a node in Hydra's
ConfigStore, and nothing else is loaded.  `compose` returns real dataclass instances, one per cell of the grid.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from harness import registry, run_files
from harness.config import EncoderConfig, MethodConfig, RunConfig, identity_part
from harness.errors import UsageError
from harness.plugin import PluginConfig
from harness.protocol import join_names, parse_protocol
from harness.registry import Registry
from harness.system_metrics import require_monitors

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

T = TypeVar("T", bound=PluginConfig)
C = TypeVar("C")
#: Composed cells by what Hydra was asked; composing takes 50 ms.
_Known = dict[tuple[tuple[str, str], ...], C]

#: Config groups: the part of a `RunConfig` (or of how a sweep is run) that a registered plugin fills, and what is
#: used when none is named.
GROUPS: Mapping[str, tuple[Registry[PluginConfig], str | None]] = {
    "method": (registry.methods, None),
    "dataset": (registry.datasets, "openmoji"),
    "backbone": (registry.backbones, "fusion"),
    "executor": (registry.executors, "local"),
}

#: The largest grid; a slip of the keyboard should not fill the memory.
MOST_CELLS = 100_000

#: Mappings to which a command line may add keys.
OPEN_KEYS = ("encoders.", "encoder_options.", "executor.options.")

_PRESET = re.compile(r"^preset=")
_REFERENCE = re.compile(r"(\\*)\$\{")
#: Options of which thousands of cells differ in nothing else, and the texts whose value Hydra need not be asked for.
_PLAIN: Mapping[str, tuple[type[int] | type[str], re.Pattern[str]]] = {
    **dict.fromkeys(("mask_seed", "train_seed", "eval_seed"), (int, re.compile(r"0|[1-9][0-9]{0,17}"))),
    **dict.fromkeys(("protocol", "supervision"), (str, re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z][\w.]*"))),
}
_SCHEMA, _PRIMARY = "harness_schema", "harness_run"


def compose(overrides: Sequence[str], known: _Known[RunConfig] | None = None) -> list[RunConfig]:
    """Resolves overrides in Hydra's grammar to the runs that they describe.

    Args:
        overrides: E.g. `["method=redeem,zero_fill", "method.preset=official", "train_seed=0,1,2"]`.  A comma
            list (outside quotes and brackets) makes a grid; the last override varies fastest.  `preset=NAME` is the
            run as the preset declares it: `method.preset=NAME`, and `supervision=complete` if the preset's options
            read true training values and `supervision` is not given.  `from=FILE` stands for the overrides in a run
            file (`harness.run_files`), and a comma list of files for one grid after the other.
        known: Filled with what was composed; given again, grids of one sweep share it.

    Returns:
        One validated config per cell.

    Raises:
        UsageError: One line about the first unknown name or key, wrong type, bad value or bad grammar.
    """
    configs = []
    for texts, tuning in run_files.expand([_PRESET.sub("method.preset=", text) for text in overrides]):
        for config in compose_as(RunConfig, texts, known):
            config.tuning = copy.copy(tuning)
            configs.append(config)
    given = {run_files.override_key(text) for text in overrides}
    declared = "preset" in given and "supervision" not in given
    names = {text: parse_protocol(text).name for text in dict.fromkeys(config.protocol for config in configs)}
    for config in configs:
        if declared and config.method.needs_complete_supervision():
            config.supervision = "complete"
        config.protocol = names[config.protocol]
        for encoder in config.encoders.values():
            registry.encoders.get(encoder)
        for encoder, options in config.encoder_options.items():
            encoder_config(encoder, options)
        config.validate()
        if config.tracking.system_metrics:
            require_monitors()
    return configs


def encoder_config(name: str, options: Mapping[str, Any]) -> EncoderConfig:
    """Config of a registered encoder with some options set.

    Raises:
        UsageError: If the encoder or an option is unknown, or a value has the wrong type or range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    schema = _dataclass(registry.encoders.get(name))
    try:
        for option in options:
            _check_key(option, schema, {}, {})
        # A plan asks for thousands of plain ones, which need no merging.
        merged = OmegaConf.merge(OmegaConf.structured(schema), dict(options)) if options else None
        config = schema() if merged is None else OmegaConf.to_object(merged)
    except (UsageError, OmegaConfBaseException, OverflowError) as error:
        raise UsageError(f"encoder_options.{name}: {_first_line(error)}.") from error
    assert isinstance(config, EncoderConfig)
    config.validate()
    return config


def compose_as(schema: type[C], overrides: Sequence[str], known: _Known[C] | None = None) -> list[C]:
    """Resolves overrides to instances of another config dataclass, e.g. the part of a run that a command needs.

    Args:
        schema: A dataclass; its fields named in `GROUPS` are filled by registered plugins.
        overrides: See `compose`.
        known: See `compose`.

    Returns:
        One config per cell of the grid; not validated beyond names and types.

    Raises:
        UsageError: See `compose`.
    """
    return _compose_cells(_cells(_parse(overrides)), schema, {} if known is None else known)


def grid(overrides: Sequence[str]) -> list[dict[str, str]]:
    """The cells of a grid as overrides with one value each: key to text, in the order of `compose`.

    Raises:
        UsageError: See `compose`.
    """
    return [dict(cell) for cell in _cells(_parse([_PRESET.sub("method.preset=", text) for text in overrides]))]


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The whole config as plain data; each plugin is `{"name": registered name, option: value, …}`.

    An option that is itself called `name` is written as `name_`.
    """
    data: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in GROUPS:
            plugins, _ = GROUPS[field.name]
            options = {"name_" if key == "name" else key: option for key, option in value.to_dict().items()}
            data[field.name] = {"name": plugins.name_of(type(value)), **options}
        elif field.name != "tuning" or value is not None:
            data[field.name] = _plain(value)
    return data


def identity_dict(config: RunConfig) -> dict[str, Any]:
    """`to_dict` without the parts that do not change what a run computes."""
    return identity_part(to_dict(config))


def from_dict(data: Mapping[str, Any]) -> RunConfig:
    """Rebuilds the config that `to_dict` wrote, e.g. out of a run record.

    Texts are taken as they are: a record of others cannot ask for `${oc.env:...}`.

    Raises:
        UsageError: If a plugin is no longer registered, or an option is unknown or of the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    named = [data[group] for group in GROUPS if group in data] if isinstance(data, Mapping) else [None]
    if not all(isinstance(part, Mapping) and isinstance(part.get("name", ""), str) for part in named):
        raise UsageError("the config is no mapping with named plugins; it is not one that the harness wrote.")
    try:
        data = {str(key): _literal(value) for key, value in data.items()}
        rest = {key: value for key, value in data.items() if key not in GROUPS}
        parts: dict[str, Any] = {}
        for group in [field.name for field in dataclasses.fields(RunConfig) if field.name in GROUPS]:
            plugins, _ = GROUPS[group]
            options = dict(data[group])
            parts[group] = OmegaConf.structured(_dataclass(plugins.get(options.pop("name"))))
            parts[group].merge_with({"name" if key == "name_" else key: option for key, option in options.items()})
        schema = OmegaConf.structured(RunConfig)
        # The default encoders are replaced, not extended: the record says which ones a run had.
        schema.encoders = {}
        config = OmegaConf.to_object(OmegaConf.merge(schema, rest, parts))
    except KeyError as error:
        raise UsageError(f"the config lacks {error}; it is not one that the harness wrote.") from error
    except (OmegaConfBaseException, OverflowError, RecursionError) as error:
        raise UsageError(f"the config does not fit this version: {_first_line(error)}.") from error
    assert isinstance(config, RunConfig)
    config.validate()
    return config


def changed_options(config: MethodConfig) -> list[str]:
    """Options that differ from the preset's defaults, as `"k=3"`, in field order.

    An option whose value is the config's `label` is left out: the label already tells it.
    """
    base = _from_preset(type(config), config.preset)
    return [
        f"{field.name}={value}"
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != getattr(base, field.name) and str(value) != config.label
    ]


def _literal(value: Any) -> Any:
    """The value with texts escaped that omegaconf would otherwise take for references."""
    if isinstance(value, str):
        return _REFERENCE.sub(r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _literal(part) for key, part in value.items()}
    return [_literal(part) for part in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


#: Characters of an option's name; Hydra looks for files of that name, and file systems take 255.
_LONGEST = 200


def _parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's grammar, and the forms of it that make no sense here refused."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed: list[Override] = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, RecursionError) as error:
            raise UsageError(
                f"cannot read {text!r}: write key=value, e.g. method=redeem ({_first_line(error)})."
            ) from error
        key = override.key_or_group
        if len(key) > _LONGEST:
            raise UsageError(f"option {key[:40]!r}… has {len(key):,} characters; names have at most {_LONGEST}.")
        if override.is_delete():
            raise UsageError(f"{text!r}: options cannot be deleted; set {key}=VALUE instead.")
        if (override.is_add() or override.is_force_add()) and not key.startswith(OPEN_KEYS):
            raise UsageError(f"{text!r}: new keys cannot be added; write {text.lstrip('+')} to set an existing one.")
        if override.package is not None or "/" in key:
            raise UsageError(f"{text!r}: packages and nested groups are not used here; write key=value.")
        if _grid_within(override.value()):
            raise UsageError(f"{text!r}: a grid stands for a whole value; write out each value: {key}=A,B.")
        if key in (other.key_or_group for other in parsed):
            raise UsageError(f"{key} is given twice; a comma list makes a grid, e.g. {key}=A,B.")
        parsed.append(override)
    return parsed


def _grid_within(value: Any) -> bool:
    """Whether a part of a value stands for several, e.g. `{photo:choice(image,text)}`."""
    from hydra.core.override_parser.types import ChoiceSweep, Sweep

    parts = value.list if isinstance(value, ChoiceSweep) else value.values() if isinstance(value, dict) else value
    return isinstance(parts, Iterable) and any(
        isinstance(part, Sweep) or (isinstance(part, dict | list) and _grid_within(part)) for part in parts
    )


def _cells(overrides: Sequence[Override]) -> Iterator[list[tuple[str, str]]]:
    """The grid: for each cell its (key, value text) pairs."""
    from hydra.core.override_parser.types import ValueType

    axes: list[list[tuple[str, str]]] = []
    for override in overrides:
        key = override.key_or_group
        if override.is_interval_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
            raise UsageError(f"{override.input_line!r}: a grid needs its values; write {key}=A,B or {key}=range(0,5).")
        texts = _values(override)
        if override.is_sweep_override() and key == "protocol":
            # Hydra takes `train:X,test:Y` for two values (and escapes their colons); it is one name.
            names = join_names([text.replace("\\:", ":") for text in texts])
            texts = [f"'{name}'" if "," in name else name for name in names]
        axes.append([(key, text) for text in texts])
    count = math.prod(map(len, axes))
    if count > MOST_CELLS:
        raise UsageError(f"the grid has {count:,} cells, at most {MOST_CELLS:,} are planned at a time; name fewer.")
    for cell in itertools.product(*axes):
        yield list(cell)


def _values(override: Override) -> list[str]:
    """Texts of the values that an override gives its key."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    try:
        # A range may have no end.
        return list(itertools.islice(override.sweep_string_iterator(), MOST_CELLS + 1))
    except Exception as error:  # grids within grids break Hydra in several ways
        raise UsageError(
            f"cannot read {override.input_line!r}: a grid's values are plain values, e.g. 1,2,3."
        ) from error


def _compose_cells(cells: Iterable[Sequence[tuple[str, str]]], schema: type[C], known: _Known[C]) -> list[C]:
    """Composes each cell; one that differs from a known one in plain options alone is a copy."""
    # Without its value, Hydra would not compose a required option.
    fields = {field.name for field in dataclasses.fields(cast(Any, schema)) if field.default is not dataclasses.MISSING}
    configs = []
    for cell in cells:
        plain = {key: text for key, text in cell if key in fields & _PLAIN.keys() and _PLAIN[key][1].fullmatch(text)}
        rest = tuple((key, text) for key, text in cell if key not in plain)
        if rest not in known:
            known[rest] = _compose_cell(rest, schema)
        config = copy.deepcopy(known[rest])
        for key, text in plain.items():
            setattr(config, key, _PLAIN[key][0](text))
        configs.append(config)
    return configs


def _compose_cell(cell: Sequence[tuple[str, str]], schema: type[C]) -> C:
    from hydra import compose as hydra_compose
    from hydra import initialize
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    groups = [field.name for field in dataclasses.fields(cast(Any, schema)) if field.name in GROUPS]
    given = {key: _unquoted(text) for key, text in cell}
    nodes: dict[str, PluginConfig] = {}
    for group in groups:
        plugins, default = GROUPS[group]
        name = given.get(group, default)
        if name is None:
            raise UsageError(f"name a {group}: {group}=NAME. Available: {', '.join(plugins.names())}.")
        given[group] = name
        nodes[group] = _from_preset(_dataclass(plugins.get(name)), given.get(f"{group}.preset"))
    for key in given:
        _check_key(key, schema, nodes, given)

    store = ConfigStore.instance()
    # "++" lets a key be added to an option that is a mapping, e.g. dataset.modalities={photo:image}.
    lines = [
        f"{'++' if key.startswith(OPEN_KEYS) or text.startswith('{') else ''}{key}={text}"
        for key, text in cell
        if key not in nodes
    ]
    try:
        for group, node in nodes.items():
            store.store(group=group, name=given[group], node=node)
        store.store(name=_SCHEMA, node=schema)
        defaults = [_SCHEMA, *({group: given[group]} for group in groups), "_self_"]
        store.store(name=_PRIMARY, node={"defaults": defaults})
        with initialize(config_path=None, version_base="1.3"):
            config = OmegaConf.to_object(hydra_compose(config_name=_PRIMARY, overrides=lines))
    except (HydraException, OmegaConfBaseException, OverflowError) as error:
        raise UsageError(_explain(error, cell)) from error
    assert isinstance(config, schema)
    return config


def _dataclass(config: type[PluginConfig]) -> type[PluginConfig]:
    """Refuses a plugin whose options are not a dataclass of its own."""
    if "__dataclass_fields__" not in vars(config):
        raise UsageError(f"{config.__module__}:{config.__qualname__} must be decorated with @dataclass.")
    return config


def _from_preset(config: type[T], preset: str | None) -> T:
    """The config a preset stands for, with the name noted in its field `preset` where it has one."""
    node = config() if preset is None else config.from_preset(preset)
    if preset is not None and hasattr(node, "preset"):
        node.preset = preset
    return node


def _check_key(key: str, schema: type, nodes: Mapping[str, PluginConfig], given: Mapping[str, str]) -> None:
    """Walks the dataclasses along a dotted key; raises with neighbours and the options of that level."""
    level: Any = schema
    path = ""
    for part in key.split("."):
        if f"{path}." in OPEN_KEYS:
            return
        if level is None:
            raise UsageError(f"unknown key {key!r}: {path} has no options below it.")
        fields = {field.name: field for field in dataclasses.fields(level)}
        if part not in fields:
            where = f"{path} {given[path]!r} has" if path in nodes else f"{path} has" if path else "there is"
            close = difflib.get_close_matches(part, fields, n=3, cutoff=0.5)
            prefix = f"{path}." if path else ""
            hint = f" Did you mean {' or '.join(prefix + match for match in close)}?" if close else ""
            options = ", ".join(fields) or "(none)"
            raise UsageError(f"unknown key {key!r}: {where} no option {part!r}.{hint} Options: {options}.")
        default: Any = fields[part].default_factory
        path = f"{path}.{part}" if path else part
        if path in nodes:
            level = nodes[path]
        elif dataclasses.is_dataclass(default):
            level = default
        else:
            level = None


def _unquoted(text: str) -> str:
    """The value that a piece of override text stands for, as a string."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _explain(error: Exception, cell: Sequence[tuple[str, str]]) -> str:
    """One line out of a composition error: Hydra says where, its cause says what."""
    cause = error.__cause__ or error
    # Errors of OmegaConf's own carry the key, others name it in their text.
    named = re.search(r"full_key: (\S+)", str(cause))
    key = getattr(cause, "full_key", None) or (named[1] if named else "")
    text = dict(cell).get(key)
    if text is not None:
        return f"{key}={text if len(text) <= 40 else f'{text[:40]}…'}: {_first_line(cause)}."
    return f"{_first_line(error)}{'' if cause is error else f': {_first_line(cause)}'}."
