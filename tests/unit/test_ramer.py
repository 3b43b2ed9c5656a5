"""RAMER: stages, the database of hidden states, what is retrieved, scales, and the released computation restated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.errors import UsageError
from harness.method import MethodContext, class_prior_logits
from harness.methods.ramer.config import RamerConfig
from harness.methods.ramer.model import MAIN, PRETRAIN, Ramer, StartTokenEncoder
from harness.retrieval import Keys
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.testing.methods import contract_for, predict, train, training, whole
from harness.types import Batch, DatasetSpec, FeatureSpec, ModalitySpec, TaskSpec

SMALL: Mapping[str, Any] = {"width": 8}
MER2024 = DatasetSpec(
    "sizes",
    "1",
    (ModalitySpec("audio", "audio"), ModalitySpec("video", "video"), ModalitySpec("text", "text")),
    TaskSpec("multiclass", 6, tuple("abcdef"), "accuracy"),
    "",
    "",
    "",
)
WIDTHS = {"audio": 1024, "video": 768, "text": 5120}


def build(data: TinyData, *, steps: int = 2, **options: Any) -> Ramer:
    """A method in its main stage, after a few steps in every stage, in eval mode."""
    method = contract_for("ramer")().build(data, config=RamerConfig(**{**SMALL, **options}))
    assert isinstance(method, Ramer)
    with torch.enable_grad():
        train(method, data.train, steps=steps)
    assert method.stage == MAIN
    return method.eval()


def column_of(method: Ramer, name: str) -> int:
    return method.modalities.index(name)


def without(method: Ramer, data: TinyData, name: str) -> Keys:
    """The test samples' hidden states without one modality."""
    pattern = [other != name for other in method.modalities]
    return method.encode(whole(one_pattern(data.test, data.features, pattern)))


# -- stages --------------------------------------------------------------------------------------------------------


def test_a_stage_per_encoder_then_the_classifier() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data, pretrain_epochs=7)
    assert [(stage.name, stage.epochs) for stage in method.stages()] == [
        ("pretrain:text", 7),
        ("pretrain:image", 7),
        ("pretrain:audio", 7),
        ("main", 0),
    ]
    method.stage = "pretrain:image"
    parts = {name.rpartition(".")[0].split(".0")[0] for name, _ in method.trained()}
    assert all(part.startswith(("encoders.image", "unimodal_heads.image")) for part in parts)
    method.stage = MAIN
    assert {name.partition(".")[0] for name, _ in method.trained()} == {"classifier"}


def test_encoders_do_not_touch_each_other_and_freeze_in_the_main_stage() -> None:
    data = tiny_observed("multiclass", 3)
    method = contract_for("ramer")().build(data, config=RamerConfig(**SMALL))
    assert isinstance(method, Ramer)
    learned: dict[str, set[str]] = {}
    for _ in training(method, data.train, steps=2):
        learned[method.stage] = {
            ".".join(name.split(".")[: 1 if name.startswith("classifier") else 2])
            for name, value in method.named_parameters()
            if value.grad is not None and value.grad.any()
        }
    assert learned == {
        **{f"pretrain:{name}": {f"encoders.{name}", f"unimodal_heads.{name}"} for name in method.modalities},
        MAIN: {"classifier"},
    }
    method = build(data)
    frozen = {name: value.clone() for name, value in method.encoders.state_dict().items()}
    method.train()
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    method(whole(data.train)).loss.backward()
    optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in method.encoders.state_dict().items())


def test_frozen_encoders_have_no_dropout_in_training() -> None:
    data = tiny_observed()
    method = build(data, encoder_dropout=0.9).train()
    assert method.classifier.training
    assert not method.encoders.training
    batch = whole(data.train)
    assert torch.equal(method.represent(batch), method.represent(batch))
    method.stage = PRETRAIN + "text"
    assert method.train().encoders.training


