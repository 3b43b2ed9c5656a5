"""MAP: prompts per pattern, where they go, what stands for missing inputs, and the released baseline restated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UsageError
from harness.method import MethodContext
from harness.methods.common.backbones.config import FusionConfig
from harness.methods.common.backbones.fusion import FusionBackbone
from harness.methods.map.config import MapConfig
from harness.methods.map.model import Map
from harness.testing.backbones import ViltShapes, parameters_at_vilt_size, vilt_context
from harness.testing.data import TinyData, one_pattern, tiny_observed, with_presence
from harness.types import Batch, ModalityBatch, iterate_patterns

OFFICIAL: dict[str, Any] = dict(MapConfig.presets["official"])


def build(data: TinyData, blocks: int = 3, **options: Any) -> Map:
    torch.manual_seed(0)
    config = MapConfig(**options)
    config.validate()
    backbone = FusionConfig(hidden_size=16, num_blocks=blocks, num_heads=2, dropout=0.0)
    context = MethodContext(data.spec, data.feature_specs, lambda: FusionBackbone(backbone, data.feature_specs))
    method = Map(config, context).eval()
    method.prepare(data.train)
    with torch.no_grad():
        method.prompts.add_(0.5 * torch.randn(method.prompts.shape))
    return method


def everything(view: Any) -> Batch:
    batch: Batch = view.batch(np.arange(len(view)))
    return batch


@torch.no_grad()
def logits(method: Map, batch: Batch) -> Tensor:
    result: Tensor = method.eval()(batch)
    return result


@pytest.fixture(scope="module")
def data() -> TinyData:
    return tiny_observed()


# -- facts of the release


@pytest.mark.parametrize(("classes", "count"), [(2, 1_999_106), (23, 2_031_383), (101, 2_151_269)])
def test_counts_at_vilt_size(classes: int, count: int) -> None:
    for preset in MapConfig.presets:
        assert parameters_at_vilt_size(MapConfig.from_preset(preset), classes) == count


def shapes_method(**options: Any) -> tuple[Map, ViltShapes]:
    method = Map(MapConfig(**options), vilt_context(2))
    assert isinstance(method.backbone, ViltShapes)
    return method, method.backbone


def vilt_batch() -> Batch:
    """A sample with a text alone and one with an image alone."""

    def part(row: int, length: int, *shape: int) -> ModalityBatch:
        mask = torch.ones(1, length, dtype=torch.bool)
        return ModalityBatch(
            torch.tensor([row]), torch.zeros(1, length, *shape), mask, torch.zeros(1, 1), torch.ones(1).long()
        )

    present = torch.tensor([[True, False], [False, True]])
    return Batch(["a", "b"], present, {"text": part(0, 128), "image": part(1, 1, 384, 384, 3)}, torch.tensor([0, 1]))


def test_input_level_prompts_grow_the_sequence_from_273_to_369() -> None:
    method, backbone = shapes_method()
    method.predict_step(vilt_batch())
    lengths = [289, 305, 321, 337, 353, 369, 369, 369, 369, 369, 369, 369]
    assert backbone.seen == [(torch.Size([2, length, 768]), torch.Size([2, length])) for length in lengths]
    assert backbone.pooled == 96


def test_attention_level_prompts_are_eight_keys_and_eight_values(monkeypatch: pytest.MonkeyPatch) -> None:
    method, backbone = shapes_method(prompt_type="attention")
    prefixes = {}

    def watch(index: int, hidden: Tensor, mask: Tensor | None, prefix: tuple[Tensor, Tensor]) -> Tensor:
        prefixes[index] = prefix
        return hidden

    monkeypatch.setattr(backbone, "prefixed_block", watch)
    method.predict_step(vilt_batch())
    assert list(prefixes) == list(range(6))
    assert backbone.seen == [(torch.Size([2, 273, 768]), torch.Size([2, 273]))] * 6
    assert backbone.pooled == 0
    for index, (keys, values) in prefixes.items():
        # Sample a lacks the image (row 1), sample b the text (row 2).
        assert torch.equal(keys, method.prompts[[1, 2], index, :8])
        assert torch.equal(values, method.prompts[[1, 2], index, 8:])


def ones_of(prompts: Tensor) -> list[list[int]]:
    assert set(torch.unique(prompts.detach()).tolist()) == {0.0, 1.0}
    rows = prompts.detach().amin((1, 3))
    assert torch.equal(rows, prompts.detach().amax((1, 3)))
    return [row.nonzero().flatten().tolist() for row in rows]


def test_prompts_start_with_one_token_of_ones() -> None:
    """Rows 0, 1, 2 for complete, image missing, text missing; attention-level also eight further."""
    assert ones_of(shapes_method()[0].prompts) == [[0], [1], [2]]
    assert ones_of(shapes_method(prompt_type="attention")[0].prompts) == [[0, 8], [1, 9], [2, 10]]
    assert shapes_method()[0].prompts.shape == (3, 6, 16, 768)


def test_a_shallow_backbone_has_prompts_in_all_of_its_blocks(data: TinyData) -> None:
    assert build(data, blocks=2).prompts.shape == (3, 2, 16, 16)
    assert build(data, blocks=3, prompt_blocks=1).prompts.shape == (3, 1, 16, 16)


# -- the whole, restated per sample with what is masked left out


def plain_block(block: Any, tokens: Tensor, prefix: Tensor | None) -> Tensor:
    """A pre-norm block on visible tokens `[N, d]`; `prefix` `[T, d]` is keys, then values."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], block.attention_norm.weight, block.attention_norm.bias)
    packed = normed @ block.query_key_value.weight.T + block.query_key_value.bias
    query, key, value = packed.chunk(3, -1)
    if prefix is not None:
        half = len(prefix) // 2
        key, value = torch.cat([prefix[:half], key]), torch.cat([prefix[half:], value])
    size = tokens.shape[-1] // block.heads
    heads = []
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        weights = (query[:, part] @ key[:, part].T / math.sqrt(size)).softmax(-1)
        heads.append(weights @ value[:, part])
    tokens = tokens + block.output(torch.cat(heads, -1))
    return tokens + block.mlp(block.mlp_norm(tokens))  # type: ignore[no-any-return]


