"""`harness import-checkpoint`: names, shapes, formats, and bits that come back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import registry
from harness.cli import main
from harness.cli.commands.import_checkpoint import build, match, official_name, read_state
from harness.compose import compose
from harness.config import MethodConfig
from harness.errors import DataError
from harness.method import Method, MethodContext
from harness.methods.redeem.config import RedeemConfig
from harness.testing.data import tiny_observed, tiny_spec
from harness.testing.methods import contract_for
from harness.trainer import restore_state, trainable_state
from harness.types import FeatureSpec, ModalitySpec

Capture = pytest.CaptureFixture[str]

RUN = [
    *("method=redeem", "method.preset=official", "supervision=complete"),
    *("dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "backbone.hidden_size=16", "device=cpu"),
]
#: The released names of REDEEM's modules are for text and image; the generated data call them a and b.
MAPS = [
    f"{ours.replace('.text', '.a').replace('.image', '.b')}={theirs}"
    for ours, theirs in RedeemConfig.official_names.items()
    if ours.startswith("generators")
]


def table_of(name: str) -> Mapping[str, str]:
    """`official_names` of a method."""
    config = registry.methods.get(name)
    assert issubclass(config, MethodConfig)
    return config.official_names


def redeem(seed: int) -> dict[str, Tensor]:
    """Tensors of a REDEEM with the initial weights of a seed."""
    (config,) = compose([*RUN, f"train_seed={seed}"])
    return trainable_state(build(config)[1])


def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of the released code."""
    names = {**RedeemConfig.official_names, **dict(text.split("=") for text in MAPS)}
    return {official_name(name, names): value for name, value in state.items()}


def run(*arguments: str) -> list[str]:
    return ["import-checkpoint", *arguments, *RUN, *(part for text in MAPS for part in ("--map", text))]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_released_weights_come_back_bit_identical(suffix: str, tmp_path: Path, capsys: Capture) -> None:
    random = redeem(seed=1)
    theirs = released(random)
    assert {
        "generator_t.router.linear_rem.weight",
        "generator_i.experts.4.2.bias",
        "prompter.linear_out.weight",
    } <= set(theirs)
    assert {"label_enhanced", "classifier.0.weight"} <= set(theirs)
    file = tmp_path / f"released.{suffix}"
    if suffix == "pt":
        # As trainers save it: wrapped, beside a number, from parallel training.
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in theirs.items()}}, file)
    else:
        save_file(theirs, file)
    assert main([*run(str(file)), "-o", "ours.safetensors", "--json"]) == 0
    captured = capsys.readouterr()
    assert {row["status"] for row in json.loads(captured.out)} == {"loaded"}
    assert f"{len(random)} of {len(random)} tensors loaded; wrote ours.safetensors" in captured.err
    written = load_file("ours.safetensors")
    assert set(written) == set(random)
    assert all(torch.equal(written[name], random[name]) for name in random)
    assert not all(torch.equal(value, random[name]) for name, value in redeem(seed=0).items())
    # The file is of the kind that a run leaves behind: it restores a method, and says whose it is.
    (config,) = compose(RUN)
    cell, method = build(config)
    restore_state(method, written, "the file")
    assert all(torch.equal(value, random[name]) for name, value in trainable_state(method).items())
    with safe_open("ours.safetensors", "pt") as opened:
        assert opened.metadata() == {"run_id": cell.run_id}


def test_what_does_not_fit_is_told_and_keeps_its_initial_value(tmp_path: Path, capsys: Capture) -> None:
    theirs = released(redeem(seed=1))
    theirs["label_enhanced"] = torch.zeros(7, 16)
    del theirs["prompter.q_proj.bias"]
    theirs["surprise"] = torch.zeros(2, 3)
    save_file(theirs, tmp_path / "released.safetensors")
    assert main(run("released.safetensors")) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[1] == ["shape", "label_table", "label_enhanced", "4x16,", "in", "the", "file", "7x16"]
    assert rows[2] == ["missing", "prompters.shared.query.bias", "16"]
    assert rows[3] == ["unexpected", "surprise", "2x3"]
    assert {row[0] for row in rows[4:]} == {"loaded"}
    assert "the others are the initial ones of train_seed=0" in err
    written, initial = load_file("model.safetensors"), redeem(seed=0)
    for name in ("label_table", "prompters.shared.query.bias"):
        assert torch.equal(written[name], initial[name])


