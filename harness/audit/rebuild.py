"""A method built again from a probe of the training split, once as it is and once with poison where it may not look.

What `prepare` computes (banks, statistics, vocabularies), what later stages start from (teachers, data bases) and the
losses of every stage must stay bit-identical when everything is NaN that training must not see: hidden training
values, the test split, and the validation split of methods that do not declare it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from harness.audit.subject import PROBE, Subject, Views, incomplete_first, poison, poisoned, take
from harness.errors import first_few
from harness.features import FeatureArray
from harness.masking import ObservedDataset
from harness.record import AuditResult
from harness.seeding import seed_everything

#: Samples of valid and test that lie in the same arrays, for whoever takes statistics over all of them.
_FOREIGN = 16


@dataclass(frozen=True)
class _Probe:
    """Training views over one set of arrays: plain, and with poison in hidden or in foreign values or in both."""

    plain: Views
    hidden: Views
    foreign: Views
    both: Views


def check_rebuilt(subject: Subject) -> list[AuditResult]:
    """Whether hidden values reach training, and whether values of other splits do."""
    probe = _probe(subject)
    expected = _outcome(subject, probe.plain, probe.plain)
    count = int((~probe.plain.train.present).sum())
    stages = ", ".join(stage.name for stage in subject.method.stages()) if subject.trains else "none"
    if subject.supervision == "complete":
        what = "supervision=complete: training is shown every value, by declaration; validation values poisoned"
    else:
        what = f"{count} hidden values of {len(probe.plain.train)} training samples poisoned"
    what += f"; prepare, losses (stages: {stages}) and predictions "
    others = f"{2 * _FOREIGN} samples of other splits in the same arrays poisoned; prepare, losses and predictions "
    same, seen = "bit-identical", "CHANGED"
    hidden: list[str] = []
    foreign: list[str] = []
    if _outcome(subject, probe.both, probe.plain) != expected:
        hidden = _changed(expected, _outcome(subject, probe.hidden, probe.plain))
        foreign = _changed(expected, _outcome(subject, probe.foreign, probe.plain))
    return [
        AuditResult(
            "non_interference_train",
            not hidden,
            what + (f"{seen} ({first_few(hidden)}): training sees hidden values" if hidden else same),
        ),
        AuditResult(
            "training_statistics",
            not foreign,
            others + (f"{seen} ({first_few(foreign)}): training uses values of other splits" if foreign else same),
        ),
    ]


def _probe(subject: Subject) -> _Probe:
    views = subject.views
    train = views.train.subset(_mixed(views.train, PROBE + PROBE // 2))
    valid = views.valid.subset(_mixed(views.valid, _FOREIGN))
    test = next(iter(views.tests.values()))
    test = test.subset(np.arange(min(_FOREIGN, len(test))))
    # The arrays hold the training samples first, then those of other splits.
    rows = np.concatenate([train.rows, valid.rows, test.rows])
    plain = {name: take(train.features[name], rows) for name in train.modalities}
    others = np.arange(len(train), len(rows))
    # Under complete supervision nothing is hidden from training.
    seen_by_training = train.present | (subject.supervision == "complete")
    unseen = {name: np.flatnonzero(~seen_by_training[:, column]) for column, name in enumerate(train.modalities)}
    hidden = {name: poison(array, unseen[name]) for name, array in plain.items()}
    foreign = {name: poison(array, others) for name, array in plain.items()}
    both = {name: poison(array, np.concatenate([unseen[name], others])) for name, array in plain.items()}
    seen, blind = poisoned(valid, valid.features)

    def of(arrays: Mapping[str, FeatureArray], valid: ObservedDataset) -> Views:
        return Views(train.with_features(arrays), valid, views.tests)

    return _Probe(of(plain, seen), of(hidden, blind), of(foreign, seen), of(both, blind))


def _mixed(view: ObservedDataset, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows of a view: half of them miss something, half are complete, as far as there are such samples."""
    order = incomplete_first(view)
    incomplete = int((~view.present.all(axis=1)).sum())
    few = order[: min(incomplete, size // 2)]
    whole = order[incomplete : incomplete + size - len(few)]
    rest = order[len(few) : len(few) + size - len(few) - len(whole)] if len(whole) + len(few) < size else few[:0]
    return np.unique(np.concatenate([few, whole, rest])).astype(np.int64)


def _outcome(subject: Subject, views: Views, plain: Views) -> dict[str, bytes]:
    """What a new method computes, as bytes by name; predictions are always asked of plain samples."""
    try:
        method = subject.engine.build(views)
        outcome: dict[str, bytes] = {}
        batch = views.train.batch(np.arange(len(views.train)))
        for number, stage in enumerate(method.stages() if subject.trains else ()):
            seed_everything(0, "audit", number)
            method.stage = stage.name
            method.start_stage(stage, views.train)
            step = subject.engine.step(method, batch)
            for name, value in {"loss": step.loss, **step.terms}.items():
                outcome[f"{name} of stage {stage.name}"] = _bytes(value)
        seed_everything(0, "audit", "predict")
        outcome["predictions"] = subject.engine.predict(method, plain.valid).tobytes()
    except Exception as error:
        if views is plain:
            raise
        # What works on plain values and breaks on poison has looked at it.
        return {f"{type(error).__name__} was raised": b""}
    return outcome


def _bytes(value: torch.Tensor) -> bytes:
    return value.detach().float().cpu().numpy().tobytes()


def _changed(expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> list[str]:
    if found.keys() != expected.keys():
        return sorted(found.keys() - expected.keys())
    return [name for name, value in expected.items() if found[name] != value]
