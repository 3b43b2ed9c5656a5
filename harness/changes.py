"""What a protocol does to values that it shows: corrupts them, or hides a part of each.

A change is made to raw values, before any encoder sees them.  So whatever is derived from a value (tokens, pooled
vector, digest, retrieval keys) is derived from what is left of it: a contextual encoder cannot carry hidden words into
the tokens of the others.  Changed values are a small data set of their own (`Change.apply`), which the feature store
encodes and keeps like any other.

A change is known by its name, so that a saved mask table can hold it: `noise_image_3`, `frames_0.5`, `tail_audio_0.3`.
What it draws depends on `mask_seed`, the sample's id and the name without the severity or rate, so changes are nested:
what is hidden at one rate is hidden at every higher one.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from harness.config import digest_of
from harness.corruption import CORRUPTIONS
from harness.dataset import LazySequence
from harness.errors import DataError, UsageError
from harness.features import FeatureArray
from harness.protocol import format_rate, hash_order, parse_rate, share_of
from harness.types import DatasetSpec, DataTable, IntArray, ModalitySpec, Split

#: Raised when a change of the same name gives other values; part of mask fingerprints and of feature blocks.
VERSION = 1
#: Samples of a piece of sound that is hidden as a whole: 100 ms at 16 kHz.
_PIECE = 1600


@dataclass(frozen=True)
class Change(ABC):
    """One change of raw values."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Canonical name; `parse_change(name) == self`."""

    @abstractmethod
    def describe(self) -> str:
        """A clause: what is done to a value."""

    @abstractmethod
    def modalities(self, spec: DatasetSpec) -> tuple[ModalitySpec, ...]:
        """The modalities that it changes.

        Raises:
            UsageError: If the data set has none that it could change.
        """

    @abstractmethod
    def reader(self, table: DataTable, modality: ModalitySpec, split: Split, mask_seed: int) -> Callable[[int], Any]:
        """Function from a row of the data set to the changed value, for rows of `split` that have the modality."""

    def counts(self, table: DataTable, split: Split, mask_seed: int) -> list[str]:  # noqa: ARG002
        """Lines with counts of what is changed, one per modality."""
        column = table.spec.modality_names.index
        return [
            f"{self.name} changes {modality.name!r} wherever it is shown "
            f"({int(table.available[table.splits[split], column(modality.name)].sum())} samples have it)"
            for modality in self.modalities(table.spec)
        ]

    @property
    def idle(self) -> bool:
        """True where nothing is changed, as at rate 0."""
        return False

    @property
    def identity(self) -> str:
        """Name and version, as mask tables keep it."""
        return f"{self.name} v{VERSION}"

    def apply(self, table: DataTable, split: Split, mask_seed: int) -> DataTable:
        """The samples of a split with the changed modalities only, as a data set with an identity of its own."""
        rows = table.splits[split]
        changed = self.modalities(table.spec)
        columns = [table.spec.modality_names.index(modality.name) for modality in changed]

        def values(modality: ModalitySpec) -> Sequence[Any]:
            read = self.reader(table, modality, split, mask_seed)
            return LazySequence(lambda position: read(int(rows[position])), len(rows))

        fingerprint = digest_of([table.spec.fingerprint, split, self.identity, mask_seed])
        return replace(
            table,
            spec=replace(table.spec, modalities=changed, fingerprint=fingerprint),
            ids=tuple(table.split_ids(split)),
            splits={split: np.arange(len(rows), dtype=np.int64)},
            labels=table.labels[rows],
            available=table.available[rows][:, columns],
            values={modality.name: values(modality) for modality in changed},
            groups=None,
        )


def generator(mask_seed: int, split: str, salt: str, sample: str) -> np.random.RandomState:
    """A generator for one value; NumPy's legacy one, whose streams are the same in all versions."""
    return np.random.RandomState(np.frombuffer(_digest(mask_seed, split, salt, sample), dtype="<u4"))


def _digest(mask_seed: int, split: str, salt: str, sample: str) -> bytes:
    return hashlib.sha256(f"{mask_seed}|{split}|{salt}|{sample}".encode()).digest()


