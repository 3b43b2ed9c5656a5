"""The comparison of `benchmarks/`: that the peer computes what it stands for, and that a run gives its table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from speed import data, measure, peer, report, stages  # noqa: E402
from speed.measure import Timing, interleave, operations  # noqa: E402


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> stages.Bench:
    return stages.Bench(stages.TINY, tmp_path_factory.mktemp("speed"), pixels=True)


def compare(*arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("compare", BENCHMARKS / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code: int = module.main([*arguments])
    return code


@torch.no_grad()
def test_the_peer_computes_what_the_official_preset_computes(
    bench: stages.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same neighbours, same logits: what is measured is the released forward pass."""
    # The library shuffles patches by drawing all of them without replacement; here both sides keep their order.
    monkeypatch.setattr(torch, "multinomial", lambda weights, count: torch.arange(int(count)))
    method: Any = bench.method(preset="official", bank_splits="train", retrieval="joint").eval()
    network = bench.network.eval()
    theirs = network.state_dict()
    renamed = {"text.experts": "generators.text.experts", "image.experts": "generators.image.experts"}
    renamed |= {
        f"{name}.{part}": f"generators.{name}.router.{part}" for name in ("text", "image") for part in ("query", "key")
    }
    renamed |= {"prompter": "prompters.shared", "table": "label_table", "head": "head.layers"}
    renamed["vilt"] = "backbone.vilt"
    state = {
        new + name.removeprefix(old): value
        for old, new in renamed.items()
        for name, value in theirs.items()
        if name == old or name.startswith(old + ".")
    }
    assert len(state) == len(theirs)
    assert not method.load_state_dict(state, strict=False).unexpected_keys

    batch = stages.first_batch(bench, 6)
    assert len(set(stages.missing_codes(batch.present).tolist())) == 3
    near = stages.neighbours(method, batch)
    logits = network(bench.loaded_by_peer(range(6), near), stages.missing_codes(batch.present))
    assert (logits - method(batch)).abs().max() < 1e-4 * logits.abs().max()


def test_the_peer_trains_what_the_released_code_trains(bench: stages.Bench) -> None:
    """Generators, prompter, label table, head and ViLT's pooler; its blocks are frozen but passed through."""
    method = bench.method()
    batch = stages.first_batch(bench, 4)
    loaded = bench.loaded_by_peer(range(4), stages.neighbours(method, batch))
    network = peer.Network(bench.embedder.vilt, bench.embedder, stages.Bench.K)
    trained = {name.split(".")[0] for name, part in network.named_parameters() if part.requires_grad}
    assert trained == {"vilt", "text", "image", "prompter", "table", "head"}
    before = {name: part.detach().clone() for name, part in network.named_parameters()}
    stages.peer_step(network, loaded, torch.tensor([0, 1, 2, 2]), training=True)()
    changed = {name for name, part in network.named_parameters() if not torch.equal(part, before[name])}
    assert {"vilt.pooler.dense.weight", "text.experts.0.0.weight", "prompter.key.weight", "table"} <= changed
    assert not any(name.startswith("vilt.encoder") for name in changed)


def test_search_by_broadcasting_is_exact() -> None:
    keys = torch.from_numpy(stages.unit_vectors(40, 8, 0)).double()
    scores, found = peer.search_block(keys[:4] * 3, keys, 5)
    expected = (keys[:4] @ keys.T).topk(5)
    assert torch.equal(found, expected.indices)
    torch.testing.assert_close(scores, expected.values)


def test_generated_data_have_the_shape_of_the_original(tmp_path: Path) -> None:
    from PIL import Image

    release = data.make_release(tmp_path, 8)
    assert all(Image.open(release.picture(row)).size == (500, 400) for row in range(8))
    assert all(5 <= len(text.split()) <= 40 for text in release.texts)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [["id", "img", "label", "text"]] * 8
    assert data.make_release(tmp_path, 8) == release
    table = data.make_table(release)
    assert table.values["image"][3].shape == (400, 500, 3)
    words = data.vocabulary(30522)
    assert len(set(words)) == len(words) == 30522


def test_sides_take_turns() -> None:
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, warm=1)
    assert "".join(calls) == "ababab"
    assert [len(timing.cpu) for timing in timings.values()] == [2, 2]


def test_the_clock_counts_where_the_machine_is_idle() -> None:
    def row(busy: float) -> stages.Row:
        slow, fast = Timing([4.0, 2.0, 9.0], [8.0], [0.0, 0.9, 0.0]), Timing([1.0], [1.0], [busy])
        return stages.compared("s", "w", slow, fast, target=5.0)

    idle, shared = row(0.01), row(0.3)
    assert (idle.clock, idle.ratio, idle.other_ratio, idle.met) == (True, 8.0, 4.0, True)
    assert (shared.clock, shared.ratio, shared.other_ratio, shared.met) == (False, 4.0, 8.0, False)
    half = Timing([4.0], [8.0], [0.0]).map(lambda seconds: seconds / 2)
    assert (half.cpu, half.wall, half.idle) == ([2.0], [4.0], True)


