"""The feature store computes once, refuses what is damaged and keeps keys apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from harness.config import EncoderConfig
from harness.datasets.synthetic import SyntheticConfig
from harness.encoder import Encoded, Encoder, pad_tokens
from harness.errors import DataError, UsageError
from harness.features import FeatureStore, content_digest
from harness.methods.common.encoders.config import IdentityConfig, MiniLMConfig
from harness.types import DataTable

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


def test_digest_tells_contents_apart() -> None:
    values: list[Any] = ["a", "b", "", np.zeros(2, np.float32), np.zeros((1, 2), np.float32), np.zeros(4, np.uint8)]
    assert len({content_digest(value) for value in values}) == len(values)
    assert content_digest(np.arange(6).reshape(2, 3).T) == content_digest(np.arange(6).reshape(2, 3).T.copy())
