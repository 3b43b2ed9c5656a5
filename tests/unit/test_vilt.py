"""ViLT backbone and its inputs on a tiny random ViLT, saved in the hub's format; no weights are downloaded."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertTokenizerFast, ViltConfig, ViltForMaskedLM, ViltModel

from harness import registry
from harness.audit import poisoned
from harness.errors import DataError, UsageError
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext
from harness.methods.common.backbones import vilt, vilt_inputs
from harness.methods.common.backbones.config import ViltB32Config, ViltImageConfig, ViltTextConfig
from harness.methods.common.backbones.patches_config import ViltB32PatchesConfig, ViltPatchesConfig
from harness.methods.common.backbones.vilt import ViltBackbone, load_vilt, stretch_positions
from harness.methods.common.backbones.vilt_inputs import ViltImageEncoder, ViltPatchEncoder, ViltTextEncoder
from harness.methods.common.hub import Pretrained
from harness.testing.data import tiny_presence, tiny_spec
from harness.testing.stand_in import stand_in
from harness.types import FeatureSpec

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "red", "blue", "dog", "cat", "barks", "sits", "on", "the", "mat"]
TEXT, SIZE, WIDTH = 8, 64, 32
FEATURES = {"text": FeatureSpec(TEXT, (), 0), "image": FeatureSpec(1, (SIZE, SIZE, 3), 0)}
TEXTS = ["a red dog barks", "the cat", "blue dog on the red mat", "zebra"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViLT with its masked-language head and tokenizer, as on the hub."""
    path = tmp_path_factory.mktemp("tiny vilt")
    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=TEXT,
        image_size=SIZE,
        patch_size=32,
        initializer_range=0.2,
    )
    model = ViltForMaskedLM(config)
    for name, parameter in model.named_parameters():
        if "position_embeddings" in name or "cls_token" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(path)
    BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(path)
    return path


@pytest.fixture
def config(folder: Path) -> ViltB32Config:
    return ViltB32Config(weights=str(folder), max_text_len=TEXT)


@pytest.fixture
def backbone(config: ViltB32Config) -> ViltBackbone:
    return ViltBackbone(config, FEATURES).eval()


