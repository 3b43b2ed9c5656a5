"""CLIP encoder on a tiny random CLIP, saved in the hub's format; no weights are downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizerFast

from harness.cell import token_encoder_names
from harness.compose import compose, encoder_config
from harness.config import PathsConfig
from harness.errors import DataError, UsageError
from harness.files import Folders
from harness.methods.common.encoders.clip import prepare_picture
from harness.methods.common.encoders.config import ClipConfig
from harness.testing.models import write_clip
from harness.testing.stand_in import stand_in
from harness.workspace import Workspace

SIZE, WIDTH, LENGTH = 32, 16, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with its tokenizer, as on the hub."""
    path = tmp_path_factory.mktemp("tiny clip")
    return write_clip(path, WIDTH, SIZE, LENGTH)


def encoder(folder: Path, **options: Any) -> Any:
    config = ClipConfig(weights=str(folder), **options)
    config.validate()
    return config.implementation()(config)


def pictures(count: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 8 * row, 48, 3), dtype=np.uint8) for row in range(count)]


def test_pooled_features_are_the_librarys(folder: Path) -> None:
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    texts = ["a red dog", "cat"]
    got = encoder(folder).encode(texts)
    with torch.no_grad():
        for row, text in enumerate(texts):
            expected = model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
            np.testing.assert_allclose(got.pooled[row], expected, atol=1e-5)
        images = encoder(folder).encode(pictures(2))
        pixels = torch.from_numpy(np.stack([prepare_picture(one, SIZE) for one in pictures(2)])).permute(0, 3, 1, 2)
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(images.pooled, expected, atol=1e-5)
    assert images.tokens.shape == (2, 9, 8)
    assert got.tokens.shape[2] == 8


def test_preprocessing_equals_the_librarys(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    for picture in pictures(3):
        expected = processor(images=picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(prepare_picture(picture, SIZE).transpose(2, 0, 1), expected, atol=1e-5)


def test_the_released_text_feature_does_not_know_word_order(folder: Path) -> None:
    texts = ["a red dog", "dog a red", "a red cat"]
    library = encoder(folder).encode(texts).pooled
    released = encoder(folder, text_feature="bag_of_words").encode(texts)
    assert np.abs(library[0] - library[1]).max() > 1e-3
    np.testing.assert_allclose(released.pooled[0], released.pooled[1], atol=1e-5)
    assert np.abs(released.pooled[0] - released.pooled[2]).max() > 1e-3


@pytest.mark.parametrize("text", ["cat", "a red dog", "a red dog sits a red cat sits", ""])
def test_the_released_text_feature_is_of_one_text_without_padding(folder: Path, text: str) -> None:
    """Its mask, all ones, stands where position ids belong; blocks see both ways; the last token is the feature."""
    network = CLIPModel.from_pretrained(folder).eval()
    ids = CLIPTokenizerFast.from_pretrained(folder)(text, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        states = network.text_model.embeddings(ids["input_ids"], position_ids=ids["attention_mask"])
        states = network.text_model.encoder(inputs_embeds=states).last_hidden_state
        expected = network.text_projection(network.text_model.final_layer_norm(states))[0]
    released = encoder(folder, text_feature="bag_of_words").encode([text])
    np.testing.assert_allclose(released.tokens[0], expected, atol=1e-5)
    np.testing.assert_array_equal(released.pooled, released.tokens[:, -1])


def test_values_do_not_depend_on_their_companions(folder: Path) -> None:
    for values in (["a red dog", "cat", "a cat sits"], pictures(3)):
        together, alone = encoder(folder).encode(values), encoder(folder).encode(values[1:2])
        np.testing.assert_array_equal(together.pooled[1], alone.pooled[0])


@pytest.mark.parametrize("feature", ["library", "bag_of_words"])
@pytest.mark.parametrize("values", [["a red dog", "cat", "a cat sits", ""], pictures(3)], ids=["text", "image"])
def test_a_batch_gives_what_single_values_give(folder: Path, values: list[Any], feature: str) -> None:
    """As on a GPU: all values at once, shorter texts padded.  In bf16 (8 bits) vectors keep their direction."""
    one = encoder(folder, text_feature=feature)
    single = one.encode(values)
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 0.03)):
        one.precision = precision
        batch = one._batch(one._tower(values[0]), values)
        assert [len(tokens) for tokens, _ in batch] == single.mask.sum(1).tolist()
        for row, (tokens, pooled) in enumerate(batch):
            assert tokens.dtype == pooled.dtype == np.float32
            scale = np.abs(single.tokens[row]).max()
            np.testing.assert_allclose(tokens, single.tokens[row][: len(tokens)], atol=tolerance * scale)
            np.testing.assert_allclose(pooled, single.pooled[row], atol=tolerance * np.abs(single.pooled[row]).max())
            cosine = pooled @ single.pooled[row] / np.linalg.norm(pooled) / np.linalg.norm(single.pooled[row])
            assert cosine > 0.999


@pytest.mark.parametrize("feature", ["library", "bag_of_words"])
@pytest.mark.parametrize("values", [["a red dog", "cat", "a cat sits", ""], pictures(3)], ids=["text", "image"])
def test_everything_moves_to_another_device(folder: Path, values: list[Any], feature: str) -> None:
    here, there = encoder(folder, text_feature=feature), encoder(folder, text_feature=feature)
    there.use(str(stand_in()))
    expected, found = here.encode(values), there.encode(values)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=1e-5)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-5)


