"""Audits of trained methods: each passes on an honest method and catches one that leaks on purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import audit, registry
from harness.config import MethodConfig, RetrievalConfig, TrainerConfig
from harness.masking import MaskTable, ObservedDataset
from harness.method import Method, MethodContext, Stage
from harness.protocol import parse_protocol
from harness.record import AuditResult
from harness.retrieval import MemoryBank
from harness.testing.data import TinyData, tiny_observed, with_presence
from harness.trainer import FitResult, Trainer
from harness.types import SPLITS, Batch, DataTable, Predictions, StepOutput

Found = dict[str, AuditResult]


def no_backbone() -> Any:
    raise AssertionError("not used")


class Honest(Method):
    """Linear layers on pooled vectors of what is observed."""

    def __init__(self, data: TinyData) -> None:
        super().__init__(MethodConfig(), MethodContext(data.spec, data.feature_specs, no_backbone))
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleDict(
            {name: torch.nn.Linear(spec.pooled_dim, self.task.num_outputs) for name, spec in data.feature_specs.items()}
        )
        self.memory: dict[str, MemoryBank] = {}

    def predict_step(self, batch: Batch) -> Tensor:
        logits = torch.zeros(len(batch), self.task.num_outputs)
        for name, part in batch.inputs.items():
            logits = logits.index_add(0, part.rows, self.layers[name](part.pooled))
        return logits

    def training_step(self, batch: Batch) -> StepOutput:
        loss = self.task_loss(self.predict_step(batch), batch.labels)
        return StepOutput(loss, {"task": loss})

    def banks(self) -> dict[str, MemoryBank]:
        return self.memory


def all_values(view: ObservedDataset) -> Tensor:
    """What no method should touch: the arrays behind a view, hidden values and other splits included."""
    return torch.from_numpy(np.array(view.features["image"].pooled))


class PeeksAtTest(Honest):
    """Reads test values that the protocol hides."""

    view: ObservedDataset

    def predict_step(self, batch: Batch) -> Tensor:
        rows = self.view.rows[[self.view.ids.index(name) for name in batch.ids]]
        logits: Tensor = self.layers["image"](all_values(self.view)[rows].nan_to_num(9.0))
        return logits

    def training_step(self, batch: Batch) -> StepOutput:
        loss = self.task_loss(Honest.predict_step(self, batch), batch.labels)
        return StepOutput(loss, {"task": loss})


class PeeksInPrepare(Honest):
    """Takes a statistic over every training value, hidden ones too."""

    def prepare(self, train: ObservedDataset) -> None:
        self.register_buffer("mean", all_values(train)[torch.from_numpy(train.rows)].mean(0))

    def predict_step(self, batch: Batch) -> Tensor:
        return super().predict_step(batch) + self.mean.sum()


class NormalisesOverEverything(PeeksInPrepare):
    """Takes a statistic over all splits (the MSP-IMPROV features of MMIN's release)."""

    def prepare(self, train: ObservedDataset) -> None:
        others = np.setdiff1d(np.arange(len(all_values(train))), train.rows)
        self.register_buffer("mean", all_values(train)[torch.from_numpy(others)].mean(0))


class NormalisesOverTraining(PeeksInPrepare):
    """Takes the statistic that it may: over the observed values of the training split."""

    def prepare(self, train: ObservedDataset) -> None:
        self.register_buffer("mean", train.batch(np.arange(len(train))).inputs["image"].pooled.mean(0))


class TeacherOfHiddenValues(Honest):
    """A second stage whose teacher was shown complete samples, under supervision=observed."""

    def stages(self) -> list[Stage]:
        return [Stage("pretrain"), Stage("main")]

    def start_stage(self, stage: Stage, train: ObservedDataset) -> None:
        if stage.name == "main":
            self.teacher = all_values(train)[torch.from_numpy(train.rows)]

    def training_step(self, batch: Batch) -> StepOutput:
        output = super().training_step(batch)
        if self.stage == "main":
            output.terms["teacher"] = self.teacher.square().mean()
        return output


class ReadsLabels(Honest):
    def predict_step(self, batch: Batch) -> Tensor:
        return super().predict_step(batch) + torch.nn.functional.one_hot(batch.labels, self.task.num_outputs)


class CentresOnTheBatch(Honest):
    """Uses the other test samples of a batch, as a normalisation layer left in train mode does."""

    def predict_step(self, batch: Batch) -> Tensor:
        logits = super().predict_step(batch)
        return logits - logits.mean(0)


class NeverSleeps(Honest):
    """Dropout that goes on in eval mode."""

    def __init__(self, data: TinyData) -> None:
        super().__init__(data)
        self.dropout = torch.nn.Dropout(0.5)

    def predict_step(self, batch: Batch) -> Tensor:
        self.dropout.train()
        logits: Tensor = self.dropout(super().predict_step(batch))
        return logits

    def train(self, mode: bool = True) -> NeverSleeps:
        super().train(mode)
        if hasattr(self, "dropout"):
            self.dropout.train()
        return self


class SamplesItsCode(Honest):
    """Draws at prediction (RedCore's released evaluation)."""

    def predict_step(self, batch: Batch) -> Tensor:
        logits = super().predict_step(batch)
        return logits + 0.1 * torch.randn_like(logits)


class AttendsToPadding(Honest):
    """Averages all tokens, padding too (an attention mask that has no effect)."""

    def predict_step(self, batch: Batch) -> Tensor:
        logits = super().predict_step(batch)
        part = batch.inputs["text"]
        return logits.index_add(0, part.rows, part.tokens.sum(dim=(1, 2)).unsqueeze(1).expand(-1, logits.shape[1]))


class MasksPadding(Honest):
    def predict_step(self, batch: Batch) -> Tensor:
        logits = super().predict_step(batch)
        part = batch.inputs["text"]
        real = (part.tokens * part.mask.unsqueeze(2)).sum(dim=(1, 2)).unsqueeze(1)
        return logits.index_add(0, part.rows, real.expand(-1, logits.shape[1]))


class ReadsZeros(Honest):
    """Sets padding to zero and then averages over it, as REDEEM's `attention_mask=none` does on a fusion backbone."""

    def predict_step(self, batch: Batch) -> Tensor:
        logits = super().predict_step(batch)
        part = batch.inputs["text"]
        mean = (part.tokens * part.mask.unsqueeze(2)).mean(dim=1).sum(dim=1, keepdim=True)
        return logits.index_add(0, part.rows, mean.expand(-1, logits.shape[1]))


class ReadsZerosUpToALength(ReadsZeros):
    """The same with a table of positions, so that nothing longer than the data can be asked."""

    def predict_step(self, batch: Batch) -> Tensor:
        if batch.inputs["text"].tokens.shape[1] > self.context.features["text"].length:
            raise IndexError("no such position")
        return super().predict_step(batch)


class ReadsZerosBesideMemories(ReadsZerosUpToALength):
    """The same where a missing text is replaced by one of the memory, which has the data's length."""

    def predict_step(self, batch: Batch) -> Tensor:
        if batch.inputs["text"].tokens.shape[1] < self.context.features["text"].length and not batch.present.all():
            raise RuntimeError("sizes do not match")
        return super().predict_step(batch)


class TakesOneLength(Honest):
    """A linear layer over the whole sequence, which knows where padding is by its place."""

    def __init__(self, data: TinyData) -> None:
        super().__init__(data)
        spec = data.feature_specs["text"]
        self.flat = torch.nn.Linear(spec.length * spec.token_shape[0], self.task.num_outputs)

    def predict_step(self, batch: Batch) -> Tensor:
        part = batch.inputs["text"]
        logits = super().predict_step(batch)
        return logits.index_add(0, part.rows, self.flat((part.tokens * part.mask.unsqueeze(2)).flatten(1)))


@pytest.fixture
def data() -> TinyData:
    return tiny_observed()


def table_of(data: TinyData) -> DataTable:
    ids, splits, start = [], {}, 0
    for split in SPLITS:
        view = data.views[split]
        ids.extend(view.ids)
        splits[split] = np.arange(start, start + len(view))
        start += len(view)
    labels = np.concatenate([data.views[split].labels for split in SPLITS])
    return DataTable(data.spec, tuple(ids), splits, labels, np.ones((start, len(data.features)), np.bool_), {})


def masks_of(data: TinyData, tests: dict[str, ObservedDataset]) -> MaskTable:
    """The table of the presence that the views have."""
    drawn = MaskTable.build(parse_protocol("complete"), table_of(data), 0)
    present = {split: data.views[split].present for split in SPLITS}
    if len(tests) == 1:
        return replace(drawn, present=present)
    del present["test"]
    return replace(drawn, present=present, conditions={name: view.present for name, view in tests.items()})


def audited(
    data: TinyData,
    kind: Callable[[TinyData], Method] = Honest,
    *,
    tests: dict[str, ObservedDataset] | None = None,
    setup: Callable[[Method], None] = lambda method: None,
    **changes: Any,
) -> Found:
    """Results by name of the audits of a toy; `setup` changes the trained one only, `changes` go into the subject."""
    trainer = Trainer(TrainerConfig(eval_batch_size=16), device="cpu")
    tests = tests or {"test": data.test}
    method = kind(data)
    method.prepare(data.train)
    method.start_stage(method.stages()[-1], data.train)
    setup(method)

    def build(views: audit.Views) -> Method:
        fresh = kind(data)
        fresh.prepare(views.train)
        return fresh

    def predict(of: Method, view: ObservedDataset) -> Any:
        if isinstance(of, PeeksAtTest):
            of.view = view
        return trainer.predict(of, view)

    subject = audit.Subject(
        table=table_of(data),
        protocol=parse_protocol("complete"),
        shown=masks_of(data, tests),
        views=audit.Views(data.train, data.valid, tests),
        method=method,
        fit=FitResult(),
        engine=audit.Engine(build, trainer.loss, predict),
    )
    return {result.name: result for result in audit.audit_after(replace(subject, **changes))}


def failed(results: Found) -> set[str]:
    return {name for name, result in results.items() if not result.passed}


def test_an_honest_method_passes(data: TinyData) -> None:
    names = [name for name, _ in Honest(data).named_parameters()]
    fit = FitResult(history=[{"loss/task": 0.4}], selection_looks={"valid": 3}, learned=names)

    def remember(method: Method) -> None:
        assert isinstance(method, Honest)
        method.memory = {"memory": MemoryBank.build(data.train)}

    results = audited(data, fit=fit, setup=remember, test_looks=1)
    assert set(results) == {
        "mask_binding",
        "selection_split",
        "loss_terms",
        "parameters",
        "non_interference_train",
        "training_statistics",
        "bank:memory",
        "self_retrieval:memory",
        "non_interference",
        "labels",
        "eval_mode",
        "batch_companions",
        "attention_masks",
        "padding_length",
    }
    assert not failed(results), results


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (Honest, set()),
        (NormalisesOverTraining, set()),
        (MasksPadding, set()),
        (PeeksAtTest, {"non_interference"}),
        (PeeksInPrepare, {"non_interference_train"}),
        (NormalisesOverEverything, {"training_statistics"}),
        (TeacherOfHiddenValues, {"non_interference_train"}),
        (ReadsLabels, {"labels"}),
        (CentresOnTheBatch, {"batch_companions"}),
        (NeverSleeps, {"eval_mode"}),
        (SamplesItsCode, {"eval_mode"}),
        (AttendsToPadding, {"attention_masks"}),
        (ReadsZeros, {"padding_length"}),
        (ReadsZerosUpToALength, {"padding_length"}),
        (ReadsZerosBesideMemories, {"padding_length"}),
        (TakesOneLength, set()),
    ],
)
def test_each_audit_catches_its_leak_and_no_other(
    data: TinyData, kind: Callable[[TinyData], Method], caught: set[str]
) -> None:
    results = audited(data, kind)
    assert failed(results) == caught, [results[name] for name in failed(results) ^ caught]


