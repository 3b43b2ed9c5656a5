"""Run files: the overrides of a run as YAML, for `from=FILE` of `harness run` and `harness sweep`.

`harness tune` writes them with the mark of its search; a file that anybody changed afterwards has lost that mark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config import NOT_IDENTITY, TuningConfig, digest_of
from harness.errors import UsageError
from harness.files import atomic_write, read_yaml

_KEY = "from"
_KEYS = {"run", "tuning", "digest"}
#: Hexadecimal digits of the digest that ties a mark to the overrides that it is about.
_DIGITS = 16
#: What a tuned run may set otherwise than its search did: where it is tested, seeds, places.
_FREE = ("dataset", "protocol", "mask_seed", "train_seed", "eval_seed", *NOT_IDENTITY)


@dataclass(frozen=True)
class RunFile:
    """What a run file says.

    Attributes:
        path: The file.
        run: Overrides, key to text in Hydra's grammar.
        tuning: The search that found them; None for a file that somebody wrote.
    """

    path: Path
    run: Mapping[str, str]
    tuning: TuningConfig | None = None

    def merged(self, own: Sequence[str]) -> list[str]:
        """The file's overrides, with a user's in place of those that set the same key.

        Raises:
            UsageError: If the user's would make another method of what was tuned.
        """
        merged = {key: f"{key}={text}" for key, text in self.run.items()}
        for text in own:
            key = override_key(text)
            if self.tuning is not None and key.partition(".")[0] not in _FREE:
                raise UsageError(
                    f"{text}: with options that {self.path} has from a search, only {', '.join(_FREE)} may be others; "
                    "tune with it, or give all options without the file."
                )
            merged[key] = text
        return list(merged.values())

    def save(self) -> None:
        """Writes the file atomically."""
        import yaml  # type: ignore[import-untyped]

        content: dict[str, Any] = {"run": dict(self.run)}
        if self.tuning is not None:
            content |= {"tuning": dataclasses.asdict(self.tuning), "digest": _digest(self.run, self.tuning)}
        with atomic_write(self.path) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> RunFile:
        """Reads a run file.

        Raises:
            UsageError: If it is none, or its overrides are not those that the search has found.
        """
        try:
            # Every scalar stays the text that it is: an override is a text.
            content = read_yaml(path, texts=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"{_KEY}={path} cannot be read ({error}).") from error
        if not isinstance(content, dict) or "run" not in content or not set(content) <= _KEYS:
            raise UsageError(
                f"{_KEY}={path} is no run file: it needs `run:` with lines KEY: VALUE, as of harness tune."
            )
        run = content["run"]
        if not isinstance(run, dict) or not run or not all(isinstance(text, str) for text in run.values()):
            raise UsageError(f"{_KEY}={path}: run must be lines of KEY: VALUE.")
        if "tuning" not in content:
            return cls(path, run)
        tuning = _mark(path, content["tuning"])
        if content.get("digest") != _digest(run, tuning):
            raise UsageError(
                f"{_KEY}={path} was changed after harness tune wrote it, so the values are no longer those that the "
                "search chose; tune again, or remove `tuning` and `digest` to run them as your own."
            )
        return cls(path, run, tuning)


def expand(overrides: Sequence[str]) -> list[tuple[list[str], TuningConfig | None]]:
    """Replaces `from=FILE,…` by what the files say: overrides and mark, once per file.

    Raises:
        UsageError: If a file cannot be used, or a mark is typed by hand.
    """
    paths = [text.partition("=")[2] for text in overrides if override_key(text) == _KEY]
    own = [text for text in overrides if override_key(text) != _KEY]
    typed = next((text for text in own if override_key(text).partition(".")[0] == "tuning"), None)
    if typed is not None:
        raise UsageError(f"{typed}: only harness tune says what was tuned; give the file that it wrote with {_KEY}=.")
    if not paths:
        return [(own, None)]
    if len(paths) > 1:
        raise UsageError(f"{_KEY} is given twice; a comma list makes a grid, e.g. {_KEY}=A.yaml,B.yaml.")
    files = [RunFile.load(Path(part.strip()).expanduser()) for part in paths[0].split(",")]
    return [(file.merged(own), file.tuning) for file in files]


def override_key(text: str) -> str:
    """What an override sets."""
    return text.partition("=")[0].strip()


def _mark(path: Path, content: Any) -> TuningConfig:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        mark = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TuningConfig), content))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UsageError(f"{path}: its mark cannot be read ({str(error).splitlines()[0]}).") from error
    assert isinstance(mark, TuningConfig)
    return mark


def _digest(run: Mapping[str, str], tuning: TuningConfig) -> str:
    return digest_of({"run": dict(run), "tuning": dataclasses.asdict(tuning)}, _DIGITS)
