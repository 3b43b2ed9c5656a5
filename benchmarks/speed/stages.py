"""The stages of the comparison; each gives rows of one table and leaves nothing behind but files in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from harness.config import TrainerConfig
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.method import Method
from harness.retrieval import MemoryBank
from harness.trainer import Trainer
from harness.types import Batch, DataTable
from speed import data, ours, peer
from speed.measure import PeakMemory, Timing, interleave, on_the_clock, operations, product


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        shape: The ViLT.
        text_len: Padded text tokens.
        samples: Generated samples; 80 % are train.
        rounds: Repetitions of both sides.
        load_batch: Samples of a loaded batch.
        step_batch: Samples of an eval or train step.
        bank_samples: Samples whose bank is built.
        epoch: Train, valid and test samples of an epoch.
        search: Memory items, and our queries.
        search_block: The peer's queries.
        key_width: Width of the search keys.
        growth_samples: Sizes of the data set from which batches are gathered.
        growth_items: Sizes of the searched memory; a smaller one lies in the processor's cache.
        approximate: Size of a memory that is searched approximately, 0 for none.
    """

    shape: data.Shape = field(default_factory=data.Shape)
    text_len: int = 128
    samples: int = 400
    rounds: int = 3
    load_batch: int = 64
    step_batch: int = 8
    bank_samples: int = 48
    epoch: tuple[int, int, int] = (16, 4, 8)
    search: int = 10_000
    search_block: int = peer.BLOCK
    key_width: int = 768
    growth_samples: tuple[int, ...] = (1_000, 10_000, 60_000)
    growth_items: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    approximate: int = 0


