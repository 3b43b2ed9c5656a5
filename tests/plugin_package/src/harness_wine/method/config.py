"""What the harness lists, documents and configures; importing it must not import torch."""

from dataclasses import dataclass
from typing import ClassVar

from harness.config import MethodConfig
from harness.plugin import check_range


@dataclass
class ReliabilityVoteConfig(MethodConfig):
    """One classifier per modality; those whose modality is present vote, each with a learned weight.

    Attributes:
        hidden: Width of each classifier's hidden layer.
    """

    hidden: int = 32

    target: ClassVar[str] = "harness_wine.method.model:ReliabilityVote"
    summary: ClassVar[str] = "one classifier per modality, averaged with learned reliabilities"
    citation: ClassVar[str] = "none: an example of a plugin"
    uses_backbone: ClassVar[bool] = False

    def validate(self) -> None:
        """Checks ranges; raises `UsageError`."""
        check_range("method", "hidden", self.hidden, 1)