def test_pretraining_answers_by_the_prior_where_its_modality_is_missing() -> None:
    data = tiny_observed()
    method = build(data)
    method.stage = PRETRAIN + "text"
    logits, batch = predict(method, data.test), whole(data.test)
    lacking = ~batch.present[:, 0]
    prior = class_prior_logits(method.task, torch.from_numpy(data.train.labels))
    assert lacking.any()
    torch.testing.assert_close(logits[lacking], prior.expand(int(lacking.sum()), -1))
    assert not torch.allclose(logits[~lacking], prior.expand(int((~lacking).sum()), -1))
    nothing = whole(one_pattern(data.train, data.features, (False, True)))
    assert method.training_step(nothing).loss == 0


# -- the database --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("supervision", ["observed", "complete"])
def test_the_database_holds_what_training_may_see(supervision: str) -> None:
    data = tiny_observed("multiclass", 3, supervision=supervision)
    method = build(data)
    present = torch.from_numpy(data.train.present)
    expected = torch.ones_like(present) if supervision == "complete" else present
    assert torch.equal(method.stored, expected)
    assert not method.hidden[~method.stored].any()
    view = data.train.complete_view() if supervision == "complete" else data.train
    for column, name in enumerate(method.modalities):
        part = view.batch(range(len(view))).inputs[name]
        with torch.no_grad():
            own = method.encoders[name](method.scalers[name](part.pooled))
        torch.testing.assert_close(method.hidden[part.rows, column], own)


def test_neighbours_have_the_modality_and_are_never_the_query() -> None:
    data = tiny_observed("multiclass", 3)
    for aggregation in ("max_of_kth", "mean"):
        method = build(data, aggregation=aggregation)
        assert set(method.banks()) == set(method.modalities)
        present = dict(zip(data.train.ids, data.train.present, strict=True))
        for name, bank in method.banks().items():
            assert all(present[sample][column_of(method, name)] for sample in bank.ids)
            assert np.array_equal(bank.present, np.array([present[sample] for sample in bank.ids]))
            batch = whole(data.train)
            near = bank.neighbours(batch, len(bank))
            assert near.found.any()
            for sample, row in zip(batch.ids, near.index.tolist(), strict=True):
                assert sample not in {bank.ids[item] for item in row if item >= 0}


def test_identical_content_is_no_neighbour() -> None:
    data = tiny_observed("multiclass", 2, missing=0.0)
    for array in data.features.values():
        array.digest[1] = array.digest[0]
    method = build(data)
    bank = method.banks()["image"]
    near = bank.neighbours(data.train.batch([0]), len(bank))
    found = {bank.ids[item] for item in near.index[0].tolist() if item >= 0}
    assert found == set(data.train.ids[2:])


def test_stored_hidden_states_survive_a_checkpoint() -> None:
    data = tiny_observed()
    method = build(data)
    batch = whole(data.test)
    expected = method.represent(batch)
    other = build(data, steps=1)
    assert not torch.allclose(other.represent(batch), expected)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.represent(batch), expected)


# -- filling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill_scale", ["unit", "unit_filled", "mean_norm", "none"])
def test_known_hidden_states_stay_and_filled_ones_have_their_scale(fill_scale: str) -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data, fill_scale=fill_scale)
    batch = whole(data.test)
    hidden, own = method.represent(batch), method.encode(batch).keys
    known = F.normalize(own, dim=2) if fill_scale == "unit" else own
    torch.testing.assert_close(hidden[batch.present], known[batch.present])
    assert (~batch.present).any()
    for column in range(3):
        filled = hidden[~batch.present[:, column], column]
        norms = filled.norm(dim=1)
        if fill_scale in ("unit", "unit_filled"):
            torch.testing.assert_close(norms, torch.ones_like(norms))
        if fill_scale == "mean_norm":
            mean = method.hidden[method.stored[:, column], column].norm(dim=1).mean()
            torch.testing.assert_close(norms, mean.expand_as(norms))
        if fill_scale == "none":
            assert norms.std() > 1e-4