def test_frozen_tensors_are_left_to_the_backbone() -> None:
    ours = {"backbone.vilt.layernorm.weight": torch.ones(3), "head.layers.0.weight": torch.ones(2, 3)}
    theirs = {"layernorm.weight": torch.zeros(3), "classifier.0.weight": torch.zeros(2, 3)}
    found = match(ours, {"head.layers.0.weight"}, theirs, RedeemConfig.official_names)
    assert [(entry.status, entry.theirs) for entry in found] == [
        ("frozen", "layernorm.weight"),
        ("loaded", "classifier.0.weight"),
    ]


#: Small widths for the presets of the papers; every modality has its own.
TINY = {"redcore": {"width": 16}, "ramer": {"width": 16}, "mmin": {"width": 4}, "if_mmin": {"width": 4}}
WIDTHS = {"video": 6, "audio": 5, "text": 8}
NAMED = [name for name in registry.methods.names() if table_of(name)]


def build_preset(name: str, preset: str, seed: int = 0) -> Method:
    """A method with every trained or computed tensor drawn at random, on data with the released modalities."""
    contract = contract_for(name, options=TINY.get(name, {}))()
    if contract.plugin.uses_backbone:
        config = contract.config(tiny_observed(), preset)
        data = tiny_observed(supervision="complete" if config.needs_complete_supervision() else "observed")
        method = contract.build(data, config=config)
    else:
        spec = replace(tiny_spec(), modalities=tuple(ModalitySpec(key, "features") for key in WIDTHS))
        features = {key: FeatureSpec(6, (width,), width) for key, width in WIDTHS.items()}
        config = contract.config(tiny_observed(), preset)
        implementation: type[Method] = config.implementation()
        method = implementation(config, MethodContext(spec, features, build_backbone=lambda: pytest.fail("none")))
    generator = torch.Generator().manual_seed(seed)
    state = trainable_state(method)
    drawn = {key: torch.randn(value.shape, generator=generator).to(value.dtype) for key, value in state.items()}
    method.load_state_dict(drawn, strict=False)
    return method.eval()


@pytest.mark.parametrize("name", NAMED)
def test_tables_of_names_are_of_tensors_that_exist(name: str) -> None:
    plugin = registry.methods.get(name)
    assert issubclass(plugin, MethodConfig)
    known = {tensor for preset in plugin.presets for tensor in build_preset(name, preset).state_dict()}
    # Tensors of ViLT have no place in the small backbone of the contract tests.
    prefixes = [prefix for prefix in table_of(name) if not prefix.startswith("backbone.vilt.")]
    assert [prefix for prefix in prefixes if not any(f"{tensor}.".startswith(f"{prefix}.") for tensor in known)] == []


@pytest.mark.parametrize("name", NAMED)
def test_cards_print_the_table(name: str) -> None:
    plugin = registry.methods.get(name)
    assert issubclass(plugin, MethodConfig)
    card = plugin.card_path().read_text()
    tops = {theirs.partition(".")[0] for theirs in plugin.official_names.values()}
    assert {top for top in tops if top not in card} == set()
    assert f"import-checkpoint method={name} " in card
    assert f"`{plugin.__name__}.official_names`" in card


def joined(value: Tensor, dim: int, names: Sequence[str]) -> Tensor:
    """Blocks in the order of the data set (video, audio, text), brought into that of `names`."""
    here = list(WIDTHS)
    return torch.cat([value.chunk(3, dim)[here.index(name)] for name in names], dim)


def twice(value: Tensor, names: Sequence[str]) -> Tensor:
    """Columns of what reads specific and then invariant features."""
    return torch.cat([joined(half, 1, names) for half in value.chunk(2, 1)], 1)


