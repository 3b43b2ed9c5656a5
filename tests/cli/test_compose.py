"""Overrides to configs and back."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest

from harness import registry
from harness.compose import changed_options, compose, compose_as, from_dict, identity_dict, to_dict
from harness.config import NOT_IDENTITY, RunConfig
from harness.errors import UsageError

from .conftest import TOY

pytestmark = pytest.mark.usefixtures("toy")


def one(*overrides: str) -> RunConfig:
    (config,) = compose([*overrides, *TOY])
    return config


def test_instances_are_the_registered_dataclasses() -> None:
    config = one("method=toy")
    assert type(config) is RunConfig
    assert type(config.method) is registry.methods.get("toy")
    assert type(config.dataset) is registry.datasets.get("toy_data")
    assert type(config.backbone) is registry.backbones.get("toy_backbone")


def test_values_take_the_types_of_the_schema() -> None:
    config = one("method=toy", "method.k=3", "method.gain=2", "method.limit=null", "trainer.lr=1e-4", "device=cpu")
    assert (config.method.k, config.method.gain, config.method.limit) == (3, 2.0, None)
    assert isinstance(config.method.gain, float)
    assert config.trainer.lr == 1e-4
    assert config.device == "cpu"


def test_preset_first_then_overrides() -> None:
    config = one("method.k=3", "method.preset=official", "method=toy")
    assert (config.method.preset, config.method.k, config.method.gain) == ("official", 3, 2.0)
    assert changed_options(config.method) == ["k=3"]


def test_the_whole_preset_is_no_change() -> None:
    assert changed_options(one("method=toy", "method.preset=official").method) == []
    assert changed_options(one("method=toy", "method.k=9").method) == ["k=9"]


def test_comma_lists_make_a_grid_with_the_last_axis_fastest() -> None:
    configs = compose(["method=toy,plain", "train_seed=range(0,2)", *TOY])
    names = [(registry.methods.name_of(type(config.method)), config.train_seed) for config in configs]
    assert names == [("toy", 0), ("toy", 1), ("plain", 0), ("plain", 1)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("train:complete,test:toy_0.5", ["train:complete,test:toy_0.5"]),
        ("'train:complete,test:toy_0.5'", ["train:complete,test:toy_0.5"]),
        ("test:toy_0..1", ["train:complete,test:toy_0..1:0.1"]),
        (
            "complete,train:toy_0.5,test:toy_0..1:0.5,test:complete,patterns",
            ["complete", "train:toy_0.5,test:toy_0..1:0.5", "train:complete,test:complete", "patterns"],
        ),
    ],
)
def test_commas_of_protocol_names(text: str, names: list[str]) -> None:
    assert [config.protocol for config in compose(["method=toy", f"protocol={text}", "dataset=toy_data"])] == names


def test_commas_in_brackets_and_quotes_are_values() -> None:
    config = one("method=toy", "method.widths=[1,2,3]", "method.kind='a,b'")
    assert config.method.widths == [1, 2, 3]
    assert config.method.kind == "a,b"


def test_a_grid_over_presets_starts_each_cell_from_its_preset() -> None:
    configs = compose(["method=toy", "method.preset=clean,official", *TOY])
    assert [config.method.k for config in configs] == [5, 9]


def test_a_preset_of_the_run_brings_the_supervision_that_it_declares() -> None:
    whole = ["dataset=hateful_memes", "method=redeem"]
    (short,) = compose([*whole, "preset=paper"])
    (long,) = compose([*whole, "method.preset=paper", "supervision=complete"])
    assert short == long
    assert compose([*whole, "method.preset=paper"])[0].supervision == "observed"  # and is refused when it is resolved
    assert compose([*whole, "preset=paper", "supervision=observed"])[0].supervision == "observed"
    grid = compose([*whole, "preset=clean,paper"])
    assert [(config.method.preset, config.supervision) for config in grid] == [
        ("clean", "observed"),
        ("paper", "complete"),
    ]
    assert one("method=toy", "preset=official").supervision == "observed"


def test_cells_do_not_share_mutable_values() -> None:
    first, second = compose(["method=toy", "train_seed=0,1", *TOY])
    first.method.widths.append(1)
    first.encoders["text"] = "other"
    assert second.method.widths == [8, 8]
    assert second.encoders["text"] == "toy_encoder"


def test_cells_that_differ_in_seeds_are_what_each_is_alone() -> None:
    grid = compose(["method=toy", "method.k=3,4", "train_seed=0,12", "mask_seed=range(0,2)", *TOY])
    alone = [
        one("method=toy", f"method.k={k}", f"train_seed={train}", f"mask_seed={mask}")
        for k in (3, 4)
        for train in (0, 12)
        for mask in (0, 1)
    ]
    assert grid == alone


@pytest.mark.parametrize("key", ["protocol", "supervision", "train_seed"])
@pytest.mark.parametrize(
    "text", ["complete", "toy_0.5", "any_1e5", "12", "007", "true", "Null", "inf", "a b", "x-y", "_a"]
)
def test_options_that_hydra_is_not_asked_for_are_what_it_answers(
    key: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer() -> object:
        try:
            return [getattr(config, key) for config in compose_as(RunConfig, ["method=toy", f"{key}={text}"])]
        except UsageError as error:
            return str(error)

    quick = answer()
    monkeypatch.setattr("harness.compose._PLAIN", {})
    assert answer() == quick


def test_a_required_option_of_another_schema_is_composed() -> None:
    @dataclass
    class Choice:
        protocol: str

    assert compose_as(Choice, ["protocol=toy_0.5"]) == [Choice("toy_0.5")]


def test_protocol_names_become_canonical() -> None:
    (config,) = compose(["method=toy", *TOY[:2], "protocol=toy_0.50", *TOY[3:]])
    assert config.protocol == "toy_0.5"


def test_encoders_may_name_new_modalities() -> None:
    assert one("method=toy", "encoders.sound=toy_encoder").encoders["sound"] == "toy_encoder"
    assert one("method=toy", "+encoders.sound=toy_encoder").encoders["sound"] == "toy_encoder"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"name a method: method=NAME\. Available: .*toy"),
        (["method=toi"], r"unknown method 'toi'\. Did you mean 'toy'\? Available: .*plain"),
        (
            ["method=toy", "method.kk=3"],
            r"method 'toy' has no option 'kk'\. Did you mean method\.k\?.* Options: .*gain",
        ),
        (["method=plain", "method.k=3"], r"unknown key 'method\.k': method 'plain' has no option 'k'"),
        (["method=toy", "train_sed=3"], r"unknown key 'train_sed'.*Did you mean train_seed"),
        (["method=toy", "trainer.epoch=3"], r"trainer has no option 'epoch'.*trainer\.epochs"),
        (["method=toy", "trainer.epochs.x=3"], r"trainer\.epochs has no options below it"),
        (["method=toy", "trainer={epochz: 3}"], r"epochz"),
        (["method=toy", "method.k=abc"], r"method\.k=abc: Value 'abc' of type 'str' could not be converted to Integer"),
        (["method=toy", "method.k=1.5"], r"method\.k=1\.5: .* could not be converted to Integer"),
        (["method=toy", "train_seed=x"], r"train_seed=x: .*Integer"),
        (["method=toy", "trainer=3"], r"trainer=3: "),
        (["method=toy", "device=null"], r"device=null: .*not Optional"),
        (["method=toy", "method.k=0"], r"method\.k=0 must be >= 1"),
        (["method=toy", "train_seed=-1"], r"train_seed=-1 must be >= 0"),
        (["method=toy", "supervision=some"], r"supervision='some' is not one of observed, complete"),
        (["method=toy", "method.preset=offical"], r"no preset 'offical'; presets: clean, official"),
        (["method=toy", "preset=offical"], r"no preset 'offical'; presets: clean, official"),
        (["method=toy", "preset=clean", "method.preset=official"], r"method\.preset is given twice"),
        (["method=toy", "+method.z=1"], r"new keys cannot be added; write method\.z=1"),
        (["method=toy", "++train_seed=1"], r"new keys cannot be added; write train_seed=1"),
        (["method=toy", "~train_seed"], r"cannot be deleted"),
        (["method=toy", "hydra.run.dir=x"], r"unknown key 'hydra\.run\.dir'"),
        (["method=toy", "hydra/launcher=x"], r"packages and nested groups"),
        (["method@other=toy"], r"packages and nested groups"),
        (["method=toy", "method=plain"], r"method is given twice"),
        (["method=toy", "encoders={text:choice(a,b)}"], r"a grid stands for a whole value; write out each value"),
        (["method=toy", "encoders={text:{a:range(1,2)}},b"], r"a grid stands for a whole value"),
        (["method=toy", f"trainer.lr={10**400}"], r"trainer\.lr=10000.*: int too large to convert to float"),
        (["method=toy", "trainer.lr=nan"], r"trainer\.lr=nan must be >= 0"),
        (["method=toy", "trainer.lr=inf"], r"trainer\.lr=inf must be >= 0\.0 and finite"),
        (["method=toy", "trainer.warmup=nan"], r"trainer\.warmup=nan must be between 0\.0 and 1\.0"),
        (["method=toy", "encoders.sound=toy_encodr"], r"unknown encoder 'toy_encodr'\. Did you mean 'toy_encoder'"),
        (["method=toy", "trainer.lr=interval(0,1)"], r"a grid needs its values"),
        (["method=glob(*)"], r"a grid needs its values"),
        (["toy"], r"cannot read 'toy': write key=value"),
        (["method=toy", "method.widths=[1"], r"cannot read 'method\.widths=\[1'"),
    ],
)
def test_bad_overrides_are_one_clear_line(overrides: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose([*overrides, *TOY])
    assert "\n" not in str(caught.value)
    assert re.search(says, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("group", "says"),
    [
        ("dataset=openmojy", r"unknown dataset 'openmojy'\. Did you mean 'openmoji'"),
        ("backbone=fusio", r"unknown backbone 'fusio'\. Did you mean 'fusion'"),
        ("protocol=toy_1.5", r"rate 1\.5 lies outside 0 to 1"),
        ("protocol=toy_half", r"'half' is not a rate"),
        ("protocol=nothing", r"unknown protocol 'nothing'.*Available: .*toy_0\.5"),
        ("protocol=3", r"protocol '3'"),
    ],
)
def test_bad_names_of_groups(group: str, says: str) -> None:
    rest = [text for text in TOY if not text.startswith(group.partition("=")[0])]
    with pytest.raises(UsageError, match=says):
        compose(["method=toy", group, *rest])


def test_round_trip_through_json() -> None:
    config = one(
        "method=toy", "method.preset=official", "method.widths=[3]", "encoders.sound=toy_encoder", "device=cpu"
    )
    data = json.loads(json.dumps(to_dict(config)))
    assert data["method"]["name"] == "toy"
    assert data["dataset"] == {"name": "toy_data", "samples": 20}
    assert from_dict(data) == config


def test_an_option_called_name_does_not_hide_the_plugin() -> None:
    """`folder`, which calls the data set of a user."""
    (config,) = compose(["method=majority", "dataset=folder", "dataset.name=shop", "dataset.modalities={photo: image}"])
    data = json.loads(json.dumps(to_dict(config)))
    assert (data["dataset"]["name"], data["dataset"]["name_"]) == ("folder", "shop")
    assert from_dict(data) == config


def test_encoders_of_a_record_replace_the_defaults() -> None:
    data = to_dict(one("method=toy"))
    data["encoders"] = {"text": "toy_encoder"}
    assert from_dict(data).encoders == {"text": "toy_encoder"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": {"name": "gone"}}, "unknown method 'gone'"),
        ({"method": {"name": "toy", "removed": 1}}, "removed"),
        ({"method": {"name": "toy", "k": "many"}}, "does not fit this version"),
        ({"trainer": {"lr": 10**400}}, "int too large to convert to float"),
        ({"train_seed": -1}, "train_seed=-1"),
        ({"surprise": 1}, "surprise"),
        ({"dataset": {}}, "lacks 'name'"),
    ],
)
def test_records_that_do_not_fit(change: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        from_dict(to_dict(one("method=toy")) | change)


def test_identity_leaves_out_what_changes_no_result() -> None:
    config = one("method=toy")
    moved = one("method=toy", "paths.home=/elsewhere", "device=cpu", "overwrite=always", "tracking.uri=sqlite:///x.db")
    assert identity_dict(moved) == identity_dict(config)
    assert not set(identity_dict(config)) & set(NOT_IDENTITY)
    assert identity_dict(one("method=toy", "train_seed=1")) != identity_dict(config)


def test_an_option_with_a_name_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="has 325 characters; names have at most 200"):
        compose(["method=majority", f"+encoder_options.minilm.{'k' * 302}=1"])
