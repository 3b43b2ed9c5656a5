"""What the downloaded picture-and-text data sets share: one complete check of a folder, and an index made of it.

The check reads, hashes and decodes every picture once and notes each in a journal, so that a killed check goes on
where it stopped.  The index is written when nothing is wrong, and holds as long as no file changes in size or time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.config import digest_of
from harness.dataset import LazySequence, check_table, join_groups, part_of, table_fingerprint
from harness.datasets._pictures import FORMATS
from harness.errors import DataError
from harness.files import atomic_write, ensure_folder
from harness.plugin import check_choice
from harness.prepare import PreparableConfig, Preparation, Problem
from harness.progress import say, track
from harness.types import SPLITS, DatasetSpec, DataTable, IntArray, ModalitySpec, Split, TaskSpec

INDEX_VERSION = 1
MAX_PIXELS = 50_000_000  # a picture of more would take 150 MB and more; no release has any
MAX_BYTES = 100_000_000
_DEPTH = 4  # folders below the data set's own that are looked into
_CHUNK = 256  # pictures between two entries in the journal
_NAMED = 5  # problems in the one line of an error
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".hdf5")

Listing = Mapping[str, tuple[int, int]]  # path below the folder -> size, time in ns


@dataclass(frozen=True)
class Sample:
    """One sample as the release's own files describe it.

    Attributes:
        id: Its id.
        split: Its split.
        picture: Path of its picture below the folder.
        labels: Class index, or indices of all that apply.
        texts: Its texts in the order of the files.
    """

    id: str
    split: Split
    picture: str
    labels: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass
class Description:
    """What a release's own text files say.

    Attributes:
        samples: Samples without problems, in the order of the release.
        counts: What was counted, with the number found and that of the release.
        problems: What is wrong with the text files.
        remarks: What is odd and kept, with the files it is about.
    """

    samples: list[Sample] = field(default_factory=list)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def problem(self, where: str, what: str) -> None:
        """Notes a problem."""
        self.problems.append(Problem(where, what))


@dataclass
class ReleasedConfig(PreparableConfig):
    """Base of data sets of pictures and texts in the format of their release.

    Attributes:
        folder: Where the release was unpacked; empty means `<data folder>/<name of the data set>`.
        damaged: `refuse` pictures that are missing or cannot be decoded, or count them as `absent` (missing by nature).
    """

    folder: str = ""
    damaged: str = "refuse"

    name: ClassVar[str] = ""

    @abstractmethod
    def task(self) -> TaskSpec:
        """What is predicted."""

    @abstractmethod
    def find(self, folder: Path) -> Path:
        """The folder that holds the release, at or below the one that the user names.

        Raises:
            DataError: Naming what is missing, what was found instead and how to obtain the data.
        """

    @abstractmethod
    def describe(self, folder: Path, files: Listing) -> Description:
        """Reads the release's text files.

        Args:
            folder: The release.
            files: Every file below it.
        """

    def text(self, texts: Sequence[str]) -> str:
        """The text of a sample that has these; blank if none of them is used."""
        return texts[0] if texts else ""

    def title(self) -> str:
        """What tables call the data set."""
        return self.name

    def validate(self) -> None:
        """Checks choices; raises `UsageError`."""
        check_choice("dataset", "damaged", self.damaged, ("refuse", "absent"))

    def prepare(self, data_dir: Path, cache_dir: Path) -> Preparation:
        """Checks every file and writes the index and the report.

        Raises:
            DataError: If there is no such release in the folder.
        """
        self.validate()
        return self._checked(data_dir, cache_dir)[0]

    def load(self, data_dir: Path, cache_dir: Path) -> DataTable:
        """Reads the index, after checking the folder if that has not been done.

        Raises:
            DataError: Naming the first problems and the report that has all of them.
        """
        self.validate()
        checked, index = self._checked(data_dir, cache_dir)
        if checked.problems:
            first = "; ".join(map(str, checked.problems[:_NAMED]))
            more = len(checked.problems) - _NAMED
            raise DataError(
                f"{self.name} in {checked.folder} has {len(checked.problems):,} "
                f"problem{'s' if len(checked.problems) > 1 else ''}: {first}"
                f"{f'; and {more:,} more' if more > 0 else ''}; all are in {checked.report}; {self.obtain}"
            )
        if not checked.official:
            say(f"{self.name}: not the whole release: {'; '.join(map(str, checked.count_problems()))}.")
        return self._table(checked, index)

    def _checked(self, data_dir: Path, cache_dir: Path) -> tuple[Preparation, list[_Row]]:
        """The check's result and the rows of the index; from the index if no file has changed since."""
        folder = self.find(Path(self.folder).expanduser().absolute() if self.folder else data_dir / self.name)
        place = cache_dir / self.name / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        ensure_folder(place)
        with _alone(place / "check", f"{self.name}: another process is checking {folder}; waiting for it."):
            files = _listing(folder)
            options = {name: value for name, value in self.to_dict().items() if name != "folder"}
            index = _Index(place, digest_of(options, 8))
            state = digest_of([INDEX_VERSION, self.version, options, sorted(files.items())])
            stored = index.read(state)
            if stored is None:
                stored = self._check(folder, files, place)
                index.write(state, *stored)
        facts, rows = stored
        return (
            Preparation(
                name=self.name,
                folder=folder,
                counts={what: (found, released) for what, (found, released) in facts["counts"].items()},
                problems=tuple(Problem(where, what) for where, what in facts["problems"]),
                remarks={summary: tuple(about) for summary, about in facts["remarks"].items()},
                report=index.report,
                index=index.rows,
            ),
            rows,
        )

    def _check(self, folder: Path, files: Listing, place: Path) -> tuple[dict[str, Any], list[_Row]]:
        """Reads everything; returns facts and rows."""
        found = self.describe(folder, files)
        _check_unique(found)
        pictures = _check_pictures(self.name, folder, files, [sample.picture for sample in found.samples], place)
        rows: list[_Row] = []
        absent: list[str] = []
        for sample in found.samples:
            picture = pictures[sample.picture]
            # A file that is there and cannot be read at all may be sound: that is no damage to live with.
            if picture.problem and self.damaged == "absent" and (picture.sha256 or sample.picture not in files):
                absent.append(f"{sample.picture}: {picture.problem}")
            elif picture.problem:
                found.problem(sample.picture, picture.problem)
            rows.append(_Row(sample, "" if picture.problem else picture.sha256))
        if absent:
            found.remarks[f"{len(absent):,} pictures are missing or damaged and count as absent"] = absent
        silent = [row.sample.id for row in rows if not self.text(row.sample.texts).strip()]
        if silent:
            found.remarks[f"{len(silent):,} samples have no text; their text counts as absent"] = silent
        if self.damaged == "absent":
            for sample_id in sorted({row.sample.id for row in rows if not row.sha256} & set(silent)):
                found.problem(f"sample {sample_id}", "has neither a picture nor a text")
        found.remarks |= _duplicates(rows)
        if not found.problems:
            for split in SPLITS:
                if not any(sample.split == split for sample in found.samples):
                    found.problem(str(folder), f"has no samples for the split {split!r}")
        return {
            "counts": found.counts,
            "problems": [[problem.where, problem.what] for problem in found.problems],
            "remarks": found.remarks,
            "text": Preparation(
                self.name,
                folder,
                found.counts,
                tuple(found.problems),
                {summary: tuple(about) for summary, about in found.remarks.items()},
                place,
                place,
            ).text(),
        }, rows

    def _table(self, checked: Preparation, rows: list[_Row]) -> DataTable:
        """The data set as methods see it."""
        samples = [row.sample for row in rows]
        task = self.task()
        if task.kind == "multilabel":
            labels: npt.NDArray[Any] = np.zeros((len(rows), task.num_outputs), dtype=np.float32)
            for row, sample in enumerate(samples):
                labels[row, list(sample.labels)] = 1.0
        else:
            labels = np.array([sample.labels[0] for sample in samples], dtype=np.int64)
        ids = tuple(sample.id for sample in samples)
        splits = {
            split: np.array([row for row, sample in enumerate(samples) if sample.split == split], dtype=np.int64)
            for split in SPLITS
        }
        texts = [self.text(sample.texts) for sample in samples]
        available = np.array(
            [[bool(row.sha256), bool(text.strip())] for row, text in zip(rows, texts, strict=True)], dtype=np.bool_
        ).reshape(len(rows), 2)
        folder = checked.folder
        return check_table(
            DataTable(
                spec=DatasetSpec(
                    name=self.title(),
                    version=self.version if checked.official else part_of(self.version),
                    modalities=(ModalitySpec("image", "image", (None, None, 3)), ModalitySpec("text", "text")),
                    task=task,
                    license=self.license,
                    citation=self.citation,
                    fingerprint=table_fingerprint(
                        ids, splits, labels, [f"{row.sha256}|{text}" for row, text in zip(rows, texts, strict=True)]
                    ),
                ),
                ids=ids,
                splits=splits,
                labels=labels,
                available=available,
                values={
                    "image": LazySequence(lambda row: read_picture(folder / samples[row].picture), len(ids)),
                    "text": texts,
                },
                groups=_groups(rows),
                card={
                    "samples": len(ids),
                    "whole release": checked.official,
                    "present values": dict(zip(("image", "text"), available.sum(axis=0).tolist(), strict=True)),
                    "remarks": list(checked.remarks),
                },
            )
        )


