"""Reads pickles, and `.npy` and `.npz` files with objects, as data: nothing that such a file names is ever called.

Published feature files are pickles, and a pickle is a program.  Maintained packages do not help: numpy's
`allow_pickle` runs it, and `picklescan` and `fickling` look for known dangers and then leave loading to `pickle`.  Here
a stream is first read without being run, and must consist of opcodes that plain data need.  Then the few names by
which numpy describes arrays are answered by records of our own, and every other name is refused.  While the stream
runs there are only plain containers and these records; arrays are made from checked records afterwards.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from harness.errors import DataError

#: Opcodes of protocols 0 to 5 that build plain data or call one of `_ALLOWED`; not those that make instances of
#: classes, use the extension registry, persistent ids or buffers from elsewhere.
_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT LONG LONG1 LONG4 BININT BININT1 BININT2 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES
    BINBYTES8 BYTEARRAY8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM
    SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    """.split()  # noqa: SIM905
)
_TYPE = re.compile(r"b1|[iu][1248]|f[248]|[US][1-9]\d{0,5}|O8?")
_DEEPEST = 64  # levels of nesting
_INFLATED = 2**30  # bytes that all members of a `.npz` may have together
#: What a damaged stream makes of the unpickler and of plain containers; none of it is code of the file.
_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class _Refused(Exception):
    """What a file asks for and does not get."""


