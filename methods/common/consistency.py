"""How far one prediction is from another, for methods that ask two views of a sample to agree."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from harness.types import TaskSpec


def prediction_divergence(task: TaskSpec, target: Tensor, logits: Tensor) -> Tensor:
    """KL divergence of predictions from a target's, which gets no gradient.

    Args:
        task: Decides which distribution logits mean: one over classes (binary, multiclass), one per label
            (multilabel, averaged over labels), or a Gaussian of deviation 1 (regression, averaged over outputs).
        target: `[B, C]` logits to agree with.
        logits: `[B, C]`.

    Returns:
        Scalar mean over the batch.
    """
    target, logits = target.detach().float(), logits.float()
    if task.kind in ("binary", "multiclass"):
        return F.kl_div(logits.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
    if task.kind == "multilabel":
        probability = target.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(target, probability)
        return F.binary_cross_entropy_with_logits(logits, probability) - entropy
    return 0.5 * F.mse_loss(logits, target)