def test_filling_is_the_mean_of_the_nearest() -> None:
    data = tiny_observed("multiclass", 2)
    for weights in ("uniform", "softmax"):
        method = build(data, fill_scale="none", weights=weights, k=3)
        queries = without(method, data, "image")
        both = method.stored.all(1)
        cosines = F.normalize(queries.keys[:, 0], dim=1) @ F.normalize(method.hidden[both, 0], dim=1).T
        best = cosines.topk(3, dim=1)
        share = (best.values / 0.1).softmax(1) if weights == "softmax" else torch.full((24, 3), 1 / 3)
        expected = (method.hidden[both, 1][best.indices] * share.unsqueeze(2)).sum(1)
        torch.testing.assert_close(method.database.fill(1, queries), expected)


def test_the_sharpness_of_softmax_weights() -> None:
    data = tiny_observed("multiclass", 2)
    sharp, even, nearest = (
        build(data, fill_scale="none", **options)
        for options in (
            {"weights": "softmax", "temperature": 1e-4},
            {"weights": "softmax", "temperature": 1e4},
            {"k": 1},
        )
    )
    queries = without(sharp, data, "image")
    torch.testing.assert_close(sharp.database.fill(1, queries), nearest.database.fill(1, queries), atol=1e-3, rtol=1e-3)
    uniform = build(data, fill_scale="none").database.fill(1, queries)
    torch.testing.assert_close(even.database.fill(1, queries), uniform, atol=1e-4, rtol=1e-4)


def test_all_neighbours_give_everybody_the_same_filling() -> None:
    data = tiny_observed("multiclass", 2, missing=0.0)
    method = build(data, k=len(data.train) - 1, fill_scale="none")
    stored = method.hidden[:, 0]
    # A test query leaves out its farthest sample, a training query itself: nearly, and exactly, everything.
    queries = without(method, data, "text")
    found = method.database.fill(0, queries)
    assert (found - stored.mean(0)).abs().max() < 0.1 * stored.norm(dim=1).mean()
    own = method.encode(whole(one_pattern(data.train, data.features, (False, True))))
    others = (stored.sum(0) - stored) / (len(stored) - 1)
    torch.testing.assert_close(method.database.fill(0, own), others)
    everything = build(data, k=len(data.train), fill_scale="none")
    torch.testing.assert_close(
        everything.database.fill(0, queries), everything.hidden[:, 0].mean(0).expand(len(found), -1)
    )


@pytest.mark.parametrize("aggregation", ["max_of_kth", "mean"])
def test_the_scale_of_a_query_does_not_matter(aggregation: str) -> None:
    """The released query is not normalised: there the modality with larger values decides."""
    data = tiny_observed("multiclass", 3, test=200, missing=0.0)
    method, raw = (build(data, aggregation=aggregation, query=query) for query in ("unit", "raw"))
    changed = {}
    for name, one in (("unit", method), ("raw", raw)):
        queries = without(one, data, "audio")
        scale = torch.tensor([3.0, 1.0, 1.0]).view(1, 3, 1)
        # Other digests, so that nothing is remembered.
        scaled = replace(queries, keys=queries.keys * scale, digest=queries.digest + 1)
        bank = one.banks()["audio"]
        changed[name] = bool((bank.search(queries, 5).index != bank.search(scaled, 5).index).any())
    assert changed == {"unit": False, "raw": True}


def test_the_control_fills_in_the_mean() -> None:
    data = tiny_observed("multiclass", 3)
    method = build(data, fill="train_mean", fill_scale="none")
    assert not method.banks()
    batch = whole(data.test)
    hidden = method.represent(batch)
    for column in range(3):
        filled = hidden[~batch.present[:, column], column]
        mean = method.hidden[method.stored[:, column], column].mean(0)
        torch.testing.assert_close(filled, mean.expand_as(filled))


@pytest.mark.parametrize("fill", ["retrieved", "train_mean"])
def test_what_was_never_observed_is_filled_with_zeros(fill: str) -> None:
    data = tiny_observed("multiclass", 2)
    text_only = one_pattern(data.train, data.features, (True, False))
    method = contract_for("ramer")().build(data, config=RamerConfig(width=8, fill=fill))
    assert isinstance(method, Ramer)
    train(method, text_only, steps=1)
    batch = whole(one_pattern(data.test, data.features, (True, False)))
    assert not method.represent(batch)[:, 1].any()