def in_released_layout(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as the released code lays it out, stated a second time."""
    audio_text_video = ("audio", "text", "video")
    for key in list(state):
        if name == "ragpt" and key.endswith(".W"):
            state[key] = torch.view_as_complex(state[key])
        elif name == "map" and key == "missing_aware_prompt":
            complete, image_missing, text_missing = state[key]
            state[key] = torch.stack([text_missing, image_missing, complete])
        elif name == "msp" and key == "prompts":
            state["text_prompt"], state["img_prompt"] = state.pop(key)
        elif name in ("mmin", "if_mmin") and key.startswith("netAE"):
            if (".encoder_" in key and key.endswith(".0.weight")) or key.endswith("transition.0.weight"):
                state[key] = joined(state[key], 1, audio_text_video)
            elif (".decoder_" in key and ".4." in key) or ".transition.2." in key:
                state[key] = joined(state[key], 0, audio_text_video)
        elif name == "mmin" and key == "pretrained.netC.module.0.weight":
            state[key] = joined(state[key], 1, audio_text_video)
        elif name == "if_mmin" and key == "pretrained.netC.module.0.weight":
            state[key] = twice(state[key], audio_text_video)
        elif name == "redcore" and key == "netCls.module.0.weight":
            state[key] = joined(state[key], 1, audio_text_video)
        elif name == "redcore" and key.startswith("netxenc_av2l"):
            # The other two decoders read their pair in the order of the data set: video, text and audio, text.
            if (".encoder_" in key and key.endswith(".0.weight")) or key.endswith("transition.0.weight"):
                state[key] = torch.cat(state[key].chunk(2, 1)[::-1], 1)
            elif ".decoder_" in key and ".4." in key:
                state[key] = torch.cat(state[key].chunk(2, 0)[::-1], 0)
        elif name == "ramer" and key == "netC.module.0.weight":
            state[key] = joined(state[key], 1, ("audio", "video", "text"))
    return state


#: Some names that stand in the released code.
RELEASED = {
    "redeem": {"generator_t.router.linear_rem.weight", "prompter.linear_out.bias", "classifier.1.weight"},
    "ragpt": {
        "MMG_i.W",
        "MMG_t.layer_norm.weight",
        "dynamic_prompt.v_proj.weight",
        "label_enhanced",
        "classifier.3.bias",
    },
    "map": {"missing_aware_prompt", "classifier.0.weight"},
    "msp": {"text_prompt", "img_prompt", "classifier.3.weight"},
    "mmin": {"netA.rnn.weight_ih_l0", "netL.conv3.bias", "netL.embd.0.weight", "netAE.encoder_4.2.weight"}
    | {"netAE_cycle.transition.2.bias", "netC.module.3.weight", "netC.fc_out.weight", "pretrained.netV.rnn.bias_hh_l0"},
    "if_mmin": {"netinvariant.netshared.shared_1.weight", "pretrained.netShared.netshared.shared_2.bias"}
    | {"netAE.decoder_0.4.bias", "pretrained.netC.fc_out.bias"},
    "redcore": {"netA.resblocks.2.mlp.c_proj.weight", "netL.muvar.bias", "netV.proj.weight", "netCls_l.fc_out.weight"}
    | {"netxenc_vl2a.encoder_4.0.weight", "netA.resblocks.0.attn.in_proj_weight", "netL.resblocks.1.ln_22.bias"},
    "ramer": {
        "netL.layers.1.self_attn.out_proj.weight",
        "netlinearT.bias",
        "netC1.module.2.weight",
        "netC.fc_out.bias",
    },
}


@pytest.mark.parametrize("name", NAMED)
def test_random_official_weights_come_back_bit_identical(name: str) -> None:
    random = {key: value.clone() for key, value in trainable_state(build_preset(name, "official", seed=1)).items()}
    names = table_of(name)
    theirs = in_released_layout(name, {official_name(key, names): value for key, value in random.items()})
    assert RELEASED[name] <= set(theirs)
    method = build_preset(name, "official")
    arranged = method.official_state(theirs)
    found = match(method.state_dict(), set(random), arranged, names)
    assert {entry.status for entry in found} == {"loaded"}
    assert {entry.ours for entry in found} == set(random)
    assert [entry.ours for entry in found if not torch.equal(arranged[entry.theirs], random[entry.ours])] == []


def test_the_longest_prefix_of_whole_parts_decides() -> None:
    names = {"a": "x", "a.b": "y.z", "root": ""}
    assert official_name("a.w", names) == "x.w"
    assert official_name("a.b.w", names) == "y.z.w"
    assert official_name("a.bc.w", names) == "x.bc.w"
    assert official_name("ab.w", names) == "ab.w"
    assert official_name("a", names) == "x"
    assert official_name("root.w", names) == "w"


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"w": Harmful()}, "reading them runs code"),
        ({"epoch": 3}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
    ],
)
def test_nothing_in_a_file_is_executed(content: object, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(DataError, match=says):
        read_state(tmp_path / "file.pt")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere.pt"], 3, "no such file"),
        (["text.pt"], 3, "neither safetensors nor a torch file"),
        (["text.safetensors"], 3, "neither safetensors nor a torch file"),
        (["other.safetensors"], 2, "nothing was written"),
        (["other.safetensors", "--map", "encodr=enc"], 2, "no tensor below it; its tensors start with"),
        (["other.safetensors", "--map", "encoder"], 2, "write OURS=THEIRS"),
        (["other.safetensors", "-o", "other.safetensors"], 2, "exists; choose another"),
        (["other.safetensors", "second.pt"], 2, "one FILE"),
        (["other.safetensors", "train_seed=0,1"], 2, "these options describe 2"),
        ([], 2, "one FILE"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, says: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "text.safetensors").write_text("text")
    save_file({"nothing.known": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert main(run(*arguments)) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def test_files_of_single_networks_are_joined_by_the_program_in_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = trainable_state(build_preset("mmin", "official", seed=1))
    theirs = {official_name(key, table_of("mmin")): value for key, value in random.items()}
    nets: dict[str, dict[str, Tensor]] = {}
    for key, value in theirs.items():
        folder = "pretraining" if key.startswith("pretrained.") else "main"
        net, _, rest = key.removeprefix("pretrained.net").removeprefix("net").partition(".")
        nets.setdefault(f"{folder}/1/60_net_{net}.pth", {})[rest] = value
    assert {"main/1/60_net_AE_cycle.pth", "pretraining/1/60_net_C.pth"} <= set(nets)
    monkeypatch.chdir(tmp_path)
    for file, tensors in nets.items():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, file)
    plugin = registry.methods.get("mmin")
    assert issubclass(plugin, MethodConfig)
    program = plugin.card_path().read_text().split("```python\n")[1].partition("```")[0]
    exec(compile(program, "card", "exec"), {})
    found = read_state(Path("released.pt"))
    assert set(found) == set(theirs)
    assert all(torch.equal(found[key], value) for key, value in theirs.items())


def cascade(state: Mapping[str, Tensor], prefix: str, joint: Tensor) -> Tensor:
    """A released residual autoencoder: block k reads the input plus the outputs of all blocks before it."""

    def layers(name: str, value: Tensor, between: Callable[[Tensor], Tensor], count: int) -> Tensor:
        for index in range(0, 2 * count, 2):
            value = F.linear(value, state[f"{name}.{index}.weight"], state[f"{name}.{index}.bias"])
            value = between(value) if index < 2 * count - 2 else value
        return value

    total, output = joint, torch.zeros_like(joint)
    for block in range(5):
        total = total + output
        code = layers(f"{prefix}encoder_{block}", total, F.leaky_relu, 3)
        output = layers(f"{prefix}decoder_{block}", code, F.relu, 3)
    return layers(f"{prefix}transition", total + output, F.relu, 2)


def test_reordered_weights_compute_what_the_released_ones_do() -> None:
    random = trainable_state(build_preset("mmin", "official", seed=1))
    # As if these were released: embeddings are joined as audio, text, video.
    theirs = {official_name(key, table_of("mmin")): 0.1 * value.double() for key, value in random.items()}
    method = build_preset("mmin", "official").double()
    arranged = method.official_state(theirs)
    method.load_state_dict({key: arranged[official_name(key, table_of("mmin"))] for key in random}, strict=False)
    embedded = {name: torch.randn(2, 4, dtype=torch.float64) for name in WIDTHS}
    found, _ = method.get_submodule("imagination")(torch.cat([embedded[name] for name in WIDTHS], 1))
    wanted = cascade(theirs, "netAE.", torch.cat([embedded[name] for name in ("audio", "text", "video")], 1))
    torch.testing.assert_close(joined(found, 1, ("audio", "text", "video")), wanted)
    assert not torch.allclose(found, wanted)


def test_prompts_of_patterns_find_their_pattern() -> None:
    prompts = {
        name: torch.full((2, 16, 16), float(number)) for number, name in enumerate(("complete", "img", "text"), 1)
    }
    both = torch.stack([prompts["text"], prompts["img"], prompts["complete"]])
    method = build_preset("map", "official")
    (arranged,) = method.official_state({"missing_aware_prompt": both}).values()
    # Numbers of the patterns: 0 complete, 1 the second modality (image) missing, 2 the first (text) missing.
    assert [float(row.mean()) for row in arranged] == [1.0, 2.0, 3.0]
    original = {f"missing_{name}_prompt": prompts[name] for name in ("text", "img")}
    (stacked,) = method.official_state({**original, "complete_prompt": prompts["complete"]}).values()
    assert torch.equal(stacked, arranged)
    # A run on one type has two patterns; the method here has three, so the table will say that shapes differ.
    assert method.official_state({"missing_aware_prompt": both[1:]})["missing_aware_prompt"].shape[0] == 2


def test_prompts_of_modalities_change_places_between_presets() -> None:
    theirs = {"text_prompt": torch.zeros(2, 16, 16), "img_prompt": torch.ones(2, 16, 16)}
    for preset, means in (("official", [0.0, 1.0]), ("clean", [1.0, 0.0])):
        state = build_preset("msp", preset).official_state(theirs)
        assert set(state) == {"prompts"}
        assert [float(row.mean()) for row in state["prompts"]] == means


def test_the_command_rearranges_before_it_matches(tmp_path: Path, capsys: Capture) -> None:
    names = {"filter": "W", "norm": "layer_norm", "linear": "linear"}
    ours = ["method=ragpt", "dataset=synthetic", "dataset.samples=80", "protocol=any_0.5", "backbone.hidden_size=16"]
    (config,) = compose(ours)
    (filtered,) = build(config)[1].state_dict()["generators.a.filter"].shape[:1]
    torch.save({"MMG.W": torch.full((filtered, 16), 2.0 + 3.0j)}, tmp_path / "released.pt")
    maps = [part for key, value in names.items() for part in ("--map", f"generators.a.{key}=MMG.{value}")]
    assert main(["import-checkpoint", "released.pt", *ours, *maps]) == 0
    capsys.readouterr()
    written = load_file("model.safetensors")["generators.a.filter"]
    assert torch.equal(written, torch.tensor([2.0, 3.0]).expand(filtered, 16, 2))


@pytest.mark.parametrize(
    ("name", "tensors", "says"),
    [
        ("mmin", {"netAE.transition.0.weight": torch.zeros(3, 3)}, "joins the embeddings of audio, text, video"),
        ("map", {"missing_aware_prompt": torch.zeros(3, 2, 16, 16)}, "are for text and image; this data set has a, b"),
        ("msp", {"text_prompt": torch.zeros(2), "img_prompt": torch.zeros(2)}, "are for text and image"),
    ],
)
def test_a_layout_that_means_nothing_here_is_refused(
    name: str, tensors: dict[str, Tensor], says: str, tmp_path: Path, capsys: Capture
) -> None:
    save_file(tensors, tmp_path / "released.safetensors")
    ours = [f"method={name}", "dataset=synthetic", "dataset.samples=80", "backbone.hidden_size=16"]
    assert main(["import-checkpoint", "released.safetensors", *ours]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()
