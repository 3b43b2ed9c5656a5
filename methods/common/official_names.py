"""Names in the state dicts that the MMIN family released (MMIN, IF-MMIN, RedCore, RAMER), for `official_names`.

Those repositories save one file per network; the names here are of one state dict in which the tensors of network X
start with `netX.`, and those of a pretraining run with `pretrained.netX.`.  This module is light: no torch.
"""

from __future__ import annotations


def encoder_names(ours: str, run: str = "") -> dict[str, str]:
    """LSTM of audio and video and TextCNN of text below `ours`, in the state dict of `run`."""
    return {
        f"{ours}.audio.lstm": f"{run}netA.rnn",
        f"{ours}.video.lstm": f"{run}netV.rnn",
        **{f"{ours}.text.convolutions.{index}": f"{run}netL.conv{index + 1}" for index in range(3)},
        f"{ours}.text.projection": f"{run}netL.embd",
    }


def cascade_names(ours: str, theirs: str) -> dict[str, str]:
    """A `CascadedResidualAutoencoder` of five blocks."""
    parts = [(block, part) for block in range(5) for part in ("encoder", "decoder")]
    return {
        **{f"{ours}.blocks.{block}.{part}": f"{theirs}.{part}_{block}" for block, part in parts},
        f"{ours}.transition": f"{theirs}.transition",
    }


def classifier_names(ours: str, theirs: str) -> dict[str, str]:
    """An `FcClassifier`."""
    return {f"{ours}.layers": f"{theirs}.module", f"{ours}.output": f"{theirs}.fc_out"}


def attention_encoder_names(ours: str, theirs: str) -> dict[str, str]:
    """A `VariationalTokenEncoder` of three blocks."""
    parts = {
        "attention_norm": "ln_1",
        "attention": "attn",
        "attention_branch_norm": "ln_12",
        "feedforward_norm": "ln_2",
        "feedforward.0": "mlp.c_fc",
        "feedforward.3": "mlp.c_proj",
        "feedforward_branch_norm": "ln_22",
    }
    return {
        f"{ours}.projection": f"{theirs}.proj",
        **{
            f"{ours}.blocks.{block}.{part}": f"{theirs}.resblocks.{block}.{name}"
            for block in range(3)
            for part, name in parts.items()
        },
        f"{ours}.code": f"{theirs}.muvar",
    }