def plain_logits(method: Map, batch: Batch, data: TinyData) -> Tensor:
    backbone: Any = method.backbone
    attention, masked = method.config.prompt_type == "attention", method.config.dummies == "masked"
    number = {(True, True): 0, (True, False): 1, (False, True): 2}
    results = []
    for row in range(len(batch)):
        tokens = [backbone.cls[0]]
        for column, name in enumerate(("text", "image")):
            part = batch.inputs[name]
            spec = data.feature_specs[name]
            raw, mask = torch.zeros(spec.length, spec.dim), torch.ones(spec.length, dtype=torch.bool)
            if batch.present[row, column]:
                place = part.rows.tolist().index(row)
                raw, mask = part.tokens[place], part.mask[place]
            elif masked and name == "image":
                continue
            hidden = backbone.projection[name](F.layer_norm(raw, raw.shape[-1:])) + backbone.position[name]
            tokens.append(backbone.embedding_norm[name](hidden)[mask])
        hidden = torch.cat(tokens)
        first, second = batch.present[row].tolist()
        prompts = method.prompts[method.prompt_of[number[first, second]]]
        for block, prompt in zip(backbone.blocks, prompts, strict=True):
            hidden = plain_block(
                block, hidden if attention else torch.cat([prompt, hidden]), prompt if attention else None
            )
        pooled = torch.tanh(backbone.pooler(backbone.final_norm(hidden)[0 if attention else prompts.shape[0] * 16]))
        layers = method.head.layers
        results.append(layers[3](F.gelu(layers[1](layers[0](pooled)))))
    return torch.stack(results)


@pytest.mark.parametrize(
    "options",
    [OFFICIAL, {}, {"prompt_type": "attention"}, {"dummies": "masked"}],
    ids=["official", "clean", "attention", "masked"],
)
def test_equals_a_plain_restatement(options: dict[str, Any], data: TinyData) -> None:
    method = build(data, **options)
    batch = everything(data.test)
    with torch.no_grad():
        expected = plain_logits(method, batch, data)
    torch.testing.assert_close(logits(method, batch), expected, atol=1e-5, rtol=1e-5)


# -- patterns


