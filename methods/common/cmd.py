"""Central moment discrepancy (Zellinger et al., ICLR 2017), as IF-MMIN uses it between modalities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def central_moment_discrepancy(p: Tensor, q: Tensor, moments: int = 5) -> Tensor:
    """Distance of two sets of vectors by their means and central moments, each compared by Euclidean norm.

    The moments are not divided by powers of the value range, as IF-MMIN has it; on unbounded features the highest one
    dominates, so a caller may squash the features first.

    Args:
        p: `[n, d]`, n >= 1.
        q: `[k, d]`, k >= 1.
        moments: Highest order, at least 1.

    Returns:
        Scalar float32, zero for equal sets, symmetric.
    """
    p, q = p.float(), q.float()
    mean_p, mean_q = p.mean(0), q.mean(0)
    total: Tensor = torch.linalg.vector_norm(mean_p - mean_q)
    p, q = p - mean_p, q - mean_q
    for order in range(2, moments + 1):
        total = total + torch.linalg.vector_norm(p.pow(order).mean(0) - q.pow(order).mean(0))
    return total


def mean_pairwise_cmd(sets: Sequence[Tensor], *, moments: int = 5, min_rows: int = 8) -> Tensor:
    """Mean discrepancy over all pairs of sets that both have enough rows for their moments to mean something.

    Args:
        sets: Per modality `[n_m, d]`, the vectors of the samples that have it.
        moments: Highest order.
        min_rows: Pairs with fewer rows in either set are left out.

    Returns:
        Scalar; zero, with the graph kept, when no pair is left.
    """
    pairs = [
        central_moment_discrepancy(p, q, moments) for p, q in combinations(sets, 2) if min(len(p), len(q)) >= min_rows
    ]
    return torch.stack(pairs).mean() if pairs else torch.cat(list(sets)).sum() * 0.0
