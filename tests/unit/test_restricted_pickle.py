"""Pickles are data: what numpy and plain Python wrote comes back, and nothing that a file names is ever called."""

from __future__ import annotations

import builtins
import codecs
import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import EXIT_DATA, DataError
from harness.restricted_pickle import load_npy, load_npz, load_pickle

PLAIN: dict[str, Any] = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "no dimension": np.array(5),
    "empty": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False]),
    "words": np.array(["ab", "ü€𝄞"]),
    "bytes of names": np.array([b"abc", b"d"]),
    "objects": np.array([["x", 1], [None, 2.5]], dtype=object),
    "inner": np.array([np.arange(2), "y"], dtype=object),
    "number": np.float64(3.5),
    "whole": np.int64(-4),
    "true": np.bool_(True),
    "word": np.str_("ü"),
    "raw": b"\xff\x00",
    "nothing": b"",
    "nested": {"a": [("x", 1), (None, 2.5)], 3: {"b": True, "long": 2**80}},
}


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, np.ndarray):
        assert type(found) is np.ndarray
        assert found.dtype == expected.dtype
        assert found.flags.f_contiguous == expected.flags.f_contiguous
        assert found.shape == expected.shape
        for one, other in zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True):
            same(one, other)
    elif isinstance(expected, np.generic):
        assert type(found) is type(expected.item())
        assert found == expected.item()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    else:
        assert type(found) is type(expected)
        assert found == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("numpy_1", [False, True], ids=["numpy 2", "numpy 1"])
def test_plain_data_come_back(protocol: int, numpy_1: bool, tmp_path: Path) -> None:
    stream = pickle.dumps(PLAIN, protocol=protocol)
    if numpy_1:
        stream = as_numpy_1(stream)
        assert b"numpy._core" not in stream
        assert b"numpy.core.multiarray" in stream
    (tmp_path / "data.pkl").write_bytes(stream)
    same(load_pickle(tmp_path / "data.pkl"), PLAIN)


def as_numpy_1(stream: bytes) -> bytes:
    """The stream as numpy 1 would have written it: its modules have another name.

    Frames are taken out first, because a shorter name would make their lengths wrong.
    """
    out, last, framed = io.BytesIO(), 0, [place for _, _, place in pickletools.genops(stream)]
    for opcode, _, place in pickletools.genops(stream):
        if opcode.name == "FRAME":
            out.write(stream[last:place])
            last = place + 9
    out.write(stream[last:])
    assert framed
    plain = out.getvalue()
    for module in (b"multiarray", b"numeric"):
        old, new = b"numpy._core." + module, b"numpy.core." + module
        plain = plain.replace(b"\x8c" + bytes([len(old)]) + old, b"\x8c" + bytes([len(new)]) + new)
        plain = plain.replace(b"c" + old, b"c" + new)
    return plain


def test_a_stream_of_python_2(tmp_path: Path) -> None:
    """Bytes of an array are text there: opcode U, protocol 2."""
    values = np.array([1.5, -2.0], dtype="<f8")
    stream = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x10" + values.tobytes() + b"tb."
    )
    np.testing.assert_array_equal(pickle.loads(stream, encoding="latin1"), values)  # the stream is a good one
    (tmp_path / "old.pkl").write_bytes(stream)
    np.testing.assert_array_equal(load_pickle(tmp_path / "old.pkl"), values)


def test_shared_values_stay_shared(tmp_path: Path) -> None:
    array = np.arange(3)
    (tmp_path / "data.pkl").write_bytes(pickle.dumps([array, array, [array]]))
    first, second, (third,) = load_pickle(tmp_path / "data.pkl")
    assert first is second is third


def test_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(np.arange(3), protocol=5))
    with pytest.raises(ValueError, match="read-only"):
        load_pickle(tmp_path / "data.pkl")[0] = 1


# What follows are streams that pickle would obey.


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.function, self.args, self.state = function, args, state

    def __reduce__(self) -> Any:
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class Ordinary:
    """An instance of any class; it has an attribute, so that there is a state to set."""

    def __init__(self) -> None:
        self.x = 1


