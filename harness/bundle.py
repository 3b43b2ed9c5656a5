"""Evidence bundles: finished runs as one zip file that anyone can score again, without a GPU and without torch.

A bundle holds, per run, its record, config, environment, mask table and predictions, and a manifest with the sha256 of
every file; the archive's comment is the sha256 of the manifest.  Members are stored, not compressed, in one fixed
order and with one fixed date, so that the same content is the same archive, and every changed byte shows.
Reading trusts nothing: members have known names and are never unpacked by the names an archive gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.config import identity_part
from harness.errors import DataError, HarnessError, UsageError
from harness.files import atomic_write, check_parquet
from harness.identity import run_id
from harness.masking import MaskTable
from harness.metrics import is_higher_better, metric_for
from harness.predictions import load_predictions, split_conditions
from harness.record import RunRecord
from harness.scoring import Layout, bootstrap_interval, evaluate_aggregate, evaluate_predictions
from harness.types import Predictions, TaskSpec

BUNDLE_SCHEMA = 1
MANIFEST = "manifest.json"
#: What is kept of every run.
RUN_FILES = ("config.yaml", "environment.json", "mask.json", "mask.parquet", "predictions.parquet", "record.json")
#: Larger archives are refused unread: 1 GiB.
MAX_BYTES = 1 << 30
#: Scores are computed again in the same way; only the order of sums may differ between machines.
TOLERANCE = 1e-12

_MEMBER = re.compile(r"runs/([0-9a-f]{64})/(" + "|".join(map(re.escape, RUN_FILES)) + ")")
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        run: Run id; empty for checks of the whole bundle.
        name: What.
        passed: Whether it holds.
        detail: What was found, or what is wrong.
    """

    run: str
    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        digest: sha256 of the manifest, which stands for the whole bundle; empty when there is none.
        checks: All checks, in order; what rests on a failed one is left out.
        records: Records of the runs whose files are whole, by run id.
    """

    digest: str
    checks: tuple[Check, ...]
    records: Mapping[str, RunRecord]

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return all(check.passed for check in self.checks)


class _Broken(Exception):
    """A check that failed; the message is its detail."""


def write_bundle(path: Path, runs: Mapping[str, Mapping[str, bytes]]) -> str:
    """Writes a bundle, atomically.

    Args:
        path: The zip file.
        runs: Per run id the content of each of `RUN_FILES`.

    Returns:
        The bundle's digest: publish it, and nobody can exchange the bundle.

    Raises:
        UsageError: Without any run, or when the bundle would be larger than `MAX_BYTES`.
        DataError: If a run lacks a file, or the folder cannot be written.
    """
    if not runs:
        raise UsageError("a bundle needs at least one run.")
    members: dict[str, bytes] = {}
    for run, files in sorted(runs.items()):
        lost = [name for name in RUN_FILES if name not in files]
        if lost:
            raise DataError(f"run {run[:12]} has no {lost[0]}; only runs that finished can be exported.")
        members |= {f"runs/{run}/{name}": files[name] for name in RUN_FILES}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = json.dumps({"schema": BUNDLE_SCHEMA, "files": hashes}, indent=2, sort_keys=True).encode() + b"\n"
    archive = sealed_archive(members, manifest)
    if len(archive) > MAX_BYTES:
        raise UsageError(f"the bundle would have {len(archive):,} bytes, at most {MAX_BYTES:,}; export fewer runs.")
    with atomic_write(path) as temporary:
        temporary.write_bytes(archive)
    return hashlib.sha256(manifest).hexdigest()


def sealed_archive(members: Mapping[str, bytes], manifest: bytes) -> bytes:
    """The archive of some members and a manifest, with the manifest's sha256 as its comment."""
    return _archive({**members, MANIFEST: manifest}, hashlib.sha256(manifest).hexdigest().encode())


def verify_bundle(path: Path) -> Verification:
    """Checks a bundle from end to end; nothing is written outside a temporary folder, and nothing in it is run.

    Raises:
        DataError: If there is no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    checks: list[Check] = []
    records: dict[str, RunRecord] = {}
    digest = ""
    try:
        members, comment = _members(path)
        checks.append(Check("", "archive", True, f"{len(members)} files, nothing but what a bundle holds"))
        digest = _sealed(members, comment)
        checks.append(Check("", "manifest", True, f"sha256 {digest[:16]}… as the archive says"))
        count = _hashes(members)
        checks.append(Check("", "hashes", True, f"{count} files have the sha256 of the manifest"))
    except _Broken as error:
        name = ("archive", "manifest", "hashes")[len(checks)]
        return Verification(digest, (*checks, Check("", name, False, str(error))), records)
    runs: dict[str, dict[str, bytes]] = {}
    for name, data in members.items():
        match = _MEMBER.fullmatch(name)
        if match:
            runs.setdefault(match[1], {})[match[2]] = data
    labels: dict[tuple[str, str], Any] = {}
    for run, files in runs.items():
        checks += _check_run(run, files, labels, records)
    return Verification(digest, tuple(checks), records)


def _archive(members: Mapping[str, bytes], comment: bytes) -> bytes:
    """The one archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(members.items()):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data)
        archive.comment = comment
    return buffer.getvalue()