def inputs(folder: Path, length: int = TEXT) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask `[4, length]`, pixels `[4, 1, S, S, 3]`."""
    text = ViltTextEncoder(ViltTextConfig(weights=str(folder), max_text_len=length)).encode(TEXTS)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (40 + row, 90, 3), dtype=np.uint8) for row in range(4)]
    image = ViltImageEncoder(ViltImageConfig(weights=str(folder))).encode(pictures)
    return torch.from_numpy(text.tokens), torch.from_numpy(text.mask), torch.from_numpy(image.tokens)


def assembled(backbone: ViltBackbone, ids: Tensor, mask: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    whole = torch.ones(len(pixels), 1, dtype=torch.bool, device=pixels.device)
    return backbone.assemble(
        {"text": backbone.embed("text", ids, mask), "image": backbone.embed("image", pixels, whole)}
    )


@torch.no_grad()
def test_equals_the_library_up_to_its_shuffled_patches(folder: Path, backbone: ViltBackbone) -> None:
    ids, mask, pixels = inputs(folder)
    hidden, keys = assembled(backbone, ids, mask, pixels)
    ours = backbone.encode(hidden, keys)
    reference = ViltModel.from_pretrained(folder).eval()
    values = (pixels[:, 0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    theirs = reference(input_ids=ids.long(), attention_mask=mask.long(), pixel_values=values)
    assert ours.shape == theirs.last_hidden_state.shape == (4, TEXT + 5, WIDTH)
    real = torch.cat([mask, torch.ones(4, 1, dtype=torch.bool)], 1)  # padding positions are nobody's business
    assert (ours - theirs.last_hidden_state)[:, : TEXT + 1][real].abs().max() < 1e-5
    patches = torch.cdist(ours[:, TEXT + 1 :], theirs.last_hidden_state[:, TEXT + 1 :])
    assert patches.min(2).values.max() < 1e-3
    assert sorted(patches[0].argmin(1).tolist()) == [0, 1, 2, 3]
    assert (backbone.pool(ours) - theirs.pooler_output).abs().max() < 1e-5


@torch.no_grad()
def test_raster_order_is_deterministic_and_leaves_the_random_stream_alone(folder: Path, config: ViltB32Config) -> None:
    ids, mask, pixels = inputs(folder)
    raster = ViltBackbone(config, FEATURES).eval()
    state = torch.get_rng_state()
    first = assembled(raster, ids, mask, pixels)[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, assembled(raster, ids, mask, pixels)[0])
    white = pixels.clone()
    white[:, 0, :32, 32:] = 255  # upper right quarter: second patch in raster order
    changed = (assembled(raster, ids, mask, white)[0] != first).any(2).any(0)
    assert changed.nonzero().flatten().tolist() == [TEXT + 2]

    config.patch_order = "random"
    shuffled = ViltBackbone(config, FEATURES).eval()
    torch.manual_seed(1)
    once, again = (assembled(shuffled, ids, mask, pixels)[0] for _ in range(2))
    assert not torch.equal(once, again)
    torch.testing.assert_close(once[:, : TEXT + 1], first[:, : TEXT + 1])
    torch.testing.assert_close(once[:, TEXT + 1 :].sum(1), first[:, TEXT + 1 :].sum(1))


@torch.no_grad()
def test_padding_keys_are_masked(folder: Path, backbone: ViltBackbone) -> None:
    ids, mask, pixels = inputs(folder)
    other = torch.where(mask, ids, torch.full_like(ids, 7))

    def run(words: Tensor, masked: bool) -> Tensor:
        hidden, keys = assembled(backbone, words, mask, pixels)
        return backbone.pool(backbone.encode(hidden, keys if masked else None))

    assert torch.equal(run(ids, True), run(other, True))
    assert (run(ids, False) - run(other, False)).abs().max() > 1e-4
    assert (run(ids, True) - run(ids, False)).abs().max() > 1e-4


def test_prompts_lengthen_the_sequence_and_learn(folder: Path, backbone: ViltBackbone) -> None:
    hidden, keys = assembled(backbone, *inputs(folder))
    plain = backbone.encode(hidden, keys)
    prompt = torch.randn(4, 3, WIDTH, requires_grad=True)
    pooled = []
    for layer in range(2):
        output = backbone.encode(hidden, keys, {layer: prompt})
        assert output.shape[1] == plain.shape[1] + 3
        pooled.append(backbone.pool(output, 3))
        (gradient,) = torch.autograd.grad(pooled[-1].sum(), prompt)
        assert gradient.abs().sum() > 0
    assert (pooled[0] - pooled[1]).abs().max() > 1e-4
    assert (pooled[1] - backbone.pool(plain)).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
def test_attention_level_prompts_stand_in_front_of_keys_and_values(
    folder: Path, backbone: ViltBackbone, masked: bool
) -> None:
    hidden, keys = assembled(backbone, *inputs(folder))
    mask = keys if masked else None
    none = hidden.new_zeros(4, 0, WIDTH)
    plain = backbone.block(1, hidden, mask)
    torch.testing.assert_close(backbone.prefixed_block(1, hidden, mask, (none, none)), plain, atol=1e-5, rtol=1e-5)

    front, values = torch.randn(4, 3, WIDTH), torch.randn(4, 3, WIDTH)
    layer = backbone.vilt.encoder.layer[1]
    attention, normed = layer.attention.attention, layer.layernorm_before(hidden)
    visible = torch.cat([torch.ones(4, 3, dtype=torch.bool), keys if masked else torch.ones_like(keys)], 1)

    def heads(tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], 4, -1).transpose(1, 2)

    context = torch.nn.functional.scaled_dot_product_attention(
        heads(attention.query(normed)),
        heads(torch.cat([front, attention.key(normed)], 1)),
        heads(torch.cat([values, attention.value(normed)], 1)),
        attn_mask=visible[:, None, None, :],
    )
    middle = hidden + layer.attention.output.dense(torch.cat(context.unbind(1), -1))
    inner = torch.nn.functional.gelu(layer.intermediate.dense(layer.layernorm_after(middle)))
    expected = middle + layer.output.dense(inner)
    found = backbone.prefixed_block(1, hidden, mask, (front, values))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    encoded = backbone.encode(hidden, mask, prefixes={1: (front, values)})
    both = backbone.norm(backbone.prefixed_block(1, backbone.block(0, hidden, mask), mask, (front, values)))
    real = torch.ones_like(keys) if mask is None else mask
    torch.testing.assert_close(encoded[real], both[real], atol=1e-5, rtol=1e-5)
    assert encoded.shape == hidden.shape


# -- the fast path gives the slow path's numbers -----------------------------------------------------------------------


def by_the_library(
    backbone: ViltBackbone, hidden: Tensor, mask: Tensor | None, prompts: dict[int, Tensor] | None = None
) -> Tensor:
    """Every token through the library's own layers, what is masked included."""
    for index, layer in enumerate(backbone.vilt.encoder.layer):
        if prompts and index in prompts:
            hidden, mask = backbone.with_prompt(hidden, mask, prompts[index])
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, -1e30)[:, None, None]
        output = layer(hidden, bias)
        hidden = output[0] if isinstance(output, tuple) else output
    return backbone.norm(hidden)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layer", [None, 0, 1])