def test_what_was_caught_is_told(data: TinyData) -> None:
    assert "the method sees hidden values" in audited(data, PeeksAtTest)["non_interference"].detail
    teacher = audited(data, TeacherOfHiddenValues)["non_interference_train"]
    assert "teacher of stage main" in teacher.detail
    assert "stages: pretrain, main" in teacher.detail
    assert "still in train mode after eval(): dropout" in audited(data, NeverSleeps)["eval_mode"].detail
    assert "another eval_seed" in audited(data, SamplesItsCode)["eval_mode"].detail
    padding = audited(data, AttendsToPadding)["attention_masks"]
    assert "padding is read" in padding.detail
    assert padding.severity == "warning"


def test_how_padding_was_moved_is_told(data: TinyData) -> None:
    length = data.feature_specs["text"].length
    longer = audited(data, ReadsZeros)["padding_length"]
    assert longer.severity == "warning"
    assert f"{length // 2 + 1} more steps of 'text'" in longer.detail
    assert longer.detail.endswith("padding is read as if it were data")
    assert "fewer steps of 'text'" in audited(data, ReadsZerosUpToALength)["padding_length"].detail
    fixed = audited(data, TakesOneLength)["padding_length"]
    assert (fixed.passed, fixed.severity) == (True, "note")
    for array in data.features.values():
        array.mask[:] = True
    assert audited(data)["padding_length"].detail == "no padding among the samples of the probe"