def _members(path: Path) -> tuple[dict[str, bytes], bytes]:
    """The files of an archive by name, and its comment."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise _Broken(f"{size:,} bytes, a bundle has at most {MAX_BYTES:,}")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _allowed(entries, size)
            members = {entry.filename: archive.read(entry) for entry in entries}
            comment = archive.comment
    except _Broken:
        raise
    except Exception as error:  # zipfile raises whatever a broken header leads it to
        raise _Broken(f"not a readable zip file ({type(error).__name__}: {error})") from error
    if _archive(members, comment) != content:
        raise _Broken("bytes outside the files differ from what the harness writes")
    return members, comment


def _allowed(entries: Sequence[zipfile.ZipInfo], size: int) -> None:
    names = [entry.filename for entry in entries]
    strange = [name for name in names if name != MANIFEST and not _MEMBER.fullmatch(name)]
    if strange:
        raise _Broken(f"holds {strange[0]!r}, which is no part of a bundle")
    if len(set(names)) < len(names):
        raise _Broken("holds a file twice")
    if MANIFEST not in names:
        raise _Broken(f"lacks {MANIFEST}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr >> 16 != 0o100644:
            raise _Broken(f"{entry.filename} is compressed, a link or a folder; members are plain stored files")
    if sum(entry.file_size for entry in entries) > size:
        raise _Broken("its files claim more bytes than the archive has")


def _sealed(members: Mapping[str, bytes], comment: bytes) -> str:
    digest = hashlib.sha256(members[MANIFEST]).hexdigest()
    if comment != digest.encode():
        raise _Broken(f"{MANIFEST} has sha256 {digest[:16]}…, the archive says {comment[:16].decode('latin-1')}…")
    return digest


def _hashes(members: Mapping[str, bytes]) -> int:
    try:
        manifest = json.loads(members[MANIFEST])
        schema, files = int(manifest["schema"]), dict(manifest["files"])
    except Exception as error:
        raise _Broken(f"{MANIFEST} is not readable ({type(error).__name__}: {error})") from error
    if schema != BUNDLE_SCHEMA:
        raise _Broken(f"written by a newer harness (bundle schema {schema}); upgrade to check it")
    there = {name for name in members if name != MANIFEST}
    runs = {name.split("/")[1] for name in there}
    wanted = set(files) | {f"runs/{run}/{name}" for run in runs for name in RUN_FILES}
    if lost := sorted(wanted - there):
        raise _Broken(f"lacks {lost[0]}")
    if extra := sorted(there - set(files)):
        raise _Broken(f"{extra[0]} is not in {MANIFEST}")
    if not files:
        raise _Broken("holds no run")
    wrong = [name for name in sorted(there) if hashlib.sha256(members[name]).hexdigest() != files[name]]
    if wrong:
        raise _Broken(f"{wrong[0]} was changed: its sha256 is not the manifest's")
    return len(there)


def _check_run(
    run: str, files: Mapping[str, bytes], labels: dict[tuple[str, str], Any], records: dict[str, RunRecord]
) -> list[Check]:
    """All checks of one run; the first one that fails ends them."""
    checks: list[Check] = []

    def passed(detail: str) -> None:
        checks.append(Check(run, steps[len(checks)], True, detail))

    steps = ("record", "run id", "predictions", "masks", "labels", "scores", "intervals")
    try:
        record = RunRecord.from_json(files["record.json"].decode(), "record.json")
        task = _task(record)
        passed(_agreement(run, record, files))
        records[run] = record
        passed(_identity(record))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in ("predictions.parquet", "mask.parquet", "mask.json"):
                (folder / file).write_bytes(files[file])
            for file in ("predictions.parquet", "mask.parquet"):
                check_parquet(folder / file)
            passed(_digest_of_predictions(record, files))
            predictions = load_predictions(folder / "predictions.parquet")
            masks = MaskTable.load(folder / "mask")
        parts = _parts(predictions, masks)
        passed(_shown(record, parts, masks))
        passed(_labels(record, predictions, labels))
        passed(_scores(record, task, parts, predictions))
        passed(_intervals(record, task, parts, predictions))
    except (_Broken, HarnessError) as error:
        checks.append(Check(run, steps[len(checks)], False, " ".join(str(error).split())))
    except Exception as error:  # a record may hold anything under the right keys
        text = f"not what the harness writes ({type(error).__name__}: {error})"
        checks.append(Check(run, steps[len(checks)], False, " ".join(text.split())))
    return checks


def _task(record: RunRecord) -> TaskSpec:
    task = record.dataset["task"]
    return TaskSpec(task["kind"], int(task["num_outputs"]), tuple(task["labels"]), record.primary_metric)


def _agreement(run: str, record: RunRecord, files: Mapping[str, bytes]) -> str:
    """Whether the record, its config and the files beside it say the same."""
    import yaml  # type: ignore[import-untyped]

    config = record.config
    if record.run_id != run:
        raise _Broken(f"is about run {record.run_id[:12]}")
    if record.status != "finished":
        raise _Broken(f"the run is {record.status}, not finished")
    if yaml.safe_load(files["config.yaml"]) != config:
        raise _Broken("config.yaml is not the record's config")
    if json.loads(files["environment.json"]) != record.environment:
        raise _Broken("environment.json is not the record's environment")
    data = config["dataset"]
    # A user's own data have a name of their own, which is the folder's where none is given.
    called = data.get("name_", data["name"]) or record.dataset["name"]
    pairs = {
        "method": (record.method, config["method"]["name"]),
        "preset": (record.preset, config["method"].get("preset", record.preset)),
        "protocol": (record.protocol["name"], config["protocol"]),
        "supervision": (record.protocol["supervision"], config["supervision"]),
        "data set": (record.dataset["name"], called),
        **{name: (record.seeds[name], config[name]) for name in ("mask_seed", "train_seed", "eval_seed")},
    }
    if record.backbone:
        pairs["backbone"] = (record.backbone, config["backbone"]["name"])
    for name, (said, meant) in pairs.items():
        if said != meant:
            raise _Broken(f"{name} is {said!r} in the record and {meant!r} in its config")
    if record.higher_is_better != is_higher_better(record.primary_metric):
        raise _Broken(f"has the direction of {record.primary_metric} wrong")
    return f"{record.display_name} · {record.dataset['name']} · {record.protocol['name']}, agrees with its config"


def _identity(record: RunRecord) -> str:
    """Computes the run id again: it binds config, data version, masks, code and metric versions."""
    config = {name: value for name, value in identity_part(record.config).items() if name != "dataset"}
    if not record.backbone:
        config.pop("backbone", None)
    masks = record.protocol["mask_fingerprint"]
    # Records of the first schema noted one fingerprint, where both were equal.
    shown = record.protocol.get("shown_fingerprint", masks)
    if shown != masks and not record.oracle:
        raise _Broken("the method was shown other values than the protocol's masks allow, and is not called an oracle")
    found = run_id(
        config,
        dataset_fingerprint=record.dataset["fingerprint"],
        mask_fingerprint=f"{masks}:{shown}",
        plugins=record.fingerprints,
        metrics=record.metric_versions,
    )
    if found != record.run_id:
        raise _Broken(f"config, data, masks, code and metrics make run {found[:12]}…, the record is of another")
    return "sha256 of config, data version, masks, code and metric versions"


def _digest_of_predictions(record: RunRecord, files: Mapping[str, bytes]) -> str:
    found = hashlib.sha256(files["predictions.parquet"]).hexdigest()
    if found != record.predictions_sha256:
        raise _Broken(f"have sha256 {found[:16]}…, the record says {record.predictions_sha256[:16]}…")
    return f"sha256 {found[:16]}… as the record says"


def _parts(predictions: Predictions, masks: MaskTable) -> dict[str, Predictions]:
    """Predictions by test condition."""
    parts = split_conditions(predictions)
    if list(parts) == [""]:  # written before conditions were noted
        parts = {masks.condition_names[0]: predictions}
    if tuple(parts) != masks.condition_names:
        raise _Broken(f"predictions are under {list(parts)}, the masks under {list(masks.condition_names)}")
    return parts


def _shown(record: RunRecord, parts: Mapping[str, Predictions], masks: MaskTable) -> str:
    """Whether the mask table is the record's, and every test sample was shown what it says and nothing else."""
    same = {
        "fingerprint": (masks.fingerprint, record.protocol["mask_fingerprint"]),
        "data set": (masks.dataset_fingerprint, record.dataset["fingerprint"]),
        "protocol": (masks.protocol, record.protocol["name"]),
        "seed": (masks.mask_seed, record.seeds["mask_seed"]),
        "counts": (masks.counts(), record.protocol.get("counts", masks.counts())),
    }
    for name, (found, said) in same.items():
        if found != said:
            raise _Broken(f"the table's {name} is not the record's")
    revealed = record.protocol.get("shown_fingerprint", masks.fingerprint) != masks.fingerprint
    for condition, part in parts.items():
        rows = masks.conditions[condition] if masks.conditions else masks.present["test"]
        there = np.flatnonzero(rows.any(axis=1))
        ids = tuple(masks.ids["test"][row] for row in there)
        if part.modalities != masks.modalities or part.ids != ids:
            raise _Broken(f"predictions under {condition!r} are not about the table's test samples, each once")
        # An oracle is shown more than the table, by declaration; the table does not say how much there was.
        wrong = (rows[there] & ~part.present) if revealed else (rows[there] != part.present)
        if wrong.any():
            row = int(np.flatnonzero(wrong.any(axis=1))[0])
            raise _Broken(f"sample {ids[row]!r} under {condition!r} was not shown what the table says")
    total = sum(len(part.ids) for part in parts.values())
    return f"fingerprint {masks.fingerprint[:16]}…; {total} predictions were shown what it says"