@dataclass(frozen=True)
class Corrupted(Change):
    """`<what>_<modality>_<severity>`: a value is there, but degraded.

    Attributes:
        what: Name of a corruption for the kind of the modality.
        modality: Name of the modality.
        severity: 1 to 5.
    """

    what: str
    modality: str
    severity: int

    #: Standard deviations, in units of the training values' own, of noise on features; shares of samples mismatched.
    NOISE: ClassVar[tuple[float, ...]] = (0.5, 1, 1.5, 2, 3)
    MISMATCH: ClassVar[tuple[float, ...]] = (0.1, 0.2, 0.3, 0.4, 0.5)

    @property
    def name(self) -> str:
        """Canonical name."""
        return f"{self.what}_{self.modality}_{self.severity}"

    def describe(self) -> str:
        """What the corruption does."""
        return describe_corruption(self.what, (self.severity,))

    def modalities(self, spec: DatasetSpec) -> tuple[ModalitySpec, ...]:
        """The one modality.

        Raises:
            UsageError: If the data set does not have it, or its kind has no corruption of this name.
        """
        modality = _named(self.modality, spec, f"corruption {self.name!r}")
        known = corruptions_of(modality.kind)
        if self.what not in known:
            raise UsageError(
                f"corruption {self.name!r}: {self.modality!r} of data set {spec.name!r} is of kind "
                f"{modality.kind}, which has {', '.join(known)}."
            )
        return (modality,)

    def reader(self, table: DataTable, modality: ModalitySpec, split: Split, mask_seed: int) -> Callable[[int], Any]:
        """Function from a row to the corrupted value."""
        values = table.values[modality.name]
        salt = f"{self.what}|{modality.name}"
        if self.what == "mismatch":
            partner = self._partners(table, modality, split, mask_seed)
            return lambda row: values[partner.get(row, row)]
        if modality.kind in ("features", "tabular"):
            scale = _Scale(table, modality)
            level = self.NOISE[self.severity - 1]

            def noisy(row: int) -> Any:
                value = np.asarray(values[row], dtype=np.float32)
                normal = generator(mask_seed, split, salt, table.ids[row]).standard_normal(value.shape)
                return np.asarray(value + level * scale() * normal, dtype=np.float32)

            return noisy
        corruption = CORRUPTIONS[modality.kind][self.what]
        level = corruption.levels[self.severity - 1]
        return lambda row: corruption.apply(values[row], level, generator(mask_seed, split, salt, table.ids[row]))

    def counts(self, table: DataTable, split: Split, mask_seed: int) -> list[str]:
        """How many samples are changed."""
        if self.what != "mismatch":
            return super().counts(table, split, mask_seed)
        (modality,) = self.modalities(table.spec)
        column = table.spec.modality_names.index(self.modality)
        return [
            f"{self.name} gives {len(self._partners(table, modality, split, mask_seed))} of "
            f"{int(table.available[table.splits[split], column].sum())} samples that have {self.modality!r} another's"
        ]

    def _partners(self, table: DataTable, modality: ModalitySpec, split: Split, mask_seed: int) -> dict[int, int]:
        """Row of a mismatched sample -> row of the one whose value it shows: the next in the order of the hash."""
        column = table.spec.modality_names.index(modality.name)
        rows = [int(row) for row in table.splits[split] if table.available[row, column]]
        order = hash_order([table.ids[row] for row in rows], mask_seed, split, f"mismatch|{modality.name}").tolist()
        count = share_of(self.MISMATCH[self.severity - 1], len(rows)) if len(rows) > 1 else 0
        return {rows[order[place]]: rows[order[(place + 1) % len(order)]] for place in range(count)}