@pytest.mark.parametrize(("mask", "passes"), [("key_padding", True), ("none", False)])
def test_an_attention_mask_without_effect_is_caught_on_a_backbone_that_zeroes_padding(
    data: TinyData, mask: str, passes: bool
) -> None:
    config = registry.methods.get("redeem")(attention_mask=mask)  # type: ignore[call-arg]
    backbone = registry.backbones.get("fusion")()
    build = lambda: backbone.implementation()(backbone, data.feature_specs)  # noqa: E731
    context = MethodContext(data.spec, data.feature_specs, build, retrieval=RetrievalConfig("torch"))
    results = audited(data, lambda _: config.implementation()(config, context))
    assert results["attention_masks"].passed
    assert results["padding_length"].passed == passes
    assert "more embedded steps of 'text'" in results["padding_length"].detail


def test_attention_masks_of_ones_over_padding_are_caught(data: TinyData) -> None:
    assert audited(data)["attention_masks"].passed
    for array in data.features.values():
        array.mask[:] = True
    result = audited(data)["attention_masks"]
    assert not result.passed
    assert "mask is all ones, but sequences end in zeros: text, image" in result.detail


def test_zeros_amid_others_are_values_and_no_padding(data: TinyData) -> None:
    """The empty corners of a sprite, at the beginning of some pictures and at the end of others."""
    for array in data.features.values():
        array.mask[:] = True
        array.tokens[::2] = array.tokens[::2, ::-1].copy()
    assert audited(data)["attention_masks"].passed


