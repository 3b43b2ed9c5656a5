"""Contract of inspectors: what a trained method puts in the place of missing modalities, and whom it asks for it.

An inspector stands beside its method, in a module `inspector` of the method's package with a function `inspector`, or
in `common`.  It looks at finished runs only and is no part of them: modules of that name do not count for a run's
identity (`PluginConfig.source_files`).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from harness.method import Method
    from harness.types import Batch

#: Key of `Inspector.consulted` for training samples that vote for the prediction itself.
VOTE = ""
#: Name of the modules that hold inspectors.
MODULE = "inspector"


@dataclass(frozen=True)
class Consulted:
    """Training samples behind what a method made up for the B samples of a batch.

    Attributes:
        ids: Ids of the N items of the bank.
        index: `[B, k]` int64 positions in `ids`, best first; -1 where there are fewer than k.
        score: `[B, k]` similarity.
        weight: `[B, k]` share of each; sums to one over those that were found.
    """

    ids: Sequence[str]
    index: Tensor
    score: Tensor
    weight: Tensor


class Inspector:
    """Looks into a trained method, in eval mode and without gradients; what a method does not do stays empty.

    A method that reconstructs has both `recovered` and `embedded`, for the same modalities and in one space: the
    harness gives the one what the test condition shows, the other the complete samples, and compares.  Neither sees
    what the other is given.
    """

    def recovered(self, batch: Batch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Per modality `[B, d]`: what stands for it in samples that lack it; other rows are not looked at."""
        return {}

    def embedded(self, batch: Batch) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Per modality `[B, d]`: what the network makes of it in samples that have it; others are not looked at."""
        return {}

    def consulted(self, batch: Batch) -> Mapping[str, Consulted]:  # noqa: ARG002
        """Training samples that are asked per missing modality, or for the prediction (`VOTE`).

        Of a modality the rows that have it are not looked at.
        """
        return {}


def inspector_of(method: Method) -> Inspector | None:
    """The inspector of a method; None where its package has none, or has none for it."""
    package = type(method).__module__.rpartition(".")[0]
    name = f"{package}.{MODULE}"
    if not package or importlib.util.find_spec(name) is None:
        return None
    found: Inspector | None = importlib.import_module(name).inspector(method)
    return found