class _Scale:
    """Standard deviation of each dimension over the training values, computed when it is first needed."""

    def __init__(self, table: DataTable, modality: ModalitySpec) -> None:
        self._table, self._modality = table, modality
        self._known: Any = None

    def __call__(self) -> Any:
        if self._known is None:
            table, name = self._table, self._modality.name
            column = table.spec.modality_names.index(name)
            rows = [int(row) for row in table.splits["train"] if table.available[row, column]]
            if not rows:
                raise DataError(f"data set {table.spec.name}: no training sample has {name!r}, so noise has no scale.")
            count, total, squares = 0, 0.0, 0.0
            for row in rows:
                value = np.asarray(table.values[name][row], dtype=np.float64)
                value = value.reshape(-1, value.shape[-1])
                count, total, squares = count + len(value), total + value.sum(axis=0), squares + (value**2).sum(axis=0)
            self._known = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))
        return self._known


def describe_corruption(what: str, severities: Sequence[int]) -> str:
    """What a corruption does at some severities, for each kind of modality that has one of this name."""

    def levels(all_levels: Sequence[float]) -> str:
        return ", ".join(f"{all_levels[severity - 1]:.2g}" for severity in severities)

    parts = {kind: own[what].means.format(levels(own[what].levels)) for kind, own in CORRUPTIONS.items() if what in own}
    if what == "noise":
        parts["features and tabular"] = (
            f"adds normal noise of {levels(Corrupted.NOISE)} training standard deviations of each dimension"
        )
    if what == "mismatch":
        parts["every kind"] = f"gives {levels(Corrupted.MISMATCH)} of the samples the value of another test sample"
    return "; ".join(
        f"{means} (kind {kind})".replace("(kind every kind)", "(every kind)") for kind, means in parts.items()
    )


def corruptions_of(kind: str) -> tuple[str, ...]:
    """Names of the corruptions for a kind of modality; `mismatch` suits all."""
    own = ("noise",) if kind in ("features", "tabular") else tuple(CORRUPTIONS.get(kind, {}))
    return (*own, "mismatch")


#: Ways to choose what is hidden of a sequence.
SHAPES = {
    "frames": "each drawn on its own",
    "block": "in one run, at a place that is drawn",
    "tail": "from its end",
}
_ELEMENTS = {"text": "words", "audio": "pieces of 100 ms", "features": "frames", "video": "frames"}