def test_complete_supervision_may_see_hidden_training_values(data: TinyData) -> None:
    complete = tiny_observed(supervision="complete")
    results = audited(complete, PeeksInPrepare, supervision="complete")
    assert results["non_interference_train"].passed
    assert "by declaration" in results["non_interference_train"].detail


def test_a_method_that_breaks_on_poison_has_read_it(data: TinyData) -> None:
    class Looks(PeeksInPrepare):
        def prepare(self, train: ObservedDataset) -> None:
            super().prepare(train)
            if not torch.isfinite(self.mean).all():
                raise ValueError("NaN in the features")

    result = audited(data, Looks)["non_interference_train"]
    assert not result.passed
    assert "ValueError was raised" in result.detail


def test_an_audit_that_cannot_run_is_a_warning_and_not_the_end(data: TinyData) -> None:
    def broken(_: audit.Views) -> Method:
        raise RuntimeError("no memory left")

    results = audited(data, engine=audit.Engine(broken, lambda *_: None, lambda *_: np.zeros((1, 3))))  # type: ignore[arg-type, return-value]
    assert not results["training_probe"].passed
    assert results["training_probe"].severity == "warning"
    assert "no memory left" in results["training_probe"].detail


def test_peeking_is_caught_under_a_condition_that_hides(data: TinyData) -> None:
    everything = with_presence(data.test, data.features, np.ones_like(data.test.present))
    result = audited(data, PeeksAtTest, tests={"complete": everything, "hiding": data.test})["non_interference"]
    assert not result.passed
    assert "under 1 of 2 conditions" in result.detail
    nothing_hidden = {"complete": everything, "again": everything}
    assert audited(data, PeeksAtTest, tests=nothing_hidden)["non_interference"].passed


# -- masks that a method is shown ------------------------------------------------------------------------------------


class PositionBound(ObservedDataset):
    """Masks follow the position in the epoch, not the sample (RedCore's released trainer)."""

    def batch(self, indices: Any) -> Batch:
        chosen = np.asarray(indices, dtype=np.int64)
        return self._gather(chosen, np.roll(self.present, 1, axis=0), self.features)


class NeverMasked(ObservedDataset):
    """The image is called missing, and is in the batch all the same."""

    def batch(self, indices: Any) -> Batch:
        chosen = np.asarray(indices, dtype=np.int64)
        whole = self._gather(chosen, np.ones_like(self.present), self.features)
        return replace(whole, present=torch.from_numpy(self.present[chosen]))


