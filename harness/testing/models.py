"""Small pretrained models with random weights, saved in the hub's own layout, so that tests run the real loaders."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from harness.testing.releases import WORDS

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_vilt(
    folder: Path, width: int = 32, blocks: int = 2, side: int = 64, length: int = 16, words: Sequence[str] = WORDS
) -> Path:
    """Saves a ViLT with its masked-language head and tokenizer, as `dandelin/vilt-b32-mlm` is on the hub.

    Args:
        folder: Where to; created.
        width: Token width, a multiple of 4.
        blocks: Transformer blocks.
        side: Side of its pictures, a multiple of 32.
        length: Text positions.
        words: Vocabulary; other words are unknown.

    Returns:
        The folder.
    """
    import torch
    from transformers import BertTokenizerFast, ViltConfig, ViltForMaskedLM

    vocabulary = list(dict.fromkeys([*_SPECIAL, *words]))
    config = ViltConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=length,
        image_size=side,
        patch_size=32,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViltForMaskedLM(config)
        for name, parameter in model.named_parameters():
            if "position_embeddings" in name or "cls_token" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={word: row for row, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def write_clip(folder: Path, width: int = 16, side: int = 32, length: int = 16) -> Path:
    """Saves a CLIP with its tokenizer (single letters), as `openai/clip-vit-large-patch14-336` is on the hub.

    Args:
        folder: Where to; created.
        width: Token width, a multiple of 4.
        side: Side of its pictures, a multiple of 8.
        length: Text positions.

    Returns:
        The folder.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits]
    entries = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: row for row, entry in enumerate(entries)}
    shared = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared["projection_dim"] = width // 2
    end = vocabulary["<|endoftext|>"]
    text = {
        **shared,
        "vocab_size": len(entries),
        "max_position_embeddings": length,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {**shared, "image_size": side, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width // 2))
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    CLIPTokenizerFast(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return folder
