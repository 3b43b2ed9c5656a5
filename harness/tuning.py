"""Search for a method's options: the same number of trials for every method, chosen on validation only.

A study is one method under one protocol on one data set.  Its first trial has the defaults, the others are suggested
by Optuna's TPE from the trials before them and a seed of their own, so a study that was killed goes on as if it had not
been.  A trial never opens the test split.  What is concluded is in an SQLite file that Optuna reads too.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.cell import Cell, resolve
from harness.compose import compose, grid, to_dict
from harness.config import NOT_IDENTITY, RunConfig, TuningConfig, digest_of
from harness.errors import DataError, ProcessLostError, TrainingError, UsageError
from harness.execution import validate_cell
from harness.files import Folders, atomic_write, ensure_folder, locked
from harness.metrics import is_higher_better
from harness.plugin import check_range
from harness.progress import say
from harness.run_files import RunFile, override_key
from harness.seeding import derive_seed
from harness.space import Choice, Space, Value, space_of, value_of
from harness.workspace import Workspace

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

#: Raised when the search itself changes: studies of another version are not gone on with.
TUNER_VERSION = "1"
#: Trials that are drawn at random before the search learns from the others, the defaults among them.
STARTUP_TRIALS = 10


@dataclass
class TuneConfig:
    """How much is searched; the same for every method.

    Attributes:
        trials: Configurations that are tried per method, its defaults first.
        tune_seed: What the search draws.
    """

    trials: int = 20
    tune_seed: int = 0

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("tune", "trials", self.trials, 1)
        check_range("tune", "tune_seed", self.tune_seed, 0)


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    Attributes:
        number: From 1, which has the defaults.
        values: Option -> value.
        score: Mean over train seeds of the metric on `valid`; None for a trial that failed.
        scores: The metric per train seed.
        epochs: Epochs that were trained, over all seeds.
        seconds: What it took, over all seeds.
        error: Why it failed.
    """

    number: int
    values: Mapping[str, Value]
    score: float | None = None
    scores: Sequence[float] = ()
    epochs: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass
