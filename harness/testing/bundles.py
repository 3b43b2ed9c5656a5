"""Damaged and forged evidence bundles, by the thousand and reproducible, and what a verifier must do with them.

`mutant(content, number)` spoils the bytes of a bundle in one of the ways of `KINDS`.  Kinds that end in `_mended` also
compute the manifest and the archive's comment anew, as a forger would, so that the deeper checks are reached.
`Guard` watches what a verifier writes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.bundle import MANIFEST
from harness.record import RunRecord

Members = dict[str, bytes]
_PLAIN = 0o100644 << 16
_LINK = 0o120777 << 16
#: Bytes that a deflated member of zeros claims to hold.
_BOMB = 1 << 26

#: Names with which an archive tries to be unpacked elsewhere, or to be taken for something that it is not.
NAMES = (
    "../../../tmp/evil",
    "/tmp/evil",
    "..\\..\\evil",
    "C:\\evil",
    "runs/../../evil",
    "runs/" + "0" * 64 + "/../../../evil",
    "runs/" + "0" * 64 + "/record.json/",
    "runs/" + "0" * 64 + "/RECORD.JSON",
    "runs/" + "0" * 64 + "/record.json\x00.txt",
    "runs/" + "0" * 64 + "/record.json ",
    "runs/" + "g" * 64 + "/record.json",
    "runs/" + "0" * 64 + "/model.pkl",
    "./manifest.json",
    "manifest.json/",
    "",
    "e" * 4000,
    "\u202egnp.txt",
)


def mutant(content: bytes, number: int, seed: int = 0) -> tuple[str, bytes]:
    """One spoiled bundle; the kinds take turns.

    Args:
        content: A bundle that holds.
        number: Which mutant.
        seed: Of the whole series.

    Returns:
        Name of the kind, and bytes that differ from `content`.
    """
    kind = list(KINDS)[number % len(KINDS)]
    for attempt in range(100):
        spoiled = KINDS[kind](content, np.random.default_rng([seed, number, attempt]))
        if spoiled != content:
            return kind, spoiled
    raise AssertionError(f"{kind} leaves the bundle as it is")


def claims(record: RunRecord) -> dict[str, Any]:
    """What a bundle proves of a run; the rest of a record (history, cost, environment, audits) is its own word."""
    return {
        name: getattr(record, name)
        for name in (
            "run_id",
            "method",
            "preset",
            "results",
            "seeds",
            "config",
            "primary_metric",
            "higher_is_better",
            "metric_versions",
            "predictions_sha256",
        )
    } | {
        "code": dict(record.fingerprints),
        "masks": record.protocol["mask_fingerprint"],
        "data": record.dataset["fingerprint"],
    }


@dataclass
class Guard:
    """Notes what this process writes outside of temporary folders of its own while it is watched.

    Attributes:
        allowed: Folder below which anything may be written.
        written: Paths that were opened for writing, made, renamed or removed elsewhere.
    """

    allowed: Path
    written: list[str] = field(default_factory=list)
    _on: bool = False

    def __post_init__(self) -> None:
        sys.addaudithook(self._note)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notes while the block runs."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on or event not in _WRITES or (event == "open" and not _for_writing(arguments)):
            return
        folder = _folder(arguments[-1]) if event in ("os.remove", "os.rmdir") else Path.cwd()
        for path in arguments[: _WRITES[event]]:
            if isinstance(path, (str, bytes, os.PathLike)):
                place = os.path.realpath(folder / os.fsdecode(path))
                if not place.startswith((str(self.allowed.resolve()) + os.sep, os.devnull)):
                    self.written.append(f"{event} {place}")


#: Audit events of CPython that write, and how many of their first arguments are paths.
_WRITES: Mapping[str, int] = {
    "open": 1,
    "os.mkdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
}


def _folder(descriptor: int) -> Path:
    """What the relative path of an audited call is relative to, given the descriptor of its folder or -1."""
    return Path(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else Path.cwd()


def _for_writing(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


# -- bytes -------------------------------------------------------------------------------------------------------------


def _flip(content: bytes, draw: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for place in draw.integers(len(content), size=int(draw.integers(1, 9))):
        changed[int(place)] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def _flip_headers(content: bytes, draw: np.random.Generator) -> bytes:
    """Bits of the archive's own bookkeeping: local headers, central directory, end record."""
    starts = [at for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6") for at in _places(content, mark)]
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 4))):
        place = min(int(draw.choice(starts)) + int(draw.integers(46)), len(content) - 1)
        changed[place] = int(draw.integers(256))
    return bytes(changed)


def _places(content: bytes, mark: bytes) -> list[int]:
    found, at = [], content.find(mark)
    while at >= 0:
        found.append(at)
        at = content.find(mark, at + 1)
    return found


