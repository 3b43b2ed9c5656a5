"""Known answers: on generated data the best possible accuracy of every pattern is known, so more of it is a leak."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.audit.subject import Subject
from harness.record import AuditResult
from harness.types import Predictions

#: Probability that a method without a leak is called one, over all patterns and conditions of a run together.
LEVEL = 1e-3


def check_known_answer(subject: Subject) -> list[AuditResult]:
    """One-sided binomial tests against the Bayes accuracy, per condition and pattern, after Bonferroni."""
    bayes = subject.table.bayes_accuracy
    if not bayes or not subject.predictions:
        return []
    if subject.protocol.reads:
        what = " and ".join(subject.protocol.reads)
        return [
            AuditResult(
                "known_answer", True, f"not tested: masks depend on {what}, so the pattern itself tells something"
            )
        ]
    best = {"+".join(names): value for names, value in bayes.items()}
    return [above_bayes(subject.predictions, best)]


def above_bayes(predictions: Mapping[str, Predictions], best: Mapping[str, float]) -> AuditResult:
    """Tests every condition and pattern.

    Args:
        predictions: By condition.
        best: Bayes accuracy by pattern name.
    """
    from scipy.special import bdtrc

    cells: list[tuple[str, int, int, float]] = []
    for condition, part in predictions.items():
        right = part.logits.argmax(axis=1) == part.labels
        patterns = np.array(part.patterns())
        where = f" under {condition}" if len(predictions) > 1 else ""
        names = list(dict.fromkeys(patterns.tolist()))
        for pattern in names:
            rows = patterns == pattern
            cells.append((f"{pattern}{where}", int(right[rows].sum()), int(rows.sum()), best[pattern]))
        if len(names) > 1:
            # Of all sums of trials with this mean rate the binomial has the heaviest tail (Hoeffding 1956).
            rate = float(np.mean([best[pattern] for pattern in patterns.tolist()]))
            cells.append((f"all patterns{where}", int(right.sum()), len(right), rate))
    # P(X >= k) of a binomial with the Bayes accuracy as its rate.
    tails = [
        (float(bdtrc(hits - 1, count, rate)) if hits else 1.0, name, hits, count, rate)
        for name, hits, count, rate in cells
    ]
    smallest, name, hits, count, rate = min(tails)
    detail = (
        f"{len(cells)} tests against the Bayes accuracy; closest: {name} {hits / count:.3f} of at most {rate:.3f} "
        f"on {count} samples, p = {smallest:.2g} (one-sided binomial, level {LEVEL:g} over all tests)"
    )
    return AuditResult("known_answer", smallest >= LEVEL / len(cells), detail)
