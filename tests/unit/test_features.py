"""The feature store computes once, refuses what is damaged and keeps keys apart."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Any, ClassVar

import numpy as np
import pytest

from harness.config import EncoderConfig
from harness.dataset import LazySequence
from harness.datasets.synthetic import SyntheticConfig
from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError, UsageError
from harness.features import FeatureArray, FeatureStore, content_digest
from harness.methods.common.encoders.config import IdentityConfig, MiniLMConfig
from harness.methods.common.encoders.identity import IdentityEncoder
from harness.types import DataTable, ModalitySpec

_encoded: list[int] = []


@dataclass
class CountingConfig(EncoderConfig):
    scale: float = 1.0

    target: ClassVar[str] = f"{__name__}:CountingEncoder"
    kinds: ClassVar[tuple[str, ...]] = ("features",)

    @classmethod
    def implementation(cls) -> Any:
        return CountingEncoder


class CountingEncoder(Encoder):
    batch_size = 7

    def encode(self, values: Sequence[Any]) -> Encoded:
        _encoded.append(len(values))
        assert isinstance(self.config, CountingConfig)
        tokens, mask = pad_tokens([np.atleast_2d(value) * self.config.scale for value in values])
        return Encoded(tokens, mask, tokens.sum(axis=1).astype(np.float32))


@dataclass
class MeanConfig(EncoderConfig):
    target: ClassVar[str] = f"{__name__}:MeanEncoder"
    kinds: ClassVar[tuple[str, ...]] = ("image",)

    @classmethod
    def implementation(cls) -> Any:
        return MeanEncoder


class MeanEncoder(Encoder):
    def encode(self, values: Sequence[Any]) -> Encoded:
        pooled = np.array([[value.mean()] for value in values], dtype=np.float32)
        return Encoded(pooled[:, None], np.ones((len(values), 1), dtype=np.bool_), pooled)


@pytest.fixture
def table() -> DataTable:
    _encoded.clear()
    return SyntheticConfig(samples=40, sequence_length=3).load(Path(), Path())


def test_second_get_computes_nothing(table: DataTable, tmp_path: Path) -> None:
    modality = table.spec.modalities[0]
    first = FeatureStore(tmp_path).get(table, modality, "counting", CountingConfig())
    assert _encoded == [7, 7, 7, 7, 7, 5]
    again = FeatureStore(tmp_path).get(table, modality, "counting", CountingConfig())
    assert len(_encoded) == 6
    for part in ("tokens", "mask", "pooled", "digest"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert isinstance(again.tokens, np.memmap)


def test_values_land_on_their_rows(table: DataTable, tmp_path: Path) -> None:
    available = table.available.copy()
    available[::3, 0] = False
    modality = table.spec.modalities[0]
    features = FeatureStore(tmp_path).get(replace(table, available=available), modality, "identity", IdentityConfig())
    for row, value in enumerate(table.values[modality.name]):
        if not available[row, 0]:
            assert not features.mask[row].any()
            assert not features.tokens[row].any()
            assert features.digest[row] == 0
            continue
        length = len(value)
        assert features.mask[row].tolist() == [True] * length + [False] * (features.spec.length - length)
        np.testing.assert_array_equal(features.tokens[row, :length], value)
        np.testing.assert_allclose(features.pooled[row], value.mean(axis=0), atol=1e-6)
        assert features.digest[row] == content_digest(value)


@pytest.mark.parametrize("change", ["option", "name", "data", "modality"])
def test_key_changes(table: DataTable, tmp_path: Path, change: str) -> None:
    store, modality = FeatureStore(tmp_path), table.spec.modalities[0]
    store.get(table, modality, "counting", CountingConfig())
    before = len(_encoded)
    other = SyntheticConfig(samples=40, sequence_length=3, seed=1).load(Path(), Path())
    store.get(
        other if change == "data" else table,
        table.spec.modalities[1] if change == "modality" else modality,
        "other" if change == "name" else "counting",
        CountingConfig(scale=2.0) if change == "option" else CountingConfig(),
    )
    assert len(_encoded) == 2 * before


def test_precision_of_a_device_is_part_of_the_key(
    table: DataTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's rounded features never stand for a CPU's; a CPU's are good enough for a GPU."""

    def use(self: Encoder, device: str) -> None:
        self.precision = "bfloat16" if device == "cuda" else "float32"

    monkeypatch.setattr(CountingEncoder, "use", use)
    monkeypatch.setattr("harness.features.available_device", str)
    store, modality = FeatureStore(tmp_path), table.spec.modalities[0]

    def computed(device: str) -> int:
        _encoded.clear()
        store.get(table, modality, "counting", CountingConfig(), device)
        return sum(_encoded)

    assert [computed(device) for device in ("cuda", "cuda", "cpu", "cuda", "cpu")] == [40, 0, 40, 0, 0]
    assert len(list(tmp_path.glob("*/a-counting-*[0-9a-f]"))) == 2
    shutil.rmtree(tmp_path)
    assert [computed(device) for device in ("cpu", "cuda")] == [40, 0]
    assert len(list(tmp_path.glob("*/a-counting-*[0-9a-f]"))) == 1