def load_pickle(path: Path) -> Any:
    """Reads a pickle of plain data: None, booleans, numbers, text, bytes, lists, tuples, dicts and numpy arrays.

    Memory is bounded by the file's size.  Arrays are read-only; numpy scalars come back as Python's.

    Args:
        path: A file of protocol 0 to 5, written under numpy 1 or 2.

    Raises:
        DataError: If the file is missing, damaged, or names anything else, which is not called.
    """
    try:
        with path.open("rb") as file:
            return _unpickle(file, path.stat().st_size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    except _Refused as error:
        raise DataError(f"{path} is not read: {error}") from error


def load_frame(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Reads a pickled pandas frame as its columns, without pandas.

    Args:
        path: What `DataFrame.to_pickle` of pandas 1.5 and 2 writes, uncompressed, with columns of numbers or objects;
            of pandas 3 too, if its texts are objects and not Arrow's.

    Raises:
        DataError: As `load_pickle`, or if the file holds anything but a frame.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            _scan(_Stream(file, size), _FRAMES, _OPCODES | {"NEWOBJ"})
            file.seek(0)
            try:
                return _columns(_Unpickler(_Stream(file, size), _FRAMES).load())
            except _DAMAGE as error:
                raise _Refused(f"it is damaged ({_reason(error)}).") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    except _Refused as error:
        raise DataError(f"{path} is not read: {error}") from error


def load_npy(path: Path) -> npt.NDArray[Any]:
    """Reads a `.npy` file; an array of objects, which numpy stores as a pickle, as `load_pickle` does.

    Raises:
        DataError: As `load_pickle`.
    """
    try:
        with path.open("rb") as file:
            return _read_npy(file, path.stat().st_size)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
    except _Refused as error:
        raise DataError(f"{path} is not read: {error}") from error


def load_npz(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads arrays of a `.npz` file, together at most 1 GiB; one that only wraps an object becomes that object.

    Args:
        path: The file.
        names: The arrays to read; no other is looked at.

    Raises:
        DataError: As `load_pickle`, or if an array is not in the file, naming those that are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if not set(names) <= set(there):
                keys = ", ".join(_shown(name) for name in sorted(there)[:20]) or "(none)"
                raise DataError(f"{path} has the keys {keys}, expected {', '.join(names)}.")
            members = [there[name] for name in names]
            size = sum(member.file_size for member in members)
            if size > _INFLATED:
                raise _Refused(f"its arrays take {size} bytes, more than {_INFLATED}.")
            arrays = {}
            for name, member in zip(names, members, strict=True):
                with archive.open(member) as file:
                    array = _read_npy(file, member.file_size)
                arrays[name] = array[()] if array.dtype.hasobject else array
            return arrays
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as .npz ({_reason(error)}).") from error
    except _Refused as error:
        raise DataError(f"{path} is not read: {error}") from error


def _read_npy(file: IO[bytes], size: int) -> npt.NDArray[Any]:
    stream = _Stream(file, size)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = read_header[version](stream)
    except (ValueError, EOFError) as error:
        raise _Refused(f"it is no array in numpy's format ({_reason(error)}).") from error
    if dtype.kind == "O":
        value = _unpickle(stream, stream.left)
        if not isinstance(value, np.ndarray) or not value.dtype.hasobject or value.shape != shape:
            raise _Refused("its header and its content describe different arrays.")
        return value
    return _array(stream.read(_count(shape) * dtype.itemsize), dtype, shape, fortran)


class _Stream:
    """The next `size` bytes of a file; lengths that a hostile file claims beyond them allocate nothing."""

    def __init__(self, file: Any, size: int) -> None:
        self._file = file
        self.left = size

    def read(self, count: int = -1) -> bytes:
        data: bytes = self._file.read(self.left if count < 0 else min(count, self.left))
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        data: bytes = self._file.readline(self.left)
        self.left -= len(data)
        return data


def _unpickle(file: Any, size: int) -> Any:
    # It is read twice.  Only a file goes back at no cost; of objects inside `.npy` and `.npz` the bytes are kept.
    source = file if isinstance(file, io.BufferedReader) else io.BytesIO(_Stream(file, size).read())
    start = source.tell()
    _scan(_Stream(source, size), _ALLOWED, _OPCODES)
    source.seek(start)
    try:
        return _plain(_Unpickler(_Stream(source, size), _ALLOWED).load(), {}, 0)
    except _Refused:
        raise
    except _DAMAGE as error:
        raise _Refused(f"it is damaged ({_reason(error)}).") from error


def _scan(stream: _Stream, allowed: Mapping[tuple[str, str], Any], opcodes: frozenset[str]) -> None:
    """Walks over the opcodes without running them, and follows where tuples are."""
    stack: list[bool | None] = []  # True for a tuple, None for a mark
    memo: dict[Any, bool | None] = {}
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            name = opcode.name
            if name == "GLOBAL":
                _check_global(allowed, *str(argument).split(" ", 1))
            elif name not in opcodes:
                raise _Refused(f"its opcode {name} can do more than describe data; nothing was run.")
            if name == "MARK":
                stack.append(None)
            elif name == "DUP":
                stack.append(stack[-1])
            elif name.endswith("GET"):
                stack.append(memo[argument])
            elif name.endswith("PUT") or name == "MEMOIZE":
                place = len(memo) if argument is None else argument
                if place > number:
                    # The unpickler allocates a table up to this number.
                    raise _Refused(f"it stores value number {place} after {number} opcodes; nothing was run.")
                memo[place] = stack[-1]
            else:
                items = _popped(stack, opcode)
                keys = items[1:2] if name == "SETITEM" else items[::2] if name in ("SETITEMS", "DICT") else []
                if any(keys):
                    # Hashing tuples in tuples can take for ever, or the interpreter's stack.
                    raise _Refused("it has tuples as keys; nothing was run.")
                stack.extend([name.startswith("TUPLE")] * len(opcode.stack_after))
    except (ValueError, EOFError, LookupError) as error:
        raise _Refused(f"it is no whole pickle ({_reason(error)}).") from error


def _popped(stack: list[bool | None], opcode: pickletools.OpcodeInfo) -> list[bool | None]:
    """Takes from the stack what an opcode takes; returns what lies above the mark, if it takes one."""
    wants = opcode.stack_before
    items: list[bool | None] = []
    if pickletools.markobject in wants:
        start = len(stack) - 1 - stack[::-1].index(None)
        items, below = stack[start + 1 :], start - wants.index(pickletools.markobject)
    else:
        below = len(stack) - len(wants)
        items = stack[below:] if below >= 0 else []
    if below < 0:
        raise ValueError(f"{opcode.name} finds too little")
    del stack[below:]
    return items


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: _Stream, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream, encoding="latin1")
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        return _check_global(self._allowed, module, name)


class _Inert:
    """Base of what a stream may hold on to: it has no attributes that a stream could set."""

    __slots__ = ()


class _Global(_Inert):
    """Stands for a name of numpy's; a stream can call it, and nothing else."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise _Refused(f"it changes {name!r} of a function; nothing was run.")

    def __setstate__(self, state: Any) -> NoReturn:
        raise _Refused("it changes the state of a function; nothing was run.")


class _Type(_Inert):
    """An element type, as a pickle describes it."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, align: Any = False, copy: Any = True) -> None:  # noqa: ARG002
        if not isinstance(name, str) or not _TYPE.fullmatch(name):
            raise _Refused(f"arrays of type {name!r} are not supported.")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subtype, names, fields, size, alignment, flags[, metadata]).  Only the byte order is
        # used: with flags of its choice a file could make numpy take bytes for pointers.
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("an element type of it is damaged.")
        if any(part is not None for part in state[2:5]):
            raise _Refused("arrays of records are not supported.")
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.name).newbyteorder(self.order)  # type: ignore[arg-type]