def test_the_fast_path_equals_the_library_in_values_and_gradients(
    folder: Path, backbone: ViltBackbone, masked: bool, layer: int | None
) -> None:
    hidden, keys = assembled(backbone, *inputs(folder))
    keys[3, :TEXT] = False  # a sample without text
    prompt = None if layer is None else torch.randn(4, 3, WIDTH)
    front = 0 if prompt is None else 3

    def run(kind: str) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        leaves = [hidden.detach().clone().requires_grad_()]
        if prompt is not None:
            leaves.append(prompt.clone().requires_grad_())
        arguments = (leaves[0], keys if masked else None)
        prompts = None if layer is None else {layer: leaves[1]}
        if kind == "library":
            encoded = by_the_library(backbone, *arguments, prompts)
            pooled = [backbone.pool(encoded, index) for index in (front, 0)]
        else:
            encoded = backbone.encode(*arguments, prompts)
            pooled = [backbone.encode_pooled(*arguments, index, prompts) for index in (front, 0)]
        return encoded, *pooled, list(torch.autograd.grad((pooled[0] * pooled[1]).sum(), leaves))

    slow, slow_cls, slow_first, slow_grads = run("library")
    fast, fast_cls, fast_first, fast_grads = run("fast")
    real = torch.ones(slow.shape[:2], dtype=torch.bool)
    if masked:
        real[:, front:] = keys
    assert (slow - fast)[real].abs().max() < 1e-5
    assert (slow_first - fast_first).abs().max() < 1e-5
    assert (slow_cls - fast_cls).abs().max() < 1e-5  # of the sample without text too, whose [CLS] is masked
    for slow_grad, fast_grad in zip(slow_grads, fast_grads, strict=True):
        assert slow_grad.abs().max() > 1e-3
        assert (slow_grad - fast_grad).abs().max() < 1e-5 * slow_grad.abs().max()


@pytest.mark.parametrize("masked", [True, False])
def test_the_branch_for_gpus_gives_the_same_values_and_gradients(
    folder: Path, config: ViltB32Config, backbone: ViltBackbone, masked: bool
) -> None:
    """Fused attention, and nothing left on the CPU, on a device that refuses to mix."""
    ids, mask, pixels = inputs(folder)
    prompt, prefix = torch.randn(4, 3, WIDTH), (torch.randn(4, 2, WIDTH), torch.randn(4, 2, WIDTH))

    def run(network: ViltBackbone, device: torch.device | str) -> list[Tensor]:
        leaf = prompt.to(device).detach().requires_grad_()
        hidden, keys = assembled(network, ids.to(device), mask.to(device), pixels.to(device))
        seen, given = keys if masked else None, (prefix[0].to(device), prefix[1].to(device))
        pooled = network.encode_pooled(hidden, seen, 3, {1: leaf}, {0: given})
        pooled.square().sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        encoded = network.pool(network.encode(hidden, seen, {1: leaf}, {0: given}), 3)
        return [part.detach().cpu() for part in (pooled, encoded, leaf.grad)]

    expected, found = run(backbone, "cpu"), run(ViltBackbone(config, FEATURES).eval().to(stand_in()), stand_in())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bf16_stays_within_one_percent_of_the_range(folder: Path, backbone: ViltBackbone) -> None:
    """bf16 keeps 8 bits: 2 blocks of it move the pooled token, which lies in [-1, 1], by at most 0.02."""
    ids, mask, pixels = inputs(folder)
    exact = backbone.pool(by_the_library(backbone, *assembled(backbone, ids, mask, pixels)))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone.encode_pooled(*assembled(backbone, ids, mask, pixels)).float()
    assert 0 < (exact - rounded).abs().max() < 0.02
    # Leaving autocast leaves no rounded weights behind.
    assert (exact - backbone.encode_pooled(*assembled(backbone, ids, mask, pixels))).abs().max() < 1e-5