def _command(marker: Path) -> str:
    return f"touch '{marker}'"


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda marker: Call(os.system, _command(marker)),
    "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "builtins.open": lambda marker: Call(open, str(marker), "w"),
    "builtins.getattr": lambda marker: Call(getattr, "text", "format"),
    "builtins.__import__": lambda marker: Call(builtins.__import__, "os"),
    "numpy.load": lambda marker: Call(np.load, str(marker), None, True),
    "numpy.fromfile": lambda marker: Call(np.fromfile, str(marker)),
    "numpy.memmap": lambda marker: Call(np.memmap, str(marker), "u1", "w+", 0, (1,)),
    "numpy.save": lambda marker: Call(np.save, str(marker), 1),
    "numpy.lib.format.open_memmap": lambda marker: Call(np.lib.format.open_memmap, str(marker), "w+", "u1", (1,)),
    "codecs.open": lambda marker: Call(codecs.open, str(marker), "w"),
    "pickle.loads": lambda marker: Call(pickle.loads, pickle.dumps(Call(os.system, _command(marker)))),
    "collections.OrderedDict": lambda marker: OrderedDict(a=1),
    "an instance": lambda marker: Ordinary(),
    "a function": lambda marker: os.system,
}


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_runs(attack: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"train": {"audio": np.zeros(3), "id": ATTACKS[attack](marker)}}, protocol=protocol))
    with pytest.raises(DataError) as caught:
        load_pickle(path)
    assert not marker.exists()
    text = str(caught.value)
    assert str(path) in text
    assert "nothing was run" in text
    assert "\n" not in text
    assert caught.value.exit_code == EXIT_DATA


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    for attack in ("os.system", "builtins.eval", "builtins.open", "numpy.memmap", "codecs.open", "pickle.loads"):
        marker = tmp_path / attack
        pickle.loads(pickle.dumps(ATTACKS[attack](marker)))
        assert marker.exists(), attack


def test_the_name_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(DataError, match=rf"asks for {os.name}\.system, .* nothing was run"):
        load_pickle(tmp_path / "bad.pkl")


