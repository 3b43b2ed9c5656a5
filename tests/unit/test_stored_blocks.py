"""Blocks on disk: any order, any lengths, any interruption give the arrays that one call of numpy would give."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import blocks
from harness.blocks import BlockWriter, is_block, open_block
from harness.errors import DataError

PARTS = ("tokens", "digest")
Piece = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def every_piece_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "COMMIT_SECONDS", 0.0)


def pieces(lengths: list[list[int]]) -> list[Piece]:
    """One piece per list: values of these lengths, padded to the longest of the piece."""
    generator = np.random.default_rng(0)
    return [
        {
            "tokens": np.stack(
                [
                    np.pad(generator.normal(size=(length, 2)), ((0, max(piece) - length), (0, 0))).astype(np.float16)
                    for length in piece
                ]
            ),
            "digest": generator.integers(1, 2**60, len(piece)),
        }
        for piece in lengths
    ]


def dense(parts: list[Piece], order: np.ndarray[Any, Any], total: int) -> Piece:
    longest = max(part["tokens"].shape[1] for part in parts)
    tokens, digest = np.zeros((total, longest, 2), np.float16), np.zeros(total, np.int64)
    start = 0
    for part in parts:
        count, length = part["tokens"].shape[:2]
        rows = order[start : start + count]
        tokens[rows, :length], digest[rows] = part["tokens"], part["digest"]
        start += count
    return {"tokens": tokens, "digest": digest}


def write(block: Path, parts: list[Piece], order: np.ndarray[Any, Any], total: int, stop: int | None = None) -> int:
    """Writes the pieces that are not there yet, up to `stop`; returns how many it wrote."""
    writer = BlockWriter(block, total, order, "content", ("tokens",))
    ends = np.cumsum([len(part["digest"]) for part in parts]).tolist()
    todo = [part for part, end in zip(parts[:stop], ends[:stop], strict=True) if end > writer.done]
    for part in todo:
        writer.add(part)
    if stop is None:
        writer.finish({"key": "value"})
    return len(todo)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=6), st.data())
def test_a_block_is_the_same_whatever_interrupted_it(lengths: list[list[int]], data: st.DataObject) -> None:
    parts = pieces(lengths)
    used = sum(map(len, lengths))
    total = used + data.draw(st.integers(0, 3))
    order = np.array(data.draw(st.permutations(range(total)))[:used], dtype=np.int64)
    cut = data.draw(st.integers(0, len(parts)))
    with tempfile.TemporaryDirectory() as folder:
        block = Path(folder) / "block"
        assert write(block, parts, order, total, stop=cut) == cut
        assert not is_block(block)
        assert write(block, parts, order, total) == len(parts) - cut
        found = open_block(block, PARTS)
        for part, values in dense(parts, order, total).items():
            np.testing.assert_array_equal(found[part], values)
            assert found[part].dtype == values.dtype
        assert sorted(path.name for path in Path(folder).iterdir()) == ["block"]
        assert sorted(path.name for path in block.iterdir()) == [
            "digest.npy",
            "meta.json",
            "tokens.npy",
            "verified.json",
        ]


@pytest.mark.parametrize("torn", ["half a line", "no end of line", "changed row", "lost file"])
def test_what_is_torn_is_written_again(tmp_path: Path, torn: str) -> None:
    parts, order, block = pieces([[3, 1], [2, 2], [1, 1]]), np.array([5, 0, 3, 2, 1, 4]), tmp_path / "block"
    write(block, parts, order, 6, stop=2)
    partial = tmp_path / ".block.partial"
    journal = partial / "journal.jsonl"
    if torn == "half a line":
        journal.write_text(journal.read_text()[:-20])
    elif torn == "no end of line":
        journal.write_text(journal.read_text()[:-1])
    elif torn == "changed row":
        tokens = np.load(partial / "tokens.npy", mmap_mode="r+")
        tokens[2, 0, 0] += 1  # in the second piece
        tokens.flush()
    else:
        (partial / "tokens.npy").unlink()
    assert write(block, parts, order, 6) == (3 if torn == "lost file" else 2)
    np.testing.assert_array_equal(open_block(block, PARTS)["tokens"], dense(parts, order, 6)["tokens"])


def test_pieces_of_another_plan_are_dropped(tmp_path: Path) -> None:
    parts, block = pieces([[2, 2], [2, 2]]), tmp_path / "block"
    write(block, parts, np.arange(4), 4, stop=1)
    assert write(block, parts, np.arange(4)[::-1], 4) == 2


def test_rows_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    for number, change in enumerate(
        (
            {"tokens": np.zeros((1, 2, 3), np.float16)},
            {"tokens": np.zeros((1, 2, 2), np.float32)},
            {"digest": np.zeros((1, 2), np.int64)},
        )
    ):
        writer = BlockWriter(tmp_path / f"block{number}", 4, np.arange(4), "content", ("tokens",))
        (piece,) = pieces([[2]])
        writer.add(piece)
        with pytest.raises(DataError, match="of different shapes"):
            writer.add(piece | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("when", ["reserving", "writing", "syncing"])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    parts, block = pieces([[2, 2], [2, 2], [3, 3]]), tmp_path / "block"
    write(block, parts, np.arange(6), 6, stop=2)

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        target: Any = {"reserving": os, "writing": blocks, "syncing": os}[when]
        patch.setattr(target, {"reserving": "posix_fallocate", "writing": "_put", "syncing": "fsync"}[when], full)
        with pytest.raises(DataError, match=r"no space left for .*GiB are free there.*paths\.home=DIR") as caught:
            write(block, parts, np.arange(6), 6)
    assert "\n" not in str(caught.value)
    assert not is_block(block)
    assert write(block, parts, np.arange(6), 6) == 1
    np.testing.assert_array_equal(open_block(block, PARTS)["tokens"], dense(parts, np.arange(6), 6)["tokens"])


def test_a_file_that_could_not_be_begun_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, block = pieces([[2, 2]]), tmp_path / "block"

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(DataError, match="no space left"):
            write(block, parts, np.arange(2), 2)
    assert not list(tmp_path.rglob("*.npy"))
    write(block, parts, np.arange(2), 2)
    np.testing.assert_array_equal(open_block(block, PARTS)["tokens"], dense(parts, np.arange(2), 2)["tokens"])


def test_checksums_are_read_once_per_state_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, block = pieces([[2, 2]]), tmp_path / "block"
    write(block, parts, np.arange(2), 2)
    hashed: list[str] = []
    real = blocks.file_sha256
    monkeypatch.setattr(blocks, "file_sha256", lambda path: hashed.append(path.name) or real(path))
    old = 1_600_000_000_000_000_000  # younger files may change again within the resolution of their time stamp
    for file in block.glob("*.npy"):
        os.utime(file, ns=(old, old))
    open_block(block, PARTS)
    assert sorted(hashed) == ["digest.npy", "tokens.npy"]
    open_block(block, PARTS)
    assert len(hashed) == 2
    raw = bytearray((block / "tokens.npy").read_bytes())
    raw[-1] ^= 1
    (block / "tokens.npy").write_bytes(raw)
    for _ in range(2):
        with pytest.raises(DataError, match=r"tokens\.npy does not have its checksum"):
            open_block(block, PARTS)
    (block / "verified.json").write_text("[]")
    raw[-1] ^= 1
    (block / "tokens.npy").write_bytes(raw)
    open_block(block, PARTS)
    assert json.loads((block / "verified.json").read_text())["digest"][1] == old