@dataclass(frozen=True)
class _Row:
    """A row of the index: a sample and the sha256 of its picture's file, empty where the picture is absent."""

    sample: Sample
    sha256: str


@dataclass(frozen=True)
class _Picture:
    """What reading a picture's file found."""

    sha256: str
    problem: str


class _Index:
    """Facts and rows of a checked folder; the facts are written last and hold the state that both belong to."""

    def __init__(self, place: Path, options: str) -> None:
        self._facts = place / f"index-{options}.json"
        self.rows = place / f"index-{options}.parquet"
        self.report = place / f"report-{options}.txt"

    def read(self, state: str) -> tuple[dict[str, Any], list[_Row]] | None:
        """What was written for this state, or None if there is nothing sound."""
        import pyarrow
        import pyarrow.parquet

        try:
            facts = dict(json.loads(self._facts.read_text(encoding="utf-8")))
            # Problems are looked for again: some are mended without a trace in sizes and times, such as permissions.
            if facts["state"] != state or facts["problems"] or not self.report.is_file():
                return None
            if hashlib.sha256(self.rows.read_bytes()).hexdigest() != facts["rows"]:
                return None
            table = pyarrow.parquet.read_table(self.rows).to_pylist()
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
            return None
        return facts, [
            _Row(
                Sample(row["id"], row["split"], row["picture"], tuple(row["labels"]), tuple(row["texts"])),
                row["sha256"],
            )
            for row in table
        ]

    def write(self, state: str, facts: dict[str, Any], rows: list[_Row]) -> None:
        """Writes the report, the rows if the folder is sound, and then the facts."""
        import pyarrow
        import pyarrow.parquet

        self._facts.unlink(missing_ok=True)
        with atomic_write(self.report) as temporary:
            temporary.write_text(facts.pop("text"), encoding="utf-8", errors="backslashreplace")
        if facts["problems"]:
            self.rows.unlink(missing_ok=True)
        else:
            columns = {
                "id": pyarrow.array([row.sample.id for row in rows], pyarrow.string()),
                "split": pyarrow.array([row.sample.split for row in rows], pyarrow.string()),
                "picture": pyarrow.array([row.sample.picture for row in rows], pyarrow.string()),
                "sha256": pyarrow.array([row.sha256 for row in rows], pyarrow.string()),
                "labels": pyarrow.array([list(row.sample.labels) for row in rows], pyarrow.list_(pyarrow.int64())),
                "texts": pyarrow.array([list(row.sample.texts) for row in rows], pyarrow.list_(pyarrow.string())),
            }
            with atomic_write(self.rows) as temporary:
                pyarrow.parquet.write_table(pyarrow.table(columns), temporary, compression="zstd")
            facts["rows"] = hashlib.sha256(self.rows.read_bytes()).hexdigest()
        with atomic_write(self._facts) as temporary:
            temporary.write_text(json.dumps(facts | {"state": state}), encoding="utf-8")