def test_a_gpu_with_bf16_is_used_in_bf16(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        gpu, cpu = encoder(folder), encoder(folder)
        gpu.use("cuda")
        cpu.use("cpu")
        assert (gpu.precision, cpu.precision) == (precision, "float32")


def test_long_texts_are_cut(folder: Path) -> None:
    output = encoder(folder).encode(["a red dog sits a red cat sits"])
    assert output.tokens.shape[1] == LENGTH


def test_other_weights_other_features(folder: Path, tmp_path: Path) -> None:
    assert encoder(folder).fingerprint() != encoder(tmp_path).fingerprint()
    assert encoder(folder).fingerprint() == encoder(folder).fingerprint()


def test_absent_weights_are_one_line() -> None:
    with pytest.raises(DataError, match=r"encoder_options\.clip_vit_l14_336\.weights=DIR") as caught:
        ClipConfig.implementation()(ClipConfig()).encode(["a dog"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [["a dog", 3], [np.zeros((4, 4), np.uint8)]])
def test_other_values_are_refused(folder: Path, values: list[Any]) -> None:
    with pytest.raises(DataError, match="encoder clip_vit_l14_336"):
        encoder(folder).encode(values)


def test_options_reach_the_encoder_of_a_run(folder: Path, tmp_path: Path) -> None:
    name = "clip_vit_l14_336"
    encoders = [f"encoders.text={name}", f"encoders.image={name}", f"encoder_options.{name}.weights={str(folder)!r}"]
    [config] = compose(["method=zero_fill", *encoders, f"encoder_options.{name}.text_feature=bag_of_words"])
    table = Workspace(Folders.resolve(PathsConfig(str(tmp_path)))).table(config.dataset)
    chosen = token_encoder_names(config, table)
    assert chosen["text"] == (name, ClipConfig(weights=str(folder), text_feature="bag_of_words"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minilm", {"max_tokn": 3}, r"encoder_options\.minilm: unknown key 'max_tokn'.*Did you mean max_tokens"),
        ("minilm", {"max_tokens": "many"}, r"encoder_options\.minilm: Value 'many'"),
        ("minilm", {"max_tokens": 1}, "must be between 3 and 512"),
        ("minilmm", {}, "minilm"),
    ],
)
def test_bad_encoder_options_are_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        encoder_config(name, options)
    assert "\n" not in str(caught.value)


def test_options_of_an_encoder_that_is_not_used_are_refused(tmp_path: Path) -> None:
    [config] = compose(["method=zero_fill", "dataset=synthetic", "encoder_options.minilm.max_tokens=9"])
    with pytest.raises(UsageError, match=r"encoder_options\.minilm is given, but synthetic is encoded by identity"):
        token_encoder_names(config, Workspace(Folders.resolve(PathsConfig(str(tmp_path)))).table(config.dataset))