def test_every_pattern_has_its_own_prompts() -> None:
    data = tiny_observed("multilabel", 4)
    method = build(data)
    patterns = torch.tensor(list(iterate_patterns(data.spec.modality_names)))
    found = method._prompts(patterns)
    assert len(method.prompts) == len(patterns) == 15
    assert len({tuple(prompt.flatten().tolist()) for prompt in found}) == 15
    assert torch.equal(found[-1], method.prompts[0])


def test_observed_patterns_only_and_the_nearest_for_others(data: TinyData) -> None:
    """Released single-type runs store two sets; what training never shows uses the nearest of them."""
    present = np.array([[True, True], [True, False]] * (len(data.train) // 2))
    text_always = TinyData(data.spec, data.features, {**data.views})
    text_always.views["train"] = with_presence(data.train, data.features, present)
    method = build(text_always, **OFFICIAL)
    assert len(method.prompts) == 2
    asked = torch.tensor([[True, True], [True, False], [False, True]])
    assert torch.equal(method._prompts(asked), method.prompts[[0, 1, 0]])
    assert len(build(data, **OFFICIAL).prompts) == 3


def test_nearest_observed_pattern_of_three_modalities() -> None:
    data = tiny_observed("multiclass", 3)
    present = np.array([[True, True, False], [False, False, True]] * (len(data.train) // 2))
    data.views["train"] = with_presence(data.train, data.features, present)
    method = build(data, patterns="observed")
    near = {(1, 1, 1): 0, (1, 1, 0): 0, (1, 0, 0): 0, (0, 1, 0): 0, (0, 0, 1): 1, (1, 0, 1): 1, (0, 1, 1): 1}
    asked = torch.tensor(list(near)).bool()
    assert torch.equal(method._prompts(asked), method.prompts[list(near.values())])


def test_only_the_pattern_in_the_batch_learns(data: TinyData) -> None:
    method = build(data)
    method.train()(everything(one_pattern(data.train, data.features, (True, False)))).loss.backward()
    assert method.prompts.grad is not None
    assert [bool(gradient.abs().sum() > 0) for gradient in method.prompts.grad] == [False, True, False]


def test_simulated_patterns_reach_every_prompt(data: TinyData) -> None:
    complete = everything(one_pattern(data.train, data.features, (True, True)))
    learned = []
    for simulate in (False, True):
        method = build(data, simulate_missing=simulate)
        torch.manual_seed(0)
        method.train()(complete).loss.backward()
        assert method.prompts.grad is not None
        learned.append([bool(gradient.abs().sum() > 0) for gradient in method.prompts.grad])
    assert learned == [[True, False, False], [True, True, True]]


# -- options


@pytest.mark.parametrize(
    "options",
    [{"prompt_type": "attention"}, {"prompt_length": 4}, {"prompt_blocks": 1}, {"dummies": "masked"}],
    ids=lambda options: next(iter(options)),
)
def test_options_change_predictions(options: dict[str, Any], data: TinyData) -> None:
    batch = everything(data.test)
    first = build(data)
    other = build(data, **options)
    other.load_state_dict({k: v for k, v in first.state_dict().items() if k != "prompts"}, strict=False)
    shapes = [slice(size) for size in other.prompts.shape]
    with torch.no_grad():
        other.prompts.copy_(first.prompts[shapes[0], shapes[1], shapes[2]])
    assert not torch.allclose(logits(first, batch), logits(other, batch), atol=1e-4)


@pytest.mark.parametrize(("decay", "decayed"), [("weights", False), ("weights_and_prompts", True), ("all", True)])
def test_weight_decay(decay: str, decayed: bool, data: TinyData) -> None:
    method = build(data, decay=decay)
    groups = method.parameter_groups(0.1)
    home = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert home[id(method.prompts)] == (0.1 if decayed else 0.0)
    bias = method.head.layers[0].bias
    assert home[id(bias)] == (0.1 if decay == "all" else 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt_type": "deep"}, "method.prompt_type='deep' is not one of input, attention"),
        ({"patterns": "some"}, "method.patterns='some' is not one of"),
        ({"prompt_length": 0}, "method.prompt_length=0 must be >= 1"),
        ({"prompt_type": "attention", "prompt_length": 3}, "must be even"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MapConfig(**options).validate()


def test_a_backbone_without_prefixes_is_refused() -> None:
    method, _ = shapes_method(prompt_type="attention")
    with pytest.raises(UsageError, match="no attention-level prompts; use input-level ones"):
        method.predict_step(vilt_batch())