def _labels(record: RunRecord, predictions: Predictions, known: dict[tuple[str, str], Any]) -> str:
    """Labels are the data set's own; a bundle can show that all its runs mean the same ones."""
    values = predictions.labels.tolist()
    for name, label in zip(predictions.ids, values, strict=True):
        if known.setdefault((record.dataset["fingerprint"], name), label) != label:
            raise _Broken(f"sample {name!r} has other labels elsewhere in the bundle")
    return "the same wherever a sample occurs; whether they are the data set's needs the data set"


def _scores(record: RunRecord, task: TaskSpec, parts: Mapping[str, Predictions], pool: Predictions) -> str:
    """Computes every score again, over all samples and per pattern."""
    names = list(record.metric_versions)
    for name in names:
        here = metric_for(task, name).version
        if here != record.metric_versions[name]:
            raise _Broken(f"metric {name} has version {record.metric_versions[name]}, here {here}")
    said = [result.condition for result in record.results if result.kind == "condition"]
    if said != list(parts):
        raise _Broken(f"the record has scores under {said}, the predictions are under {list(parts)}")
    count = 0
    for result in record.results:
        per_pattern: Mapping[str, Mapping[str, float]] = {}
        counts: Mapping[str, int] = {}
        if result.kind == "mean":
            overall = evaluate_aggregate(task, pool, "mean", names)
        elif result.kind == "pool":
            overall, per_pattern, counts = evaluate_predictions(task, pool, names)
        else:
            overall, per_pattern, counts = evaluate_predictions(task, parts[result.condition], names)
        again = {"metrics": overall, "per_pattern": per_pattern, "pattern_counts": counts}
        for part, found in again.items():
            count += _equal(getattr(result, part), found, f"{result.condition}: {part}")
    return f"{count} numbers computed again from the predictions, all equal"


