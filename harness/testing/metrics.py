"""Contract of metrics: a number for every input, NaN where it is not defined, no noise."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, get_args

import numpy as np
import numpy.typing as npt
import pytest

from harness import registry
from harness.config import MetricConfig
from harness.metrics import metric_versions, metrics_for
from harness.scoring import bootstrap_interval, evaluate
from harness.types import TaskKind, TaskSpec

Array = npt.NDArray[Any]


class MetricContract:
    """What every metric keeps; derive a test class and set `metric`.

    Attributes:
        metric: Registered name.
    """

    metric: ClassVar[str]

    def config(self) -> type[MetricConfig]:
        """The entry under test."""
        config = registry.metrics.get(self.metric)
        assert issubclass(config, MetricConfig)
        return config

    def cases(self, size: int = 60) -> list[tuple[TaskSpec, Array, Array]]:
        """Random logits and labels of every task that the metric is defined for."""
        kinds: tuple[TaskKind, ...] = get_args(TaskKind)
        return [
            (task, *_draw(task, size))
            for kind in kinds
            if kind in self.config().tasks
            for outputs in ({"binary": (2,), "regression": (1, 3)}.get(kind, (3, 7)))
            for task in [TaskSpec(kind, outputs, tuple(f"c{index}" for index in range(outputs)), self.metric)]
        ]

    def score(self, task: TaskSpec, logits: Array, labels: Array) -> float:
        """The metric, with every warning an error."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return evaluate(task, logits, labels, [self.metric])[self.metric]

    def test_documented(self) -> None:
        """Summary, citation, docstring, tasks and version are there."""
        config = self.config()
        assert config.summary, "set `summary`"
        assert config.citation, "set `citation`"
        assert config.__doc__, "say in the docstring what is computed and when it is undefined"
        assert config.version, "set `version`"
        assert set(config.tasks) <= set(get_args(TaskKind))
        assert config.tasks, "set `tasks`"

    def test_is_computed_for_its_tasks(self) -> None:
        """The metric is among those of its tasks, with its version."""
        for task, _, _ in self.cases():
            assert self.metric in metrics_for(task)
            assert metric_versions(task)[self.metric] == self.config().version

    def test_finite_on_random_input(self) -> None:
        """Random predictions have a finite score."""
        for task, logits, labels in self.cases():
            assert math.isfinite(self.score(task, logits, labels))

    def test_order_of_samples_does_not_matter(self) -> None:
        """Shuffled samples have the same score."""
        for task, logits, labels in self.cases():
            order = np.random.default_rng(1).permutation(len(labels))
            assert self.score(task, logits[order], labels[order]) == pytest.approx(
                self.score(task, logits, labels), rel=1e-9
            )

    def test_input_is_left_alone(self) -> None:
        """Logits and labels are not written to."""
        for task, logits, labels in self.cases():
            for array in (logits, labels):
                array.flags.writeable = False
            self.score(task, logits, labels)

    def test_direction(self) -> None:
        """Right predictions score better than wrong ones."""
        for task, _, labels in self.cases():
            if task.kind == "regression":
                right, wrong = labels.copy(), -3 * labels
            else:
                hot = labels if task.kind == "multilabel" else np.eye(task.num_outputs)[labels]
                right, wrong = 8 * hot - 4, 4 - 8 * hot
            good, bad = self.score(task, right, labels), self.score(task, wrong, labels)
            assert good > bad if self.config().higher_is_better else good < bad

    def test_degenerate_input_has_no_noise(self) -> None:
        """No samples are NaN; one sample, one class and constant predictions give a number or NaN, no warning."""
        for task, logits, labels in self.cases():
            assert math.isnan(self.score(task, logits[:0], labels[:0])), "a score of no samples"
            for one, two in (
                (logits[:1], labels[:1]),
                (logits, np.zeros_like(labels)),
                (np.zeros_like(logits), labels),
                (np.zeros_like(logits), np.zeros_like(labels)),
            ):
                assert not math.isinf(self.score(task, one, two))

    def test_interval_holds_for_its_seed(self) -> None:
        """The bootstrap interval is ordered, finite and the same for the same seed."""
        for task, logits, labels in self.cases():
            low, high = bootstrap_interval(task, self.metric, logits, labels, 3, samples=40)
            assert math.isfinite(low)
            assert low <= high
            assert (low, high) == bootstrap_interval(task, self.metric, logits, labels, 3, samples=40)


def _draw(task: TaskSpec, size: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(size, task.num_outputs)).astype(np.float32)
    if task.kind in ("binary", "multiclass"):
        return logits, generator.integers(0, task.num_outputs, size)
    if task.kind == "multilabel":
        return logits, (generator.random((size, task.num_outputs)) < 0.4).astype(np.float32)
    return logits, generator.normal(size=(size, task.num_outputs)).astype(np.float32)