class _Array(_Inert):
    """An array, as a pickle describes it; `made` is the array once all of it is known."""

    __slots__ = ("data", "dtype", "fortran", "made", "shape")

    def __init__(self, kind: Any, shape: Any, letter: Any) -> None:  # noqa: ARG002
        if kind is not _NDARRAY:
            raise _Refused("it asks for a subclass of numpy's arrays.")
        self.dtype: _Type | None = None
        self.made: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise _Refused("an array of it is damaged.")
        _, self.shape, self.dtype, self.fortran, self.data = state

    @classmethod
    def of(cls, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        """Arrays of protocol 5."""
        array = cls(_NDARRAY, (), b"")
        array.__setstate__((1, shape, dtype, order == "F", data))
        return array

    def make(self, memo: dict[int, Any], depth: int) -> npt.NDArray[Any]:
        if self.dtype is None:
            raise _Refused("an array of it has no content.")
        if self.made is None:
            dtype, shape = self.dtype.dtype(), self.shape
            if dtype.hasobject:
                if not isinstance(self.data, list) or len(self.data) != _count(shape):
                    raise _Refused("an array of it does not have the size of its shape.")
                flat = np.empty(len(self.data), dtype=object)
                for position, item in enumerate(self.data):
                    flat[position] = _plain(item, memo, depth + 1)
                self.made = flat.reshape(shape, order="F" if self.fortran else "C")
            else:
                # Python 2 kept bytes as text.
                data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
                self.made = _array(data, dtype, shape, bool(self.fortran))
        return self.made


def _count(shape: Any) -> int:
    """Number of elements of an array."""
    if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _Refused(f"an array of it has the shape {shape!r}.")
    return math.prod(shape)


def _array(data: Any, dtype: np.dtype[Any], shape: Any, fortran: bool) -> npt.NDArray[Any]:
    """A read-only view of bytes as an array."""
    if dtype.kind not in "biufUS" or not dtype.itemsize:
        raise _Refused(f"arrays of type {dtype} are not supported.")
    if not isinstance(data, bytes | bytearray) or len(data) != _count(shape) * dtype.itemsize:
        raise _Refused("an array of it does not have the size of its shape.")
    flat = np.frombuffer(data, dtype=dtype)
    if dtype.kind == "U" and (flat.view(np.dtype("u4").newbyteorder(dtype.byteorder)) > sys.maxunicode).any():
        raise _Refused("an array of it holds text that is none.")
    array = flat.reshape(shape, order="F" if fortran else "C")
    array.flags.writeable = False
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    """A numpy scalar, as Python's; one of type object would be a pickle inside the pickle."""
    if not isinstance(dtype, _Type) or dtype.dtype().hasobject:
        raise _Refused("it holds an object as a number.")
    return _array(data.encode("latin1") if isinstance(data, str) else data, dtype.dtype(), (), False).item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"it encodes text as {encoding!r}.")
    return text.encode("latin1")


def _empty() -> bytes:
    """How protocol 2 writes no bytes."""
    return b""


def _never(*args: Any) -> NoReturn:  # noqa: ARG001
    raise _Refused("it calls numpy.ndarray; nothing was run.")


_NDARRAY = _Global(_never)
_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_Type),
    ("_codecs", "encode"): _Global(_encode),
    ("__builtin__", "bytes"): _Global(_empty),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Global(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Global(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Global(_Array.of) for core in ("core", "_core")},
}


class _Frame(_Inert):
    """A pandas frame; NEWOBJ needs a class, and this one has nothing that a stream could reach."""

    __slots__ = ("state",)
    state: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise _Refused("a frame of it is damaged.")
        self.state = state


class _Manager(_Inert):
    """The blocks of a frame, and its axes: columns, rows."""

    __slots__ = ("blocks", "columns")

    def __init__(self, blocks: Any, axes: Any) -> None:
        if not isinstance(blocks, tuple) or not isinstance(axes, list) or len(axes) != 2:
            raise _Refused("a frame of it is damaged.")
        self.blocks, self.columns = blocks, axes[0]


class _Block(_Inert):
    """Columns of one type, `[k, n]`, and which columns they are: a slice or an array."""

    __slots__ = ("place", "values")

    def __init__(self, values: Any, place: Any, dimensions: Any) -> None:  # noqa: ARG002
        self.values, self.place = values, place


