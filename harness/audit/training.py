"""Training: which split chose the epoch, whether every loss term and every parameter took part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from harness.audit.subject import Subject
from harness.errors import first_few
from harness.method import Method
from harness.record import AuditResult
from harness.trainer import FitResult

#: A loss term that ends this many times above where it began does not train, it runs away.
_EXPLODED = 100.0


def check_training(subject: Subject) -> list[AuditResult]:
    """Selection, loss terms and parameters."""
    results = check_history(subject.fit, subject.terms, len(subject.views.tests), subject.test_looks)
    if subject.fit.history:
        results.append(_parameters(subject))
    return results


def check_history(fit: FitResult, terms: Sequence[str], conditions: int, test_looks: int | None) -> list[AuditResult]:
    """What the history of a run shows.

    Args:
        fit: With the history, and how often each split was evaluated.
        terms: Loss terms that the method declares.
        conditions: Number of test conditions.
        test_looks: How often a test view was predicted; None if nobody counted.
    """
    return [_selection(fit, conditions, test_looks), *([_terms(fit, terms)] if fit.history else [])]


def _selection(fit: FitResult, conditions: int, test_looks: int | None) -> AuditResult:
    """`valid` alone chose the epoch, and every test condition was opened once, afterwards."""
    looks = fit.selection_looks
    detail = ", ".join(f"{split}: {count} looks" for split, count in looks.items()) or "nothing was selected"
    if not set(looks) <= {"valid"}:
        return AuditResult("selection_split", False, f"{detail}: the epoch was not chosen on valid alone")
    if test_looks is None:
        return AuditResult("selection_split", True, f"{detail}; looks at test were not counted")
    if test_looks != conditions:
        return AuditResult("selection_split", False, f"{detail}; test opened {test_looks} times, not {conditions}")
    once = f"{conditions} test conditions opened once each" if conditions > 1 else "test opened once"
    return AuditResult("selection_split", True, f"{detail}; {once}, after selection")


def _terms(fit: FitResult, terms: Sequence[str]) -> AuditResult:
    """Declared loss terms are not zero throughout and do not run away."""
    series = {term: [epoch[f"loss/{term}"] for epoch in fit.history if f"loss/{term}" in epoch] for term in terms}
    dead = [term for term, values in series.items() if not any(abs(value) > 0 for value in values)]
    if dead:
        return AuditResult("loss_terms", False, f"declared but always zero: {', '.join(dead)}", "warning")
    exploded = []
    for term, values in series.items():
        first, last = max(abs(values[0]), 1.0), abs(values[-1])
        if not math.isfinite(last) or last > _EXPLODED * first:
            exploded.append(f"{term} ({values[0]:.3g} to {values[-1]:.3g})")
    if exploded:
        return AuditResult("loss_terms", False, f"runs away: {', '.join(exploded)}", "warning")
    return AuditResult("loss_terms", True, f"alive: {', '.join(terms)}")


def _parameters(subject: Subject) -> AuditResult:
    """Every trainable parameter got a gradient in some stage, and no learned tensor is hidden from the optimiser."""
    loose = unregistered(subject.method)
    if loose:
        return AuditResult(
            "parameters", False, f"tensors that want gradients but are no parameters: {first_few(loose)}", "warning"
        )
    if subject.fit.learned is None:
        return AuditResult("parameters", True, "no tensor is out of the optimiser's reach; updates were not noted")
    sizes = {name: value.numel() for name, value in subject.method.named_parameters() if value.requires_grad}
    learned = set(subject.fit.learned)
    idle = [name for name in sizes if name not in learned]
    if not idle:
        return AuditResult("parameters", True, f"all {len(sizes)} trainable tensors were updated")
    share = sum(sizes[name] for name in idle) / sum(sizes.values())
    alive = {name.partition(".")[0] for name in learned}
    whole = sorted({name.partition(".")[0] for name in idle} - alive)
    # A part that idles may have nothing to do here (the generator of a modality that is never missing); a whole
    # component that idles is not in the loss or not in the optimiser.
    what = f"nothing of {first_few(whole)}" if whole else f"not {first_few(idle)}"
    detail = f"{len(idle)} of {len(sizes)} trainable tensors ({share:.1%} of the weights) were never updated: {what}"
    return AuditResult("parameters", not whole, detail, "warning" if whole else "note")


def unregistered(method: Method) -> list[str]:
    """Tensors among the attributes of modules that require gradients but are neither parameter nor buffer.

    A prompt that is the concatenation of parameters looks like that: no optimiser ever gets it.
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in method.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor) and value.requires_grad
    ]
