"""Memory bank: exact neighbours, exclusion of the query and its twins, adaptive keys, what a bank may hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import DependencyError, SupervisionError, UsageError
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.retrieval import MemoryBank
from harness.types import BoolArray, DatasetSpec, ModalitySpec, Split, TaskSpec

SPEC = DatasetSpec(
    "toy",
    "1",
    (ModalitySpec("text", "features"), ModalitySpec("image", "features")),
    TaskSpec("multiclass", 3, ("a", "b", "c"), "accuracy"),
    "",
    "",
    "toy",
)


def view(
    size: int,
    seed: int = 0,
    split: Split = "train",
    present: BoolArray | None = None,
    twins: dict[int, int] | None = None,
    supervision: str = "observed",
) -> ObservedDataset:
    """Random vectors; `twins` maps a row to the row whose content it copies."""
    rng = np.random.default_rng(seed)
    features = {}
    for name in SPEC.modality_names:
        tokens = rng.normal(size=(size, 3, 4)).astype(np.float32)
        digest = rng.integers(1, 2**60, size)
        for copy, original in (twins or {}).items():
            tokens[copy], digest[copy] = tokens[original], digest[original]
        features[name] = FeatureArray(tokens, np.ones((size, 3), np.bool_), tokens.mean(1), digest)
    shown = np.ones((size, 2), np.bool_) if present is None else present
    ids = [f"{split}-{row}" for row in range(size)]
    labels = rng.integers(0, 3, size)
    everything = np.ones((size, 2), np.bool_)
    return ObservedDataset(SPEC, split, ids, features, np.arange(size), shown, everything, labels, supervision)


def cosines(query: ObservedDataset, bank: ObservedDataset, names: tuple[str, ...]) -> np.ndarray:
    total = np.zeros((len(query), len(bank)))
    for name in names:
        left, right = (v.batch(range(len(v))).inputs[name].pooled.numpy() for v in (query, bank))
        left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
        total += left @ right.T
    return total


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_neighbours_are_the_exact_top_k(backend: str) -> None:
    train, test = view(50), view(20, seed=1, split="test")
    result = MemoryBank.build(train, backend=backend).neighbours(test.batch(range(20)), 4)
    expected = np.argsort(-cosines(test, train, SPEC.modality_names), axis=1)[:, :4]
    assert result.index.numpy().tolist() == expected.tolist()
    assert result.found.all()


def test_incomplete_queries_use_what_they_have() -> None:
    present = np.ones((20, 2), np.bool_)
    present[:, 1] = False
    train, text_only = view(50), view(20, seed=1, split="test", present=present)
    whole = view(20, seed=1, split="test")
    result = MemoryBank.build(train).neighbours(text_only.batch(range(20)), 4)
    expected = np.argsort(-cosines(whole, train, ("text",)), axis=1)[:, :4]
    assert result.index.numpy().tolist() == expected.tolist()


def test_a_query_never_finds_itself() -> None:
    train = view(30)
    bank = MemoryBank.build(train)
    index = bank.neighbours(train.batch(range(30)), 5).index
    assert all(row not in found for row, found in enumerate(index.tolist()))


def test_identical_content_is_excluded_by_its_hash() -> None:
    train = view(30, twins={7: 3, 8: 3})
    index = MemoryBank.build(train).neighbours(train.batch([3]), 5).index[0].tolist()
    assert not {3, 7, 8} & set(index)


def test_many_twins_do_not_exhaust_the_search() -> None:
    train = view(40, twins=dict.fromkeys(range(1, 30), 0))
    found = MemoryBank.build(train).neighbours(train.batch([0]), 5)
    assert found.found.all()
    assert min(found.index[0].tolist()) >= 30


def test_fewer_items_than_k_are_marked() -> None:
    train = view(4)
    result = MemoryBank.build(train).neighbours(train.batch([0]), 5)
    assert result.found[0].tolist() == [True, True, True, False, False]
    assert result.index[0, 3:].tolist() == [-1, -1]


def test_row_number_exclusion_replays_the_released_leak() -> None:
    """Released code drops the bank item at the query's row: train is spared, validation finds itself."""
    train, valid = view(30), view(10, seed=1, split="valid")
    bank = MemoryBank.build(train, valid, exclude="row_number")
    assert all(
        bank.ids[row[0]] == name
        for row, name in zip(bank.neighbours(valid.batch(range(10)), 3).index.tolist(), valid.ids, strict=True)
    )
    own = bank.neighbours(train.batch(range(30)), 3).index.tolist()
    assert all(row not in found for row, found in enumerate(own))


def test_only_complete_samples_are_items() -> None:
    present = np.ones((30, 2), np.bool_)
    present[::2, 0] = False
    bank = MemoryBank.build(view(30, present=present))
    assert bank.ids == tuple(f"train-{row}" for row in range(1, 30, 2))
    assert bank.present.all()


def test_an_empty_bank_says_how_to_mend_it() -> None:
    present = np.ones((6, 2), np.bool_)
    present[:, 0] = False
    with pytest.raises(UsageError, match="no training sample has every modality"):
        MemoryBank.build(view(6, present=present))


def test_full_training_values_need_complete_supervision() -> None:
    with pytest.raises(SupervisionError, match="supervision=complete"):
        view(6).complete_view()
    assert view(6, supervision="complete").complete_view().present.all()


def test_payload_and_labels_belong_to_the_items() -> None:
    present = np.ones((10, 2), np.bool_)
    present[:5, 0] = False
    train = view(10, present=present)
    bank = MemoryBank.build(train)
    tokens, mask = bank.payload(torch.tensor([[0, 4], [2, 2]]))["image"]
    whole = train.batch(range(5, 10))
    assert torch.equal(tokens, whole.inputs["image"].tokens[torch.tensor([[0, 4], [2, 2]])])
    assert mask.shape == (2, 2, 3)
    assert bank.labels(torch.tensor([[0, 4]])).tolist() == [[whole.labels[0].item(), whole.labels[4].item()]]


def test_random_neighbours_are_fixed_by_seed_and_id() -> None:
    train = view(30)
    bank = MemoryBank.build(train)
    draws = [bank.neighbours(train.batch([2, 5]), 4, random_seed=seed).index.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert 2 not in draws[0][0]
    alone = MemoryBank.build(train).neighbours(train.batch([5]), 4, random_seed=0).index.tolist()
    assert alone[0] == draws[0][1]


def test_missing_faiss_names_both_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    train = view(5)
    with pytest.raises(DependencyError, match=r"\[cpu\].*\[gpu\].*retrieval.backend=torch") as error:
        MemoryBank.build(train).neighbours(train.batch([0]), 1)
    assert "\n" not in str(error.value)
    assert MemoryBank.build(train, backend="torch").neighbours(train.batch([0]), 1).found.all()


def test_bank_bytes_count_keys_and_payload(tmp_path: Path) -> None:
    bank = MemoryBank.build(view(10))
    keys = 10 * 8 * 4
    payload = 10 * 2 * (3 * (4 * 4 + 1))
    assert bank.nbytes == keys + payload
