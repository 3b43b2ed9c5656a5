"""Memory bank: exact neighbours, exclusion of the query and its twins, adaptive keys, what a bank may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.errors import DependencyError, SupervisionError, UsageError
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.retrieval import KeyBank, Keys, MemoryBank, content_digests
from harness.types import Batch, BoolArray, DatasetSpec, ModalitySpec, Split, TaskSpec

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


# -- banks of learned keys -----------------------------------------------------------------------------------------


def learned(batch: Batch) -> Keys:
    """The pooled vectors as keys."""
    keys = torch.full((len(batch), 2, 4), torch.nan)
    for column, part in enumerate(batch.inputs.values()):
        keys[part.rows, column] = part.pooled
    return Keys(batch.ids, keys, batch.present, content_digests(batch))


def key_bank(source: ObservedDataset, **options: Any) -> KeyBank:
    return KeyBank(learned(source.batch(range(len(source)))), learned, **options)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_learned_keys_decide_together_by_their_mean(backend: str) -> None:
    train, test = view(50), view(20, seed=1, split="test")
    result = key_bank(train, backend=backend).neighbours(test.batch(range(20)), 4)
    total = cosines(test, train, SPEC.modality_names)
    expected = np.argsort(-total, axis=1)[:, :4]
    assert result.index.numpy().tolist() == expected.tolist()
    np.testing.assert_allclose(result.score.numpy(), np.take_along_axis(total, expected, 1) / 2, atol=1e-5)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_the_list_whose_last_item_is_nearest_wins(backend: str) -> None:
    train, test = view(50), view(20, seed=1, split="test")
    result = key_bank(train, backend=backend, aggregation="max_of_kth").neighbours(test.batch(range(20)), 4)
    lists = [cosines(test, train, (name,)) for name in SPEC.modality_names]
    winners = set()
    for row in range(20):
        best = max(range(2), key=lambda column: np.sort(lists[column][row])[-4])
        winners.add(best)
        assert result.index[row].tolist() == np.argsort(-lists[best][row])[:4].tolist()
    assert winners == {0, 1}


@pytest.mark.parametrize("aggregation", ["mean", "max_of_kth"])
def test_candidates_share_a_modality_with_the_query(aggregation: str) -> None:
    """Also where more candidates must be looked at than the first few, and none is left over."""
    present = np.ones((60, 2), np.bool_)
    present[:50, 1] = False
    bank = key_bank(view(60, present=present), aggregation=aggregation)
    shown = np.ones((20, 2), np.bool_)
    shown[:, 0] = False
    result = bank.neighbours(view(20, seed=1, split="test", present=shown).batch(range(20)), 12)
    assert result.found.sum(1).tolist() == [10] * 20
    assert all(sorted(row[:10]) == list(range(50, 60)) for row in result.index.tolist())
    assert (result.index[:, 10:] == -1).all()
    # A longer list wins over a shorter one.
    both = bank.neighbours(view(20, seed=1, split="test").batch(range(20)), 12)
    assert both.found.all()


def test_learned_keys_never_find_the_query_or_its_twin() -> None:
    train = view(30, twins={1: 0})
    bank = key_bank(train)
    found = bank.neighbours(train.batch(range(30)), 29)
    for row, near in enumerate(found.index.tolist()):
        expected = set(range(30)) - ({0, 1} if row < 2 else {row})
        assert {item for item in near if item >= 0} == expected
    # Another sample with the same content, of another split, has no neighbour in its twins either.
    copied = ObservedDataset(
        SPEC, "test", ["new"], train._features, np.array([0]), train.present[:1], train.present[:1], train.labels[:1]
    )
    assert set(bank.neighbours(copied.batch([0]), 29).index[0].tolist()) - {-1} == set(range(2, 30))


def test_the_first_hit_is_dropped_whoever_it_is() -> None:
    train, test = view(30), view(5, seed=1, split="test")
    ordered = np.argsort(-cosines(test, train, SPEC.modality_names), axis=1)
    result = key_bank(train, exclude="first_hit").neighbours(test.batch(range(5)), 4)
    assert result.index.numpy().tolist() == ordered[:, 1:5].tolist()
    own = key_bank(train, exclude="first_hit").neighbours(train.batch(range(30)), 4).index
    assert not (own == torch.arange(30).unsqueeze(1)).any()


def test_raw_queries_are_not_normalised() -> None:
    train, test = view(50), view(20, seed=1, split="test")
    queries = learned(test.batch(range(20)))
    unit, raw = (key_bank(train, unit_queries=unit).search(queries, 3).score for unit in (True, False))
    assert (unit <= 1 + 1e-5).all()
    alone = Keys(queries.ids, queries.keys, torch.tensor([[True, False]]).expand(20, 2), queries.digest)
    scores = key_bank(train, unit_queries=False).search(alone, 3).score
    norms = queries.keys[:, 0].norm(dim=1, keepdim=True)
    torch.testing.assert_close(scores, key_bank(train).search(alone, 3).score * norms, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(unit, raw)


def test_learned_keys_are_remembered_by_content() -> None:
    """The same id with other content is another query."""
    train = view(50)
    bank = key_bank(train)
    first, second = (view(8, seed=seed, split="test").batch(range(8)) for seed in (1, 2))
    assert not torch.equal(bank.neighbours(first, 3).index, bank.neighbours(second, 3).index)
    again = key_bank(train).neighbours(second, 3)
    assert torch.equal(bank.neighbours(second, 3).index, again.index)
    assert bank.nbytes == 50 * 2 * 4 * 4
    empty = bank.search(learned(first).select(torch.arange(0)), 3)
    assert empty.index.shape == (0, 3)