class Study:
    """The search of one method's options, and what it has found.

    Attributes:
        id: sha256 of everything that the search depends on but the number of trials.
        cells: The defaults, one cell per train seed.
        texts: Overrides that all trials share, without train seed and places.
        space: What is searched.
        metric: Chooses; computed on `valid`.
        tune: Budget and seed.
        trials: What was tried, in order.
    """

    id: str
    cells: list[Cell]
    texts: Mapping[str, str]
    space: Space
    metric: str
    tune: TuneConfig
    trials: list[Trial] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Registered name of the method."""
        return self.cells[0].method_name

    @property
    def title(self) -> str:
        """How progress lines call the study."""
        return f"{self.method} · {self.cells[0].table.spec.name} · {self.cells[0].protocol.name}"

    @property
    def best(self) -> Trial | None:
        """The trial with the best score, the first of several; None if all failed."""
        done = [trial for trial in self.trials if trial.score is not None]
        sign = 1.0 if is_higher_better(self.metric) else -1.0
        return max(done, key=lambda trial: sign * (trial.score or 0.0), default=None)

    def start(self) -> list[tuple[str, Value, str]]:
        """Searched options, their values in the first trial, and where they are searched."""
        config = self.cells[0].config
        return [(option, value_of(config, option), str(span)) for option, span in self.space.items()]

    def mark(self) -> TuningConfig:
        """What runs with the best configuration carry."""
        return TuningConfig(
            study=self.id[:16],
            trials=len(self.trials),
            searched=list(self.space),
            dataset=self.cells[0].table.spec.name,
            protocol=self.cells[0].protocol.name,
            metric=self.metric,
            train_seeds=[cell.config.train_seed for cell in self.cells],
        )

    def run_file(self, path: Path) -> RunFile:
        """The best configuration, for `from=FILE`.

        Raises:
            TrainingError: If no trial finished.
        """
        best = self.best
        if best is None:
            raise TrainingError(f"{self.title}: every trial failed, the first with: {self.trials[0].error}")
        values = {option: _text(value) for option, value in best.values.items()}
        return RunFile(path, {**self.texts, **values}, self.mark())


def make_studies(overrides: Sequence[str], tune: TuneConfig) -> tuple[list[Study], Workspace]:
    """Resolves a grid to studies, one per cell but for its train seeds; trains nothing.

    Args:
        overrides: As of `harness run`; what they set is not searched.
        tune: Budget and seed, the same for all.

    Returns:
        The studies, and the data that they have loaded.

    Raises:
        UsageError: For what a user can mend, e.g. a method that has nothing to search.
        DataError: If a data set cannot be loaded.
    """
    tune.validate()
    groups: dict[tuple[tuple[str, str], ...], list[RunConfig]] = {}
    given = {override_key(text) for text in overrides}
    if "from" in given:
        raise UsageError("from=FILE gives options that are already chosen; give the method and what is not searched.")
    for texts in grid(overrides):
        (config,) = compose([f"{key}={text}" for key, text in texts.items()])
        if "preset" in given and config.method.needs_complete_supervision():
            config.supervision = texts.get("supervision", "complete")
        kept = {
            "method": "",
            "dataset": registry.datasets.name_of(type(config.dataset)),
            "protocol": config.protocol,
            "supervision": config.supervision,
            **{key: text for key, text in texts.items() if key.partition(".")[0] not in (*NOT_IDENTITY, "train_seed")},
        }
        groups.setdefault(tuple(kept.items()), []).append(config)
    places = [config.paths for configs in groups.values() for config in configs]
    if any(place != places[0] for place in places):
        raise UsageError("a search has one place for its files; paths cannot be a grid.")
    workspace = Workspace(Folders.resolve(places[0]))
    return [_study(dict(texts), configs, tune, workspace) for texts, configs in groups.items()], workspace


def _study(texts: Mapping[str, str], configs: Sequence[RunConfig], tune: TuneConfig, workspace: Workspace) -> Study:
    config = configs[0]
    name = registry.methods.name_of(type(config.method))
    if config.trainer.select_split != "valid":
        raise UsageError("a search that selects on the test split would only find what fits it; tune on valid.")
    if config.method.uses_valid():
        raise UsageError(
            f"{name} is handed the validation split here (method.preset={config.method.preset}), so a score on it "
            "says nothing; choose options that leave it alone."
        )
    space = {option: span for option, span in space_of(type(config.method)).items() if option not in texts}
    if not space:
        raise UsageError(f"{name} has nothing to search: it declares no space, or every option of it is given.")
    for option, span in space.items():
        if value_of(config, option) not in span:
            raise UsageError(
                f"{name}: {option}={value_of(config, option)}, where the search starts, is not in its space ({span}); "
                f"give {option}=VALUE to leave it out of the search."
            )
    cells = [resolve(one, workspace) for one in configs]
    metric = config.trainer.select_on or cells[0].table.spec.task.primary_metric
    identity = {
        "tuner": TUNER_VERSION,
        "cells": [cell.run_id for cell in cells],
        "space": {option: [type(span).__name__, vars(span)] for option, span in space.items()},
        "metric": metric,
        "tune_seed": tune.tune_seed,
    }
    return Study(digest_of(identity), cells, texts, space, metric, tune)


def run_study(study: Study, workspace: Workspace, tell: Callable[[str], None] = say) -> None:
    """Tries what has not been tried yet, and fills `study.trials`.

    Args:
        study: The study.
        workspace: The one that it was made with.
        tell: Called with a line about every trial, those of former calls included.

    Raises:
        HarnessError: If data cannot be read or nothing can be written; what is concluded stays.
        KeyboardInterrupt: The same call goes on, inside the trial that was running.
    """
    folder = ensure_folder(workspace.folders.home / "tune" / study.id[:16])
    with locked(folder / "study.db", f"{study.title} is being tuned by another program; waiting for it to end"):
        store = _open(study, folder)
        study.trials = []
        while len(study.trials) < study.tune.trials:
            known = store.get_trials(deepcopy=False)
            done = len(study.trials)
            if done == len(known):
                store.add_trial(_frozen(study, _try(study, _suggest(study, known), known, workspace, folder)))
                continue
            study.trials.append(_read(known[done]))
            tell(summary(study, study.trials[-1]))


def _open(study: Study, folder: Path) -> OptunaStudy:
    """The study's file, made with its description if it is new."""
    optuna = _optuna()
    store: OptunaStudy = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name=study.title,
        direction="maximize" if is_higher_better(study.metric) else "minimize",
        load_if_exists=True,
    )
    if not store.user_attrs:
        for key, value in {"id": study.id, "metric": f"{study.metric} on valid", "options": dict(study.texts)}.items():
            store.set_user_attr(key, value)
    return store


def _suggest(study: Study, known: Sequence[FrozenTrial]) -> dict[str, Value]:
    """Values of the next trial: a function of the trials before it, its number and the seed alone."""
    number = len(known)
    if number == 0:
        return {option: value_of(study.cells[0].config, option) for option in study.space}
    optuna = _optuna()
    seed = derive_seed(study.tune.tune_seed, "tune", number) % 2**32
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    direction = "maximize" if is_higher_better(study.metric) else "minimize"
    memory = optuna.create_study(sampler=sampler, direction=direction)
    memory.add_trials(known)
    values: dict[str, Value] = dict(memory.ask(_distributions(study.space)).params)
    return values


