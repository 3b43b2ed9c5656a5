"""Memory bank: exact neighbours, exclusion of the query and its twins, adaptive keys, what a bank may hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from harness import search
from harness.errors import DependencyError, SupervisionError, UsageError
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.retrieval import KeyBank, Keys, MemoryBank, content_digests, memory
from harness.search import INDEXES, IvfIndex, KeysOf, TorchIndex
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


def test_bank_bytes_tell_keys_from_payload() -> None:
    bank = MemoryBank.build(view(10))
    assert bank.key_bytes == 10 * 8 * 4
    assert bank.payload_bytes == 10 * 2 * (3 * (4 * 4 + 1))
    assert bank.nbytes == bank.key_bytes + bank.payload_bytes


# -- whole splits, and neighbours on disk ----------------------------------------------------------------------------


def plain_search(query: ObservedDataset, bank: ObservedDataset, k: int) -> tuple[list[list[int]], np.ndarray]:
    """Neighbours by NumPy alone, query by query: sum of cosines, then what may not be found goes, then the best k."""
    shown = [query.batch(range(len(query))).inputs[name] for name in SPEC.modality_names]
    items = [bank.batch(range(len(bank))).inputs[name] for name in SPEC.modality_names]
    index, scores = [], np.zeros((len(query), k))
    for row, name in enumerate(query.ids):
        total, twin = np.zeros(len(bank)), np.ones(len(bank), np.bool_)
        for part, item in zip(shown, items, strict=True):
            for position in np.flatnonzero(part.rows.numpy() == row):
                key, every = part.pooled.numpy()[position].astype(float), item.pooled.numpy().astype(float)
                total += every @ key / np.linalg.norm(every, axis=1) / np.linalg.norm(key)
                twin &= item.digest.numpy() == part.digest.numpy()[position]
        allowed = [item for item in np.argsort(-total, kind="stable") if not twin[item] and bank.ids[item] != name]
        index.append((allowed + [-1] * k)[:k])
        scores[row, : len(allowed)] = total[allowed[:k]]
    return index, scores


def incomplete(size: int, seed: int, split: Split, twins: dict[int, int] | None = None) -> ObservedDataset:
    """A third of the samples lack one modality."""
    present = np.ones((size, 2), np.bool_)
    present[::6, 0] = present[3::6, 1] = False
    return view(size, seed, split, present, twins)


@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("k", [1, 5, 20, 70])
def test_neighbours_equal_a_plain_search(backend: str, expected: bool, k: int, tmp_path: Path) -> None:
    """Golden: whatever the batches, whether a split is searched for at once or not, in bank and out of it."""
    train = view(70)
    for array in train._features.values():
        array.digest[[7, 8, 30]] = array.digest[[3, 3, 31]]
    asking = view(50, seed=1, split="test"), train, incomplete(40, 2, "valid")
    bank = MemoryBank.build(train, backend=backend)
    if expected:
        bank.expect(asking, tmp_path)
    for query in asking:
        index, score = plain_search(query, train, k)
        for rows in np.split(np.arange(len(query)), [1, 8, 30]):
            found = bank.neighbours(query.batch(rows), k)
            assert found.index.tolist() == [index[row] for row in rows]
            np.testing.assert_allclose(found.score.numpy(), score[rows], atol=1e-6)
            assert torch.equal(found.found, found.index >= 0)


class Counted:
    """A search index that notes how many queries it gets."""

    asked: ClassVar[list[int]] = []

    def __init__(self, count: int, keys: KeysOf) -> None:
        self.count, self._index = count, TorchIndex(count, keys)

    def search(self, queries: np.ndarray, k: int) -> Any:
        self.asked.append(len(queries))
        return self._index.search(queries, k)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setitem(INDEXES, "counted", Counted)  # type: ignore[arg-type]
    monkeypatch.setattr(Counted, "asked", [])
    return Counted.asked


def test_an_expected_split_is_searched_once_for_all_its_samples(counted: list[int], tmp_path: Path) -> None:
    train, test = view(50), incomplete(30, 1, "test")
    bank = MemoryBank.build(train, backend="counted")
    bank.expect([train, test], tmp_path)
    for start in range(0, 30, 10):
        bank.neighbours(test.batch(range(start, start + 10)), 4)
    bank.neighbours(train.batch([0]), 4)
    assert counted == [30, 50]
    # What shows less than the split does is searched for by itself, and remembered; so is another k.
    less = train.batch([0, 1]).without(torch.tensor([[True, False], [False, False]]))
    for _ in range(2):
        bank.neighbours(less, 4)
        assert bank.neighbours(test.batch([3, 1]), 2).index.shape == (2, 2)
    assert counted == [30, 50, 1, 2]
    assert not list(tmp_path.iterdir())  # so few are not worth a file


def test_one_search_serves_every_bank_with_the_same_content(
    counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many cells that start together search once, and later ones not at all."""
    monkeypatch.setattr(memory, "_WORTH_KEEPING", 0)
    train, test = view(50), incomplete(30, 1, "test")

    def cell(_: int) -> list[list[int]]:
        bank = MemoryBank.build(train, backend="counted")
        bank.expect([test], tmp_path)
        found: list[list[int]] = bank.neighbours(test.batch(range(30)), 4).index.tolist()
        return found

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(cell, range(8)))
    assert counted == [30]
    assert results == [MemoryBank.build(train).neighbours(test.batch(range(30)), 4).index.tolist()] * 8
    assert cell(0) == results[0]
    assert len(list(tmp_path.glob("*.npz"))) == 1


