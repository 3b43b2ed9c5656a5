"""REDEEM: every option of the decision table and every ablation changes what it says, and the parts obey formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from harness.errors import SupervisionError, UsageError
from harness.method import MethodContext
from harness.methods.common.attention import CrossModalAttention
from harness.methods.common.backbones.config import FusionConfig
from harness.methods.common.backbones.fusion import FusionBackbone
from harness.methods.common.pooling import adaptive_pool, masked_mean
from harness.methods.redeem.config import RedeemConfig
from harness.methods.redeem.model import Redeem
from harness.methods.redeem.modules import ExpertGenerator, SoftRouter
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.types import Batch


def build(data: TinyData, config: RedeemConfig | None = None, seed: int = 0) -> Redeem:
    torch.manual_seed(seed)
    config = config or RedeemConfig()
    backbone = FusionConfig(hidden_size=16, num_blocks=3, num_heads=2, dropout=0.0)
    context = MethodContext(
        data.spec,
        data.feature_specs,
        lambda: FusionBackbone(backbone, data.feature_specs),
        supervision=data.train.supervision,
    )
    config.validate()
    method = Redeem(config, context)
    if config.uses_valid():
        method.open_valid(data.valid)
    method.prepare(data.train)
    return method


def everything(view: Any) -> Batch:
    batch: Batch = view.batch(np.arange(len(view)))
    return batch


def logits(method: Redeem, batch: Batch) -> torch.Tensor:
    method.eval()
    with torch.no_grad():
        result: torch.Tensor = method(batch)
    return result


@pytest.fixture(scope="module")
def data() -> TinyData:
    return tiny_observed()


@pytest.fixture(scope="module")
def complete_supervision() -> TinyData:
    return tiny_observed(supervision="complete")


# -- parts


def test_router_is_the_scaled_softmax_of_equation_2_and_3() -> None:
    torch.manual_seed(0)
    router = SoftRouter(8, "scaled")
    query, keys = torch.randn(3, 8), torch.randn(3, 5, 8)
    w1, w2 = router.query.weight.T, router.key.weight.T
    scores = torch.einsum("bd,bkd->bk", query @ w1, keys @ w2) / math.sqrt(8)
    assert router.query.bias is None
    assert torch.allclose(router(query, keys, torch.ones(3, 5, dtype=torch.bool)), scores.softmax(-1), atol=1e-6)


def test_router_gives_no_weight_to_neighbours_that_were_not_found() -> None:
    found = torch.tensor([[True, False, True]])
    for kind in ("scaled", "unscaled_bias", "mean"):
        weights = SoftRouter(4, kind)(torch.randn(1, 4), torch.randn(1, 3, 4), found)
        assert weights[0, 1] == 0
        assert weights.sum().item() == pytest.approx(1.0)
    assert torch.equal(weights, torch.tensor([[0.5, 0.0, 0.5]]))


def test_experts_are_summed_with_the_router_weights() -> None:
    torch.manual_seed(0)
    generator = ExpertGenerator(6, 3, "scaled", mask_padding=True)
    observed, copies = torch.randn(2, 6), torch.randn(2, 3, 4, 6)
    full, found = torch.ones(2, 3, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    weights = generator.router(observed, copies.mean(2), found)
    expected = sum(weights[:, k, None, None] * generator.experts[k](copies[:, k]) for k in range(3))
    rebuilt, known = generator(observed, copies, full, found)
    assert torch.allclose(rebuilt, expected, atol=1e-6)
    assert known.all()


def test_padding_of_retrieved_copies_is_left_out_and_weights_renormalised() -> None:
    torch.manual_seed(0)
    generator = ExpertGenerator(6, 2, "mean", mask_padding=True)
    copies = torch.randn(1, 2, 3, 6)
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    found = torch.ones(1, 2, dtype=torch.bool)
    rebuilt, known = generator(torch.randn(1, 6), copies, mask, found)
    assert known.tolist() == [[True, True, False]]
    assert torch.allclose(rebuilt[0, 1], generator.experts[0](copies[0, 0, 1]), atol=1e-6)
    assert rebuilt[0, 2].abs().sum() == 0


def test_permuting_neighbours_matters_unless_experts_are_tied() -> None:
    torch.manual_seed(0)
    generator = ExpertGenerator(6, 3, "scaled", mask_padding=True)
    observed, copies = torch.randn(2, 6), torch.randn(2, 3, 4, 6)
    mask, found = torch.ones(2, 3, 4, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    order = [2, 0, 1]

    def rebuild(items: torch.Tensor) -> torch.Tensor:
        return generator(observed, items, mask, found)[0]  # type: ignore[no-any-return]

    assert not torch.allclose(rebuild(copies), rebuild(copies[:, order]), atol=1e-4)
    for expert in generator.experts:
        expert.load_state_dict(generator.experts[0].state_dict())
    assert torch.allclose(rebuild(copies), rebuild(copies[:, order]), atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_adaptive_pool_equals_torch_on_each_sequence_without_its_padding(length: int) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(4, 7, 5)
    counts = [7, 5, 3, 4]
    mask = torch.arange(7)[None] < torch.tensor(counts)[:, None]
    pooled = adaptive_pool(tokens, mask, length)
    for row, count in enumerate(counts):
        expected = F.adaptive_avg_pool1d(tokens[row : row + 1, :count].transpose(1, 2), length).transpose(1, 2)
        assert torch.allclose(pooled[row], expected[0], atol=1e-6)


def test_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).abs().sum() == 0


def test_prompt_attention_is_scaled_dot_product_over_real_tokens() -> None:
    torch.manual_seed(0)
    layer = CrossModalAttention(8)
    query, tokens = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    mask = torch.tensor([[True, True, False, True], [True, True, True, True]])
    expected = F.scaled_dot_product_attention(
        layer.query(query), layer.key(tokens), layer.value(tokens), attn_mask=mask[:, None, :]
    )
    assert torch.allclose(layer(query, tokens, mask), expected, atol=1e-5)


# -- the whole


def test_reconstruction_loss_is_alive_and_reaches_router_and_experts(data: TinyData) -> None:
    method = build(data)
    output = method(everything(data.train))
    assert output.terms["reconstruction"] > 0
    output.terms["reconstruction"].backward()
    for name, parameter in method.generators.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    moved = [name for name, value in method.named_parameters() if value.grad is not None and value.grad.any()]
    assert all(name.startswith("generators.") for name in moved), "the embedding is given, as in the paper"


def test_what_is_remembered_carries_no_gradient(data: TinyData) -> None:
    method = build(data)
    [retrieved] = method._retrieve(everything(data.train))
    assert not any(tokens.requires_grad for tokens, _ in retrieved.items.values())


def test_reconstruction_uses_complete_samples_only(data: TinyData) -> None:
    """Under observed supervision nothing is compared with a value that training does not have."""
    method = build(data)
    batch = everything(data.train)
    incomplete = batch.select((~batch.present.all(1)).nonzero(as_tuple=True)[0])
    assert method(incomplete).terms["reconstruction"] == 0


def test_degenerate_reconstruction_is_declared_as_none(complete_supervision: TinyData) -> None:
    config = RedeemConfig.from_preset("official")
    assert config.loss_terms() == ("task",)
    assert set(build(complete_supervision, config)(everything(complete_supervision.train)).terms) == {"task"}


def test_prompts_lengthen_the_sequence_and_the_pooler_follows_cls(
    data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def watch(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.setdefault(name, []).append(args)
            return original(self, *args, **kwargs)

        return call

    monkeypatch.setattr(FusionBackbone, "block", watch("block", FusionBackbone.block))
    monkeypatch.setattr(FusionBackbone, "pool", watch("pool", FusionBackbone.pool))
    logits(build(data), everything(data.test))
    lengths = [hidden.shape[1] for _, hidden, _ in seen["block"]]
    own = 1 + data.features["text"].spec.length + data.features["image"].spec.length
    assert lengths == [own, own + 4, own + 4]
    assert seen["pool"][0][1] == 4


def test_official_order_and_pooled_token(complete_supervision: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label prompt first, one prompt token per modality, inserted before block 0; pooler on position 0, no mask."""
    seen: dict[str, Any] = {}
    original = FusionBackbone.block
    pool = FusionBackbone.pool

    def block(self: FusionBackbone, index: int, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen.setdefault("first", (hidden, mask))
        return original(self, index, hidden, mask)

    def read(self: FusionBackbone, hidden: torch.Tensor, index: int = 0) -> torch.Tensor:
        seen["index"] = index
        return pool(self, hidden, index)

    monkeypatch.setattr(FusionBackbone, "block", block)
    monkeypatch.setattr(FusionBackbone, "pool", read)
    data = complete_supervision
    method = build(data, RedeemConfig.from_preset("official"))
    batch = everything(data.test)
    logits(method, batch)
    hidden, mask = seen["first"]
    assert mask is None
    assert seen["index"] == 0
    index = method.bank.neighbours(batch, 5, channel=None).index
    complete = batch.present.all(1)
    expected = method.label_table[method.bank.labels(index)].mean(1)
    assert torch.allclose(hidden[~complete, 0], expected[~complete], atol=1e-6)
    assert hidden.shape[1] == 1 + 2 + 1 + sum(spec.length for spec in data.feature_specs.values())


def test_complete_official_queries_search_each_channel_by_itself(complete_supervision: TinyData) -> None:
    data = complete_supervision
    method = build(data, RedeemConfig.from_preset("official"))
    whole = everything(one_pattern(data.test, data.features, (True, True)))
    index, _ = method._search(whole)
    assert not torch.equal(index["text"], index["image"])
    for name in ("text", "image"):
        assert torch.equal(index[name], method.bank.neighbours(whole, 5, channel=name).index)


def test_multilabel_label_prompt_sums_a_neighbours_rows() -> None:
    data = tiny_observed("multilabel", supervision="complete")
    method = build(data, RedeemConfig.from_preset("official"))
    batch = everything(one_pattern(data.test, data.features, (True, False)))
    (retrieved,) = method._retrieve(batch)
    expected = (retrieved.labels @ method.label_table).mean(1)
    assert torch.allclose(method._label_prompt(retrieved), expected, atol=1e-5)


OPTIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "random neighbours": ({"neighbours": "random"}, False),
    "mean router": ({"router": "mean"}, False),
    "unscaled router": ({"router": "unscaled_bias"}, False),
    "padding instead of generator": ({"generator": "padding"}, False),
    "static prompt": ({"prompt": "static"}, False),
    "intra-modal prompt": ({"prompt": "intra_modal"}, False),
    "no prompt": ({"prompt": "none"}, False),
    "mean query": ({"prompt_attention": "mean_query"}, False),
    "unpaired channels": ({"retrieval": "per_channel"}, False),
    "retrieved padding": ({"retrieved_padding": "included"}, False),
    "no attention mask": ({"attention_mask": "none"}, False),
    "first token": ({"pool_token": "first"}, False),
    "label prompt": ({"label_prompt": True}, False),
    "linear head": ({"head": "linear"}, False),
    "label table": ({"label_prompt": True, "head": "label_table"}, False),
    "prompt at the input": ({"prompt_layer": 0}, False),
    "one prompt token": ({"prompt_length": 1}, False),
    "three neighbours": ({"k": 3}, False),
    "one generator": ({"targets": ["text"]}, False),
    "valid in the bank": ({"bank_splits": "train_valid"}, False),
    "full bank": ({"bank_missing": "full"}, True),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_predictions_and_still_trains(
    name: str, data: TinyData, complete_supervision: TinyData
) -> None:
    options, needs_complete = OPTIONS[name]
    source = complete_supervision if needs_complete else data
    config = RedeemConfig(**options)
    assert config.needs_complete_supervision() == needs_complete
    method = build(source, config)
    assert not torch.equal(logits(method, everything(source.test)), logits(build(source), everything(source.test)))
    method.train()
    output = method(everything(source.train))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for part, parameter in method.named_parameters():
        assert parameter.grad is not None, part
        assert torch.isfinite(parameter.grad).all(), part


def test_flagged_loss_compares_with_the_true_values(complete_supervision: TinyData) -> None:
    data = complete_supervision
    config = RedeemConfig(rec_loss="flagged")
    output = build(data, config)(everything(data.train))
    assert output.terms["reconstruction"] > 0
    hidden_only = everything(data.train)
    hidden_only.full = None
    assert build(data, config)(hidden_only).terms["reconstruction"] == 0


def test_row_number_exclusion_is_an_option(complete_supervision: TinyData) -> None:
    config = RedeemConfig(bank_splits="train_valid", bank_missing="full", exclude_self="row_number")
    method = build(complete_supervision, config)
    valid = everything(one_pattern(complete_supervision.valid, complete_supervision.features, (True, True)))
    index = method.bank.neighbours(valid, 1).index[:, 0].tolist()
    inside = [(name, method.bank.ids[item]) for name, item in zip(valid.ids, index, strict=True)]
    complete_ids = set(method.bank.ids)
    assert all(found == name for name, found in inside if name in complete_ids)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_presets_that_open_hidden_values_refuse_observed_supervision(preset: str, data: TinyData) -> None:
    config = RedeemConfig.from_preset(preset)
    assert config.needs_complete_supervision()
    with pytest.raises(SupervisionError):
        build(data, config)


def test_decay_everything_is_one_group(data: TinyData) -> None:
    assert len(build(data, RedeemConfig(decay_all=True)).parameter_groups(0.1)) == 1
    spared = build(data, RedeemConfig(label_prompt=True)).parameter_groups(0.1)[1]
    assert spared["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "soft"}, "method.router='soft' is not one of"),
        ({"k": 0}, "method.k=0 must be >= 1"),
        ({"head": "label_table"}, "needs method.label_prompt=true"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RedeemConfig(**options).validate()


def test_prompt_layer_beyond_the_backbone_is_refused(data: TinyData) -> None:
    with pytest.raises(UsageError, match="prompt_layer=3 needs more than 3"):
        build(data, RedeemConfig(prompt_layer=3))
