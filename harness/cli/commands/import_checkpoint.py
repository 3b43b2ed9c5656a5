"""`harness import-checkpoint`: weights of a method's released code, under our names."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.cli.output import print_json, print_table
from harness.cli.parsing import Parser, add_json_option
from harness.errors import EXIT_OK, DataError, UsageError
from harness.progress import say

if TYPE_CHECKING:
    from torch import Tensor

    from harness.cell import Cell
    from harness.config import RunConfig
    from harness.method import Method

_EPILOG = """\
examples:
  harness import-checkpoint method=redeem released.pt method.preset=official supervision=complete backbone=vilt_b32
  harness import-checkpoint method=mine theirs.safetensors --map encoder=model.enc -o ours.safetensors

FILE is a state dict: safetensors, or a torch file that holds tensors only (nothing in it is executed).  The options are
those of `harness run`; they decide which tensors the method has and of what shape.  Where a tensor's name maps and its
shape agrees it is loaded; the others keep the initial values of train_seed.  The table says which are which:

  loaded      taken from the file
  missing     the method's, not in the file
  unexpected  in the file, not the method's
  shape       in both, of different shapes
  frozen      in both, but pretrained and frozen here: it comes from backbone.weights

--map OURS=THEIRS replaces a prefix of our tensor names by one of theirs; it goes before the method's own table
(`official_names` of its config, printed in its card).  Where a released layout differs (an order of modalities, prompts
in several tensors, complex numbers) the method rearranges it first; its card says what, and what to do by hand."""

Status = Literal["shape", "missing", "unexpected", "frozen", "loaded"]
_ORDER: tuple[Status, ...] = ("shape", "missing", "unexpected", "frozen", "loaded")
#: Where trainers put the state dict inside a larger checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True)
class Match:
    """One tensor of the method, of the file, or of both.

    Attributes:
        status: What became of it.
        ours: Its name here; empty if the method has none.
        theirs: Its name in the file; empty if the file has none.
        shape: Here, or in the file if the method has none.
        their_shape: In the file, where it differs.
    """

    status: Status
    ours: str
    theirs: str
    shape: tuple[int, ...]
    their_shape: tuple[int, ...] | None = None


def parser(**options: Any) -> Parser:
    """Arguments of the command."""
    result = Parser(epilog=_EPILOG, **options)
    result.add_argument(
        "arguments", nargs="+", metavar="FILE | OPTION=VALUE", help="the state dict, and what it is for"
    )
    result.add_argument("--map", action="append", default=[], metavar="OURS=THEIRS", help="prefixes of tensor names")
    result.add_argument("-o", "--output", type=Path, default=Path("model.safetensors"), help="default: %(default)s")
    add_json_option(result)
    return result


def execute(arguments: argparse.Namespace) -> int:
    """Loads what fits, prints the table and writes the weights."""
    files = [text for text in arguments.arguments if "=" not in text]
    if len(files) != 1:
        raise UsageError(f"import-checkpoint takes one FILE besides OPTION=VALUE, not {len(files)}.")
    if arguments.output.exists():
        raise UsageError(f"{arguments.output} exists; choose another file with -o, or move it away.")
    given = dict(_split(text) for text in arguments.map)
    theirs: Mapping[str, Tensor] = read_state(Path(files[0]))

    from harness.compose import compose
    from harness.execution import save_weights
    from harness.trainer import restore_state, trainable_state

    configs = compose([text for text in arguments.arguments if "=" in text])
    if len(configs) != 1:
        raise UsageError(f"import-checkpoint loads one file into one method; these options describe {len(configs)}.")
    cell, method = build(configs[0])
    theirs = method.official_state(theirs)
    state = trainable_state(method)
    everything = method.state_dict()
    if idle := [prefix for prefix in given if not any(_below(name, prefix) for name in everything)]:
        tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in everything))
        raise UsageError(f"--map {idle[0]}=…: the method has no tensor below it; its tensors start with {tops}.")
    matches = match(everything, set(state), theirs, {**configs[0].method.official_names, **given})
    loaded = [found for found in matches if found.status == "loaded"]
    if arguments.json:
        print_json([vars(found) for found in matches])
    else:
        print_table(
            ["status", "here", "in the file", "shape"],
            [[found.status, found.ours, found.theirs, _shapes(found)] for found in matches],
        )
    if not loaded:
        raise UsageError(
            f"no tensor of {files[0]} fits {cell.method_name}; nothing was written.  Map names with --map."
        )
    new = {found.ours: theirs[found.theirs].to(state[found.ours].dtype) for found in loaded}
    restore_state(method, state | new, files[0])
    save_weights(method, arguments.output, cell.run_id)
    say(
        f"{len(loaded)} of {len(state)} tensors loaded"
        + (
            ""
            if len(loaded) == len(state)
            else f", the others are the initial ones of train_seed={cell.config.train_seed}"
        )
        + f"; wrote {arguments.output}"
    )
    return EXIT_OK


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a state dict by name, without executing anything in the file.

    A `state_dict` inside a larger checkpoint is found, and the prefix `module.` of parallel training removed.

    Raises:
        DataError: If the file is missing, is neither format, or holds more than plain data.
    """
    import torch

    from harness.tensor_files import load_tensors

    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = load_tensors(path)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds Python objects besides tensors, which are not read because reading them runs code; "
            "save its state_dict() alone, where you trust it."
        ) from error
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} is neither safetensors nor a torch file: {reason}.") from error
    found = content if isinstance(content, Mapping) else {}
    while inner := next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None):
        found = inner
    tensors = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise DataError(f"{path} holds no state dict: no tensors by name.")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def official_name(ours: str, names: Mapping[str, str]) -> str:
    """Name in the released code of one of our tensors: the longest prefix in `names` is replaced."""
    fitting = [prefix for prefix in names if _below(ours, prefix)]
    if not fitting:
        return ours
    prefix = max(fitting, key=len)
    return ".".join(part for part in (names[prefix], ours[len(prefix) + 1 :]) if part)