class _Index(_Inert):
    """Labels along an axis; those of rows are not used."""

    __slots__ = ("labels",)

    def __init__(self, kind: Any, state: Any) -> None:
        if kind is not _LABELS or not isinstance(state, dict):
            raise _Refused("the labels of a frame of it are damaged.")
        self.labels = state.get("data")


def _slice(*bounds: Any) -> slice:
    if not bounds or len(bounds) > 3 or not all(bound is None or type(bound) is int for bound in bounds):
        raise _Refused("a frame of it is damaged.")
    return slice(*bounds)


_LABELS = _Global(_never)
_FRAMES: dict[tuple[str, str], Any] = _ALLOWED | {
    ("pandas", "DataFrame"): _Frame,
    ("pandas.core.frame", "DataFrame"): _Frame,
    ("pandas.core.internals.managers", "BlockManager"): _Global(_Manager),
    ("pandas._libs.internals", "_unpickle_block"): _Global(_Block),
    ("builtins", "slice"): _Global(_slice),
    ("__builtin__", "slice"): _Global(_slice),
    ("pandas.core.indexes.base", "_new_Index"): _Global(_Index),
    ("pandas", "Index"): _LABELS,
    ("pandas", "RangeIndex"): _LABELS,
    ("pandas.core.indexes.base", "Index"): _LABELS,
    ("pandas.core.indexes.range", "RangeIndex"): _LABELS,
    ("pandas.core.indexes.numeric", "Int64Index"): _LABELS,
}


def _columns(frame: Any) -> dict[str, npt.NDArray[Any]]:
    """The columns of a frame by name, each `[n]`."""
    manager = frame.state.get("_mgr") if isinstance(frame, _Frame) else None
    if not isinstance(manager, _Manager) or not isinstance(manager.columns, _Index):
        raise _Refused("it holds no frame of pandas.")
    memo: dict[int, Any] = {}
    names = [str(name) for name in _plain(manager.columns.labels, memo, 0)]
    columns: dict[str, npt.NDArray[Any]] = {}
    for block in manager.blocks:
        if not isinstance(block, _Block):
            raise _Refused("a frame of it is damaged.")
        values = _plain(block.values, memo, 0)
        place = block.place if isinstance(block.place, slice) else _plain(block.place, memo, 0)
        chosen = np.arange(len(names))[place]
        if not isinstance(values, np.ndarray) or values.ndim != 2 or len(values) != len(chosen):
            raise _Refused("a frame of it has columns that are no plain arrays.")
        columns |= {names[column]: row for column, row in zip(chosen.tolist(), values, strict=True)}
    if set(columns) != set(names) or len(columns) != len(names) or len({len(row) for row in columns.values()}) > 1:
        raise _Refused("a frame of it has columns that are missing, doubled or of different lengths.")
    return {name: columns[name] for name in names}


def _check_global(allowed: Mapping[tuple[str, str], Any], module: str, name: str = "") -> Any:
    try:
        return allowed[module, name]
    except KeyError:
        hint = (
            "Its texts are stored by Arrow; save them as objects, or as CSV."
            if module.startswith("pandas") and name == "ArrowStringArray"
            else "Take the file from where it was published."
        )
        asked = _shown(f"{module}.{name}")
        raise _Refused(f"it asks for {asked}, which plain data do not need; nothing was run. {hint}") from None


def _plain(value: Any, memo: dict[int, Any], depth: int) -> Any:
    """The value with arrays in place of records; every object is visited once, however often it is referred to."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if depth > _DEEPEST:
        raise _Refused(f"it is nested more than {_DEEPEST} levels deep, or holds itself.")
    if id(value) not in memo:
        # The value is kept beside its result, so that its id is not given to another object.
        memo[id(value)] = (value, _converted(value, memo, depth))
    return memo[id(value)][1]


def _converted(value: Any, memo: dict[int, Any], depth: int) -> Any:
    if isinstance(value, _Array):
        return value.make(memo, depth)
    if isinstance(value, list):
        return [_plain(item, memo, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, memo, depth + 1) for item in value)
    if isinstance(value, dict):
        return {_plain(key, memo, depth + 1): _plain(item, memo, depth + 1) for key, item in value.items()}
    if isinstance(value, bytearray):
        return bytes(value)
    raise _Refused(f"it holds something that is no data ({type(value).__name__.strip('_').lower()}).")


def _shown(name: str) -> str:
    """A name out of a file as a message of one line may show it."""
    return repr(name[:100])[1:-1]


def _reason(error: BaseException) -> str:
    """First line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100] or type(error).__name__