def test_a_name_of_several_lines_is_said_in_one(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04\x8c\x05a\nb\rc\x8c\x01d\x93.")
    with pytest.raises(DataError, match=r"asks for a\\nb\\rc\.d, "):
        load_pickle(tmp_path / "bad.pkl")
    np.savez(tmp_path / "a.npz", **{"x\ny": np.arange(3)})
    with pytest.raises(DataError, match=r"has the keys x\\ny, expected numbers"):
        load_npz(tmp_path / "a.npz", ["numbers"])


RECONSTRUCT = np.arange(3).__reduce__()[0]  # type: ignore[index]
SCALAR = np.float64(1).__reduce__()[0]  # type: ignore[index]
DTYPE = b"cnumpy\ndtype\n"
NEW = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"


def _number(letters: str, data: bytes = b"12345678") -> bytes:
    return b"\x80\x04cnumpy.core.multiarray\nscalar\n(" + _type(letters) + b"C" + bytes([len(data)]) + data + b"tR."


def _type(letters: str) -> bytes:
    return DTYPE + b"(X" + struct.pack("<I", len(letters)) + letters.encode() + b"\x89\x88tR"


#: Names that are allowed, put to bad use: stream and a word of the refusal.
ABUSED: dict[str, tuple[bytes, str]] = {
    # numpy itself unpickles the bytes of a scalar of type object.
    "object scalar": (_number("O8", pickle.dumps(Call(os.getcwd))), "object as a number"),
    "record type": (b"\x80\x04" + _type("V8") + b".", "V8"),
    "date": (_number("M8"), "M8"),
    "pointer type by its fields": (
        b"\x80\x04"
        + _type("u8")
        + b"(K\x03X\x01\x00\x00\x00<N(X\x01\x00\x00\x00at}X\x01\x00\x00\x00aNsK\x08K\x08K\x00tb.",
        "records",
    ),
    "type that is no text": (b"\x80\x04" + DTYPE + b"(cnumpy\nndarray\ntR.", "not supported"),
    "type alone": (b"\x80\x04" + _type("f8") + b".", "no data"),
    "name alone": (b"\x80\x04cnumpy\nndarray\n.", "no data"),
    "call of ndarray": (b"\x80\x04cnumpy\nndarray\n((K\x02ttR.", "calls numpy.ndarray"),
    "other kind of array": (
        b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tC\x01btR.",
        "subclass",
    ),
    "array without content": (b"\x80\x04" + NEW + b".", "no content"),
    "array with too few bytes": (
        b"\x80\x04" + NEW + b"(K\x01(K\x09t" + _type("f8") + b"\x89C\x08" + b"8" * 8 + b"tb.",
        "size",
    ),
    "array of negative size": (
        b"\x80\x04" + NEW + b"(K\x01(J\xff\xff\xff\xffJ\xff\xff\xff\xfft" + _type("u1") + b"\x89C\x011tb.",
        "shape",
    ),
    "array of elements without bytes": (
        b"\x80\x04" + NEW + b"(K\x01(J\xff\xff\xff\x7ft" + _type("U0") + b"\x89C\x00tb.",
        "U0",
    ),
    "array with text beyond unicode": (
        b"\x80\x04" + NEW + b"(K\x01(K\x01t" + _type("U1") + b"\x89C\x04\xff\xff\xff\xfftb.",
        "text",
    ),
    "objects out of bytes": (b"\x80\x04" + NEW + b"(K\x01(K\x01t" + _type("O8") + b"\x89C\x0812345678tb.", "size"),
    "state of a function": (b"\x80\x04cnumpy\ndtype\n}X\x04\x00\x00\x00nameK\x01sb.", "state of a function"),
    "attribute of a function": (
        b"\x80\x04cnumpy\ndtype\nN}X\x0c\x00\x00\x00__defaults__Ns\x86b.",
        "state of a function",
    ),
    "attribute of a type": (b"\x80\x04" + _type("f8") + b"N}X\x05\x00\x00\x00dtypeNs\x86b.", "damaged"),
    "other encoding": (b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "rot13"),
    "name by stack": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.names\x93.", "numpy.dtype.names"),
    "extension registry": (b"\x80\x04\x82\x01.", "EXT1"),
    "persistent id": (b"\x80\x04K\x01Q.", "BINPERSID"),
    "instance": (b"(ios\nsystem\n.", "INST"),
    "class method new": (b"\x80\x04cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "buffer from elsewhere": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "set": (b"\x80\x04\x8f.", "EMPTY_SET"),
    "holds itself": (b"\x80\x04]\x94h\x00a.", "holds itself"),
    "deep": (b"\x80\x04" + b"]" * 5000 + b"a" * 4999 + b".", "nested"),
    "nothing on the stack": (b"\x80\x04R.", "finds too little"),
    "no mark": (b"\x80\x04K\x01t.", "no whole pickle"),
    "pop below a mark": (b"\x80\x04K\x01(a.", "damaged"),
    "never stored": (b"\x80\x04h\x07.", "no whole pickle"),
    # Each of these hashes a tuple in a tuple: a million levels end the interpreter, 2^99 never end.
    "deep key": (b"\x80\x04})" + b"\x85" * 10**6 + b"Ns.", "tuples as keys"),
    "wide key": (b"\x80\x04}()" + b"2\x86" * 99 + b"Nu.", "tuples as keys"),
    "stored key": (b"\x80\x04)" + b"2\x86" * 99 + b"q\x000}h\x00Ns.", "tuples as keys"),
    "key of a dict at once": (b"\x80\x04()" + b"2\x86" * 99 + b"Nd.", "tuples as keys"),
    "key that is a list": (b"\x80\x04}]K\x01s.", "damaged"),
    "odd number of items": (b"\x80\x04}(K\x01u.", "damaged"),
    "call of text": (b"\x80\x04X\x01\x00\x00\x00a(tR.", "damaged"),
    "protocol of the future": (b"\x80\x63N.", "damaged"),
    "no stop": (b"\x80\x04K\x01", "no whole pickle"),
    "unknown opcode": (b"\x80\x04\xfe.", "no whole pickle"),
    "empty": (b"", "no whole pickle"),
    "words": (b"version https://git-lfs.github.com/spec/v1\n", "no whole pickle"),
}


@pytest.mark.parametrize("name", ABUSED)
def test_allowed_names_are_of_no_use_to_an_attacker(name: str, tmp_path: Path) -> None:
    stream, word = ABUSED[name]
    path = tmp_path / "bad.pkl"
    path.write_bytes(stream)
    with pytest.raises(DataError, match="is not read") as caught:
        load_pickle(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)
    (tmp_path / "good.pkl").write_bytes(pickle.dumps(PLAIN))
    same(load_pickle(tmp_path / "good.pkl"), PLAIN)  # no stream leaves a trace for the next


#: Streams of a few bytes that make `pickle` allocate gigabytes.
BOMBS = {
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "text of 2^40": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "frame of 2^40": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
    "number of 2^30 digits": b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b"abc.",
    "table of 2^32 entries": b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "table by number": b"Np4294967295\n.",
    "doubling lists": b"\x80\x04]" + b"2\x86" * 200 + b".",
}


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory are POSIX")
@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded_by_the_file(name: str, tmp_path: Path) -> None:
    import tracemalloc

    (tmp_path / "bomb.pkl").write_bytes(BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is not read"):
            load_pickle(tmp_path / "bomb.pkl")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def _npz_a(path: Path) -> Any:
    return load_npz(path, ["a"])


def _npz_bad(path: Path) -> Any:
    return load_npz(path, ["bad"])


def test_missing_file(tmp_path: Path) -> None:
    for load in (load_pickle, load_npy, _npz_a):
        with pytest.raises(DataError, match="No such file") as caught:
            load(tmp_path / "none")
        assert str(tmp_path / "none") in str(caught.value)


@pytest.mark.parametrize("name", [name for name, value in PLAIN.items() if isinstance(value, np.ndarray)])
def test_npy(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PLAIN[name])
    same(load_npy(tmp_path / "a.npy"), PLAIN[name])


def test_npz(tmp_path: Path) -> None:
    corpus = {"sample_1": {"emo": "happy", "val": np.float64(0.5)}, "sample_2": {"emo": "sad", "val": ""}}
    np.savez_compressed(tmp_path / "a.npz", train_corpus=corpus, numbers=np.arange(3), names=PLAIN["objects"])  # type: ignore[arg-type]
    found = load_npz(tmp_path / "a.npz", ["train_corpus", "numbers", "names"])
    assert found["train_corpus"] == {"sample_1": {"emo": "happy", "val": 0.5}, "sample_2": {"emo": "sad", "val": ""}}
    same(found["numbers"], np.arange(3))
    same(found["names"], PLAIN["objects"])
    assert list(load_npz(tmp_path / "a.npz", ["numbers"])) == ["numbers"]
    with pytest.raises(DataError, match="has the keys names, numbers, train_corpus, expected numbers, other"):
        load_npz(tmp_path / "a.npz", ["numbers", "other"])


def test_objects_in_npy_and_npz_do_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    bad = np.array([Call(os.system, _command(marker))], dtype=object)
    np.save(tmp_path / "bad.npy", bad)
    np.savez_compressed(tmp_path / "bad.npz", good=np.arange(2), bad=bad)
    for load, file in ((load_npy, "bad.npy"), (_npz_bad, "bad.npz")):
        with pytest.raises(DataError, match=r"asks for \w+\.system"):
            load(tmp_path / file)
    assert not marker.exists()
    np.load(tmp_path / "bad.npy", allow_pickle=True)
    assert marker.exists()  # numpy would have run it


def _npy(header: str, content: bytes) -> bytes:
    padded = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + content


NPY = {
    "other shape inside": (
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", pickle.dumps(PLAIN["objects"])),
        "different",
    ),
    "no array inside": (
        _npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", pickle.dumps([1, 2, 3])),
        "different",
    ),
    "too short": (_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}", b"12345678"), "size"),
    "huge": (_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 9)}", b"12345678"), "size"),
    "negative": (_npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}", b"12345678"), "shape"),
    "records": (_npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,)}", b"12345678"), "not supported"),
    "records of objects": (
        _npy("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", b"12345678"),
        "not supported",
    ),
    "code in the header": (_npy("__import__('os').getcwd()", b""), "numpy's format"),
    "no header": (b"nonsense", "numpy's format"),
    "nothing": (b"", "numpy's format"),
}


@pytest.mark.parametrize("name", NPY)
def test_wrong_npy(name: str, tmp_path: Path) -> None:
    content, word = NPY[name]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="is not read") as caught:
        load_npy(tmp_path / "a.npy")
    assert word in str(caught.value)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(DataError, match="is not read") as caught:
        load_npz(tmp_path / "a.npz", ["a"])
    assert word in str(caught.value)


def test_wrong_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot be read as"):
        load_npz(path, ["a"])
    np.savez_compressed(path, a=np.random.default_rng(0).random(5000))
    damaged = bytearray(path.read_bytes())
    damaged[5000:5100] = b"\0" * 100
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="cannot be read as"):
        load_npz(path, ["a"])
    np.savez_compressed(path, a=np.zeros(5000))
    monkeypatch.setattr("harness.restricted_pickle._INFLATED", 30_000)
    with pytest.raises(DataError, match=r"take 40\d\d\d bytes"):
        load_npz(path, ["a"])