class _Journal:
    """Pictures that were read and are sound, one JSON line each; a line that a killed process left torn is not read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}  # size, time, sha256
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            lines = []
        for line in lines:
            try:
                file, *rest = json.loads(line)
                size, time, sha256 = rest
            except (ValueError, TypeError):
                continue
            self._known[str(file)] = [size, time, str(sha256)]

    def get(self, file: str, state: tuple[int, int]) -> _Picture | None:
        """What is known of a file of this size and time."""
        known = self._known.get(file)
        return _Picture(known[2], "") if known is not None and known[:2] == list(state) else None

    def add(self, found: Mapping[str, tuple[tuple[int, int], str]]) -> None:
        """Appends and flushes; what is added survives the process."""
        if not found:
            return
        with self._path.open("a", encoding="utf-8") as file:
            # The line before may be torn.
            file.write("\n")
            for name, (state, sha256) in found.items():
                self._known[name] = [*state, sha256]
                file.write(json.dumps([name, *state, sha256]) + "\n")

    def compact(self, files: Listing) -> None:
        """Forgets files that are gone or were replaced."""
        with atomic_write(self._path) as temporary:
            lines = [json.dumps([name, *known]) for name, known in self._known.items() if name in files]
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _check_pictures(name: str, folder: Path, files: Listing, wanted: list[str], place: Path) -> dict[str, _Picture]:
    """Reads, hashes and decodes every picture that was not read before."""
    journal = _Journal(place / "pictures.jsonl")
    result: dict[str, _Picture] = {}
    todo: list[str] = []
    for picture in dict.fromkeys(wanted):
        state = files.get(picture)
        known = journal.get(picture, state) if state is not None else _Picture("", "is missing")
        if known is None:
            todo.append(picture)
        else:
            result[picture] = known
    if todo:
        before = len(result)
        say(f"{name}: checking {len(todo):,} pictures{f', {before:,} are known' if before else ''}.")
        chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for chunk in track(chunks, f"{name}: checking pictures"):
                found = dict(zip(chunk, pool.map(lambda file: _check_picture(folder / file), chunk), strict=True))
                journal.add(
                    {file: (files[file], picture.sha256) for file, picture in found.items() if not picture.problem}
                )
                result |= found
        journal.compact(files)
    return result


def _check_picture(path: Path) -> _Picture:
    try:
        if path.stat().st_size > MAX_BYTES:
            return _Picture("", f"is larger than {MAX_BYTES // 1_000_000} MB")
        raw = path.read_bytes()
    except OSError as error:
        return _Picture("", f"cannot be read ({error.strerror or error})")
    _, problem = _decode(raw)
    return _Picture(hashlib.sha256(raw).hexdigest(), problem)


def _decode(raw: bytes) -> tuple[npt.NDArray[np.uint8] | None, str]:
    """RGB pixels `[H, W, 3]` of an encoded picture, or what is wrong with it; its orientation tag is not applied.

    The released loaders do not apply it either.
    """
    from PIL import Image, UnidentifiedImageError

    if not raw:
        return None, "is empty"
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return None, f"would decode to {width} x {height} pixels (at most {MAX_PIXELS:,} are read)"
            return np.array(image.convert("RGB")), ""
    except Exception as error:  # decoders fail in a dozen ways on damaged files
        if isinstance(error, Image.DecompressionBombError):
            return None, f"would decode to far too many pixels (at most {MAX_PIXELS:,} are read)"
        if isinstance(error, UnidentifiedImageError):
            return None, f"is not a picture (begins with {raw[:12]!r})"
        reason = (str(error).splitlines() or [""])[0][:100] or type(error).__name__
        return None, f"cannot be decoded ({reason})"


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """RGB pixels `[H, W, 3]` of a picture.

    Raises:
        DataError: If it is gone or damaged since the folder was checked.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); it was there when it was checked."
        ) from error
    pixels, problem = _decode(raw)
    if pixels is None:
        raise DataError(f"{path} {problem}; it was sound when it was checked.")
    return pixels


