"""Contract of methods: what every plugin must keep, on every task kind and for two to four modalities.

Derive a test class per method and set `method`; pytest collects the rest:

    class TestMine(MethodContract):
        method = "mine"
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import registry
from harness.audit import poisoned
from harness.backbone import Backbone
from harness.config import BackboneConfig, MethodConfig, RetrievalConfig
from harness.inspector import VOTE, inspector_of
from harness.masking import ObservedDataset
from harness.method import Method, MethodContext, class_prior_logits, task_loss
from harness.seeding import seed_everything
from harness.testing.data import TASK_KINDS, TinyData, one_pattern, tiny_observed
from harness.testing.stand_in import stand_in
from harness.trainer import restore_state, trainable_state
from harness.types import Batch, StepOutput, TaskKind, TaskSpec, iterate_patterns, pattern_name

# One modality count per task kind in the fast suite; the whole grid is slow.
_FAST: Mapping[TaskKind, int] = {"binary": 2, "multiclass": 3, "multilabel": 4, "regression": 2}

#: Every task kind with 2, 3 and 4 modalities.
everywhere = pytest.mark.parametrize(
    ("task", "modalities"),
    [
        pytest.param(task, count, marks=() if _FAST[task] == count else pytest.mark.slow, id=f"{task}-{count}")
        for task in TASK_KINDS
        for count in (2, 3, 4)
    ],
)
#: Every task kind with 2 modalities, for the tests that train.
every_task = pytest.mark.parametrize("task", TASK_KINDS)


class MethodContract:
    """What every method keeps; derive a test class and set `method`.

    Attributes:
        method: Registered name.
        options: Option values that the tests use in place of the defaults.
        fits_incomplete: False for a method that by design answers some incomplete samples without reading them, and
            so cannot over-fit those.
        overfit_steps: Optimiser steps in which 32 samples must be learned.
    """

    method: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    fits_incomplete: ClassVar[bool] = True
    overfit_steps: ClassVar[int] = 150

    # -- building ----------------------------------------------------------------------------------------------------

    @property
    def plugin(self) -> type[MethodConfig]:
        """The config class under test."""
        found = registry.methods.get(self.method)
        assert issubclass(found, MethodConfig)
        return found

    def config(self, data: TinyData, preset: str = "clean") -> MethodConfig:
        """The method's options for a data set: a preset, `options`, and the first modality for `modality`."""
        config = self.plugin.from_preset(preset)
        names = {field.name for field in fields(config)}
        first = {"modality": data.spec.modality_names[0]} if "modality" in names else {}
        return replace(config, preset=preset, **{**first, **self.options})

    def build(self, data: TinyData, *, seed: int = 0, config: MethodConfig | None = None) -> Method:
        """A prepared method on a small fusion backbone (width 16, 2 blocks), as the runner builds it."""
        config = config or self.config(data)
        config.validate()
        config.validate_for(data.spec.modality_names)
        backbone = registry.backbones.get("fusion")
        specs = data.feature_specs

        def build_backbone() -> Backbone:
            assert config.uses_backbone, "the config says uses_backbone = False, but the method builds one"
            built.append(backbone.implementation()(_backbone_options(backbone), specs))
            return built[-1]

        built: list[Backbone] = []
        context = MethodContext(
            dataset=data.spec,
            features=specs,
            build_backbone=build_backbone,
            supervision=data.train.supervision,
            retrieval=RetrievalConfig("torch"),
            train_seed=seed,
        )
        seed_everything(seed, "init")
        method: Method = config.implementation()(config, context)
        assert bool(built) == config.uses_backbone, "the config says that the method uses a backbone; it builds none"
        seed_everything(seed, "prepare")
        if config.uses_valid():
            method.open_valid(data.valid)
        method.prepare(data.train)
        return method

    def build_trained(self, data: TinyData, *, seed: int = 0) -> Method:
        """A method after a few steps, so that layers that start at zero have left it."""
        method = self.build(data, seed=seed)
        train(method, data.train, steps=3, seed=seed)
        return method

    # -- documentation -----------------------------------------------------------------------------------------------

    def test_documented(self) -> None:
        """Summary, citation, card and a line for every option are there."""
        plugin = self.plugin
        assert plugin.summary, "set `summary`"
        assert "\n" not in plugin.summary, "`summary` is one line"
        assert len(plugin.citation) > 10, "set `citation`, or say in it why there is nothing to cite"
        path = plugin.card_path()
        assert path.is_file(), f"write the card {path}"
        card = path.read_text()
        assert card.startswith("# "), "the card starts with a title"
        assert re.search(r"\bCite\b", card), "the card says whom to cite, or why nobody"
        assert "arameters" in card, "the card says how many parameters are trained"
        documents = "\n".join(inspect.getdoc(kind) or "" for kind in plugin.__mro__[:-1])
        for field in fields(plugin):
            assert re.search(rf"^\s+{field.name}: \S", documents, re.MULTILINE), f"document option {field.name!r}"

    def test_defaults_are_the_clean_preset(self) -> None:
        """There is a preset `clean`, and it is what the defaults are."""
        assert "clean" in self.plugin.presets
        assert self.plugin.from_preset("clean") == self.plugin()

    # -- training ----------------------------------------------------------------------------------------------------

    @everywhere
    def test_steps_are_finite(self, task: TaskKind, modalities: int) -> None:
        """Builds from defaults; loss, terms and logits are finite and of the right shape."""
        data = tiny_observed(task, modalities)
        method = self.build(data)
        method.train()
        output = method(whole(data.train))
        assert isinstance(output, StepOutput)
        assert output.loss.shape == ()
        assert torch.isfinite(output.loss)
        assert all(torch.isfinite(term) for term in output.terms.values())
        logits = predict(method, data.test)
        assert logits.shape == (len(data.test), data.spec.task.num_outputs)
        assert torch.isfinite(logits).all()

    @everywhere
    def test_every_parameter_learns(self, task: TaskKind, modalities: int) -> None:
        """Every trainable tensor gets a gradient in some stage; a method that does not train has none."""
        data = tiny_observed(task, modalities)
        method = self.build(data)
        trainable = {name for name, parameter in method.named_parameters() if parameter.requires_grad}
        if not self.plugin.trains:
            assert not trainable
            return
        assert trainable
        learned: set[str] = set()
        grouped: set[int] = set()
        for _ in training(method, data.train, steps=4):
            trained = [id(parameter) for _, parameter in method.trained()]
            groups = [id(parameter) for group in method.parameter_groups(0.1) for parameter in group["params"]]
            assert sorted(groups) == sorted(trained), f"parameter_groups differ from trained() in {method.stage}"
            grouped.update(groups)
            learned |= {
                name
                for name, parameter in method.named_parameters()
                if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            }
        assert trainable == learned, f"never a gradient: {sorted(trainable - learned)}"
        assert grouped == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}

    @everywhere
    def test_declared_loss_terms_are_alive(self, task: TaskKind, modalities: int) -> None:
        """Each declared term is non-zero in a step of some stage; no other term is returned."""
        data = tiny_observed(task, modalities)
        method = self.build(data)
        declared = set(self.config(data).loss_terms())
        assert bool(declared) == self.plugin.trains, "a method that trains declares its loss terms"
        alive: set[str] = set()
        for output in training(method, data.train, steps=4):
            assert set(output.terms) <= declared
            alive |= {name for name, value in output.terms.items() if float(value.detach()) != 0.0}
        assert alive == declared, f"always zero: {sorted(declared - alive)}"

    @everywhere
    def test_every_pattern(self, task: TaskKind, modalities: int) -> None:
        """Every non-empty pattern, also when a modality is absent from a whole batch, in training and prediction."""
        data = tiny_observed(task, modalities)
        method = self.build(data)
        for pattern in iterate_patterns(data.spec.modality_names):
            shown = pattern_name(pattern, data.spec.modality_names)
            for output in training(method, one_pattern(data.train, data.features, pattern), steps=1):
                assert torch.isfinite(output.loss), shown
            assert torch.isfinite(predict(method, one_pattern(data.test, data.features, pattern))).all(), shown
        assert all(torch.isfinite(parameter).all() for parameter in method.parameters())

    @every_task
    def test_single_tokens(self, task: TaskKind) -> None:
        """Modalities of one token, as vectors and tables are, work too."""
        data = tiny_observed(task, 3, length=1)
        method = self.build(data)
        for output in training(method, data.train, steps=2):
            assert torch.isfinite(output.loss)
        assert torch.isfinite(predict(method, data.test)).all()

    @every_task
    def test_mixed_precision(self, task: TaskKind) -> None:
        """Training and prediction run under bfloat16 autocast."""
        data = tiny_observed(task, 2)
        method = self.build(data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for output in training(method, data.train, steps=1):
                assert torch.isfinite(output.loss)
            assert torch.isfinite(predict(method, data.test)).all()

    @every_task
    def test_overfits(self, task: TaskKind) -> None:
        """32 samples are learned: their loss falls below a quarter of the prior's."""
        if not self.plugin.trains:
            return
        data = tiny_observed(task, 2, train=32, missing=0.5 if self.fits_incomplete else 0.0)
        method = self.build(data)
        goal = 0.25 * prior_loss(data.spec.task, data.train)
        loss = float("inf")
        last = method.stages()[-1].name
        steps = 0
        for _ in training(method, data.train, steps=self.overfit_steps):
            steps = steps + 1 if method.stage == last else 0
            if steps and steps % 10 == 0:
                loss = loss_of(method, data.train)
                method.train()
                if loss < goal:
                    break
        assert loss < goal, f"after {self.overfit_steps} steps the loss is {loss:.3f}, not below {goal:.3f}"

    @every_task
    def test_shuffled_labels_fall_to_chance(self, task: TaskKind) -> None:
        """With labels that have nothing to do with the features, held-out samples are not predicted."""
        data = tiny_observed(task, 2, test=300, shuffle_labels=True)
        method = self.build(data)
        train(method, data.train, steps=20)
        found = skill(data.spec.task, predict(method, data.test), data.test.labels)
        assert found < 0.25, f"held-out correlation {found:.2f} with labels that cannot be known: there is a leak"

    # -- what a method may see -----------------------------------------------------------------------------------------

    @everywhere
    def test_hidden_values_cannot_be_seen(self, task: TaskKind, modalities: int) -> None:
        """With every hidden value replaced by NaN, losses and predictions stay bit-identical, `prepare` included."""
        data = tiny_observed(task, modalities)
        outcomes = []
        for variant in (0, 1):
            shown = replace(
                data, views={split: poisoned(view, data.features)[variant] for split, view in data.views.items()}
            )
            method = self.build(shown)
            losses = [output.loss.detach() for output in training(method, shown.train, steps=2)]
            outcomes.append([*losses, predict(method, shown.valid), predict(method, shown.test)])
        for plain, poison in zip(*outcomes, strict=True):
            assert torch.equal(plain, poison), "the method sees hidden values"

    @everywhere
    def test_labels_are_not_read_when_predicting(self, task: TaskKind, modalities: int) -> None:
        """Other labels in the batch, same logits."""
        data = tiny_observed(task, modalities)
        method = self.build_trained(data)
        batch = whole(data.test)
        other = replace(
            batch, labels=batch.labels.roll(1, 0) if task == "regression" else 1 - batch.labels.clamp(max=1)
        )
        assert not torch.equal(batch.labels, other.labels)
        assert torch.equal(logits_of(method, batch), logits_of(method, other))

    @everywhere
    def test_companions_do_not_matter(self, task: TaskKind, modalities: int) -> None:
        """A sample's logits are the same alone, in a batch, and in a batch of another order."""
        data = tiny_observed(task, modalities)
        method = self.build_trained(data)
        together = predict(method, data.test)
        order = np.arange(len(data.test))[::-1].copy()
        turned = logits_of(method, data.test.batch(order))[torch.from_numpy(order)]
        alone = torch.cat([logits_of(method, data.test.batch([row])) for row in range(8)])
        for other in (turned, alone):
            torch.testing.assert_close(other, together[: len(other)], atol=1e-4, rtol=1e-4)
            if task in ("binary", "multiclass"):
                assert torch.equal(other.argmax(1), together[: len(other)].argmax(1))

    @everywhere
    def test_complete_supervision(self, task: TaskKind, modalities: int) -> None:
        """Trains and predicts when training batches carry the true values of simulated-missing modalities."""
        data = tiny_observed(task, modalities, supervision="complete")
        assert whole(data.train).full is not None
        method = self.build(data)
        for output in training(method, data.train, steps=2):
            assert torch.isfinite(output.loss)
        assert torch.isfinite(predict(method, data.test)).all()

    def test_every_preset(self) -> None:
        """Every preset trains and predicts under the supervision that it asks for."""
        for preset in self.plugin.presets:
            config = self.config(tiny_observed(), preset)
            data = tiny_observed(supervision="complete" if config.needs_complete_supervision() else "observed")
            method = self.build(data, config=config)
            returned: set[str] = set()
            for output in training(method, data.train, steps=2):
                assert torch.isfinite(output.loss), preset
                returned |= set(output.terms)
            assert returned == set(config.loss_terms()), preset
            assert torch.isfinite(predict(method, data.test)).all(), preset

    # -- reproducibility -----------------------------------------------------------------------------------------------

    @everywhere
    def test_seeds_decide(self, task: TaskKind, modalities: int) -> None:
        """Same seed, same bits; another seed, another network."""
        data = tiny_observed(task, modalities)
        first, again = (predict(self.build_trained(data), data.test) for _ in range(2))
        assert torch.equal(first, again)
        if self.plugin.trains:
            assert not torch.equal(first, predict(self.build_trained(data, seed=1), data.test))

    @everywhere
    def test_state_round_trip(self, task: TaskKind, modalities: int) -> None:
        """What a checkpoint keeps, loaded into a fresh method, gives the same predictions."""
        data = tiny_observed(task, modalities)
        method = self.build_trained(data)
        fresh = self.build(data, seed=1)
        restore_state(fresh, trainable_state(method), "the contract test")
        # Draws outside the trainer depend on the seed of the context, so both must be asked with the same one.
        object.__setattr__(fresh.context, "train_seed", 0)
        assert torch.equal(predict(fresh, data.test), predict(method, data.test))

    # -- devices -----------------------------------------------------------------------------------------------------

    @everywhere
    def test_another_device(self, task: TaskKind, modalities: int) -> None:
        """Trained and asked on another device, it computes what it does on the CPU, and leaves no tensor behind there.

        The device is `harness.testing.stand_in`: it shows what a GPU would refuse, on a machine without one.
        """
        try:
            device = stand_in()
        except NotImplementedError as error:
            pytest.skip(str(error))
        data = tiny_observed(task, modalities)
        here, there = self.build_trained(data), self.build(data).to(device)
        train(there, data.train, steps=3, device=device)
        found = predict(there, data.test, device)
        assert found.device == device, "logits lie where the batch does"
        assert torch.allclose(found.cpu(), predict(here, data.test), rtol=1e-4, atol=1e-5)

    # -- inspection --------------------------------------------------------------------------------------------------

    @everywhere
    def test_inspected(self, task: TaskKind, modalities: int) -> None:
        """What an inspector recovers can be compared; whom it asked are training samples; asking changes nothing."""
        data = tiny_observed(task, modalities)
        method = self.build(data)
        if inspector_of(method) is None:
            pytest.skip("nothing to inspect: the method neither reconstructs nor retrieves")
        train(method, data.train, steps=3)
        before = predict(method, data.test)
        inspector = inspector_of(method)
        assert inspector is not None
        batch = whole(data.test)
        complete = whole(one_pattern(data.test, data.features, [True] * modalities))
        with torch.no_grad():
            recovered, embedded = inspector.recovered(batch), inspector.embedded(complete)
            asked = inspector.consulted(batch)
        assert recovered or asked, "an inspector shows something"
        assert set(recovered) <= set(embedded)
        for name, found in recovered.items():
            assert found.shape == embedded[name].shape
            assert found.ndim == 2
            assert torch.isfinite(found[~batch.present[:, method.modalities.index(name)]]).all()
            assert torch.isfinite(embedded[name]).all()
        for use, consulted in asked.items():
            wanted = torch.ones(len(batch), dtype=torch.bool)
            if use != VOTE:
                wanted = ~batch.present[:, method.modalities.index(use)]
            there = (consulted.index >= 0) & wanted.unsqueeze(1)
            assert set(np.array(consulted.ids)[consulted.index[there].numpy()]) <= set(data.train.ids)
            shares = (consulted.weight * there).sum(1)
            assert torch.allclose(shares, there.any(1).to(shares.dtype), atol=1e-5)
        assert torch.equal(predict(method, data.test), before)

    def test_nothing_on_stdout(self) -> None:
        """A method prints nothing: stdout belongs to the command line."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            data = tiny_observed()
            predict(self.build_trained(data), data.test)
        assert not printed.getvalue()


def contract_for(name: str, **attributes: Any) -> type[MethodContract]:
    """A test class for one registered method.

    Args:
        name: Registered name.
        attributes: Class attributes of `MethodContract` to set.
    """
    return type(f"Test_{name}", (MethodContract,), {"method": name, **attributes})


def whole(view: ObservedDataset) -> Batch:
    """All samples of a view as one batch."""
    return view.batch(np.arange(len(view)))


def training(
    method: Method, view: ObservedDataset, *, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Iterator[StepOutput]:
    """Runs optimiser steps of every stage on whole-split batches and yields after each; gradients are still there.

    A method without trainable parameters is only asked for its loss.  The method lies on `device` already.
    """
    batch = whole(view).to(device)
    for number, stage in enumerate(method.stages()):
        seed_everything(seed, "contract", number)
        method.stage = stage.name
        method.zero_grad(set_to_none=True)
        method.start_stage(stage, view)
        method.train()
        groups = [group for group in method.parameter_groups(1e-4) if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=1e-2) if groups else None
        for _ in range(steps):
            output: StepOutput = method(batch)
            if optimizer is not None:
                optimizer.zero_grad()
                output.loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            yield output


def train(
    method: Method, view: ObservedDataset, *, steps: int, seed: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Runs `training` to its end."""
    for _ in training(method, view, steps=steps, seed=seed, device=device):
        pass


@torch.no_grad()
def logits_of(method: Method, batch: Batch) -> Tensor:
    """Logits of a batch in eval mode, under a fixed seed."""
    seed_everything(0, "predict")
    logits: Tensor = method.eval()(replace(batch, full=None))
    return logits.float()


def predict(method: Method, view: ObservedDataset, device: torch.device | str = "cpu") -> Tensor:
    """Logits `[n, C]` of a view, from a method that lies on `device`."""
    return logits_of(method, whole(view).to(device))


def loss_of(method: Method, view: ObservedDataset) -> float:
    """Task loss of a view in eval mode."""
    return float(task_loss(method.task, predict(method, view), torch.from_numpy(view.labels)))


def prior_loss(task: TaskSpec, view: ObservedDataset) -> float:
    """Task loss of the base rates of a view's own labels."""
    labels = torch.from_numpy(view.labels)
    return float(task_loss(task, class_prior_logits(task, labels).expand(len(view), -1), labels))


def skill(task: TaskSpec, logits: Tensor, labels: Any) -> float:
    """Mean over outputs of the correlation between logits and labels; 0 for constant logits."""
    target = np.eye(task.num_outputs)[labels] if task.kind in ("binary", "multiclass") else labels
    scores = logits.softmax(1) if task.kind in ("binary", "multiclass") else logits
    found = []
    for column in range(task.num_outputs):
        values = scores[:, column].double().numpy()
        constant = np.ptp(values) < 1e-9
        found.append(0.0 if constant else float(np.corrcoef(values, target[:, column])[0, 1]))
    return float(np.mean(found))


def _backbone_options(backbone: Any) -> BackboneConfig:
    config = backbone(hidden_size=16, num_blocks=2, num_heads=2)
    assert isinstance(config, BackboneConfig)
    return config
