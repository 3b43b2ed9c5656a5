"""RAGPT: its parts obey their formulas, released code is restated, every option changes what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import SupervisionError, UsageError
from harness.method import MethodContext
from harness.methods.common.backbones.config import FusionConfig
from harness.methods.common.backbones.fusion import FusionBackbone
from harness.methods.ragpt.config import RagptConfig
from harness.methods.ragpt.model import Ragpt
from harness.methods.ragpt.modules import ContextPrompter, FilterGenerator
from harness.testing.backbones import parameters_at_vilt_size
from harness.testing.data import TinyData, one_pattern, tiny_observed
from harness.types import Batch

#: What was public when the paper appeared, as card.md has it.
JANUARY: dict[str, Any] = {
    **RagptConfig.presets["official"],
    "cap": "jan2025",
    "recovered_sign": "bitwise",
    "attention_mask": "none",
    "prompt_length": 1,
    "prompt_layer": 0,
    "k": 3,
}


def build(data: TinyData, **options: Any) -> Ragpt:
    torch.manual_seed(0)
    config = RagptConfig(**options)
    config.validate()
    backbone = FusionConfig(hidden_size=16, num_blocks=3, num_heads=2, dropout=0.0)
    context = MethodContext(
        data.spec,
        data.feature_specs,
        lambda: FusionBackbone(backbone, data.feature_specs),
        supervision=data.train.supervision,
    )
    method = Ragpt(config, context)
    if config.uses_valid():
        method.open_valid(data.valid)
    method.prepare(data.train)
    return method


def everything(view: Any) -> Batch:
    batch: Batch = view.batch(np.arange(len(view)))
    return batch


@torch.no_grad()
def logits(method: Ragpt, batch: Batch) -> Tensor:
    result: Tensor = method.eval()(batch)
    return result


@pytest.fixture(scope="module")
def data() -> TinyData:
    return tiny_observed()


@pytest.fixture(scope="module")
def complete_supervision() -> TinyData:
    return tiny_observed(supervision="complete")


# -- facts of the release


@pytest.mark.parametrize(
    ("classes", "text", "both", "clean"),
    [
        (2, 6_696_960, 7_511_808, 5_739_264),
        (23, 6_713_088, 7_527_936, 5_755_392),
        (101, 6_772_992, 7_587_840, 5_815_296),
    ],
    ids=["hateful_memes", "mmimdb", "food101"],
)
def test_counts_at_vilt_size(classes: int, text: int, both: int, clean: int) -> None:
    single = RagptConfig.from_preset("official")
    single.targets = ["text"]
    assert parameters_at_vilt_size(single, classes) == text
    assert parameters_at_vilt_size(RagptConfig.from_preset("official"), classes) == both
    assert parameters_at_vilt_size(RagptConfig(), classes) == clean


def test_generators_and_prompter_at_vilt_size() -> None:
    parts = (FilterGenerator(128, 768, 0.2, True), FilterGenerator(145, 768, 0.2, True), ContextPrompter(768, 6, False))
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [788_736, 814_848, 1_771_776]


# -- parts


def naive_filter(mean: Tensor, weights: Tensor) -> Tensor:
    """Real part of the inverse discrete Fourier transform of filter times transform, by the definition."""
    length = len(mean)
    angle = 2 * math.pi * torch.outer(torch.arange(length), torch.arange(length)).double() / length
    forward = torch.complex(angle.cos(), -angle.sin())
    spectrum = (forward @ mean.double().to(forward.dtype)) * torch.view_as_complex(weights.double())
    return (forward.conj() @ spectrum / length).real


@pytest.mark.parametrize("length", [1, 2, 7])
def test_filter_is_a_product_in_the_frequency_domain(length: int) -> None:
    torch.manual_seed(0)
    generator = FilterGenerator(length, 6, 0.2, mask_padding=True).eval()
    copies = torch.randn(2, 3, length, 6)
    mask, found = torch.ones(2, 3, length, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    recovered, known = generator(copies, mask, found)
    for row in range(2):
        mean = copies[row].mean(0)
        filtered = naive_filter(mean, generator.filter.detach()).float()
        expected = generator.linear(generator.norm(mean + filtered))
        torch.testing.assert_close(recovered[row], expected, atol=1e-5, rtol=1e-5)
    assert known.all()


def test_filter_starts_as_complex_noise_of_unit_variance() -> None:
    torch.manual_seed(0)
    start = FilterGenerator(128, 64, 0.2, True).filter
    assert start.shape == (128, 64, 2)
    assert start.var(dim=(0, 1)).tolist() == pytest.approx([0.5, 0.5], abs=0.03)


def test_dropout_falls_on_the_filtered_signal_only() -> None:
    torch.manual_seed(0)
    generator = FilterGenerator(4, 8, 0.9, True).train()
    torch.nn.init.zeros_(generator.filter)
    copies, mask = torch.randn(1, 2, 4, 8), torch.ones(1, 2, 4, dtype=torch.bool)
    recovered, _ = generator(copies, mask, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(recovered[0], generator.linear(generator.norm(copies[0].mean(0))))


def test_order_of_neighbours_does_not_matter_and_lost_ones_do_not_count() -> None:
    torch.manual_seed(0)
    generator = FilterGenerator(4, 6, 0.2, True).eval()
    copies, mask = torch.randn(2, 3, 4, 6), torch.ones(2, 3, 4, dtype=torch.bool)
    found = torch.tensor([[True, True, True], [True, False, True]])
    first, _ = generator(copies, mask, found)
    order = [2, 0, 1]
    torch.testing.assert_close(generator(copies[:, order], mask, found[:, order])[0], first)
    fewer, _ = generator(copies[1:, [0, 2]], mask[1:, :2], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(first[1:], fewer)


def test_padding_of_retrieved_copies_is_left_out_or_included() -> None:
    torch.manual_seed(0)
    copies = torch.randn(1, 2, 3, 6)
    mask = torch.tensor([[[True, True, False], [True, False, False]]])
    found = torch.ones(1, 2, dtype=torch.bool)
    for masked, rows in ((True, [True, True, False]), (False, [True, True, True])):
        generator = FilterGenerator(3, 6, 0.2, masked).eval()
        torch.nn.init.zeros_(generator.filter)
        recovered, known = generator(copies, mask, found)
        assert known[0].tolist() == rows
        mean = copies[0].mean(0)
        if masked:
            mean[1], mean[2] = copies[0, 0, 1], 0
            assert (recovered[0, 2] == 0).all()
        torch.testing.assert_close(recovered[0, :2], generator.linear(generator.norm(mean))[:2])


def attend(prompter: ContextPrompter, query: Tensor, tokens: Tensor) -> Tensor:
    scores = prompter.query(query) @ prompter.key(tokens).T / math.sqrt(query.shape[-1])
    return scores.softmax(-1) @ prompter.value(tokens)  # type: ignore[no-any-return]


def pool(tokens: Tensor, length: int) -> Tensor:
    return F.adaptive_avg_pool1d(tokens.T[None], length)[0].T


def test_prompter_attends_to_the_tokens_of_all_neighbours_at_once() -> None:
    torch.manual_seed(0)
    prompter = ContextPrompter(8, 2, per_neighbour=False)
    own, copies = torch.randn(2, 5, 8), torch.randn(2, 3, 5, 8)
    own_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    mask = torch.rand(2, 3, 5) < 0.7
    mask[..., 0] = True
    found = torch.tensor([[True, True, True], [True, False, False]])
    prompts = prompter.prompt(own, own_mask, copies, mask, found)
    for row in range(2):
        keys = copies[row][mask[row] & found[row][:, None]]
        expected = pool(attend(prompter, own[row], keys)[own_mask[row]], 2)
        torch.testing.assert_close(prompts[row], expected, atol=1e-5, rtol=1e-5)
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    assert (prompter.prompt(own, own_mask, copies, mask, nobody) == 0).all()


def test_prompter_of_january_2025_has_one_token_per_modality() -> None:
    torch.manual_seed(0)
    prompter = ContextPrompter(8, 3, per_neighbour=True)
    own, copies = torch.randn(2, 5, 8), torch.randn(2, 4, 5, 8)
    full, mask = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 4, 5, dtype=torch.bool)
    found = torch.tensor([[True] * 4, [True, True, False, False]])
    prompts = prompter.prompt(own, full, copies, mask, found)
    assert prompts.shape == (2, 1, 8)
    for row in range(2):
        each = [pool(attend(prompter, own[row], copy), 3) for copy in copies[row][found[row]]]
        torch.testing.assert_close(prompts[row, 0], torch.stack(each).mean((0, 1)), atol=1e-5, rtol=1e-5)


# -- released code, restated sample by sample


@torch.no_grad()
def plain_official(method: Ragpt, batch: Batch) -> Tensor:
    """Logits by the description of the released code; neighbours come from the bank, embeddings from the backbone."""
    config, backbone, names = method.config, method.backbone, ("text", "image")
    shared: Any = method.prompters["shared"]
    january = config.cap == "jan2025"
    results = []
    for row in range(len(batch)):
        sample = batch.select(torch.tensor([row]))
        present = dict(zip(names, batch.present[row].tolist(), strict=True))
        complete = all(present.values())
        sequence = {}
        prompts = []
        for name in names:
            near = method.bank.neighbours(sample, 19, channel=name if complete else None).index[0]
            tokens, mask = method.bank.payload(near[: config.k])[name]
            copies, _ = backbone.embed(name, tokens, mask)
            generator: Any = method.generators[name]
            mean = copies.mean(0)
            spectrum = torch.fft.fft(mean, dim=0) * torch.view_as_complex(generator.filter)
            recovered = generator.linear(generator.norm(mean + torch.fft.ifft(spectrum, dim=0).real))
            if present[name]:
                part = sample.inputs[name]
                embedded, real = backbone.embed(name, part.tokens, part.mask)
                own, shown = embedded[0], real[0]
                own = own - 2 * recovered if config.recovered_sign == "bitwise" else own
            else:
                shown = torch.ones(len(recovered), dtype=torch.bool)
                own = -recovered if config.recovered_sign == "bitwise" else recovered
            if january:
                each = [pool(attend(shared, own, copy), config.prompt_length) for copy in copies]
                prompts.append(torch.stack(each).mean((0, 1))[None])
            else:
                prompts.append(pool(attend(shared, own, copies.flatten(0, 1)), config.prompt_length))
            sequence[name] = own if config.attention_mask == "none" else own[shown]
        giver = method.bank.neighbours(sample, 19, channel="image" if complete else None).index
        labels = method.bank.labels(giver)[0]
        rows = method.label_table[labels] if labels.ndim == 1 else labels @ method.label_table
        label = rows.mean(0)
        hidden = torch.cat([backbone.cls[0], sequence["text"], sequence["image"]])[None]  # type: ignore[index]
        for index in range(backbone.num_blocks):
            if index == config.prompt_layer:
                hidden = torch.cat([label[None], *prompts, hidden[0]])[None]
            hidden = backbone.block(index, hidden, None)
        features = torch.cat([backbone.pool(backbone.norm(hidden))[0], label])
        layers: Any = method.head.layers
        features = layers[3](F.gelu(layers[1](layers[0](features))))
        results.append(method.label_table @ features)
    return torch.stack(results)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("options", [RagptConfig.presets["official"], JANUARY], ids=["head", "january"])
def test_official_equals_a_plain_restatement(options: dict[str, Any], task: Any) -> None:
    data = tiny_observed(task, supervision="complete")
    method = build(data, **options)
    batch = everything(data.test)
    found = logits(method, batch)
    torch.testing.assert_close(found, plain_official(method, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("targets", "changed"), [([], {"text", "image"}), (["text"], {"text"})])
def test_january_changes_what_is_present_in_targets_only(
    targets: list[str], changed: set[str], complete_supervision: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code has one generator in single-type runs; `method.targets=[text]` is that."""
    method = build(complete_supervision, **JANUARY, targets=targets)
    batch = everything(one_pattern(complete_supervision.test, complete_supervision.features, (True, True)))
    assemble, seen = method.backbone.assemble, {}
    monkeypatch.setattr(method.backbone, "assemble", lambda embedded: assemble(seen.setdefault("all", dict(embedded))))
    logits(method, batch)
    own = method._embed(batch)
    assert {name for name in own if not torch.equal(own[name][0], seen["all"][name][0])} == changed


