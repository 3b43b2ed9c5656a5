"""Options that several methods share; light, for their configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.config import MethodConfig
from harness.errors import UsageError
from harness.plugin import check_choice, check_range

_MEMORY_CHOICES: Mapping[str, tuple[str, ...]] = {
    "bank_splits": ("train", "train_valid"),
    "bank_missing": ("observed_only", "full"),
    "exclude_self": ("id", "row_number"),
    "retrieval": ("joint", "per_channel"),
    "neighbours": ("retrieved", "random"),
    "retrieved_padding": ("masked", "included"),
    "attention_mask": ("key_padding", "none"),
    "pool_token": ("cls", "first"),
}

_PROMPT_CHOICES: Mapping[str, tuple[str, ...]] = {
    "prompt_type": ("input", "attention"),
    "dummies": ("attended", "masked"),
    "decay": ("weights", "weights_and_prompts", "all"),
}


@dataclass
class MemoryOptions(MethodConfig):
    """Options of methods that fill in from retrieved training samples and prompt a backbone with them.

    Attributes:
        k: Retrieved neighbours K.
        prompt_length: Prompt tokens per modality.
        prompt_layer: Zero-based block index before which prompts are inserted.
        targets: Modalities that get a generator; empty means all (released code has one in single-type runs).
        bank_splits: `train`, or `train_valid` as papers and released code have it (reported by the audit).
        bank_missing: `observed_only`: complete training samples are retrievable; `full`: all training samples with
            their true modalities, which needs `supervision=complete`.
        exclude_self: `id` (and identical content) in every split, or `row_number` as the released code.
        retrieval: `joint` sums cosines over the observed modalities and returns pairs; `per_channel` lets every
            modality of a complete query search by itself and returns unpaired copies.
        neighbours: `retrieved`, or `random` (ablation).
        retrieved_padding: `masked` leaves padding of retrieved sequences out, `included` does not.
        attention_mask: `key_padding`, or `none`: padding is attended to, as a released mask had no effect.
        pool_token: `cls` (its shifted position), or `first` token of the sequence.
        decay_all: Weight decay on every parameter, biases and norms included.
    """

    k: int = 5
    prompt_length: int = 2
    prompt_layer: int = 1
    targets: list[str] = field(default_factory=list)
    bank_splits: str = "train"
    bank_missing: str = "observed_only"
    exclude_self: str = "id"
    retrieval: str = "joint"
    neighbours: str = "retrieved"
    retrieved_padding: str = "masked"
    attention_mask: str = "key_padding"
    pool_token: str = "cls"
    decay_all: bool = False

    def uses_valid(self) -> bool:
        """Whether the bank holds validation samples."""
        return self.bank_splits == "train_valid"

    def needs_complete_supervision(self) -> bool:
        """Whether the bank holds true values of missing training modalities."""
        return self.bank_missing == "full"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choices(self, _MEMORY_CHOICES)
        check_range("method", "k", self.k, 1)
        check_range("method", "prompt_length", self.prompt_length, 1)
        check_range("method", "prompt_layer", self.prompt_layer, 0)

    def validate_for(self, modalities: tuple[str, ...]) -> None:
        """Checks that `targets` name modalities of the data set."""
        unknown = sorted(set(self.targets) - set(modalities))
        if unknown:
            raise UsageError(f"method.targets={unknown} are not modalities; this data set has {', '.join(modalities)}.")


@dataclass
class PromptOptions(MethodConfig):
    """Options of methods that learn prompts for the first blocks and put dummies in the place of missing inputs.

    Attributes:
        prompt_type: `input`: the tokens are put in front of the sequence before each of these blocks; `attention`:
            their first half is put in front of the block's keys, their second half in front of its values.
        prompt_length: Prompt tokens per block.
        prompt_blocks: Blocks that get prompts, from the first on; a shallower backbone gets them in all of its blocks.
        dummies: `attended`: the stand-in of a missing modality is attended to; `masked`: only that of a text is.
        decay: Weight decay on `weights` (no biases, norms, prompts), on `weights_and_prompts`, or on `all`.
    """

    prompt_type: str = "input"
    prompt_length: int = 16
    prompt_blocks: int = 6
    dummies: str = "attended"
    decay: str = "weights"

    def validate(self) -> None:
        """Checks choices and ranges; raises `UsageError`."""
        check_choices(self, _PROMPT_CHOICES)
        check_range("method", "prompt_length", self.prompt_length, 1)
        check_range("method", "prompt_blocks", self.prompt_blocks, 1)
        if self.prompt_type == "attention" and self.prompt_length % 2:
            raise UsageError(
                f"method.prompt_length={self.prompt_length} must be even with prompt_type=attention: half of the "
                "tokens are keys, half are values."
            )


def check_choices(config: MethodConfig, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raises a `UsageError` at the first option of a config that is not one of its choices."""
    for option, allowed in choices.items():
        check_choice("method", option, getattr(config, option), allowed)