def match(
    ours: Mapping[str, Tensor], wanted: set[str], theirs: Mapping[str, Tensor], names: Mapping[str, str]
) -> list[Match]:
    """Pairs tensors by name and shape.

    Args:
        ours: Every tensor of the method.
        wanted: Names of those that are trained or computed; the rest is frozen and left as it is.
        theirs: Tensors of the file.
        names: Our prefix -> their prefix.

    Returns:
        One entry per tensor, those that need a look first.
    """
    found: list[Match] = []
    used = set()
    for name, tensor in ours.items():
        official = official_name(name, names)
        shape = tuple(tensor.shape)
        other = theirs.get(official)
        if other is not None:
            used.add(official)
        if name not in wanted:
            found += [Match("frozen", name, official, shape)] if other is not None else []
        elif other is None:
            found.append(Match("missing", name, "", shape))
        elif tuple(other.shape) != shape:
            found.append(Match("shape", name, official, shape, tuple(other.shape)))
        else:
            found.append(Match("loaded", name, official, shape))
    found += [Match("unexpected", "", name, tuple(theirs[name].shape)) for name in theirs if name not in used]
    return sorted(found, key=lambda entry: _ORDER.index(entry.status))


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _split(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals or not ours:
        raise UsageError(f"--map {text}: write OURS=THEIRS.")
    return ours, theirs


def _shapes(found: Match) -> str:
    here = "x".join(map(str, found.shape)) or "scalar"
    return here if found.their_shape is None else f"{here}, in the file {'x'.join(map(str, found.their_shape))}"


def build(config: RunConfig) -> tuple[Cell, Method]:
    """The method as a run of this config would start with it."""
    from harness.cell import cell_features, observed_views, resolve
    from harness.execution import build_method
    from harness.files import Folders
    from harness.workspace import Workspace

    workspace = Workspace(Folders.resolve(config.paths))
    cell = resolve(config, workspace)
    features = cell_features(cell, workspace)
    return cell, build_method(config, cell.table, features, observed_views(cell, features))
