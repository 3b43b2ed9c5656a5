"""MSP: composition of prompts, orthogonality, and equality with MAP that has the composed prompts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.errors import UsageError
from harness.method import MethodContext
from harness.methods.common.backbones.config import FusionConfig
from harness.methods.common.backbones.fusion import FusionBackbone
from harness.methods.map.config import MapConfig
from harness.methods.map.model import Map
from harness.methods.msp.config import MspConfig
from harness.methods.msp.model import Msp, orthogonality
from harness.testing.backbones import parameters_at_vilt_size, vilt_context
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.types import Batch, iterate_patterns


def context_of(data: TinyData) -> MethodContext:
    backbone = FusionConfig(hidden_size=16, num_blocks=3, num_heads=2, dropout=0.0)
    return MethodContext(data.spec, data.feature_specs, lambda: FusionBackbone(backbone, data.feature_specs))


def build(data: TinyData, **options: Any) -> Msp:
    torch.manual_seed(0)
    config = MspConfig(**options)
    config.validate()
    method = Msp(config, context_of(data)).eval()
    method.prepare(data.train)
    with torch.no_grad():
        method.prompts.add_(0.5 * torch.randn(method.prompts.shape))
    return method


def everything(view: Any) -> Batch:
    batch: Batch = view.batch(np.arange(len(view)))
    return batch


@pytest.fixture(scope="module")
def data() -> TinyData:
    return tiny_observed()


@pytest.mark.parametrize(("classes", "count"), [(2, 1_925_378), (23, 1_957_655), (101, 2_077_541)])
def test_counts_at_vilt_size(classes: int, count: int) -> None:
    for preset in MspConfig.presets:
        assert parameters_at_vilt_size(MspConfig.from_preset(preset), classes) == count


@pytest.mark.parametrize(
    ("prompt_type", "rows"), [("input", [[2], [1]]), ("attention", [[2, 10], [1, 9]])], ids=["input", "attention"]
)
def test_prompts_start_with_ones_at_two_for_text_and_one_for_image(prompt_type: str, rows: list[list[int]]) -> None:
    method = Msp(MspConfig(prompt_type=prompt_type), vilt_context(2))
    expected = torch.zeros(2, 6, 16, 768)
    for modality, ones in enumerate(rows):
        expected[modality, :, ones] = 1.0
    assert torch.equal(method.prompts, expected)


@pytest.mark.parametrize("prompt_type", ["input", "attention"])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_orthogonality_is_zero_at_the_start(prompt_type: str, modalities: int) -> None:
    data = tiny_observed("multiclass", modalities)
    method = Msp(MspConfig(prompt_type=prompt_type), context_of(data))
    output = method.train()(everything(data.train))
    assert output.terms["orthogonality"] == 0.0
    assert output.loss == output.terms["task"]


def test_orthogonality_is_the_mean_absolute_cosine_of_pairs() -> None:
    first, second, third = torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]), torch.tensor([3.0, 3.0])
    assert orthogonality(torch.stack([first, second])) == pytest.approx(1.0)
    assert orthogonality(torch.stack([first, third])) == pytest.approx(1 / math.sqrt(2))
    assert orthogonality(torch.stack([first, second, third])) == pytest.approx((1 + 2 / math.sqrt(2)) / 3)
    assert orthogonality(torch.zeros(2, 2)) == 0.0
    prompts = torch.randn(2, 6, 4, 8)
    text, image = prompts[0].flatten(), prompts[1].flatten()
    assert torch.isclose(orthogonality(prompts), (text @ image).abs() / (text.norm() * image.norm()))


def test_orthogonality_has_its_weight_and_pulls_prompts_apart(data: TinyData) -> None:
    batch = everything(data.train)
    method = build(data, orthogonal_weight=0.25)
    method.prompts.data[1] += method.prompts.data[0]
    output = method.train()(batch)
    assert torch.isclose(output.loss, output.terms["task"] + 0.25 * output.terms["orthogonality"])
    before = output.terms["orthogonality"]
    (gradient,) = torch.autograd.grad(before, method.prompts)
    assert orthogonality(method.prompts - gradient / gradient.norm()) < before
    without = MspConfig(orthogonal_weight=0.0)
    assert without.loss_terms() == ("task",)
    assert set(Msp(without, context_of(data)).train()(batch).terms) == {"task"}


def test_clean_sums_the_prompts_of_what_is_present() -> None:
    data = tiny_observed("multilabel", 4)
    method = build(data)
    patterns = list(iterate_patterns(data.spec.modality_names))
    found = method._prompts(torch.tensor(patterns))
    for prompt, pattern in zip(found, patterns, strict=True):
        torch.testing.assert_close(prompt, method.prompts[torch.tensor(pattern)].sum(0))


def test_official_gives_the_prompt_of_what_is_missing(data: TinyData) -> None:
    """Text missing: text prompt; image missing: image prompt; complete: their sum."""
    method = build(data, **MspConfig.presets["official"])
    text, image = method.prompts
    found = method._prompts(torch.tensor([[False, True], [True, False], [True, True]]))
    torch.testing.assert_close(found, torch.stack([text, image, text + image]))


@pytest.mark.parametrize("preset", MspConfig.presets)
def test_equals_map_with_the_composed_prompts(preset: str, data: TinyData) -> None:
    method = build(data, **MspConfig.presets[preset])
    options = {k: v for k, v in MspConfig.presets[preset].items() if k != "compose"}
    twin = Map(MapConfig(**options), context_of(data)).eval()
    twin.prepare(data.train)
    twin.load_state_dict({k: v for k, v in method.state_dict().items() if k != "prompts"}, strict=False)
    text, image = method.prompts.detach()
    lacks_image, lacks_text = (image, text) if preset == "official" else (text, image)
    twin.prompts.data.copy_(torch.stack([text + image, lacks_image, lacks_text]))
    batch = everything(data.test)
    with torch.no_grad():
        torch.testing.assert_close(method(batch), twin(batch), atol=1e-6, rtol=1e-6)


def test_gradients_go_to_the_prompts_that_are_used(data: TinyData) -> None:
    def learned(compose: str) -> list[bool]:
        method = build(data, compose=compose, orthogonal_weight=0.0)
        method.train()(everything(one_pattern(data.train, data.features, (True, False)))).loss.backward()
        gradient: Tensor | None = method.prompts.grad
        assert gradient is not None
        return [bool(part.abs().sum() > 0) for part in gradient]

    assert learned("present") == [True, False]
    assert learned("missing") == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compose": "all"}, "method.compose='all' is not one of present, missing"),
        ({"orthogonal_weight": -1.0}, "method.orthogonal_weight=-1.0 must be >= 0"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MspConfig(**options).validate()