@pytest.mark.parametrize("kind", [PositionBound, NeverMasked])
def test_views_that_do_not_keep_to_the_table_are_caught(data: TinyData, kind: type[ObservedDataset]) -> None:
    train = copy.copy(data.train)
    train.__class__ = kind
    views = audit.Views(train, data.valid, {"test": data.test})
    result = audited(data, views=views)["mask_binding"]
    assert not result.passed
    assert "(train)" in result.detail


# -- training --------------------------------------------------------------------------------------------------------


def test_selection_on_test_is_caught(data: TinyData) -> None:
    fit = FitResult(history=[{"loss/task": 0.4}], selection_looks={"test": 20})
    assert not audited(data, fit=fit)["selection_split"].passed


def test_a_second_look_at_test_is_caught(data: TinyData) -> None:
    fit = FitResult(history=[{"loss/task": 0.4}], selection_looks={"valid": 20})
    assert audited(data, fit=fit, test_looks=1)["selection_split"].passed
    result = audited(data, fit=fit, test_looks=21)["selection_split"]
    assert not result.passed
    assert "test opened 21 times" in result.detail


@pytest.mark.parametrize(
    ("losses", "told"),
    [([0.0, 0.0], "always zero: task"), ([2.0, -900.0], "runs away: task"), ([1e6, 1e4], ""), ([0.0, 0.1], "")],
)
def test_dead_and_exploding_loss_terms_are_caught(data: TinyData, losses: list[float], told: str) -> None:
    fit = FitResult(history=[{"loss/task": loss} for loss in losses], selection_looks={"valid": 2})
    result = audited(data, fit=fit)["loss_terms"]
    assert result.passed is not bool(told)
    assert told in result.detail


class WithIdleNetwork(Honest):
    """A network that is built, counted and run, and never trained (RedCore's second autoencoder)."""

    def __init__(self, data: TinyData) -> None:
        super().__init__(data)
        self.extra = torch.nn.Linear(4, 4)

    def training_step(self, batch: Batch) -> StepOutput:
        self.extra(torch.zeros(1, 4))
        return super().training_step(batch)


class WithLoosePrompt(Honest):
    """A prompt that is a concatenation of tensors, so no parameter (MAP's first re-implementation)."""

    def __init__(self, data: TinyData) -> None:
        super().__init__(data)
        self.prompt = torch.cat([torch.zeros(1, 3), torch.ones(1, 3, requires_grad=True)])

    def predict_step(self, batch: Batch) -> Tensor:
        return super().predict_step(batch) + self.prompt.sum(0)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Honest, "all 4 trainable tensors were updated"),
        (WithIdleNetwork, "nothing of extra"),
        (WithLoosePrompt, "are no parameters: prompt"),
    ],
)
def test_what_is_never_trained_is_caught(data: TinyData, kind: Callable[[TinyData], Method], told: str) -> None:
    method = kind(data)
    trainer = Trainer(TrainerConfig(epochs=1, batch_size=16), device="cpu")
    fit = trainer.fit(method, data.train, data.valid, lambda logits, view: {"score": 0.0}, "score")
    assert trainer.looks == {"valid": 1}
    result = audited(data, kind, fit=fit)["parameters"]
    assert result.passed is (kind is Honest)
    assert told in result.detail


def test_a_part_that_idles_is_a_note(data: TinyData) -> None:
    fit = FitResult(history=[{"loss/task": 0.4}], learned=["layers.text.weight", "layers.text.bias"])
    result = audited(data, fit=fit)["parameters"]
    assert (result.passed, result.severity) == (True, "note")
    assert "layers.image.weight" in result.detail


# -- banks -----------------------------------------------------------------------------------------------------------


def remembering(bank: MemoryBank) -> Callable[[Method], None]:
    def setup(method: Method) -> None:
        assert isinstance(method, Honest)
        method.memory = {"memory": bank}

    return setup


def test_validation_samples_in_the_bank_are_caught(data: TinyData) -> None:
    result = audited(data, setup=remembering(MemoryBank.build(data.train, data.valid)))["bank:memory"]
    assert not result.passed
    assert "not training samples (valid)" in result.detail