def _check_unique(found: Description) -> None:
    """Notes ids that occur twice, in one split or in two, and keeps the first."""
    seen: dict[str, Split] = {}
    kept = []
    for sample in found.samples:
        if sample.id in seen:
            both = {seen[sample.id], sample.split}
            place = f"in {' and '.join(sorted(both))}" if len(both) == 2 else f"twice in {sample.split}"
            found.problem(f"sample {sample.id}", f"is {place}")
        else:
            kept.append(sample)
        seen.setdefault(sample.id, sample.split)
    found.samples = kept


def _duplicates(rows: Sequence[_Row]) -> dict[str, list[str]]:
    """Pictures with the same bytes, and samples with the same picture and texts, that lie in different splits."""
    same_picture: dict[Hashable, list[Sample]] = defaultdict(list)
    same_content: dict[Hashable, list[Sample]] = defaultdict(list)
    for row in rows:
        if row.sha256:
            same_picture[row.sha256].append(row.sample)
            same_content[row.sha256, row.sample.texts].append(row.sample)
    remarks = {}
    for what, found in (("pictures", same_picture), ("samples (picture and text)", same_content)):
        across = [
            " = ".join(f"{sample.split} {sample.picture}" for sample in same)
            for same in found.values()
            if len({sample.split for sample in same}) > 1
        ]
        if across:
            remarks[f"{len(across):,} {what} are in more than one split under different ids"] = across
    return remarks