@torch.no_grad()
def test_what_nobody_attends_to_is_not_computed(
    folder: Path, backbone: ViltBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, keys = assembled(backbone, *(part[:2] for part in inputs(folder)))
    computed: list[tuple[int, ...]] = []
    attend = backbone._attend

    def watch(query: Tensor, key: Tensor, *rest: Any) -> Tensor:
        computed.append((query.shape[1], key.shape[1]))
        return attend(query, key, *rest)

    monkeypatch.setattr(backbone, "_attend", watch)
    longest = int(keys.sum(1).max())
    assert longest < hidden.shape[1]
    backbone.encode(hidden, keys)
    assert computed == [(longest, longest)] * 2
    computed.clear()
    backbone.encode_pooled(hidden, keys, 3, {1: hidden.new_zeros(2, 3, WIDTH)})
    assert computed == [(longest, longest), (1, longest + 3)]


@torch.no_grad()
def test_a_cut_text_keeps_its_positions(folder: Path, backbone: ViltBackbone) -> None:
    ids, mask, _ = inputs(folder)
    whole, _ = backbone.embed("text", ids, mask)
    cut, cut_mask = backbone.embed("text", ids[:, :5], mask[:, :5])
    assert cut_mask.shape == (4, 5)
    torch.testing.assert_close(cut, whole[:, :5], atol=0, rtol=0)


@torch.no_grad()
def test_patches_equal_the_convolution(folder: Path, backbone: ViltBackbone) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, SIZE + 5, SIZE, 3), dtype=torch.uint8, generator=generator)
    values = (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    expected = backbone.vilt.embeddings.patch_embeddings.projection(values).permute(0, 2, 3, 1)
    assert (backbone._patches(pixels) - expected).abs().max() < 1e-5 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert (backbone._patches(pixels) - expected).abs().max() < 0.02 * expected.abs().max()


@torch.no_grad()
def test_copies_of_weights_follow_the_weights(folder: Path, backbone: ViltBackbone) -> None:
    hidden, keys = assembled(backbone, *inputs(folder))
    before = backbone.encode(hidden, keys)
    state = {name: value * 0.5 for name, value in backbone.vilt.encoder.state_dict().items()}
    backbone.vilt.encoder.load_state_dict(state)
    after = backbone.encode(hidden, keys)
    assert (before - after).abs().max() > 1e-3
    real = keys
    assert (after - by_the_library(backbone, hidden, keys))[real].abs().max() < 1e-5


def test_buffers_that_no_file_holds_are_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model built on the meta device comes with uninitialised position and type ids."""
    load = Pretrained.load_model

    def uninitialised(self: Pretrained, kind: Any, **options: Any) -> Any:
        model = load(self, kind, **options)
        text = model.embeddings.text_embeddings
        text.position_ids.fill_(2**40)
        text.token_type_ids.fill_(-7)
        return model

    monkeypatch.setattr(Pretrained, "load_model", uninitialised)
    text = load_vilt(str(folder), False).embeddings.text_embeddings
    assert text.position_ids.flatten().tolist() == list(range(TEXT))
    assert not text.token_type_ids.any()


def test_a_value_without_content(backbone: ViltBackbone) -> None:
    """The empty text is `[CLS] [SEP]` and padding; the picture is white, which the model sees as ones."""
    ids, mask = backbone.dummy("text")
    assert ids.tolist() == [2, 3, 0, 0, 0, 0, 0, 0]
    assert mask.tolist() == [True] * 2 + [False] * 6
    pixels, seen = backbone.dummy("image")
    assert pixels.shape == (1, SIZE, SIZE, 3)
    assert (pixels == 255).all()
    assert pixels.dtype == torch.uint8
    assert seen.tolist() == [True]


def test_text_comes_first_whatever_the_order_of_the_data_set(folder: Path, config: ViltB32Config) -> None:
    swapped = ViltBackbone(config, {"image": FEATURES["image"], "text": FEATURES["text"]}).eval()
    ids, mask, pixels = inputs(folder)
    hidden, keys = assembled(swapped, ids, mask, pixels)
    text, _ = swapped.embed("text", ids, mask)
    assert torch.equal(hidden[:, :TEXT], text)
    assert torch.equal(keys[:, :TEXT], mask)
    assert swapped.prefix_length == 0
    assert [swapped.length(name) for name in ("image", "text")] == [5, TEXT]


def test_stretched_positions_are_bilinear_with_free_corners() -> None:
    table = torch.tensor([[0.0, 10.0], [1.0, 20.0]])
    expected = torch.tensor([[0.0, 10.0], [0.25, 12.5], [0.75, 17.5], [1.0, 20.0]])
    torch.testing.assert_close(stretch_positions(table, 4), expected)
    assert stretch_positions(table, 2) is table


@torch.no_grad()
def test_longer_texts_and_larger_pictures_get_resampled_positions(folder: Path, config: ViltB32Config) -> None:
    config.max_text_len = 2 * TEXT
    features = {"text": FeatureSpec(2 * TEXT, (), 0), "image": FeatureSpec(1, (SIZE, 2 * SIZE, 3), 0)}
    backbone = ViltBackbone(config, features).eval()
    ids, mask, pixels = inputs(folder, 2 * TEXT)
    wide = pixels.repeat(1, 1, 1, 2, 1)
    hidden, _ = assembled(backbone, ids, mask, wide)
    assert hidden.shape[1] == 2 * TEXT + backbone.length("image") == 2 * TEXT + 1 + 2 * 4
    reference = ViltModel.from_pretrained(folder).eval()
    text = reference.embeddings.text_embeddings
    text.position_embeddings.weight = torch.nn.Parameter(stretch_positions(text.position_embeddings.weight, 2 * TEXT))
    text.position_ids = torch.arange(2 * TEXT)[None]
    values = (wide[:, 0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    theirs, _ = reference.embeddings(
        ids.long(), mask.long(), torch.zeros_like(ids).long(), values, torch.ones(4, SIZE, 2 * SIZE), None, None
    )
    torch.testing.assert_close(hidden[:, : 2 * TEXT + 1], theirs[:, : 2 * TEXT + 1])
    patches = hidden[:, 2 * TEXT + 1 :].sum(1), theirs[:, 2 * TEXT + 1 :].sum(1)
    torch.testing.assert_close(*patches, atol=1e-5, rtol=1e-4)


def test_only_the_pooler_is_trained_and_dropout_stays_off(backbone: ViltBackbone) -> None:
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {"vilt.pooler.dense.weight", "vilt.pooler.dense.bias"}
    backbone.train()
    assert backbone.training
    assert not any(module.training for module in backbone.vilt.encoder.modules())
    assert not any(module.training for module in backbone.vilt.embeddings.modules())
    assert backbone.frozen


def test_parameter_counts_of_the_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        real = ViltModel(ViltConfig())
    monkeypatch.setattr(vilt, "load_vilt", lambda weights, allow_download: real)
    features = {"text": FeatureSpec(128, (), 0), "image": FeatureSpec(1, (384, 384, 3), 0)}
    backbone = ViltBackbone(ViltB32Config(), features)

    def count(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    parts = [count(module) for module in (real.embeddings, real.encoder, real.layernorm, real.pooler)]
    assert parts == [25_948_416, 85_054_464, 1_536, 590_592]
    assert count(backbone) == 111_595_008
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 590_592
    assert (backbone.length("text"), backbone.length("image"), backbone.num_blocks) == (128, 145, 12)


def test_text_encoder(folder: Path) -> None:
    encoder = ViltTextEncoder(ViltTextConfig(weights=str(folder), max_text_len=6))
    encoded = encoder.encode(["A red DOG", "zebra", "a red dog barks on the mat", ""])
    assert encoded.tokens.tolist() == [
        [2, 5, 6, 8, 3, 0],
        [2, 1, 3, 0, 0, 0],
        [2, 5, 6, 8, 10, 3],
        [2, 3, 0, 0, 0, 0],
    ]
    assert encoded.mask.sum(1).tolist() == [5, 3, 6, 2]
    assert encoded.tokens.dtype == np.dtype(encoder.storage) == np.int16
    assert encoded.pooled.shape == (4, 0)
    assert len(encoder.fingerprint()) == 64


def test_a_model_without_its_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / file, tmp_path)
    with pytest.raises(
        DataError, match=r"has 5 entries, its model 15; put the model's own tokenizer\.json or vocab\.txt"
    ):
        ViltTextEncoder(ViltTextConfig(weights=str(tmp_path)))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    encoder = ViltTextEncoder(ViltTextConfig(weights=str(tmp_path), max_text_len=5))
    assert encoder.encode(["a red dog"]).tokens.tolist() == [[2, 5, 6, 8, 3]]


def test_image_encoder_squashes_to_a_square(folder: Path) -> None:
    encoder = ViltImageEncoder(ViltImageConfig(weights=str(folder)))
    left_black = np.zeros((30, 128, 3), dtype=np.uint8)
    left_black[:, 64:] = 255
    encoded = encoder.encode([left_black, np.full((64, 64, 3), 9, dtype=np.uint8)])
    assert encoded.tokens.shape == (2, 1, SIZE, SIZE, 3)
    assert encoded.tokens.dtype == np.uint8
    assert (encoded.tokens[0, 0, :, :30] == 0).all()
    assert (encoded.tokens[0, 0, :, 34:] == 255).all()
    assert (encoded.tokens[1] == 9).all()
    assert encoded.mask.all()
    assert encoder.fingerprint() == "64"


def test_absent_weights_are_one_line_and_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contacted: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: contacted.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: contacted.append(args) or [])
    loads = [
        lambda: load_vilt("nobody/no-such-vilt", False),
        lambda: ViltTextEncoder(ViltTextConfig(weights="nobody/no-such-vilt")),
        lambda: ViltImageEncoder(ViltImageConfig(weights=str(tmp_path / "absent"))),
    ]
    for load in loads:
        with pytest.raises(DataError) as caught:
            load()
        message = str(caught.value)
        assert "\n" not in message
        assert all(way in message for way in ("backbone.weights=DIR", "hf download", "backbone.allow_download=true"))
        assert caught.value.exit_code == 3
    assert not contacted


def test_the_hub_cache_is_read_without_a_connection(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--dandelin--tiny" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.file_download, "HF_HUB_CACHE", str(tmp_path), raising=False)
    contacted: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: contacted.append(args) or [])
    assert load_vilt("dandelin/tiny", False).config.hidden_size == WIDTH
    assert ViltTextEncoder(ViltTextConfig(weights="dandelin/tiny")).tokenizer.vocab_size == len(WORDS)
    assert ViltImageEncoder(ViltImageConfig(weights="dandelin/tiny")).size == SIZE
    assert not contacted


def test_download_needs_permission() -> None:
    calls: list[dict[str, Any]] = []

    class Hub:
        @staticmethod
        def from_pretrained(source: str, **options: Any) -> str:
            calls.append(options)
            return source

    with pytest.raises(DataError):
        Pretrained("ViLT", "some/model", "backbone").load(Hub)
    assert not calls
    assert Pretrained("ViLT", "some/model", "backbone", allow_download=True).load(Hub) == "some/model"
    assert calls == [{}]


def test_a_folder_with_something_else_or_half_a_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="not a whole ViLT in the hub's format"):
        load_vilt(str(tmp_path), False)
    half = tmp_path / "half"
    ViltModel(ViltConfig.from_pretrained(folder), add_pooling_layer=False).save_pretrained(half)
    with pytest.raises(DataError, match=r"not a whole ViLT: 2 weights are missing, e\.g\. pooler"):
        load_vilt(str(half), False)


def test_modalities_that_are_neither_ids_nor_pixels_are_refused(config: ViltB32Config) -> None:
    with pytest.raises(UsageError, match="backbone=fusion"):
        ViltBackbone(config, {"sound": FeatureSpec(4, (16,), 16)})


@pytest.mark.parametrize(("option", "value"), [("patch_order", "spiral"), ("max_text_len", 1)])
def test_bad_options(option: str, value: Any) -> None:
    config = ViltB32Config()
    setattr(config, option, value)
    with pytest.raises(UsageError, match=option):
        config.validate()


# -- stored patches --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_stored_patches_stand_for_pixels(folder: Path, config: ViltB32Config, backbone: ViltBackbone) -> None:
    """The projection's weights and its result are rounded to bf16 (8 bits, relative error up to 2^-9), nothing else."""
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (40 + row, 90, 3), dtype=np.uint8) for row in range(4)]
    encoder = ViltPatchEncoder(ViltPatchesConfig(weights=str(folder)))
    stored = encoder.encode(pictures)
    assert stored.tokens.shape == (4, 4, WIDTH)
    assert stored.tokens.dtype == np.int16
    for row, picture in enumerate(pictures):
        assert np.array_equal(encoder.encode([picture]).tokens[0], stored.tokens[row])
    pixels = torch.from_numpy(ViltImageEncoder(ViltImageConfig(weights=str(folder))).encode(pictures).tokens)
    spec = FeatureSpec(4, (WIDTH,), 0)
    patched = ViltBackbone(config, {"text": FEATURES["text"], "image": spec}).eval()
    assert patched.length("image") == backbone.length("image") == 5
    ones = torch.ones(4, 4, dtype=torch.bool)
    ours, seen = patched.embed("image", torch.from_numpy(stored.tokens), ones)
    exact, _ = backbone.embed("image", pixels, ones[:, :1])
    assert seen.shape == (4, 5)
    assert seen.all()
    raw = torch.from_numpy(stored.tokens).view(torch.bfloat16).float()
    difference = (ours - exact)[:, 1:].abs()
    projection = backbone.vilt.embeddings.patch_embeddings.projection
    values = (pixels[:, 0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    weighed = torch.nn.functional.conv2d(values.abs(), projection.weight.abs(), projection.bias.abs(), stride=32)
    assert (difference <= 2**-8 * (raw.abs() + weighed.flatten(2).transpose(1, 2))).all()
    assert 0 < difference.square().mean() < (2**-8) ** 2 * exact[:, 1:].square().mean()
    assert torch.equal(ours[:, 0], exact[:, 0])
    ids, mask, _ = inputs(folder)
    text = backbone.embed("text", ids, mask)
    final = [
        side.pool(side.encode(*side.assemble({"text": text, "image": (image, seen)})))
        for side, image in ((patched, ours), (backbone, exact))
    ]
    torch.testing.assert_close(final[0], final[1], atol=2e-2, rtol=0)
    white, shown = patched.dummy("image")
    assert shown.shape == (4,)
    everywhere = np.full((9, 9, 3), 255, dtype=np.uint8)
    nearly = torch.from_numpy(encoder.encode([everywhere]).tokens[0]).view(torch.bfloat16).float()
    torch.testing.assert_close(white.view(torch.bfloat16).float(), nearly, atol=2e-2, rtol=2**-7)


@torch.no_grad()
def test_a_processor_without_bf16_stores_the_same_patches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are those rounded to bf16 either way; only the order of the sums differs, before one rounding."""
    pictures = [np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)]
    tokens = []
    for native in (torch.bfloat16, torch.float32):
        monkeypatch.setattr(vilt_inputs, "_bf16_or_wider", lambda native=native: native)
        encoded = ViltPatchEncoder(ViltPatchesConfig(weights=str(folder))).encode(pictures).tokens
        tokens.append(torch.from_numpy(encoded).view(torch.bfloat16).float())
    torch.testing.assert_close(*tokens, atol=1e-4, rtol=2**-7)


def test_stored_patches_are_those_of_their_weights(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    model = ViltForMaskedLM.from_pretrained(folder)
    first = ViltPatchEncoder(ViltPatchesConfig(weights=str(folder))).fingerprint()
    model.vilt.embeddings.patch_embeddings.projection.bias.data[0] += 1
    model.save_pretrained(other)
    assert ViltPatchEncoder(ViltPatchesConfig(weights=str(other))).fingerprint() != first
    model.vilt.embeddings.patch_embeddings.projection.bias.data[0] = torch.nan
    model.save_pretrained(other)
    with pytest.raises(DataError, match="NaN or infinite"):
        ViltPatchEncoder(ViltPatchesConfig(weights=str(other)))


def test_a_sample_of_the_real_model_takes_a_quarter_of_the_released_bytes() -> None:
    """Released: 838,912 B per sample.  Ours: 128 ids, 12 x 12 patches, masks, and the two digests."""
    released = 838_912
    text = FeatureArray(
        np.zeros((1, 128), np.int16), np.ones((1, 128), np.bool_), np.zeros((1, 0), np.float32), np.zeros(1, np.int64)
    )
    image = FeatureArray(
        np.zeros((1, 144, 768), np.int16),
        np.ones((1, 144), np.bool_),
        np.zeros((1, 0), np.float32),
        np.zeros(1, np.int64),
    )
    ours = sum(array.stored_bytes + array.pooled.nbytes + array.digest.nbytes for array in (text, image))
    assert ours == 221_728
    assert ours / released <= 0.27


def test_the_patches_variant_asks_for_its_own_encoder(folder: Path) -> None:
    config = ViltB32PatchesConfig(weights=str(folder), max_text_len=TEXT)
    assert config.token_encoders == {"text": "vilt_text", "image": "vilt_patches"}
    assert config.encoder_options()["vilt_patches"] == {"weights": str(folder), "allow_download": False}
    assert config.encoder_options()["vilt_text"]["max_text_len"] == TEXT
    assert registry.backbones.get("vilt_b32_patches") is ViltB32PatchesConfig


# -- methods on this backbone ----------------------------------------------------------------------------------------


def vilt_data(folder: Path, count: int = 12, patches: bool = False) -> tuple[ObservedDataset, dict[str, FeatureArray]]:
    """Text and picture samples, half of them incomplete; retrieval keys are random vectors."""
    generator = np.random.default_rng(1)
    texts = [" ".join(generator.choice(WORDS[5:], size=5)) for _ in range(count)]
    pictures = [generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(count)]
    encoded = {
        "text": ViltTextEncoder(ViltTextConfig(weights=str(folder), max_text_len=TEXT)).encode(texts),
        "image": ViltPatchEncoder(ViltPatchesConfig(weights=str(folder))).encode(pictures)
        if patches
        else ViltImageEncoder(ViltImageConfig(weights=str(folder))).encode(pictures),
    }
    features = {
        name: FeatureArray(
            part.tokens,
            part.mask,
            generator.standard_normal((count, 6)).astype(np.float32),
            generator.integers(1, 2**62, size=(count,), dtype=np.int64),
        )
        for name, part in encoded.items()
    }
    present = tiny_presence(count, 2, 0.5)
    view = ObservedDataset(
        tiny_spec("multiclass", 2),
        "train",
        [f"s{row}" for row in range(count)],
        features,
        np.arange(count),
        present,
        np.ones_like(present),
        np.arange(count) % 3,
    )
    return view, features


ON_A_BACKBONE = [name for name in registry.methods.names() if registry.methods.get(name).uses_backbone]


@pytest.mark.parametrize(
    ("name", "patches"), [*((name, False) for name in ON_A_BACKBONE), *((name, True) for name in ON_A_BACKBONE)]
)
def test_methods_run_on_it_and_cannot_see_hidden_values(
    name: str, patches: bool, folder: Path, config: ViltB32Config
) -> None:
    kind: Any = registry.methods.get(name)
    options = kind(modality="text") if name == "unimodal" else kind()
    view, features = vilt_data(folder, patches=patches)
    outputs = []
    for shown in poisoned(view, features):
        specs = {modality: array.spec for modality, array in features.items()}
        context = MethodContext(view.spec, specs, lambda specs=specs: ViltBackbone(config, specs))  # type: ignore[misc]
        torch.manual_seed(0)
        method: Method = kind.implementation()(options, context)
        method.prepare(shown)
        torch.manual_seed(1)
        loss = method.train()(shown.batch(range(len(shown)))).loss
        assert torch.isfinite(loss)
        loss.backward()
        frozen = [p for p in method.parameters() if not p.requires_grad]
        assert frozen
        assert all(p.grad is None for p in frozen)
        with torch.no_grad():
            outputs.append((loss.detach(), method.eval()(shown.batch(range(len(shown))))))
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


@pytest.mark.parametrize("name", ["map", "msp"])
def test_dummies_are_the_empty_text_and_the_white_picture(name: str, folder: Path, config: ViltB32Config) -> None:
    kind: Any = registry.methods.get(name)
    view, features = vilt_data(folder)
    specs = {modality: array.spec for modality, array in features.items()}
    context = MethodContext(view.spec, specs, lambda: ViltBackbone(config, specs))
    batch = view.batch(range(len(view)))
    for dummies in ("attended", "masked"):
        method: Any = kind.implementation()(kind(prompt_type="attention", dummies=dummies), context).eval()
        embedded = method._embed(batch)
        backbone = method.backbone
        ids, mask = backbone.dummy("text")
        text, image = ~batch.present[:, 0], ~batch.present[:, 1]
        assert text.any()
        assert image.any()
        white = backbone.embed("image", *(part[None] for part in backbone.dummy("image")))[0]
        torch.testing.assert_close(
            embedded["text"][0][text], backbone.embed("text", ids[None], mask[None])[0].expand(int(text.sum()), -1, -1)
        )
        torch.testing.assert_close(embedded["image"][0][image], white.expand(int(image.sum()), -1, -1))
        assert (embedded["text"][1][text] == mask).all()
        assert (embedded["image"][1][image] == (dummies == "attended")).all()
        assert embedded["image"][1][~image].all()
        method(batch).sum().backward()
        assert method.prompts.grad.abs().sum() > 0
        assert all(p.grad is None for p in method.parameters() if not p.requires_grad)