@pytest.mark.parametrize("expected", [False, True])
def test_changed_values_of_the_same_samples_are_other_queries(expected: bool, tmp_path: Path) -> None:
    """As under protocols that corrupt what they show: test conditions share ids and patterns, not content."""
    train, conditions = view(50), [view(30, seed=seed, split="test") for seed in (1, 2)]
    bank = MemoryBank.build(train)
    if expected:
        bank.expect(conditions, tmp_path)
    for condition in conditions:
        found = bank.neighbours(condition.batch(range(30)), 4).index.tolist()
        assert found == np.argsort(-cosines(condition, train, SPEC.modality_names), axis=1)[:, :4].tolist()


@pytest.mark.parametrize("change", ["bank", "queries", "masks", "k", "channel", "exclusion"])
def test_other_questions_have_other_files(
    counted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(memory, "_WORTH_KEEPING", 0)

    def ask(changed: str = "") -> None:
        train, test = view(50, seed=9 if changed == "bank" else 0), view(30, 8 if changed == "queries" else 1, "test")
        if changed == "masks":
            test = incomplete(30, 1, "test")
        bank = MemoryBank.build(train, backend="counted", exclude="row_number" if changed == "exclusion" else "id")
        bank.expect([test], tmp_path)
        bank.neighbours(test.batch([1]), 12 if changed == "k" else 4, channel="text" if changed == "channel" else None)

    ask()
    ask()
    assert counted == [30]
    ask(change)
    assert counted == [30, 30]


@pytest.mark.parametrize("damage", ["flip", "cut", "text"])
def test_damaged_neighbours_are_searched_for_again(
    counted: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    monkeypatch.setattr(memory, "_WORTH_KEEPING", 0)
    train = view(50)

    def ask() -> list[list[int]]:
        bank = MemoryBank.build(train, backend="counted")
        bank.expect([train], tmp_path)
        found: list[list[int]] = bank.neighbours(train.batch(range(50)), 4).index.tolist()
        return found

    right = ask()
    (file,) = tmp_path.glob("*.npz")
    raw = bytearray(file.read_bytes())
    raw[300] ^= 1
    file.write_bytes({"flip": raw, "cut": raw[:-100], "text": b"nothing"}[damage])
    assert ask() == right
    assert counted == [50, 50]
    assert f"warning: {file} is damaged" in capsys.readouterr().err
    assert ask() == right
    assert counted == [50, 50]


def test_the_payload_stays_on_disk(tmp_path: Path) -> None:
    """Building a bank and searching in it read no token; a batch of items is one gathering per modality."""

    class Watched:
        def __init__(self, tokens: np.ndarray) -> None:
            self._tokens, self.shape, self.dtype, self.reads = tokens, tokens.shape, tokens.dtype, [0]

        def __getitem__(self, rows: Any) -> Any:
            if not isinstance(rows, slice):
                self.reads.append(len(rows))
            return self._tokens[rows]

    train = view(40)
    watched = {}
    for name in SPEC.modality_names:
        array = train._features[name]
        watched[name] = Watched(array.tokens.astype(np.float16))
        object.__setattr__(array, "tokens", watched[name])
    bank = MemoryBank.build(train)
    bank.expect([train], tmp_path)
    bank._table(bank._expected[0], 4, None)
    assert bank.nbytes == 40 * 8 * 4 + 40 * 2 * (3 * (4 * 2 + 1))
    assert all(array.reads == [0] for array in watched.values())
    tokens, mask = bank.payload(torch.tensor([[39, 0, 7], [7, 7, 1]]))["text"]
    assert [array.reads for array in watched.values()] == [[0, 6], [0, 6]]
    assert tokens.dtype == torch.float32
    assert torch.equal(tokens[0, 2], torch.from_numpy(watched["text"]._tokens[7]).float())
    assert mask.shape == (2, 3, 3)


def test_hidden_values_cannot_be_gathered() -> None:
    shown = incomplete(12, 0, "train")
    assert shown.digests()[0, 0] == 0
    for read in (shown.tokens, shown.pooled):
        read("text", np.array([1, 2]))
        with pytest.raises(SupervisionError, match="'text' that split 'train' hides"):
            read("text", np.array([0, 1]))


# -- approximate search ----------------------------------------------------------------------------------------------


def clustered(size: int, seed: int) -> np.ndarray:
    """Unit vectors around 50 centres."""
    centres = np.random.default_rng(0).normal(size=(50, 32))
    generator = np.random.default_rng(seed)
    vectors = centres[generator.integers(0, 50, size)] + 0.5 * generator.normal(size=(size, 32))
    found: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


@pytest.mark.parametrize("backend", ["faiss_ivf", "faiss_hnsw"])
def test_approximate_search_finds_nearly_all(
    backend: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_FEWEST", 0)
    monkeypatch.setattr(IvfIndex, "_PROBES", 16)  # of 219 cells: as little as it looks at of a large bank
    keys, queries = clustered(3_000, 1), clustered(100, 2)
    index = INDEXES[backend](len(keys), lambda rows: keys[rows])
    assert f"note: retrieval.backend={backend} is approximate" in capsys.readouterr().err
    scores, found = index.search(queries, 10)
    exact = np.argsort(-(queries @ keys.T), axis=1)[:, :10]
    recall = np.mean([len(set(ours) & set(theirs)) / 10 for ours, theirs in zip(found, exact, strict=True)])
    assert recall >= 0.98
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ keys.T, found, 1), atol=1e-5)
    # All items can be asked for, when the nearest ones are no neighbours.
    assert np.array_equal(index.search(queries[:1], len(keys))[1], np.argsort(-(queries[:1] @ keys.T), kind="stable"))


@pytest.mark.parametrize("backend", ["faiss_ivf", "faiss_hnsw"])
def test_small_banks_refuse_approximate_search(backend: str) -> None:
    bank = MemoryBank.build(view(30), backend=backend)
    with pytest.raises(
        UsageError, match=f"{backend} is meant for banks of above 1,000,000 items.*has 30; use"
    ) as error:
        bank.neighbours(view(30).batch([0]), 1)
    assert "\n" not in str(error.value)


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