def _intervals(record: RunRecord, task: TaskSpec, parts: Mapping[str, Predictions], pool: Predictions) -> str:
    """Computes every bootstrap interval again, from the evaluation seed."""
    count = 0
    for result in record.results:
        if list(result.intervals) != [task.primary_metric]:
            raise _Broken(f"{result.condition}: has intervals of {list(result.intervals)}")
        run = parts[result.condition] if result.kind == "condition" else pool
        layout = None if result.kind == "condition" else Layout.of(run, result.kind)
        seed = record.seeds["eval_seed"]
        again = bootstrap_interval(task, task.primary_metric, run.logits, run.labels, seed, layout=layout)
        count += _equal(result.intervals, {task.primary_metric: list(again)}, f"{result.condition}: intervals")
    return f"{count} bounds drawn again, all equal"


def _equal(said: Any, found: Any, where: str) -> int:
    """Compares nested numbers; the number of leaves."""
    if isinstance(found, Mapping):
        if not isinstance(said, Mapping) or set(said) != set(found):
            raise _Broken(f"{where}: has other entries than the predictions give")
        return sum(_equal(said[name], found[name], f"{where} {name}") for name in found)
    if isinstance(found, list):
        if not isinstance(said, list) or len(said) != len(found):
            raise _Broken(f"{where}: has another length")
        return sum(_equal(a, b, where) for a, b in zip(said, found, strict=True))
    if isinstance(said, bool) or not isinstance(said, (int, float)):
        raise _Broken(f"{where}: {said!r} is no number")
    if not (
        math.isclose(said, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(said) and math.isnan(found))
    ):
        raise _Broken(f"{where}: the record says {said!r}, the predictions give {found!r}")
    return 1