@dataclass(frozen=True)
class Shortened(Change):
    """`<shape>_<rate>` and `<shape>_<modality>_<rate>`: a part of each sequence is missing.

    Elements are words of a text, pieces of 100 ms of a clip, and rows of an array `[L, …]`.  Hidden elements are taken
    out and the rest closes up, so that masks stay what every method relies on, a run of real tokens and then padding.
    At least one element stays.

    Attributes:
        shape: `frames`, `block` or `tail`.
        rate: Share of elements, 0 to 1.
        modality: Name of a modality; empty for all that are sequences.
    """

    shape: str
    rate: float
    modality: str = ""

    @property
    def name(self) -> str:
        """Canonical name."""
        return "_".join(part for part in (self.shape, self.modality, format_rate(self.rate)) if part)

    @property
    def idle(self) -> bool:
        """Rate 0."""
        return self.rate == 0

    def describe(self) -> str:
        """What is hidden of a sequence."""
        which = (
            repr(self.modality)
            if self.modality
            else "every modality that is a sequence (texts, sound, videos, arrays of frames)"
        )
        return (
            f"a value of {which} that has L elements misses floor({format_rate(self.rate)} L + u) of them, "
            f"{SHAPES[self.shape]}, but never all; u is drawn between 0 and 1 for each value, so that the share is "
            "right on the whole although values are short. Elements are words, pieces of 100 ms, or rows of an array. "
            "They are taken out of the raw value and the rest closes up, so that no encoder sees them. What is missing "
            "at one rate is missing at every higher one"
        )

    def modalities(self, spec: DatasetSpec) -> tuple[ModalitySpec, ...]:
        """All sequences, or the one that is named.

        Raises:
            UsageError: If the data set has none, or the named one is no sequence.
        """
        sequences = tuple(modality for modality in spec.modalities if _is_sequence(modality))
        if not self.modality:
            if not sequences:
                raise UsageError(
                    f"protocol {self.name!r}: data set {spec.name!r} has no sequences "
                    f"({', '.join(f'{modality.name} is {modality.kind}' for modality in spec.modalities)})."
                )
            return sequences
        modality = _named(self.modality, spec, f"protocol {self.name!r}")
        if modality not in sequences:
            hint = f" A part of a picture is hidden by corrupt:occlusion_{self.modality}_<severity>."
            raise UsageError(
                f"protocol {self.name!r}: {self.modality!r} of data set {spec.name!r} is of kind "
                f"{modality.kind} and no sequence.{hint if modality.kind == 'image' else ''}"
            )
        return (modality,)

    def reader(self, table: DataTable, modality: ModalitySpec, split: Split, mask_seed: int) -> Callable[[int], Any]:
        """Function from a row to what is left of the value."""
        values = table.values[modality.name]

        def rest(row: int) -> Any:
            value = values[row]
            elements = _elements(self.name, modality, value)
            kept = self.kept(len(elements), mask_seed, split, modality.name, table.ids[row])
            return value if len(kept) == len(elements) else _joined(modality, value, elements, kept)

        return rest

    def kept(self, length: int, mask_seed: int, split: str, modality: str, sample: str) -> IntArray:
        """Positions that stay of a sequence of some length, ascending."""
        count = self._hidden(length, mask_seed, split, modality, sample)
        if self.shape == "tail" or not count:
            return np.arange(length - count)
        random = generator(mask_seed, split, f"{self.shape}|{modality}", sample)
        if self.shape == "frames":
            return np.sort(random.permutation(length)[count:])
        start = int(random.uniform() * (length - count + 1))
        return np.delete(np.arange(length), slice(start, start + count))

    def _hidden(self, length: int, mask_seed: int, split: str, modality: str, sample: str) -> int:
        """How many elements are hidden: floor(rate L + u), but never all."""
        digest = _digest(mask_seed, split, f"{self.shape}|{modality}|count", sample)
        chance = int.from_bytes(digest[:6], "big") / 2**48
        return max(min(math.floor(self.rate * length + chance), length - 1), 0)

    def counts(self, table: DataTable, split: Split, mask_seed: int) -> list[str]:
        """How many elements are hidden, and how many values are one element or none, which stays."""
        lines = []
        for modality in self.modalities(table.spec):
            column = table.spec.modality_names.index(modality.name)
            rows = [int(row) for row in table.splits[split] if table.available[row, column]]
            lengths = [_length(self.name, table, modality, row) for row in rows]
            hidden = sum(
                self._hidden(length, mask_seed, split, modality.name, table.ids[row])
                for row, length in zip(rows, lengths, strict=True)
            )
            single = sum(length < 2 for length in lengths)
            lines.append(
                f"{self.name} hides {hidden} of {sum(lengths)} {_ELEMENTS[modality.kind]} of {modality.name!r} in "
                f"{len(rows)} samples" + (f", of which {single} have one element that stays" if single else "")
            )
        return lines


def _is_sequence(modality: ModalitySpec) -> bool:
    """Arrays of features are sequences unless their shape says that they are single vectors."""
    if modality.kind == "features":
        return modality.shape is None or len(modality.shape) > 1
    return modality.kind in _ELEMENTS


