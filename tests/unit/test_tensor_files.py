"""Torch files of others: what `torch.save` writes is read, and nothing else takes long."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import pytest
import torch

from harness import tensor_files
from harness.tensor_files import load_tensors

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "steps": 3, "config": "a long text " * 1_000}
ARCHIVE = pytest.mark.parametrize("archive", [True, False], ids=["archive", "before archives"])


def write(path: Path, content: Any, archive: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return path


@ARCHIVE
def test_a_state_dict_is_read(tmp_path: Path, archive: bool) -> None:
    found = load_tensors(write(tmp_path / "w.pt", STATE, archive))
    assert torch.equal(found.pop("layer.weight"), STATE["layer.weight"])
    assert found == {name: value for name, value in STATE.items() if name != "layer.weight"}


@ARCHIVE
def test_an_endless_word_never_reaches_torch(tmp_path: Path, archive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes half a minute over the message on 50,000 characters, and the square of it on more."""
    path = write(tmp_path / "w.pt", {"x" * 50_000: 1}, archive)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(pickle.UnpicklingError, match="a word of more than 4000 characters"):
        load_tensors(path)


def test_an_archive_that_grows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "_LARGEST", 1_000)
    with ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", b"N" * 1_001)
    with pytest.raises(pickle.UnpicklingError, match="more than 1000 bytes"):
        load_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04", b"no tensor", b"\x80\x02N."])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises((pickle.UnpicklingError, ValueError, BadZipFile)):
        load_tensors(tmp_path / "w.pt")