def _groups(rows: Sequence[_Row]) -> IntArray:
    """Samples of one split whose pictures have the same bytes; duplicates across splits stay apart."""
    return join_groups([[(row.sample.split, row.sha256)] if row.sha256 else [] for row in rows])


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, by its path."""

    def walk(path: Path, prefix: str, depth: int) -> Iterator[tuple[str, tuple[int, int]]]:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    if depth:
                        yield from walk(Path(entry.path), f"{prefix}{entry.name}/", depth - 1)
                elif entry.is_file():
                    stat = entry.stat()
                    yield f"{prefix}{entry.name}", (stat.st_size, stat.st_mtime_ns)

    try:
        return dict(walk(folder, "", _DEPTH))
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read ({error.strerror or error}).") from error


@contextmanager
def _alone(path: Path, message: str) -> Iterator[None]:
    """Holds a lock between processes; says so when it has to wait for another one."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(message)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def archives_in(folder: Path) -> str:
    """Half a sentence on archives that were not unpacked; empty if there are none."""
    if not folder.is_dir():
        return ""
    packed = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _ARCHIVES)
    return f"; it holds {', '.join(packed[:3])}, which must be unpacked first" if packed else ""


def read_json(folder: Path, file: str, found: Description) -> Any:
    """Content of a JSON file, or None after noting what is wrong."""
    try:
        return json.loads((folder / file).read_text(encoding="utf-8-sig"))
    except OSError as error:
        found.problem(file, f"cannot be read ({error.strerror or error})")
    except (ValueError, RecursionError) as error:
        found.problem(file, f"is not whole JSON ({_first(error)})")
    return None


def _first(error: Exception) -> str:
    """First line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:100]


def as_text(value: str) -> str:
    """A string of a JSON file without the lone surrogates that JSON allows and UTF-8 does not."""
    return value.encode("utf-8", "replace").decode("utf-8")


def first_of(files: Listing, candidates: Sequence[str]) -> str:
    """The first of several places of a file where there is one, else the first."""
    return next((path for path in candidates if path in files), candidates[0])


def inside(path: str) -> bool:
    """Whether a path that a file names stays below the folder."""
    return bool(path) and not path.startswith(("/", "\\")) and ".." not in Path(path).parts