def _overwrite(content: bytes, draw: np.random.Generator) -> bytes:
    size = int(draw.integers(1, 2000))
    at = int(draw.integers(max(1, len(content) - size)))
    return content[:at] + draw.bytes(size) + content[at + size :]


def _cut(content: bytes, draw: np.random.Generator) -> bytes:
    start, end = sorted(map(int, draw.integers(len(content) + 1, size=2)))
    return (content[:end], content[start:], content[:start] + content[end:])[int(draw.integers(3))]


def _grow(content: bytes, draw: np.random.Generator) -> bytes:
    extra = (draw.bytes(int(draw.integers(1, 500))), content, b"\0")[int(draw.integers(3))]
    at = (0, len(content), int(draw.integers(len(content))))[int(draw.integers(3))]
    return content[:at] + extra + content[at:]


# -- members -----------------------------------------------------------------------------------------------------------


def _unpack(content: bytes) -> tuple[Members, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, archive.comment


def _pack(members: Mapping[str, bytes], comment: bytes, attributes: Mapping[str, int] | None = None) -> bytes:
    """Written as the harness writes bundles, apart from the attributes of some members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(members.items()):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.filename = name  # zipfile cuts names at NUL
            entry.create_system = 3
            entry.external_attr = (attributes or {}).get(name, _PLAIN)
            archive.writestr(entry, data)
        archive.comment = comment
    return buffer.getvalue()


def _mend(members: Members, attributes: Mapping[str, int] | None = None) -> bytes:
    """With a manifest and a comment that fit."""
    rest = {name: data for name, data in members.items() if name != MANIFEST}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in rest.items()}
    manifest = json.dumps({"schema": 1, "files": hashes}, indent=2, sort_keys=True).encode() + b"\n"
    return _pack(rest | {MANIFEST: manifest}, hashlib.sha256(manifest).hexdigest().encode(), attributes)


def _one(members: Mapping[str, bytes], draw: np.random.Generator) -> str:
    return str(draw.choice(sorted(set(members) - {MANIFEST})))


def _drop(content: bytes, draw: np.random.Generator) -> bytes:
    members, comment = _unpack(content)
    del members[str(draw.choice(sorted(members)))]
    return _pack(members, comment)


def _drop_mended(content: bytes, draw: np.random.Generator) -> bytes:
    members, _ = _unpack(content)
    del members[_one(members, draw)]
    return _mend(members)


def _add(content: bytes, draw: np.random.Generator) -> bytes:
    members, comment = _unpack(content)
    members[str(draw.choice(NAMES))] = draw.bytes(int(draw.integers(100)))
    return _pack(members, comment)


def _add_mended(content: bytes, draw: np.random.Generator) -> bytes:
    members, _ = _unpack(content)
    members[str(draw.choice(NAMES))] = draw.bytes(int(draw.integers(100)))
    return _mend(members)


def _rename_mended(content: bytes, draw: np.random.Generator) -> bytes:
    members, _ = _unpack(content)
    name = _one(members, draw)
    members[str(draw.choice((*NAMES, name.upper(), name.replace("/", "\\"), f"../{name}")))] = members.pop(name)
    return _mend(members)


def _link_mended(content: bytes, draw: np.random.Generator) -> bytes:
    """A member as a symbolic link, a folder, a device or an executable."""
    members, _ = _unpack(content)
    name = _one(members, draw)
    target = (b"/etc/passwd", b"../../evil", members[name])[int(draw.integers(3))]
    kinds = (_LINK, 0o040755 << 16, 0o020644 << 16, 0o104755 << 16, 0o100755 << 16)
    return _mend(members | {name: target}, {name: int(draw.choice(kinds))})


def _twice(content: bytes, draw: np.random.Generator) -> bytes:
    members, comment = _unpack(content)
    name = _one(members, draw)
    buffer = io.BytesIO(_pack(members, b""))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive._didModify = True  # type: ignore[attr-defined]
        archive.NameToInfo.pop(name)  # or zipfile warns
        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), draw.bytes(20))
        archive.comment = comment
    return buffer.getvalue()


def _giant(content: bytes, draw: np.random.Generator) -> bytes:
    """A member that claims to be far larger than the archive, in one header or in both, or a compressed bomb."""
    members, comment = _unpack(content)
    name = _one(members, draw)
    if draw.integers(4) == 0:
        buffer = io.BytesIO(_pack({key: data for key, data in members.items() if key != name}, b""))
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, _PLAIN
            archive.writestr(entry, b"\0" * _BOMB)
            archive.comment = comment
        return buffer.getvalue()
    changed, size = bytearray(content), int(draw.choice((1 << 31, (1 << 32) - 1, (1 << 32) - 2, 1 << 24)))
    marks = ((b"PK\1\2", 20), (b"PK\3\4", 18))[: int(draw.integers(1, 3))]
    for mark, offset in marks:
        at = int(draw.choice(_places(content, mark)))
        changed[at + offset : at + offset + 8] = struct.pack("<II", size, size)
    return bytes(changed)


def _comment(content: bytes, draw: np.random.Generator) -> bytes:
    members, comment = _unpack(content)
    return _pack(members, (b"", draw.bytes(64), comment.upper(), comment + b" ", comment[::-1])[int(draw.integers(5))])


def _manifest(content: bytes, draw: np.random.Generator) -> bytes:
    """Another manifest, under a comment that fits it."""
    members, _ = _unpack(content)
    told = json.loads(members[MANIFEST])
    name = str(draw.choice(sorted(told["files"])))
    texts = (
        b"",
        b"[" * 100_000,
        b'{"schema": ' + b"9" * 5000 + b"}",
        b'{"schema": 1, "files": {}}',
        b'{"schema": 1, "files": 3}',
        b"\xff\xfe",
        json.dumps({**told, "schema": 2}).encode(),
        json.dumps({**told, "files": {**told["files"], name: "0" * 64}}).encode(),
        json.dumps({**told, "files": {**told["files"], "../../evil": "0" * 64}}).encode(),
        json.dumps({**told, "files": {key: value for key, value in told["files"].items() if key != name}}).encode(),
    )
    manifest = texts[int(draw.integers(len(texts)))]
    return _pack(members | {MANIFEST: manifest}, hashlib.sha256(manifest).hexdigest().encode())


def _swap_mended(content: bytes, draw: np.random.Generator) -> bytes:
    members, _ = _unpack(content)
    one, other = _one(members, draw), _one(members, draw)
    return _mend(members | {one: members[other], other: members[one]})


def _flip_mended(content: bytes, draw: np.random.Generator) -> bytes:
    members, _ = _unpack(content)
    name = _one(members, draw)
    return _mend(members | {name: _flip(members[name], draw)})


def _spoil_mended(content: bytes, draw: np.random.Generator) -> bytes:
    """A member cut, grown, overwritten, emptied, or a trap for its parser."""
    members, _ = _unpack(content)
    name = _one(members, draw)
    traps = (
        b"",
        b"[" * 100_000,
        b"9" * 5000,
        b"\0" * 1000,
        b"PAR1" + b"\xff" * 64 + b"PAR1",
        _laughs(),
        b"!!python/name:os.system",
    )
    ways: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (_cut, _grow, _overwrite)
    which = int(draw.integers(len(ways) + 1))
    data = ways[which](members[name], draw) if which < len(ways) else traps[int(draw.integers(len(traps)))]
    return _mend(members | {name: data})


def _laughs() -> bytes:
    """YAML that names itself over and over."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
    return "\n".join(lines).encode()


def _number_mended(content: bytes, draw: np.random.Generator) -> bytes:
    """Another number, text or nothing somewhere in a record."""
    members, _ = _unpack(content)
    name = str(draw.choice([name for name in sorted(members) if name.endswith("/record.json")]))
    record = json.loads(members[name])
    *path, last = _path(record, draw)
    place: Any = record
    for key in path:
        place = place[key]
    old = place[last]
    values: tuple[Any, ...] = (
        None,
        -1,
        0.5,
        1e308,
        "x",
        [],
        {},
        True,
        old + 1 if isinstance(old, (int, float)) else f"{old}x",
    )
    place[last] = values[int(draw.integers(len(values)))]
    return _mend(members | {name: json.dumps(record, indent=2, sort_keys=True).encode() + b"\n"})


def _path(value: Any, draw: np.random.Generator) -> list[Any]:
    """Keys that lead to some leaf, or to an empty branch."""
    path: list[Any] = []
    while isinstance(value, (dict, list)) and value:
        keys: list[Any] = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        path.append(keys[int(draw.integers(len(keys)))])
        value = value[path[-1]]
    return path


#: Kind -> function from a bundle and a generator to its bytes, spoiled.
KINDS: Mapping[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "flip": _flip,
    "flip_headers": _flip_headers,
    "overwrite": _overwrite,
    "cut": _cut,
    "grow": _grow,
    "drop": _drop,
    "drop_mended": _drop_mended,
    "add": _add,
    "add_mended": _add_mended,
    "rename_mended": _rename_mended,
    "link_mended": _link_mended,
    "twice": _twice,
    "giant": _giant,
    "comment": _comment,
    "manifest_mended": _manifest,
    "swap_mended": _swap_mended,
    "flip_mended": _flip_mended,
    "spoil_mended": _spoil_mended,
    "number_mended": _number_mended,
}

__all__ = ["KINDS", "NAMES", "Guard", "claims", "mutant"]