def _try(
    study: Study,
    values: Mapping[str, Value],
    known: Sequence[FrozenTrial],
    workspace: Workspace,
    folder: Path,
) -> Trial:
    """Trains every seed with the values and scores it on `valid`."""
    number = len(known) + 1
    twin = next((trial for trial in known if trial.params == values), None)
    if twin is not None:
        # Nothing is random but by seed, so that it would end as it did.
        seen = _read(twin)
        return Trial(number, values, seen.score, seen.scores, 0, 0.0, seen.error)
    place = folder / f"trial_{number}"
    scores: list[float] = []
    epochs, began = 0, time.perf_counter()
    error = ""
    try:
        for base in study.cells:
            cell = resolve(_with_values(base.config, values), workspace)
            metrics, cost = validate_cell(cell, workspace, place / f"seed_{cell.config.train_seed}")
            score = float(metrics[study.metric])
            if not math.isfinite(score):
                raise TrainingError(f"{study.metric} is {score} on valid.")
            scores.append(score)
            epochs += cost.epochs
    except (DataError, ProcessLostError):
        raise
    except (TrainingError, UsageError) as caught:
        error = str(caught).splitlines()[0]
    except Exception as caught:
        error = f"{type(caught).__name__}: {str(caught).partition(chr(10))[0]}"
        with atomic_write(folder / f"trial_{number}_traceback.txt") as temporary:
            temporary.write_text(traceback.format_exc())
    shutil.rmtree(place, ignore_errors=True)
    mean = None if error else sum(scores) / len(scores)
    return Trial(number, values, mean, scores, epochs, time.perf_counter() - began, error)


def _with_values(config: RunConfig, values: Mapping[str, Value]) -> RunConfig:
    changed = copy.deepcopy(config)
    for option, value in values.items():
        owner, _, name = option.partition(".")
        setattr(getattr(changed, owner), name, value)
    changed.validate()
    return changed


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    kinds = _optuna().distributions
    result: dict[str, BaseDistribution] = {}
    for option, span in space.items():
        if isinstance(span, Choice):
            result[option] = kinds.CategoricalDistribution(span.choices)
        elif span.whole:
            result[option] = kinds.IntDistribution(int(span.low), int(span.high), log=span.log)
        else:
            result[option] = kinds.FloatDistribution(span.low, span.high, log=span.log)
    return result


def _frozen(study: Study, trial: Trial) -> FrozenTrial:
    """A concluded trial as Optuna stores it, in one transaction."""
    optuna = _optuna()
    state = optuna.trial.TrialState
    frozen: FrozenTrial = optuna.trial.create_trial(
        state=state.COMPLETE if trial.score is not None else state.FAIL,
        value=trial.score,
        params=dict(trial.values),
        distributions=_distributions(study.space),
        user_attrs={
            "scores": list(trial.scores),
            "epochs": trial.epochs,
            "seconds": trial.seconds,
            "error": trial.error,
        },
    )
    return frozen


def _read(trial: FrozenTrial) -> Trial:
    attributes = trial.user_attrs
    return Trial(trial.number + 1, trial.params, trial.value if not attributes["error"] else None, **attributes)


def _text(value: Value) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        return value if value.isidentifier() else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise DataError("harness tune needs Optuna: pip install 'missing-modality-harness[tune]'.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def summary(study: Study, trial: Trial) -> str:
    """A concluded trial in one line."""
    values = ", ".join(f"{option.partition('.')[2]}={_short(value)}" for option, value in trial.values.items())
    outcome = f"failed: {trial.error}" if trial.score is None else f"{study.metric} {trial.score:.4f} on valid"
    return f"{study.title}: trial {trial.number}/{study.tune.trials} ({values}): {outcome} ({trial.seconds:.1f} s)"


def _short(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe(study: Study, file: Path | None) -> dict[str, Any]:
    """A study as plain data."""
    best = study.best
    return {
        "study": study.id,
        "method": study.method,
        "dataset": study.cells[0].table.spec.name,
        "protocol": study.cells[0].protocol.name,
        "supervision": study.cells[0].config.supervision,
        "metric": study.metric,
        "split": "valid",
        "tune_seed": study.tune.tune_seed,
        "train_seeds": [cell.config.train_seed for cell in study.cells],
        "space": {option: str(span) for option, span in study.space.items()},
        "defaults": to_dict(study.cells[0].config)["method"],
        "trials": [vars(trial) for trial in study.trials],
        "best": None if best is None else best.number,
        "file": None if file is None else str(file),
    }
