"""What `harness inspect` found in a finished run, as plain data beside its record; reading it needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from harness.errors import DataError

#: Name of the artifact.
FINDINGS_FILE = "findings.json"
FINDINGS_SCHEMA = 1


@dataclass(frozen=True)
class Recovery:
    """How close what was put in the place of a hidden modality comes to the embedding of its true value.

    Attributes:
        condition: Test condition.
        pattern: Modalities that were shown.
        modality: The hidden one.
        count: Test samples n, those that have the modality by nature.
        cosine: Mean cosine between recovered and true embedding.
        others: Mean cosine between recovered embeddings and the true ones of other samples: what the shape of the
            space alone gives; None for a single sample.
        error: Summed squared error over that of answering the mean true embedding: 0 is perfect, 1 no better than the
            mean; None where the true embeddings do not differ.
        quantiles: 5, 25, 50, 75 and 95 % quantiles of the cosines.
    """

    condition: str
    pattern: str
    modality: str
    count: int
    cosine: float
    others: float | None
    error: float | None
    quantiles: list[float]


@dataclass(frozen=True)
class Agreement:
    """Whether the training samples that were asked have the label of the test sample.

    Attributes:
        condition: Test condition.
        use: The missing modality that they stand for; empty for the prediction itself.
        count: Test samples that asked anybody.
        neighbours: k.
        plain: Mean share of neighbours with the sample's label (several labels: Jaccard index of the label sets).
        weighted: The same, each counted by its weight.
        weights: Mean weight by rank, nearest first.
    """

    condition: str
    use: str
    count: int
    neighbours: int
    plain: float
    weighted: float
    weights: list[float]


@dataclass(frozen=True)
class Neighbour:
    """A training sample that was asked.

    Attributes:
        sample: Its id.
        label: Its class, or classes, or values.
        score: Similarity.
        weight: Its share.
        agrees: 1 where its label is that of the query (several labels: Jaccard index); None for regression.
    """

    sample: str
    label: str
    score: float
    weight: float
    agrees: float | None


@dataclass(frozen=True)
class Example:
    """A test sample and whom it asked.

    Attributes:
        sample: Its id.
        condition: Test condition.
        pattern: Modalities that were shown.
        use: The missing modality; empty for the prediction itself.
        label: True class, or classes, or values.
        predicted: Predicted class; empty for other tasks.
        neighbours: By rank.
    """

    sample: str
    condition: str
    pattern: str
    use: str
    label: str
    predicted: str
    neighbours: list[Neighbour]


@dataclass(frozen=True)
class Findings:
    """Everything that was found in one run.

    Attributes:
        run_id: Of the run.
        recoveries: Per condition, pattern and hidden modality.
        agreements: Per condition and use.
        examples: Test samples drawn by the hash of their ids, not by what came out.
        remarks: What a reader must know.
    """

    run_id: str
    recoveries: list[Recovery] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"schema_version": FINDINGS_SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Findings:
        """Reads what `to_json` wrote.

        Raises:
            DataError: If it is something else, or from a newer harness.
        """
        try:
            data = json.loads(text)
            version = int(data.pop("schema_version"))
            if version > FINDINGS_SCHEMA:
                raise DataError(f"{source}: written by a newer harness (schema {version}); upgrade to read it.")
            return cls(
                str(data["run_id"]),
                [Recovery(**each) for each in data["recoveries"]],
                [Agreement(**each) for each in data["agreements"]],
                [
                    Example(**each | {"neighbours": [Neighbour(**other) for other in each["neighbours"]]})
                    for each in data["examples"]
                ],
                [str(remark) for remark in data["remarks"]],
            )
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{source}: no findings of harness inspect ({type(error).__name__}: {error}).") from error