# -- the whole


def test_generators_learn_from_what_is_missing_only(data: TinyData) -> None:
    for pattern, learns in (((True, True), set()), ((True, False), {"image"}), ((False, True), {"text"})):
        method = build(data).train()
        method(everything(one_pattern(data.train, data.features, pattern))).loss.backward()
        got = {
            name
            for name, generator in method.generators.items()
            if any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in generator.parameters())
        }
        assert got == learns
        for part in (*method.prompters.parameters(), method.label_table):
            assert part.grad is not None
            assert part.grad.abs().sum() > 0


def test_a_missing_modality_is_what_the_generator_made(data: TinyData) -> None:
    method = build(data).eval()
    batch = everything(data.test)
    (retrieved,) = method._retrieve(batch)
    embedded = method._embed(batch)
    tokens, mask = method._recover("text", batch, embedded["text"], retrieved)
    missing = ~batch.present[:, 0]
    rows = missing.nonzero().flatten()
    recovered, known = method.generators["text"](*retrieved.copies("text", rows))
    assert torch.equal(tokens[missing], recovered)
    assert torch.equal(mask[missing], known)
    assert torch.equal(tokens[~missing], embedded["text"][0][~missing])
    assert torch.equal(mask[~missing], embedded["text"][1][~missing])


def test_prompts_stand_before_their_block_and_the_pooler_follows_cls(
    data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, pooled = [], []
    block, pooler = FusionBackbone.block, FusionBackbone.pool

    def watch(self: FusionBackbone, index: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        lengths.append(hidden.shape[1])
        return block(self, index, hidden, mask)

    def read(self: FusionBackbone, hidden: Tensor, index: int = 0) -> Tensor:
        pooled.append(index)
        return pooler(self, hidden, index)

    monkeypatch.setattr(FusionBackbone, "block", watch)
    monkeypatch.setattr(FusionBackbone, "pool", read)
    own = 1 + sum(spec.length for spec in data.feature_specs.values())
    logits(build(data), everything(data.test))
    assert lengths == [own, own + 5, own + 5]
    lengths.clear()
    logits(build(data, pool_token="first", prompt_layer=0, cap="jan2025"), everything(data.test))
    assert lengths == [own + 3] * 3
    assert pooled == [5, 0]


def test_complete_queries_search_each_channel_by_itself(data: TinyData) -> None:
    whole = everything(one_pattern(data.test, data.features, (True, True)))
    method = build(data)
    index, _ = method._search(whole)
    assert not torch.equal(index["text"], index["image"])
    for name in ("text", "image"):
        assert torch.equal(index[name], method.bank.neighbours(whole, 5, channel=name).index)
    joint, _ = build(data, retrieval="joint")._search(whole)
    assert torch.equal(joint["text"], joint["image"])


def test_more_neighbours_may_give_labels_than_copies(data: TinyData) -> None:
    batch = everything(one_pattern(data.test, data.features, (True, False)))
    method = build(data, k=3, label_k=7)
    (retrieved,) = method._retrieve(batch)
    index = method.bank.neighbours(batch, 7).index
    assert torch.equal(retrieved.labels, method.bank.labels(index))
    assert retrieved.index["text"].shape == (len(batch), 3)
    torch.testing.assert_close(
        method._label_prompt(retrieved), method.label_table[method.bank.labels(index)].mean(1), atol=1e-6, rtol=1e-6
    )
    (few,) = build(data, k=5, label_k=2)._retrieve(batch)
    assert few.labels.shape == (len(batch), 2)
    assert few.index["text"].shape == (len(batch), 5)


def test_logits_are_similarities_to_the_label_table(data: TinyData) -> None:
    method = build(data)
    batch = everything(data.test)
    before = logits(method, batch)
    method.config.label_prompt = False  # so that the table is read by the head alone
    alone = logits(method, batch)
    with torch.no_grad():
        method.label_table[0] *= 3.0
    torch.testing.assert_close(logits(method, batch), alone * torch.tensor([3.0, 1.0, 1.0]))
    assert not torch.allclose(before, alone, atol=1e-4)


OPTIONS: dict[str, tuple[dict[str, Any], bool]] = {
    "random neighbours": ({"neighbours": "random"}, False),
    "joint search": ({"retrieval": "joint"}, False),
    "no filter": ({"generator": "mean"}, False),
    "padding instead of generator": ({"generator": "padding"}, False),
    "bitwise sign": ({"recovered_sign": "bitwise"}, False),
    "static prompt": ({"prompt": "static"}, False),
    "no prompt": ({"prompt": "none"}, False),
    "shared prompter": ({"cap": "shared"}, False),
    "prompter of January": ({"cap": "jan2025"}, False),
    "no label prompt": ({"label_prompt": False}, False),
    "no prompt at all": ({"label_prompt": False, "prompt": "none"}, False),
    "more labels": ({"label_k": 9}, False),
    "released head": ({"head": "label_mlp"}, False),
    "retrieved padding": ({"retrieved_padding": "included"}, False),
    "no attention mask": ({"attention_mask": "none"}, False),
    "first token": ({"pool_token": "first"}, False),
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
    assert RagptConfig(**options).needs_complete_supervision() == needs_complete
    method = build(source, **options)
    assert not torch.equal(logits(method, everything(source.test)), logits(build(source), everything(source.test)))
    method.train()
    output = method(everything(source.train))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for part, parameter in method.named_parameters():
        assert parameter.grad is not None, part
        assert torch.isfinite(parameter.grad).all(), part


def test_dropout_is_an_option_of_training(data: TinyData) -> None:
    batch = everything(data.train)

    def loss(dropout: float) -> float:
        method = build(data, dropout=dropout).train()
        torch.manual_seed(1)
        return float(method(batch).loss.detach())

    assert loss(0.0) != loss(0.5)


def test_row_number_exclusion_is_an_option(complete_supervision: TinyData) -> None:
    data = complete_supervision
    method = build(data, bank_splits="train_valid", bank_missing="full", exclude_self="row_number")
    valid = everything(one_pattern(data.valid, data.features, (True, True)))
    nearest = method.bank.neighbours(valid, 1).index[:, 0].tolist()
    itself = [method.bank.ids[item] == name for name, item in zip(valid.ids, nearest, strict=True)]
    assert all(found for name, found in zip(valid.ids, itself, strict=True) if name in method.bank.ids)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_presets_that_open_hidden_values_refuse_observed_supervision(preset: str, data: TinyData) -> None:
    with pytest.raises(SupervisionError):
        build(data, **RagptConfig.presets[preset])


def test_decay_spares_the_label_table_unless_told(data: TinyData) -> None:
    assert len(build(data, decay_all=True).parameter_groups(0.1)) == 1
    method = build(data, prompt="static")
    spared = {id(parameter) for parameter in method.parameter_groups(0.1)[1]["params"]}
    assert {id(method.label_table), id(method.static_prompt)} <= spared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": "new"}, "method.cap='new' is not one of"),
        ({"label_k": -1}, "method.label_k=-1 must be >= 0"),
        ({"dropout": 1.0}, "method.dropout=1.0 must be between"),
        ({"head": "label_mlp", "label_prompt": False}, "needs method.label_prompt=true"),
        ({"recovered_sign": "bitwise", "generator": "padding"}, "bitwise needs a generator"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RagptConfig(**options).validate()