def test_hidden_training_values_in_the_bank_are_caught(data: TinyData) -> None:
    everything = with_presence(data.train, data.features, np.ones_like(data.train.present))
    setup = remembering(MemoryBank.build(everything))
    assert not audited(data, setup=setup)["bank:memory"].passed
    assert audited(data, setup=setup, supervision="complete")["bank:memory"].passed


def test_the_released_self_retrieval_of_validation_queries_is_caught(data: TinyData) -> None:
    bank = MemoryBank.build(data.train, data.valid, exclude="row_number")
    result = audited(data, setup=remembering(bank))["self_retrieval:memory"]
    assert not result.passed
    assert "valid queries find themselves" in result.detail


def test_self_retrieval_is_caught_under_any_condition(data: TinyData) -> None:
    bank = MemoryBank.build(data.train, data.test, exclude="row_number")
    found = audited(data, setup=remembering(bank), tests={"one": data.test, "two": data.test})
    assert "test:one queries find themselves" in found["self_retrieval:memory"].detail
    assert "test:two queries find themselves" in found["self_retrieval:memory"].detail
    assert "not training samples (test:one)" in found["bank:memory"].detail


def test_a_copy_of_the_query_in_the_bank_is_caught(data: TinyData) -> None:
    complete = with_presence(data.test, data.features, np.ones_like(data.test.present))
    for array in data.features.values():
        for part in (array.tokens, array.mask, array.pooled, array.digest):
            part[data.train.rows[:24]] = part[data.test.rows[:24]]
    everything = with_presence(data.train, data.features, np.ones_like(data.train.present))
    honest, official = (MemoryBank.build(everything, exclude=how) for how in ("id", "row_number"))
    for bank, caught in ((honest, False), (official, True)):
        found = audited(data, setup=remembering(bank), tests={"test": complete}, supervision="complete")
        assert ("self_retrieval:memory" in failed(found)) is caught
    assert "test queries find a copy of themselves" in found["self_retrieval:memory"].detail


# -- known answers ---------------------------------------------------------------------------------------------------


def answers(right: int, total: int) -> dict[str, Predictions]:
    """Predictions on samples that show the text alone, `right` of them correct."""
    labels = np.zeros(total, dtype=np.int64)
    logits = np.zeros((total, 3), dtype=np.float32)
    logits[np.arange(total), (np.arange(total) >= right).astype(int)] = 1.0
    present = np.tile([True, False], (total, 1))
    return {"test": Predictions(tuple(map(str, range(total))), logits, labels, present, ("text", "image"))}


@pytest.mark.parametrize(("right", "passes"), [(100, True), (118, True), (130, False), (200, False)])
def test_accuracy_above_bayes_is_a_leak(data: TinyData, right: int, passes: bool) -> None:
    # 200 samples, at most 0.5 of them can be known: 130 right have probability 1e-5, 118 have 0.006.
    table = replace(table_of(data), bayes_accuracy={("text",): 0.5, ("image",): 0.6, ("text", "image"): 0.8})
    result = audited(data, table=table, predictions=answers(right, 200))["known_answer"]
    assert result.passed is passes
    assert "level 0.001" in result.detail


def test_small_patterns_are_tested_together_too(data: TinyData) -> None:
    table = replace(table_of(data), bayes_accuracy={("text",): 0.7, ("image",): 0.7})
    part = answers(18, 18)["test"]
    part.present[9:] = part.present[9:, ::-1]
    # 0.7^9 = 0.04 in either pattern shows nothing; 0.7^18 = 0.002 does not yet either; three times as many do.
    assert audited(data, table=table, predictions={"test": part})["known_answer"].passed
    part = answers(54, 54)["test"]
    part.present[27:] = part.present[27:, ::-1]
    result = audited(data, table=table, predictions={"test": part})["known_answer"]
    assert not result.passed
    assert "closest: all patterns" in result.detail


def test_known_answers_do_not_hold_where_the_pattern_tells_something(data: TinyData) -> None:
    table = replace(table_of(data), bayes_accuracy={("text",): 0.5})
    protocol = parse_protocol("mnar_text_by_label_0.5")
    result = audited(data, table=table, predictions=answers(200, 200), protocol=protocol)["known_answer"]
    assert result.passed
    assert "not tested: masks depend on labels" in result.detail


def test_data_without_a_known_answer_is_not_tested(data: TinyData) -> None:
    assert "known_answer" not in audited(data, predictions=answers(200, 200))
