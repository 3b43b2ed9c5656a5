"""Hostile input for everything that reads text and files of others: mutated valid input, and plain noise.

A `Reader` makes one input from a generator of random numbers and reads it.  Reading may end with a value or with a
`HarnessError`; any other exception, a crash, a hang or memory without bound is a bug of the harness.  Tests draw a few
hundred inputs of each reader with Hypothesis, `benchmarks/fuzz_parsers.py` a hundred thousand.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.testing.tables import make_table
from harness.types import DataTable

#: Pieces that break things: paths, numbers, markup, shell, LaTeX, terminal codes, letters of other directions.
WORDS = (
    *("", "\0", "\n", "\r\n", "\ufeff", '"', "'", ",", ";", "\\", "|", "..", "../../etc/passwd", "/dev/zero", "~", "*"),
    *("nan", "inf", "-0", "1e400", "-1e-400", "0x10", "1_0", "9" * 400, "18446744073709551616", "٣", "True", "null"),
    *("<script>alert(1)</script>", "$(rm -rf x)", "`id`", "\\input{x}", "${oc.env:HOME}", "%s", "{0}", "{{7*7}}"),
    *("\x1b[2J", "\u202eab", "\ud800", "é" * 50, "a" * 5000, "__class__", "__proto__", "x" * 260),
)
_LEAVES: tuple[Any, ...] = (None, True, 0, -1, 2**70, 1e308, float("nan"), "", [], {}, [[]], {"": None}, *WORDS[:40])
_DEEP = 20_000
_SPLIT = b"\n--8<--\n"
_WORD = re.compile(rb"[\w.]+")


@dataclass(frozen=True)
class Reader:
    """One reader and what to feed it.

    Attributes:
        name: For reports.
        make: One input from a generator.
        read: Reads it; a folder of its own is given for files.
    """

    name: str
    make: Callable[[Random], bytes]
    read: Callable[[bytes, Path], object]


def mutated(random: Random, data: bytes, words: Sequence[str] = ()) -> bytes:
    """The bytes after up to six small changes; `words` of the grammar are put in as often as hostile ones."""
    buffer = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 6))):
        at = random.randrange(len(buffer) + 1)
        word = random.choice(random.choice((tuple(words) or WORDS, WORDS))).encode(errors="surrogatepass")
        how = random.randrange(7)
        if how == 0 and buffer:
            buffer[at % len(buffer)] = random.randrange(256)
        elif how == 1:
            del buffer[at : at + random.choice((1, 4, 40))]
        elif how == 2:
            buffer[at:at] = word
        elif how == 3 and (places := list(_WORD.finditer(buffer))):
            place = random.choice(places)
            buffer[place.start() : place.end()] = word
        elif how == 4:
            buffer[at:at] = buffer[at : at + random.randint(1, 30)] * random.choice((1, 1, 1, 3, 60, 3000))
        elif how == 5:
            other = random.randrange(len(buffer) + 1)
            buffer[at:at] = buffer[other : other + random.randint(1, 60)]
        else:
            buffer[at:at] = random.randbytes(random.randint(1, 8))
    return bytes(buffer[:1_000_000])


def noise(random: Random) -> bytes:
    """Bytes of no meaning, or one byte many times."""
    if random.randrange(4):
        return random.randbytes(random.randrange(200))
    byte = random.choice([b'"', b"\0", b"\xff", *(bytes([sign]) for sign in b"[{(+a,-")])
    return byte * random.choice((1, 50, _DEEP))


def mutated_json(random: Random, value: Any) -> Any:
    """The value with one part, or the whole, replaced, left out or doubled."""
    if isinstance(value, dict) and value and random.randrange(5):
        key = random.choice(list(value))
        return value | {key: mutated_json(random, value[key])}
    if isinstance(value, list) and value and random.randrange(5):
        at = random.randrange(len(value))
        return [*value[:at], mutated_json(random, value[at]), *value[at + 1 :]]
    if isinstance(value, dict) and value and random.randrange(2):
        gone = random.choice(list(value))
        return {key: part for key, part in value.items() if key != gone} | {random.choice(WORDS): value[gone]}
    if isinstance(value, list) and random.randrange(2):
        return random.choice((value * 2, value[1:], value[::-1]))
    return random.choice(_LEAVES)


def _json(random: Random, value: Any, words: Sequence[str] = ()) -> bytes:
    """JSON text of a value that was changed once or twice, now and then with damaged bytes or far too deep."""
    for _ in range(random.randint(1, 2)):
        value = mutated_json(random, value)
    text = json.dumps(value).encode()
    how = random.randrange(8)
    if how == 0:
        return mutated(random, text, words)
    return b"[" * _DEEP + text if how == 1 and random.randrange(4) == 0 else text


def _of_text(seeds: Sequence[str], words: Sequence[str]) -> Callable[[Random], bytes]:
    """Makes mutations of valid texts, two of them joined, words of the grammar in a row, and noise."""

    def make(random: Random) -> bytes:
        how = random.randrange(10)
        if how == 0:
            return noise(random)
        if how < 3:
            return "".join(random.choice(words) for _ in range(random.randint(1, 8))).encode()
        text = random.choice(seeds)
        if how == 3:
            text += random.choice(words) + random.choice(seeds)
        return mutated(random, text.encode(), words)

    return make


# Manifests and the files that they name ---------------------------------------------------------------------------

_KINDS = {"photo": "image", "title": "text", "sound": "features"}
_ROWS = [
    ["id", "split", "label", "photo", "title", "sound", "group"],
    *(
        [
            f"i{row}",
            ("train", "valid", "test")[row % 3],
            "ab"[row % 2],
            "0.png",
            f"item {row}, blue",
            "0.npy",
            f"g{row}",
        ]
        for row in range(6)
    ),
]
_CSV = "\n".join(",".join(f'"{cell}"' if "," in cell else cell for cell in row) for row in _ROWS) + "\n"
_CELLS = ("0.png", "0.npy", "sub", "link", "pipe", "train", "valid", "test", "a", "b", "label:a", "sound:1", "id", ",")


@lru_cache(maxsize=4)
def _shop(folder: Path) -> Path:
    """The files that manifests name: sound ones, a folder, a link that leads out, a pipe."""
    from PIL import Image

    shop = folder / "shop"
    (shop / "sub").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3)).save(shop / "0.png")
    np.save(shop / "0.npy", np.zeros(3))
    if not (shop / "link").is_symlink():
        (shop / "link").symlink_to(folder)
        os.mkfifo(shop / "pipe")
    return shop


def _load_folder(folder: Path, shop: Path) -> object:
    from harness.datasets.folder import FolderConfig

    table = FolderConfig(folder=str(shop), modalities=dict(_KINDS)).load(folder, folder / "cache")
    return [table.values[name][row] for name in _KINDS for row in range(len(table.ids)) if table.available[row].all()]


def _read_csv_manifest(data: bytes, folder: Path) -> object:
    shop = _shop(folder)
    (shop / "manifest.csv").write_bytes(data)
    return _load_folder(folder, shop)


def _make_parquet_manifest(random: Random) -> bytes:
    header, *rows = _ROWS
    columns: dict[str, list[Any]] = {name: [row[at] for row in rows] for at, name in enumerate(header)}
    for _ in range(random.randint(0, 3)):
        name = random.choice(list(columns))
        columns[name] = [random.choice((cell, None)) for cell in columns[name]]
        columns[random.choice((name, "label:a", "sound:1", "x"))] = _column(random, len(rows))
    return _parquet(random, columns)


def _column(random: Random, length: int) -> list[Any]:
    """Values of one of the types that Parquet knows."""
    value = random.choice(
        (1, 2**62, 0.5, 1e300, float("nan"), True, "a", "0.png", "\0", b"\xff\xfe", [1, 2], {"a": 1}, None)
    )
    return [value] * length


def _parquet(random: Random, columns: Mapping[str, list[Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), sink)
    data = sink.getvalue()
    return mutated(random, data) if random.randrange(2) else data


def _read_parquet_manifest(data: bytes, folder: Path) -> object:
    shop = _shop(folder / "parquet")
    (shop / "manifest.parquet").write_bytes(data)
    return _load_folder(folder, shop)


@lru_cache(maxsize=1)
def _pictures() -> tuple[bytes, ...]:
    from PIL import Image

    made = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        sink = io.BytesIO()
        Image.new("RGB", (9, 7), (1, 2, 3)).save(sink, kind)
        made.append(sink.getvalue())
    return (*made, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"P6\n4 4\n255\n" + b"\0" * 48)


def _arrays() -> tuple[bytes, ...]:
    made = []
    for array in (np.zeros(3), np.ones((2, 3), np.float32), np.array(["a"]), np.zeros(2, [("x", "f4")])):
        sink = io.BytesIO()
        np.save(sink, array)
        made.append(sink.getvalue())
    sink = io.BytesIO()
    np.savez(sink, a=np.zeros(2))
    return (*made, sink.getvalue(), pickle.dumps([1]))


def _read_beside(name: str) -> Callable[[bytes, Path], object]:
    """Reads a file beside a sound manifest that names it."""

    def read(data: bytes, folder: Path) -> object:
        shop = _shop(folder / "files")
        (shop / name).write_bytes(data)
        (shop / "manifest.csv").write_text(_CSV)
        return _load_folder(folder / sha256(data).hexdigest()[:2], shop)

    return read


# Mask tables ------------------------------------------------------------------------------------------------------

_SIZES = (4, 3, 3)
_IDS = [f"s{row:04d}" for row in range(sum(_SIZES))]


@lru_cache(maxsize=1)
def _table() -> DataTable:
    return make_table(_SIZES, readable=True)


@lru_cache(maxsize=1)
def _mask_seeds() -> tuple[bytes, ...]:
    """Saved tables, side file and Parquet in one."""
    from tempfile import TemporaryDirectory

    from harness.masking import MaskTable
    from harness.protocol import parse_protocol

    seeds = []
    with TemporaryDirectory() as name:
        for protocol in ("both_0.5", "patterns", "frames_0.5"):
            path = MaskTable.build(parse_protocol(protocol), _table(), 0).save(Path(name) / "m")
            seeds.append(path.with_suffix(".json").read_bytes() + _SPLIT + path.read_bytes())
    return tuple(seeds)


def _make_mask_table(random: Random) -> bytes:
    import pyarrow.parquet as pq

    side, _, parquet = random.choice(_mask_seeds()).partition(_SPLIT)
    if random.randrange(2):
        side = _json(random, json.loads(side))
    how = random.randrange(4)
    if how == 0:
        parquet = mutated(random, parquet)
    elif how < 3:
        columns = pq.read_table(io.BytesIO(parquet)).to_pydict()
        name = random.choice(list(columns))
        columns[name] = _column(random, len(columns[name])) if random.randrange(2) else columns[name][::-1]
        parquet = _parquet(random, columns)
    return side + _SPLIT + parquet


def _read_mask_table(data: bytes, folder: Path) -> object:
    from harness.mask_files import difference
    from harness.masking import MaskTable

    side, _, parquet = data.partition(_SPLIT)
    (folder / "m.json").write_bytes(side)
    (folder / "m.parquet").write_bytes(parquet)
    masks = MaskTable.load(folder / "m")
    difference(masks, masks)
    masks.check_against(_table())
    return masks.header()


_SPLITS = ("train",) * 4 + ("valid",) * 3 + ("test",) * 3
_MASK_CSV = "\n".join(
    ["id,split,condition:,text,image", *(f"{name},{split},,1,1" for name, split in zip(_IDS, _SPLITS, strict=True))]
)


def _read_mask_csv(data: bytes, folder: Path) -> object:
    from harness.mask_files import import_csv

    (folder / "m.csv").write_bytes(data)
    return import_csv(folder / "m.csv", _table())


@lru_cache(maxsize=1)
def _frames() -> tuple[bytes, ...]:
    import pandas as pd

    ids, codes = np.array(_IDS, dtype=object), np.arange(len(_IDS)) % 3
    frame = pd.DataFrame({"item_id": pd.Series(ids, dtype=object), "missing_mask_7": codes})
    frame.columns = pd.Index(list(frame.columns), dtype=object)
    return tuple(pickle.dumps(frame, protocol=number) for number in (2, 4, 5))


def _read_mask_pickle(data: bytes, folder: Path) -> object:
    from harness.mask_files import import_redeem

    (folder / "m.pkl").write_bytes(data)
    return import_redeem(folder / "m.pkl", _table(), "both")


@lru_cache(maxsize=1)
def _tensors() -> tuple[bytes, ...]:
    import torch

    made = []
    for value in (torch.arange(4) % 3, torch.zeros(4), {"a": torch.zeros(4)}, [1, 2]):
        for zipped in (True, False):
            sink = io.BytesIO()
            torch.save(value, sink, _use_new_zipfile_serialization=zipped)
            made.append(sink.getvalue())
    return tuple(made)


def _read_mask_tensor(data: bytes, folder: Path) -> object:
    from harness.mask_files import import_map

    (folder / "m.pt").write_bytes(data)
    return import_map({"train": folder / "m.pt"}, _table())


# Bundles ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _members() -> dict[str, bytes]:
    from harness.bundle import RUN_FILES

    return {f"runs/{'0123456789abcdef' * 4}/{name}": name.encode() for name in RUN_FILES}


def _make_bundle(random: Random) -> bytes:
    """A sealed archive around a changed manifest: its own seal holds, so that the manifest is read."""
    from harness.bundle import MANIFEST, sealed_archive

    files = {name: sha256(data).hexdigest() for name, data in _members().items()}
    whole = {"schema": 1, "files": files}
    manifest = _json(random, whole) if random.randrange(8) else json.dumps(whole).encode()
    archive = sealed_archive(_members(), manifest if random.randrange(12) else noise(random))
    how = random.randrange(6)
    if how == 0:
        return mutated(random, archive, (MANIFEST, *_members()))
    if how == 1:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as other:
            for name in (*_members(), MANIFEST, random.choice(("../x", "/x", "runs/", "\\x", MANIFEST.upper()))):
                other.writestr(name, manifest)
        return sink.getvalue()
    return archive


def _read_bundle(data: bytes, folder: Path) -> object:
    from harness.bundle import verify_bundle

    (folder / "b.zip").write_bytes(data)
    result = verify_bundle(folder / "b.zip")
    assert not result.passed, "none of these bundles holds a run"
    return _accepted(len(result.checks) > 3, " ".join(check.detail for check in result.checks))


def _accepted(whole: bool, detail: str) -> object:
    """Counts what was found broken as refused."""
    if not whole:
        raise HarnessError(detail)
    return detail


# Configs and protocol names ---------------------------------------------------------------------------------------

_OVERRIDES = (
    "method=redeem\0protocol=both_0.7",
    "method=redeem,mmin\0method.preset=official\0supervision=complete",
    "method=redeem\0train_seed=0,1,2\0mask_seed=range(0,3)",
    "method=zero_fill\0dataset=folder\0dataset.modalities={picture:image,title:text}\0dataset.folder='a b'",
    "method=mmin\0trainer.epochs=3\0trainer.lr=1e-3\0dataset=synthetic",
    "method=knn_impute\0protocol='train:complete,test:both_0..1:0.5'\0encoders.text=minilm",
    "method=redeem\0preset=paper\0backbone=vilt_b32\0supervision=complete",
    "method=zero_fill\0+encoder_options.minilm.max_tokens=4\0device=cpu\0tracking.uri=sqlite:///x.db",
)
_OVERRIDE_WORDS = (
    *("=", "\0", ",", "+", "++", "~", "[", "]", "{", "}", "(", ")", ":", "@", "/", "'", '"', "\\", "null", "true"),
    *("method=", "dataset=", "protocol=", "train_seed=", "trainer.", "method.", "encoders.text=", "dataset."),
    *("range(0,10)", "range(0,1e9)", "range(0,1,0)", "choice(1,2)", "glob(*)", "interval(0,1)", "shuffle(1,2)"),
    *("${", "${oc.env:HOME}", "${method}", "${oc.create:${method}}", "str(1)", "int(x)", "extend_list(1)", "sort(2,1)"),
)


_KEYS = (
    *("method", "dataset", "backbone", "protocol", "train_seed", "mask_seed", "supervision", "device", "preset"),
    *("trainer.epochs", "trainer.lr", "method.k", "method.preset", "method.nothing", "dataset.folder"),
    *("dataset.modalities", "encoders.text", "+encoders.audio", "encoder_options.minilm.max_tokens", "paths.home", "x"),
)
_SETTINGS = (
    *("redeem", "zero_fill,redeem", "synthetic", "folder", "fusion", "both_0.7", "train:natural,test:patterns", "1,2"),
    *("range(0,4)", "complete", "cpu", "paper", "1e-3", "{a:image,b:text}", "[a,b]", "'a b'", "null", "true", "minilm"),
    *("${method.k}", "${oc.env:HOME}", "${oc.env:NO_SUCH}", "choice(1,2)", "sort(3,1,2)", "1.5", "-1", "a=b", "é"),
)


def _make_overrides(random: Random) -> bytes:
    """Text that was damaged, now and then keys and values that exist in any combination."""
    if random.randrange(5):
        return _of_text(_OVERRIDES, (*_OVERRIDE_WORDS, *_SETTINGS))(random)
    pairs = [f"{random.choice(_KEYS)}={random.choice(_SETTINGS)}" for _ in range(random.randint(0, 4))]
    return "\0".join(["method=redeem", *pairs] if random.randrange(4) else pairs).encode()


def _read_overrides(data: bytes, folder: Path) -> object:  # noqa: ARG001
    from harness.compose import compose, to_dict

    # As the operating system hands arguments over.
    arguments = data.decode(errors="surrogateescape").split("\0")
    return [json.dumps(to_dict(config), default=str) for config in compose(arguments)[:20]]


@lru_cache(maxsize=1)
def _configs() -> tuple[Any, ...]:
    from harness.compose import compose, to_dict

    return tuple(
        json.loads(json.dumps(to_dict(config))) for text in _OVERRIDES[:2] for config in compose(text.split("\0"))
    )


def _make_config(random: Random) -> bytes:
    return noise(random) if random.randrange(20) == 0 else _json(random, random.choice(_configs()))


def _read_config(data: bytes, folder: Path) -> object:  # noqa: ARG001
    from harness.compose import from_dict, to_dict

    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HarnessError("no JSON") from error
    return json.dumps(to_dict(from_dict(config)), default=str)


_YAML = (
    "- {method: redeem, method.preset: [clean, paper], protocol: both_0.7, train_seed: [0, 1, 2]}\n",
    '- {method: all, dataset: openmoji, protocol: [text_0.7, "train:complete,test:both_0.7"]}\n- method: mmin\n',
    "run:\n  method: redeem\n  trainer.lr: 1e-3\n",
    "run: {method: zero_fill}\ntuning: {trials: 3, seed: 0}\ndigest: 0123456789abcdef\n",
    "method.k: {low: 1, high: 9, log: true}\ntrainer.lr: {choices: [1e-3, 1e-4]}\n",
)
_YAML_WORDS = (
    *(
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "\n",
        "  ",
        "&a ",
        "*a",
        "&a [*a,*a]",
        "!!python/object:os.system ",
        "!!int ",
        "? ",
    ),
    *(
        "<<: *a",
        "|",
        ">",
        "---",
        "...",
        "%YAML 9",
        "2001-99-99",
        "1:99:99",
        "0o9",
        "~",
        "!!binary x",
        "!!set {a}",
        "# ",
    ),
    *("run:", "tuning:", "digest:", "low:", "high:", "choices:", "method:", "log:", "1e999", ".nan", "-.inf", "yes"),
    *("!!int ", "? ", "# "),
)


def _read_yaml(data: bytes, folder: Path) -> object:
    """As every file that holds overrides or a search space; at least one must take it."""
    from harness.cell_files import read_cells
    from harness.run_files import RunFile
    from harness.space import read_space

    (folder / "f.yaml").write_bytes(data)
    found: list[object] = []
    errors: list[HarnessError] = []
    for read in (read_cells, RunFile.load, read_space):
        try:
            found.append(read(folder / "f.yaml"))
        except HarnessError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


_PROTOCOL_WORDS = (
    *("both", "text", "image", "any", "shared", "imbalanced", "concat", "patterns", "patterns_proper", "complete"),
    *("natural", "corrupt:", "noise", "typo", "frames", "block", "tail", "train:", ",test:", "test:", "table:", "+"),
    *("_", ":", ",", "..", "-", "0.7", "0", "1", "5", "1e-9", "0..1", "0..5", "0..1:1e-9", "label", "value", "/"),
)


@lru_cache(maxsize=1)
def _protocol_seeds() -> tuple[str, ...]:
    from harness import registry
    from harness.protocol import Protocol

    families = [registry.protocols.get(entry.name) for entry in registry.protocols]
    return tuple(name for family in families if issubclass(family, Protocol) for name in family.examples)


def _make_protocol(random: Random) -> bytes:
    return _of_text(_protocol_seeds(), _PROTOCOL_WORDS)(random)


def _read_protocol(data: bytes, folder: Path) -> object:  # noqa: ARG001
    from harness.masking import MaskTable
    from harness.protocol import parse_protocol

    protocol = parse_protocol(data.decode(errors="surrogateescape"))
    assert parse_protocol(protocol.name).name == protocol.name
    protocol.describe()
    return MaskTable.build(protocol, _table(), 0).header()


def _of_bytes(seeds: Callable[[], Sequence[bytes]]) -> Callable[[Random], bytes]:
    return lambda random: noise(random) if random.randrange(20) == 0 else mutated(random, random.choice(seeds()))


READERS: tuple[Reader, ...] = (
    Reader("manifest (CSV)", _of_text((_CSV,), _CELLS), _read_csv_manifest),
    Reader("manifest (Parquet)", _make_parquet_manifest, _read_parquet_manifest),
    Reader("picture of a manifest", _of_bytes(_pictures), _read_beside("0.png")),
    Reader("array of a manifest", _of_bytes(_arrays), _read_beside("0.npy")),
    Reader("mask table (saved)", _make_mask_table, _read_mask_table),
    Reader("mask table (CSV)", _of_text((_MASK_CSV,), (*_IDS[:2], *_SPLITS[::3], "0", "1", ",")), _read_mask_csv),
    Reader("mask table (pickle)", _of_bytes(_frames), _read_mask_pickle),
    Reader("mask table (.pt)", _of_bytes(_tensors), _read_mask_tensor),
    Reader("bundle manifest", _make_bundle, _read_bundle),
    Reader("overrides", _make_overrides, _read_overrides),
    Reader("config of a record", _make_config, _read_config),
    Reader("cells, runs and spaces (YAML)", _of_text(_YAML, _YAML_WORDS), _read_yaml),
    Reader("protocol name", _make_protocol, _read_protocol),
)