def _elements(name: str, modality: ModalitySpec, value: Any) -> Sequence[Any]:
    """The value as a sequence.

    Raises:
        UsageError: If it is a single vector.
    """
    if modality.kind == "text":
        return list(str(value).split())
    if modality.kind == "audio":
        return range(-(-len(value) // _PIECE))
    if np.ndim(value) < 2:
        raise UsageError(
            f"protocol {name!r}: values of {modality.name!r} have the shape {list(np.shape(value))}, which is no "
            "sequence; name another modality, e.g. frames_text_0.5."
        )
    return range(len(value))


def _joined(modality: ModalitySpec, value: Any, elements: Sequence[Any], kept: IntArray) -> Any:
    if modality.kind == "text":
        return " ".join(elements[position] for position in kept)
    if modality.kind == "audio":
        return np.concatenate([value[piece * _PIECE : (piece + 1) * _PIECE] for piece in kept])
    return np.asarray(value)[kept]


#: Lengths of values by row, of the modalities that were asked for last: a table is drawn several times in a run.
_LENGTHS: list[tuple[Sequence[Any], dict[int, int]]] = []


def _length(name: str, table: DataTable, modality: ModalitySpec, row: int) -> int:
    values = table.values[modality.name]
    known = next((lengths for own, lengths in _LENGTHS if own is values), None)
    if known is None:
        known = {}
        _LENGTHS.append((values, known))
        del _LENGTHS[:-4]
    if row not in known:
        known[row] = len(_elements(name, modality, values[row]))
    return known[row]


def parse_change(name: str) -> Change:
    """The change that a canonical or other name stands for.

    Raises:
        UsageError: If the name is no change, or a value in it is not allowed.
    """
    what, _, rest = name.partition("_")
    modality, _, last = rest.rpartition("_")
    if what in SHAPES:
        return Shortened(what, parse_rate(last, name), modality)
    known = sorted({"mismatch", *(one for own in CORRUPTIONS.values() for one in own)})
    if what not in known or not modality:
        raise UsageError(
            f"{name!r} is no corruption; write <what>_<modality>_<severity>, e.g. noise_image_3. "
            f"What: {', '.join(known)}."
        )
    if last not in tuple("12345"):
        raise UsageError(f"corruption {name!r}: severity {last!r} is not one of 1 to 5.")
    return Corrupted(what, modality, int(last))


def parse_identity(text: str) -> Change:
    """The change that a saved mask table names.

    Raises:
        DataError: If it is unknown here, or has another version.
    """
    name, _, version = text.rpartition(" v")
    try:
        change = parse_change(name)
    except UsageError as error:
        raise DataError(f"a mask table changes values by {text!r}, which is not known here ({error})") from error
    if change.identity != text:
        raise DataError(f"a mask table changes values by {text!r}, here it is version {VERSION} ({version} asked).")
    return change


@dataclass(frozen=True)
class _Spread:
    """A block of some samples over an array of all of them, addressed by the rows of the data set like any array."""

    block: Any
    position: IntArray
    whole: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the data set's array."""
        return tuple(self.whole.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        own: np.dtype[Any] = self.whole.dtype
        return own

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, rows: Any) -> Any:
        position = self.position[rows]
        own = position >= 0
        found = self._fitted(np.asarray(self.block[position[own]]))
        if np.ndim(own) and own.all():
            return found
        result = np.array(self.whole[rows])
        result[own] = found
        return result

    def _fitted(self, found: Any) -> Any:
        """Tokens padded with zeros, or cut, to the length of the data set's."""
        if found.ndim < 2 or found.shape[1:] == self.shape[1:]:
            return found
        result = np.zeros((len(found), *self.shape[1:]), dtype=found.dtype)
        length = min(found.shape[1], self.shape[1])
        result[:, :length] = found[:, :length]
        return result


def spread(block: FeatureArray, rows: IntArray, whole: FeatureArray) -> FeatureArray:
    """Features of the whole data set in which those of some samples are others.

    Longer values are cut to the length of the longest value as the data came: a method was built for that many tokens.

    Args:
        block: Features of the n samples.
        rows: `[n]` their rows in the data set.
        whole: Features of the whole data set, which the others keep.
    """
    position = np.full(len(whole.digest), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))

    def part(own: Any, all_of_them: Any) -> Any:
        return _Spread(own, position, all_of_them)

    return FeatureArray(
        part(block.tokens, whole.tokens),
        part(block.mask, whole.mask),
        part(block.pooled, whole.pooled),
        part(block.digest, whole.digest),
    )


def _named(name: str, spec: DatasetSpec, asker: str) -> ModalitySpec:
    """The modality of that name; the error begins with who asks for it."""
    for modality in spec.modalities:
        if modality.name == name:
            return modality
    raise UsageError(
        f"{asker}: data set {spec.name!r} has no modality {name!r}. Modalities: {', '.join(spec.modality_names)}."
    )