def test_pictures_are_read_by_several_threads_and_land_on_their_rows(table: DataTable, tmp_path: Path) -> None:
    def picture(row: int) -> np.ndarray[Any, Any]:
        readers.add(threading.get_ident())
        return np.full((4, 5, 3), row, dtype=np.uint8)

    readers: set[int] = set()
    pictures = LazySequence(picture, len(table.ids))
    modality = replace(table.spec.modalities[0], kind="image", shape=None)
    images = replace(table, values={**table.values, modality.name: pictures})
    features = FeatureStore(tmp_path).get(images, modality, "mean", MeanConfig())
    np.testing.assert_array_equal(features.pooled[:, 0], np.arange(len(table.ids)))
    assert features.digest.tolist() == [content_digest(picture(row)) for row in range(len(table.ids))]
    readers.clear()
    FeatureStore(tmp_path / "other").get(images, modality, "mean", MeanConfig())
    assert threading.get_ident() not in readers


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "meta"])
def test_damaged_block_is_refused(table: DataTable, tmp_path: Path, damage: str) -> None:
    store, modality = FeatureStore(tmp_path), table.spec.modalities[0]
    store.get(table, modality, "counting", CountingConfig())
    (file,) = tmp_path.glob("*/*/tokens.npy")
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(raw[:-10])
    elif damage == "flip":
        raw[-1] ^= 1
        file.write_bytes(raw)
    elif damage == "gone":
        file.unlink()
    else:
        file.with_name("meta.json").write_text("{}")
    with pytest.raises(DataError, match=r"damaged .* delete the folder") as caught:
        store.get(table, modality, "counting", CountingConfig())
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_refused(table: DataTable, tmp_path: Path) -> None:
    values = [value.copy() for value in table.values["a"]]
    values[4][0, 0] = np.nan
    broken = replace(table, values={**table.values, "a": values})
    with pytest.raises(DataError, match=r"NaN or infinite for 1 samples, e\.g\. id 's000004'"):
        FeatureStore(tmp_path).get(broken, table.spec.modalities[0], "identity", IdentityConfig())
    assert not list(tmp_path.glob("*/a-*[0-9a-f]"))


def test_float16_overflow_is_refused(table: DataTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="NaN or infinite"), np.errstate(over="ignore"):
        FeatureStore(tmp_path).get(table, table.spec.modalities[0], "counting", CountingConfig(scale=1e7))


def test_wrong_kind_and_wrong_option_are_refused(table: DataTable, tmp_path: Path) -> None:
    modality = table.spec.modalities[0]
    with pytest.raises(UsageError, match=r"takes text, but modality 'a' is features; set encoders\.a="):
        FeatureStore(tmp_path).get(table, modality, "minilm", MiniLMConfig())
    with pytest.raises(UsageError, match="max_tokens=1"):
        FeatureStore(tmp_path).get(table, replace(modality, kind="text"), "minilm", MiniLMConfig(max_tokens=1))


def test_leftovers_of_a_killed_run_go(table: DataTable, tmp_path: Path) -> None:
    store, modality = FeatureStore(tmp_path), table.spec.modalities[0]
    store.get(table, modality, "counting", CountingConfig())
    (block,) = tmp_path.glob("*/*/meta.json")
    leftover = block.parent.with_name(f".{block.parent.name}.killed")
    leftover.mkdir()
    block.unlink()
    store.get(table, modality, "counting", CountingConfig())
    assert not leftover.exists()


# -- interruptions ---------------------------------------------------------------------------------------------------

#: Stores a data set's features with an encoder that notes every call in a file and may kill its process at one.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from harness import blocks
from harness.dataset import LazySequence
from harness.datasets.synthetic import SyntheticConfig
from harness.features import FeatureStore
import test_features as module

folder, deadly, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
blocks.COMMIT_SECONDS = 0.0

class Encoder(module.CountingEncoder):
    def encode(self, values):
        with (folder / "calls").open("a") as calls:
            calls.write(f"{len(values)}\\n")
        if len((folder / "calls").read_text().splitlines()) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        return super().encode(values)