QUICK = Sizes(rounds=2)
FULL = Sizes(
    samples=1200,
    rounds=5,
    bank_samples=200,
    epoch=(64, 4, 8),
    approximate=1_000_000,
)
TINY = Sizes(
    shape=data.Shape(32, 2, 4, 48, 64, 200),
    text_len=24,
    samples=20,
    rounds=1,
    load_batch=4,
    step_batch=4,
    bank_samples=6,
    epoch=(4, 2, 2),
    search=50,
    search_block=4,
    key_width=16,
    growth_samples=(10, 20),
    growth_items=(50, 100),
    approximate=10_000,
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: Group of lines.
        what: What was measured.
        unit: Of `peer` and `ours`.
        peer: The re-stated pipeline; None where only we were measured.
        ours: The harness.
        ratio: How many times better ours is; None where there is no peer.
        target: What the ratio, or `ours`, should be at least (`at_most`: at most).
        clock: Whether seconds are those on the clock (the machine was idle), not of the processor; None for no times.
        other_ratio: The ratio of the other kind of seconds.
        at_most: Direction of the target.
        note: Conditions of this line.
    """

    stage: str
    what: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    target: float | None = None
    clock: bool | None = None
    other_ratio: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value <= self.target if self.at_most else value >= self.target

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def compared(stage: str, what: str, peer: Timing, ours: Timing, target: float | None, note: str = "") -> Row:
    """A line of two timings."""
    clock = on_the_clock(peer, ours)
    theirs, own = peer.median(clock), ours.median(clock)
    other = peer.median(not clock) / ours.median(not clock)
    return Row(stage, what, "s", own, theirs, theirs / own, target, clock, other, note=note)


class Bench:
    """Everything the stages share, made when it is first needed.

    Args:
        sizes: How much is measured.
        folder: For generated data and caches; what is there is used again.
        pixels: Whether ours runs on stored pixels, and not on stored patch embeddings.
    """

    K = 5

    def __init__(self, sizes: Sizes, folder: Path, pixels: bool = False) -> None:
        self.sizes, self.folder = sizes, folder
        self.weights = data.save_vilt(folder / f"vilt-{sizes.shape.hidden}", sizes.shape)
        self.release = data.make_release(folder / f"memes-{sizes.samples}", sizes.samples)
        self.table = data.make_table(self.release)
        self.backbone = ours.config(self.weights, sizes.text_len, pixels)

    @cached_property
    def features(self) -> dict[str, FeatureArray]:
        return ours.features(self.table, self.backbone, self.folder / "features", self.sizes.key_width)

    def view(self, split: Any, count: int = 0) -> ObservedDataset:
        """A split under both_0.7, cut to its first `count` samples."""
        whole = ours.observe(self.table, self.features, split, ours.both_missing(len(self.table.splits[split])))
        return whole.subset(range(count)) if count else whole

    @cached_property
    def train(self) -> ObservedDataset:
        return self.view("train")

    def method(self, **options: Any) -> Method:
        return ours.build("redeem", self.train, self.backbone, **options)

    @cached_property
    def embedder(self) -> peer.Embedder:
        from transformers import AutoTokenizer, ViltModel

        vilt = ViltModel.from_pretrained(self.weights, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(self.weights)
        return peer.Embedder(vilt, tokenizer, self.sizes.text_len)

    @cached_property
    def network(self) -> peer.Network:
        torch.manual_seed(0)
        return peer.Network(self.embedder.vilt, self.embedder, self.K)

    def memory(self, items: Sequence[int]) -> Path:
        """The peer's memory, holding at least these items."""
        folder = self.folder / f"memory-{self.sizes.samples}-{self.sizes.shape.hidden}"
        todo = [item for item in items if not (folder / "image" / f"{item}.npy").is_file()]
        peer.build_memory(self.release, todo, self.embedder, folder)
        return folder

    def loaded_by_peer(self, rows: Sequence[int], near: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        folder = self.memory(sorted({item for items in near for item in items}))
        return peer.load_batch(self.release, rows, near, self.embedder, folder)


def missing_codes(present: torch.Tensor) -> torch.Tensor:
    """0 without text, 1 without image, 2 complete."""
    return torch.where(present.all(1), 2, torch.where(present[:, 0], 1, 0))


def neighbours(method: Method, batch: Batch) -> list[list[int]]:
    """Rows of the K nearest training samples of every sample."""
    bank = method.banks()["memory"]
    found: list[list[int]] = bank.neighbours(batch, Bench.K).index.tolist()
    return found


# -- stages ----------------------------------------------------------------------------------------------------------


def load(bench: Bench) -> Iterator[Row]:
    """A batch with K neighbours per sample: files, decoding, collating."""
    size = bench.sizes.load_batch
    rows = list(range(size))
    method = bench.method()
    bank = method.banks()["memory"]
    assert isinstance(bank, MemoryBank)
    batch = bench.train.batch(rows)
    near = neighbours(method, batch)
    bench.memory(sorted({item for items in near for item in items}))

    def gather() -> None:
        found = bench.train.batch(rows)
        bank.payload(torch.unique(bank.neighbours(found, bench.K).index))

    timings = interleave({"peer": lambda: bench.loaded_by_peer(rows, near), "ours": gather}, bench.sizes.rounds)
    what = f"batch of {size} with K={bench.K}"
    yield compared("loading", what, timings["peer"], timings["ours"], 150.0, "files in the page cache on both sides")


def bank(bench: Bench) -> Iterator[Row]:
    """Bytes of a remembered sample, and what it takes to make one more."""
    count, folder = bench.sizes.bank_samples, bench.folder / "built"
    few, many = (
        replace(bench.release, texts=bench.release.texts[:size], labels=bench.release.labels[:size])
        for size in (2, count)
    )

    def build_peer() -> None:
        shutil.rmtree(folder / "peer", ignore_errors=True)
        peer.build_memory(many, range(count), bench.embedder, folder / "peer")

    def build_ours(release: data.Release) -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        ours.features(data.make_table(release), bench.backbone, folder / "ours", bench.sizes.key_width)

    sides = {"peer": build_peer, "start": partial(build_ours, few), "ours": partial(build_ours, many)}
    timings = interleave(sides, bench.sizes.rounds)
    theirs = peer.memory_bytes(folder / "peer") / count
    own = ours.payload_bytes(folder / "ours") / count
    shutil.rmtree(folder)
    yield Row(
        "bank", "bytes per sample", "B", own, theirs, own / theirs, 0.27, at_most=True, note="ratio: ours over peer"
    )
    start, whole = timings["start"], timings["ours"]
    own_sample = Timing(
        [max(late - early, 1e-9) / (count - 2) for early, late in zip(start.cpu, whole.cpu, strict=True)],
        [max(late - early, 1e-9) / (count - 2) for early, late in zip(start.wall, whole.wall, strict=True)],
        whole.others,
    )
    their_sample = timings["peer"].map(lambda seconds: seconds / count)
    yield compared(
        "bank", "building a sample", their_sample, own_sample, 3.0, "without reading the weights, on both sides"
    )


def search(bench: Bench) -> Iterator[Row]:
    """Top-20 of every item among all others."""
    sizes = bench.sizes
    keys = unit_vectors(sizes.search, sizes.key_width, 0)
    view = key_view(bench, keys)
    memory, k = torch.from_numpy(keys), min(20, sizes.search - 1)
    asked = memory[: sizes.search_block]
    found: list[torch.Tensor] = []

    def ask_ours() -> None:
        # A new bank every time: it remembers what it has found.
        bank = MemoryBank.build(view)
        parts = range(0, len(view), 1000)
        rows = [range(start, min(start + 1000, len(view))) for start in parts]
        found[:] = [bank.neighbours(view.batch(part), k, channel="image").index for part in rows]

    # Memory of the first calls: later ones get what these have given back.
    with PeakMemory() as own_memory:
        ask_ours()
    sides = {"peer": partial(peer.search_block, asked, memory, k), "ours": ask_ours}
    with PeakMemory() as their_memory:
        sides["peer"]()
    timings = interleave(sides, sizes.rounds, warm=0)
    exact = asked.double() @ memory.double().T
    exact.fill_diagonal_(-2.0)  # nobody is a neighbour of itself
    same = float((found[0][: len(asked)] == exact.topk(k, dim=1).indices).float().mean())
    blocks = sizes.search / sizes.search_block
    whole = timings["peer"].map(lambda seconds: seconds * blocks)
    yield compared(
        "search",
        f"top-{k}, {sizes.search:,} x {sizes.search:,}, {sizes.key_width}-d",
        whole,
        timings["ours"],
        1000.0,
        f"peer: {sizes.search_block} queries measured, times {blocks:g}; ours with building the index",
    )
    note = f"peer: {sizes.search_block} queries at a time, grows with queries x items x width; ours: index and results"
    yield Row("search", "further memory", "B", own_memory.bytes, their_memory.bytes, note=note)
    yield Row("search", "ranks equal to those in float64", "share", same, target=0.999)


def step(bench: Bench) -> Iterator[Row]:
    """An evaluation and a training step of REDEEM."""
    method = bench.method()
    batch = first_batch(bench, bench.sizes.step_batch)
    theirs = bench.loaded_by_peer(range(len(batch)), neighbours(method, batch))
    codes = missing_codes(batch.present)
    official = bench.method(preset="official", bank_splits="train")
    # Both sides beside a single product: the peer's as torch multiplies by default, ours as the harness sets it.
    products = {
        "peer": ("highest", product(torch.float32)),
        "bf16": ("medium", product(torch.bfloat16)),
        "fp32": ("medium", product(torch.float32)),
    }
    for training, target in ((False, 5.0), (True, 4.5)):
        name = "train step" if training else "evaluation"
        sides = {
            "peer": peer_step(bench.network, theirs, codes, training),
            "bf16": our_step(method, batch, training, torch.bfloat16),
            "fp32": our_step(method, batch, training, torch.float32),
            "official": our_step(official, batch, training, torch.bfloat16),
            **{f"{side} product": precise(precision, run) for side, (precision, (run, _)) in products.items()},
        }
        timings = interleave(sides, bench.sizes.rounds)
        what = f"REDEEM {name}, {len(batch)} samples"
        done = {side: operations(sides[side]) for side in products}
        counted = f"peer: {done['peer'] / 1e9:.0f} GFLOP, ours: {done['bf16'] / 1e9:.0f}"
        yield compared("step", f"{what}, bf16", timings["peer"], timings["bf16"], target, counted)
        yield compared("step", f"{what}, fp32", timings["peer"], timings["fp32"], None)
        note = "preset=official: padding attended to, as released"
        yield compared("step", f"{what}, bf16, official", timings["peer"], timings["official"], None, note)
        clock = on_the_clock(*timings.values())
        rates = {
            side: size / timings[f"{side} product"].median(clock) / 1e9 for side, (_, (_, size)) in products.items()
        }
        shares = {side: done[side] / timings[side].median(clock) / 1e9 / rates[side] for side in products}
        for side in ("bf16", "fp32"):
            yield Row(
                "step",
                f"{what}, {side}: share of the matmul rate",
                "share",
                shares[side],
                peer=shares["peer"],
                target=0.7 if side == "bf16" else None,
                clock=clock,
                note=f"a single product of that size: peer {rates['peer']:.0f} GFLOP/s, ours {rates[side]:.0f}",
            )


def epoch(bench: Bench) -> Iterator[Row]:
    """One epoch: every training batch, validation, and in the released code a pass over test."""
    train, valid, test = bench.sizes.epoch
    size = bench.sizes.step_batch
    views = {"train": bench.train.subset(range(train)), "valid": bench.view("valid", valid)}
    views["test"] = bench.view("test", test)
    method = bench.method()
    released = {}
    for name, view in views.items():
        starts = range(0, len(view), size)
        parts = [list(range(start, min(start + size, len(view)))) for start in starts]
        released[name] = [
            (view.rows[part].tolist(), neighbours(method, view.batch(part)), missing_codes(view.batch(part).present))
            for part in parts
        ]
    bench.memory(sorted({i for parts in released.values() for _, near, _ in parts for items in near for i in items}))

    def theirs() -> None:
        for name, parts in released.items():
            for rows, near, codes in parts:
                peer_step(bench.network, bench.loaded_by_peer(rows, near), codes, name == "train")()

    def accuracy(logits: Any, view: ObservedDataset) -> dict[str, float]:
        return {"accuracy": float((logits.argmax(1) == view.labels).mean())}

    def own() -> None:
        config = TrainerConfig(epochs=1, batch_size=size, eval_batch_size=size, precision="bf16")
        Trainer(config, device="cpu").fit(method, views["train"], views["valid"], accuracy, "accuracy")

    timings = interleave({"peer": theirs, "ours": own}, max(1, bench.sizes.rounds - 1), warm=0)
    note = f"{train} train, {valid} valid, {test} test samples; the test pass is the peer's alone"
    yield compared("epoch", "one epoch end to end, bf16", timings["peer"], timings["ours"], 5.0, note)


def growth(bench: Bench) -> Iterator[Row]:
    """Time per sample and per query as data sets grow."""
    sizes = bench.sizes
    folder = bench.folder / "growth"
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    small = 0.0
    for count in sizes.growth_samples:
        view = sparse_view(bench, folder, count)
        timing = Timing()
        width = min(sizes.load_batch, count)
        for _ in range(1 + sizes.rounds):
            rows = generator.choice(count, size=width, replace=False)
            # Read once before, so that pages come from memory at every size: no disk is measured, and no hole filled.
            view.batch(rows)
            timing.add(partial(view.batch, rows))
        per_sample = timing.median(clock=False) / width
        small = small or per_sample
        what = f"gathering a sample out of {count:,}"
        ratio = per_sample / small
        yield Row("growth", what, "s", per_sample, ratio=ratio, target=1.5, at_most=True, note="ratio to the first")
    shutil.rmtree(folder)
    first = 0.0
    for count in sizes.growth_items:
        with stored_keys(bench, count) as view:
            bank = MemoryBank.build(view)
            timing = queried(bench, bank, count)
        per_item = timing.median(clock=False) / QUERIES / count
        first = first or per_item
        what, note = f"a query among {count:,}, per item", "ratio to the first; 1 is linear"
        yield Row("growth", what, "s", per_item, ratio=per_item / first, target=1.5, at_most=True, note=note)


def approximate(bench: Bench) -> Iterator[Row]:
    """Search by inverted file beside exact search, in a memory with clusters."""
    count, built = bench.sizes.approximate, {}
    if not count:
        return
    with stored_keys(bench, count) as view:
        for backend in ("faiss", "faiss_ivf"):
            building = Timing()
            bank = MemoryBank.build(view, backend=backend)
            building.add(partial(bank.neighbours, key_queries(bench, 1).batch(range(1)), 20, channel="image"))
            built[backend] = building, queried(bench, bank, count), found_by(bench, bank)
            del bank
    exact, inverted = built["faiss"], built["faiss_ivf"]
    what = f"retrieval.backend=faiss_ivf among {count:,}, beside exact search"
    yield compared("growth", f"{what}: {QUERIES} queries", exact[1], inverted[1], None)
    yield compared("growth", f"{what}: building the index", exact[0], inverted[0], None)
    shared = [len(np.intersect1d(*pair)) / 20 for pair in zip(exact[2], inverted[2], strict=True)]
    yield Row(
        "growth", f"{what}: true neighbours found", "share", float(np.mean(shared)), note="keys in 1,000 clusters"
    )


def gpu(bench: Bench) -> Iterator[Row]:
    """Training on a GPU: throughput, share of its bf16 matmul rate, memory."""
    if not torch.cuda.is_available():
        return
    run, flop = product(torch.bfloat16, "cuda", (8192, 8192, 8192))
    method = bench.method().to("cuda")
    for training in (False, True):
        batch = first_batch(bench, min(64, len(bench.train))).to("cuda")
        work = our_step(method, batch, training, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        timings = interleave({"step": synchronised(work), "product": synchronised(run)}, 5 * bench.sizes.rounds, warm=3)
        seconds, bare = (float(np.median(timings[name].wall)) for name in ("step", "product"))
        name = f"{'train step' if training else 'evaluation'}, {len(batch)} samples, bf16"
        yield Row("gpu", f"{name}: throughput", "samples/s", len(batch) / seconds)
        share = operations(work) / seconds / (flop / bare)
        yield Row("gpu", f"{name}: share of the matmul rate", "share", share, note=f"{flop / bare / 1e12:.0f} TFLOP/s")
        yield Row("gpu", f"{name}: peak memory", "B", torch.cuda.max_memory_allocated())


STAGES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "load": load,
    "bank": bank,
    "search": search,
    "step": step,
    "epoch": epoch,
    "growth": growth,
    "approximate": approximate,
    "gpu": gpu,
}

# -- parts -----------------------------------------------------------------------------------------------------------


def first_batch(bench: Bench, size: int) -> Batch:
    batch = bench.train.batch(range(size))
    batch.full = None
    return batch


def precise(precision: str, work: Callable[[], Any]) -> Callable[[], None]:
    """Runs `work` with a float32 matmul precision: `highest` is torch's own default, `medium` the harness's."""

    def run() -> None:
        torch.set_float32_matmul_precision(precision)
        work()

    return run


def synchronised(work: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def peer_step(
    network: peer.Network, batch: dict[str, torch.Tensor], codes: torch.Tensor, training: bool
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([part for part in network.parameters() if part.requires_grad], lr=1e-4)

    def run() -> None:
        network.train(training)
        with torch.set_grad_enabled(training):
            logits = network(batch, codes)
        if training:
            optimizer.zero_grad()
            F.cross_entropy(logits, batch["label"]).backward()
            optimizer.step()

    return precise("highest", run)


def our_step(method: Method, batch: Batch, training: bool, dtype: torch.dtype) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(method.parameter_groups(5e-5), lr=1e-4, fused=True)

    def run() -> None:
        method.train(training)
        autocast = torch.autocast(batch.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
        with torch.set_grad_enabled(training), autocast:
            output = method(batch)
        if training:
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()

    return precise("medium", run)


def unit_vectors(count: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


QUERIES = 64


def clustered(count: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Unit vectors around 1,000 centres, which are the same for every seed."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((1000, width), dtype=np.float32)
    vectors = centres[generator.integers(0, 1000, count)] + generator.standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextmanager
def stored_keys(bench: Bench, count: int) -> Iterator[ObservedDataset]:
    """Samples that are nothing but their key, which lies in a memory-mapped file as in a feature store."""
    width, file = bench.sizes.key_width, bench.folder / f"keys-{count}.npy"
    keys = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, width))
    for number, start in enumerate(range(0, count, 50_000)):
        stop = min(start + 50_000, count)
        keys[start:stop] = clustered(stop - start, width, number)
    del keys
    try:
        yield key_view(bench, np.load(file, mmap_mode="r"))
    finally:
        file.unlink()


def key_queries(bench: Bench, count: int) -> ObservedDataset:
    """New samples from the same clusters."""
    return key_view(bench, clustered(count, bench.sizes.key_width, 10**6), "query")


def queried(bench: Bench, bank: MemoryBank, count: int) -> Timing:
    """Rounds of `QUERIES` queries, the index being there."""
    rounds, timing = bench.sizes.rounds, Timing()
    queries = key_queries(bench, QUERIES * (1 + rounds))
    k = min(20, count - 1)
    bank.neighbours(queries.batch(range(QUERIES)), k, channel="image")
    for start in range(QUERIES, len(queries), QUERIES):
        batch = queries.batch(range(start, start + QUERIES))
        timing.add(partial(bank.neighbours, batch, k, channel="image"))
    return timing


def found_by(bench: Bench, bank: MemoryBank) -> list[list[int]]:
    """Neighbours of the first queries."""
    batch = key_queries(bench, QUERIES).batch(range(QUERIES))
    found: list[list[int]] = bank.neighbours(batch, 20, channel="image").index.tolist()
    return found


def key_view(bench: Bench, keys: np.ndarray[Any, np.dtype[np.float32]], prefix: str = "item") -> ObservedDataset:
    """Samples that are nothing but their image key."""
    count = len(keys)
    features = {
        name: FeatureArray(
            np.zeros((count, 1, 1), dtype=np.float32),
            np.ones((count, 1), dtype=np.bool_),
            keys if name == "image" else np.zeros((count, 1), dtype=np.float32),
            np.arange(count, dtype=np.int64) + (0 if prefix == "item" else 2**40),
        )
        for name in bench.table.spec.modality_names
    }
    return observed(bench.table, features, [f"{prefix}{row}" for row in range(count)])


def sparse_view(bench: Bench, folder: Path, count: int) -> ObservedDataset:
    """A data set of `count` samples whose stored inputs are zeros in a memory-mapped file, which takes no disk."""
    features = {}
    for name, like in bench.features.items():
        shape = (count, *like.tokens.shape[1:])
        file = folder / f"{name}-{count}.npy"
        tokens = np.lib.format.open_memmap(file, mode="w+", dtype=like.tokens.dtype, shape=shape)
        del tokens
        features[name] = FeatureArray(
            np.load(file, mmap_mode="r"),
            np.ones((count, like.mask.shape[1]), dtype=np.bool_),
            np.zeros((count, like.pooled.shape[1]), dtype=np.float32),
            np.arange(count, dtype=np.int64),
        )
    return observed(bench.table, features, [str(row) for row in range(count)])


def observed(table: DataTable, features: dict[str, FeatureArray], ids: Sequence[str]) -> ObservedDataset:
    """Training samples of which nothing is missing."""
    count = len(ids)
    present = np.ones((count, 2), dtype=np.bool_)
    labels = np.zeros(count, dtype=np.int64)
    return ObservedDataset(table.spec, "train", ids, features, np.arange(count), present, present, labels)