def test_fewer_candidates_than_k() -> None:
    data = tiny_observed("multiclass", 2)
    few = int(data.train.present.all(axis=1).sum())
    for name in ("faiss", "torch"):
        method = build(data, k=few + 10, fill_scale="none")
        method.context.retrieval.backend = name
        method._forget()
        both = method.stored.all(1)
        filled = method.database.fill(1, without(method, data, "image"))
        torch.testing.assert_close(filled, method.hidden[both, 1].mean(0).expand_as(filled))


# -- training ------------------------------------------------------------------------------------------------------


def shown_in_training(method: Ramer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Presence of what a training step reads."""
    seen: list[Tensor] = []
    represent = method.represent

    def spy(shown: Batch) -> Tensor:
        seen.append(shown.present)
        return represent(shown)

    monkeypatch.setattr(method, "represent", spy)
    torch.manual_seed(0)
    method(batch)
    return seen[0]


@pytest.mark.parametrize("simulation", ["any", "proper", "none"])
def test_simulation(simulation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for supervision in ("observed", "complete"):
        data = tiny_observed("multiclass", 3, supervision=supervision, train=90)
        method = build(data, simulation=simulation)
        batch = whole(data.train)
        shown = shown_in_training(method.train(), batch, monkeypatch)
        known = batch.present if batch.full is None else batch.full.present
        assert not (shown & ~known).any()
        complete = known.all(1)
        if simulation == "none":
            assert torch.equal(shown, batch.present)
        else:
            assert not torch.equal(shown, known)
            assert shown.any(1).all()
            assert bool(shown[complete].all(1).any()) == (simulation == "any")


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_every_parameter_of_the_published_encoder_learns(preset: str) -> None:
    data = tiny_observed("multiclass", 3)
    config = replace(RamerConfig.from_preset(preset), width=8)
    method = contract_for("ramer")().build(data, config=config)
    learned: set[str] = set()
    for _ in training(method, data.train, steps=3):
        learned |= {name for name, value in method.named_parameters() if value.grad is not None and value.grad.any()}
    assert learned == {name for name, _ in method.named_parameters()}
    starts = {name for name in learned if name.endswith((".start", ".positions"))}
    assert len(starts) == (6 if preset == "paper" else 0)


def test_features_are_standardised() -> None:
    data = tiny_observed()
    method, raw = build(data), build(data, standardize=False)
    part = whole(data.train).inputs["text"]
    scaled = method.scalers["text"](part.pooled)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert torch.equal(raw.scalers["text"](part.pooled), part.pooled)


def test_heads_dropouts_and_widths() -> None:
    data = tiny_observed()
    method = build(data, encoder="transformer", heads=4, encoder_dropout=0.1, dropout=0.2)
    heads = {}
    for name, encoder in method.encoders.items():
        assert isinstance(encoder, StartTokenEncoder)
        heads[name] = encoder.transformer.layers[0].self_attn.num_heads
    assert heads == {"text": 4, "image": 2}, "pooled widths 8 and 6"
    rates = {
        part: {layer.p for layer in getattr(method, part).modules() if isinstance(layer, nn.Dropout)}
        for part in ("encoders", "unimodal_heads", "classifier")
    }
    assert rates == {"encoders": {0.1}, "unimodal_heads": {0.1}, "classifier": {0.2}}
    assert [layer.out_features for layer in method.classifier.layers if isinstance(layer, nn.Linear)] == [8, 4]


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "cnn"},
        {"start_token": "x"},
        {"simulation": "x"},
        {"fill": "zero"},
        {"exclude": "no"},
        {"query": "x"},
        {"aggregation": "x"},
        {"weights": "x"},
        {"fill_scale": "x"},
        {"k": 0},
        {"heads": 0},
        {"width": 1},
        {"pretrain_epochs": 0},
        {"dropout": 1.5},
        {"temperature": 0.0},
    ],
)
def test_bad_options(options: Any) -> None:
    with pytest.raises(UsageError, match=f"method.{next(iter(options))}"):
        RamerConfig(**options).validate()


# -- sizes and the released computation ----------------------------------------------------------------------------


def test_parameter_counts() -> None:
    def refuse() -> Any:
        raise AssertionError("feature methods build no backbone")

    features = {name: FeatureSpec(1, (width,), width) for name, width in WIDTHS.items()}
    with torch.device("meta"):
        method = Ramer(RamerConfig.from_preset("official"), MethodContext(MER2024, features, refuse))

    def layer(width: int) -> int:
        attention = 4 * width * width + 4 * width
        feedforward = 2 * width * 2048 + 2048 + width
        return attention + feedforward + 4 * width

    sizes = {name: sum(value.numel() for value in module.parameters()) for name, module in method.encoders.items()}
    assert sizes == {name: 2 * layer(width) + 256 * width + 256 for name, width in WIDTHS.items()}
    assert sum(value.numel() for _, value in method.trained()) == 768 * 256 + 256 + 256 * 128 + 128 + 128 * 6 + 6
    assert sum(sizes.values()) == 281_352_448


def plain_layer(state: Mapping[str, Tensor], prefix: str, x: Tensor, heads: int) -> Tensor:
    """Self-attention and feed-forward branch, each normalised after its residual sum."""

    def linear(name: str, values: Tensor) -> Tensor:
        return values @ state[f"{prefix}{name}weight"].T + state[f"{prefix}{name}bias"]

    def norm(name: str, values: Tensor) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        scaled = centred / (values.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{prefix}{name}.weight"] + state[f"{prefix}{name}.bias"]

    q, k, v = linear("self_attn.in_proj_", x).chunk(3, -1)
    outputs = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        outputs.append((a @ b.transpose(1, 2) / a.shape[-1] ** 0.5).softmax(-1) @ c)
    x = norm("norm1", x + linear("self_attn.out_proj.", torch.cat(outputs, -1)))
    return norm("norm2", x + linear("linear2.", linear("linear1.", x).relu()))


def plain_hidden(encoder: nn.Module, values: Tensor, heads: int) -> Tensor:
    state = encoder.state_dict()
    x = torch.stack([torch.zeros_like(values), values], 1)
    for number in range(2):
        x = plain_layer(state, f"transformer.layers.{number}.", x, heads)
    return (x @ state["projection.weight"].T + state["projection.bias"])[:, 0]


@torch.no_grad()
def test_official_computation() -> None:
    """Top six, first hit dropped, the list whose sixth score is larger, unit norm for what was filled in only."""
    data = tiny_observed("multiclass", 3, train=40)
    config = replace(RamerConfig.from_preset("official"), width=8)
    method = contract_for("ramer")().build(data, config=config)
    assert isinstance(method, Ramer)
    full = one_pattern(data.train, data.features, (True, True, True))
    with torch.enable_grad():
        train(method, full, steps=2)
    method.eval()
    heads = {"text": 8, "image": 2, "audio": 1}
    stored = {
        name: plain_hidden(method.encoders[name], whole(full).inputs[name].pooled, heads[name])
        for name in method.modalities
    }
    batch = whole(data.test)
    own = torch.zeros(len(batch), 3, 8)
    for column, name in enumerate(method.modalities):
        part = batch.inputs[name]
        own[part.rows, column] = plain_hidden(method.encoders[name], part.pooled, heads[name])
    for row in range(len(batch)):
        lists = []
        for column, name in enumerate(method.modalities):
            if batch.present[row, column]:
                keys = stored[name] / stored[name].norm(dim=1, keepdim=True)
                lists.append((keys @ own[row, column]).topk(6))
        chosen = max(lists, key=lambda found: float(found.values[-1])).indices[1:]
        for column, name in enumerate(method.modalities):
            if not batch.present[row, column]:
                total = stored[name][chosen].sum(0)
                own[row, column] = total / total.norm()
    state = method.classifier.state_dict()
    features = own.flatten(1)
    for name in ("layers.0", "layers.3"):
        features = (features @ state[f"{name}.weight"].T + state[f"{name}.bias"]).clamp(min=0)
    logits = features @ state["output.weight"].T + state["output.bias"]
    torch.testing.assert_close(method.predict_step(batch), logits, atol=1e-5, rtol=1e-5)