module.CountingEncoder = Encoder
table = SyntheticConfig(samples=40, sequence_length=3).load(Path(), Path())
FeatureStore(folder / "store").get(table, table.spec.modalities[0], "counting", module.CountingConfig())
"""


def worker(folder: Path, deadly: int = 0, pause: float = 0.0) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, str(folder), str(deadly), str(pause)]
    return subprocess.Popen(command, cwd=Path(__file__).parent)


def calls(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "calls").read_text().splitlines()]


def test_a_killed_run_goes_on_where_it_stopped(table: DataTable, tmp_path: Path) -> None:
    assert worker(tmp_path, deadly=4).wait() == -signal.SIGKILL
    assert not list((tmp_path / "store").glob("*/*/meta.json"))
    assert worker(tmp_path).wait() == 0
    assert calls(tmp_path) == [7, 7, 7, 7, 7, 7, 5]  # the fourth call died, and was the only one to be repeated
    modality = table.spec.modalities[0]
    found = FeatureStore(tmp_path / "store").get(table, modality, "counting", CountingConfig())
    assert not _encoded
    whole = FeatureStore(tmp_path / "whole").get(table, modality, "counting", CountingConfig())
    for part in ("tokens", "mask", "pooled", "digest"):
        np.testing.assert_array_equal(getattr(found, part), getattr(whole, part))
    (ours,), (theirs,) = ((tmp_path / name).glob("*/*/tokens.npy") for name in ("store", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_two_that_start_together_encode_once(tmp_path: Path) -> None:
    started = [worker(tmp_path, pause=0.05) for _ in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    assert calls(tmp_path) == [7, 7, 7, 7, 7, 5]


def test_twenty_that_start_together_encode_once(table: DataTable, tmp_path: Path) -> None:
    """As the cells of a sweep on machines with an empty cache; neighbours: `test_retrieval.py`."""
    together = Barrier(20)

    def cell(_: int) -> FeatureArray:
        together.wait()
        return FeatureStore(tmp_path).get(table, table.spec.modalities[0], "counting", CountingConfig())

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(cell, range(20)))
    assert _encoded == [7, 7, 7, 7, 7, 5]
    assert all(np.array_equal(array.tokens, found[0].tokens) for array in found)


def test_memory_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 values of 64 KiB are stored with an eighth of their size in memory."""

    class Wide(Sequence[Any]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: Any) -> Any:
            return np.full((1, 2**14), index, dtype=np.float32)

    table = SyntheticConfig(samples=1000).load(Path(), Path())
    table = replace(table, values={**table.values, "a": Wide()})
    monkeypatch.setattr(IdentityEncoder, "batch_size", 8)
    FeatureStore(tmp_path).get(table, table.spec.modalities[1], "identity", IdentityConfig())  # imports what it needs
    tracemalloc.start()
    try:
        features = FeatureStore(tmp_path).get(table, table.spec.modalities[0], "identity", IdentityConfig())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert features.tokens.nbytes == 1000 * 2**16
    assert features.tokens[::111, 0, -1].tolist() == list(range(0, 1000, 111))
    assert peak < features.tokens.nbytes / 8


def test_texts_are_encoded_longest_first_and_stored_in_their_order(tmp_path: Path) -> None:
    lengths = [3, 9, 1, 9, 4, *[1] * 35]
    texts = ["x" * length for length in lengths]
    table = SyntheticConfig(samples=40).load(Path(), Path())
    text = ModalitySpec("a", "text")
    spec = replace(table.spec, modalities=(text, table.spec.modalities[1]))
    table = replace(table, spec=spec, values={**table.values, "a": texts})
    seen: list[str] = []

    class Letters(Encoder):
        batch_size = 2
        storage = "int16"

        def encode(self, values: Sequence[Any]) -> Encoded:
            seen.extend(values)
            tokens, mask = pad_tokens([np.full(len(value), ord(value[0])) for value in values])
            return Encoded(tokens, mask, np.array([[len(value)] for value in values], np.float32))

    config = CountingConfig()
    config.__class__ = type("Config", (CountingConfig,), {"kinds": ("text",), "implementation": lambda self: Letters})
    features = FeatureStore(tmp_path).get(table, text, "letters", config)
    assert list(map(len, seen)) == sorted(lengths, reverse=True)
    assert features.mask.sum(axis=1).tolist() == features.pooled[:, 0].tolist() == lengths
    assert features.tokens.dtype == np.int16
    assert features.spec.length == 9


def test_no_value_at_all(table: DataTable, tmp_path: Path) -> None:
    available = table.available.copy()
    available[:, 0] = False
    features = FeatureStore(tmp_path).get(
        replace(table, available=available), table.spec.modalities[0], "counting", CountingConfig()
    )
    assert features.tokens.shape == (40, 1, 1)
    assert not features.mask.any()


def test_digest_tells_contents_apart() -> None:
    values: list[Any] = ["a", "b", "", np.zeros(2, np.float32), np.zeros((1, 2), np.float32), np.zeros(4, np.uint8)]
    assert len({content_digest(value) for value in values}) == len(values)
    assert content_digest(np.arange(6).reshape(2, 3).T) == content_digest(np.arange(6).reshape(2, 3).T.copy())