def test_what_others_compute_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two cores and one second: half a second was ours, half somebody else's, one idle."""
    busy, wall, own = iter([7.0, 8.0]), iter([100.0, 101.0]), iter([3.0, 3.5])
    monkeypatch.setattr(measure, "_busy", lambda: next(busy))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(measure.time, "process_time", lambda: next(own))
    monkeypatch.setattr(measure.psutil, "cpu_count", lambda: 2)
    timing = Timing()
    timing.add(lambda: None)
    assert (timing.cpu, timing.wall, timing.others) == ([0.5], [1.0], [0.25])
    assert not timing.idle


def test_a_target_is_met_from_its_side() -> None:
    assert stages.Row("s", "w", "B", 20.0, 100.0, 0.2, 0.27, at_most=True).met
    assert stages.Row("s", "w", "B", 20.0).met is None


def test_operations_count_forward_and_backward() -> None:
    layer, values = torch.nn.Linear(4, 8, bias=False), torch.ones(2, 4)
    assert operations(lambda: layer(values)) == 2 * 2 * 4 * 8
    assert operations(lambda: layer(values).sum().backward()) == 2 * (2 * 2 * 4 * 8)


def test_table_and_page(tmp_path: Path) -> None:
    rows = [
        stages.Row("step", "eval", "s", 0.5, 3.0, 6.0, 5.0, True, 5.5, note="bf16").to_dict(),
        stages.Row("bank", "bytes", "B", 223_000.0, 838_912.0, 0.266, 0.27, at_most=True).to_dict(),
        stages.Row("step", "rate", "share", 0.61, target=0.7).to_dict(),
    ]
    table = report.markdown({"cores": 2, "gpu": None}, [{**row, "rounds": 3} for row in rows])
    assert table.startswith("Measured with cores: 2.\n")
    assert "| eval (bf16) | 3 s | 500 ms | **6** | 6 | 5.5 | ≥ 5 | met |" in table
    assert "| rate |  | 0.61 |  |  |  | ≥ 0.7 | missed |" in table
    assert "| bytes | 839 kB | 223 kB | **0.266** |  |  | ≤ 0.27 | met |" in table
    assert table.index("### Step") < table.index("rate") < table.index("### Bank")

    page = tmp_path / "speed.md"
    page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
    report.update(page, "new")
    assert page.read_text() == f"before\n{report.START}\n\nnew\n{report.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="needs the lines"):
        report.update(page, "new")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (4.2e-7, "s", "420 ns"),
        (5.6e9, "B", "5.6 GB"),
        (123.0, "B", "123 B"),
        (1.5, "samples/s", "1.5 samples/s"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert report.quantity(value, unit) == text


def test_every_stage_runs_and_is_written_down(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "speed.md").write_text(f"{report.START}\n{report.END}\n")
    threads = torch.get_num_threads()
    try:
        assert compare("--tiny", "--folder", str(tmp_path / "work"), "--docs", str(docs)) == 0
        saved = json.loads((docs / "speed.json").read_text())
        again = ["--tiny", "--only", "search", "--folder", str(tmp_path / "work"), "--docs", str(docs)]
        assert compare(*again) == 0
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
    origins = {row["origin"] for row in saved["rows"]}
    assert origins == {"load", "bank", "search", "step", "epoch", "growth", "approximate"} | ({"gpu"} & origins)
    assert all(np.isfinite(row["ours"]) and row["ours"] >= 0 for row in saved["rows"])
    stored = next(row for row in saved["rows"] if row["what"] == "bytes per sample")
    # Two bytes a number: 4 patches of width 32 with their mask, 24 token ids with theirs; files have a header.
    assert 2 * (4 * 32 + 24) + 4 + 24 < stored["ours"] < stored["peer"] == 4 * 32 * (24 + 5) + 2 * 128
    exact = next(row for row in saved["rows"] if row["what"].startswith("ranks equal"))
    assert exact["ours"] == 1.0
    found = next(row for row in saved["rows"] if "true neighbours" in row["what"])
    assert 0.5 < found["ours"] <= 1.0
    # Stages that were not measured again are kept.
    assert {row["origin"] for row in json.loads((docs / "speed.json").read_text())["rows"]} == origins
    assert "### Step" in (docs / "speed.md").read_text()


def test_an_unknown_stage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        compare("--tiny", "--only", "teleport", "--folder", str(tmp_path), "--docs", str(tmp_path))
    assert caught.value.code == 2
    assert "no stage teleport; there are load, bank" in capsys.readouterr().err
