"""How runs are laid out in MLflow: connecting quickly and quietly, writing one run whole, finding ended runs.

A run counts as stored when it carries the tag `harness.run_id` and has ended; what a killed process left
half-written lacks one of the two and is never read.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import math
import os
import re
import sqlite3
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import TrackingError
from harness.files import Folders, ensure_folder, locked
from harness.record import RunRecord
from harness.system_metrics import SYSTEM_METRICS_FILE, read_samples

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Run
    from mlflow.tracking import MlflowClient

RUN_ID = "harness.run_id"
STATUS = "harness.status"
DELIVERY = "harness.delivery"
SENT = "harness.sent"
SUPERSEDED = "harness.superseded_by"
#: Names of files that were made from a stored run and lie beside its record, separated by commas.
ATTACHED = "harness.attached"

PROBE_SECONDS = 3.0
#: How long a reader waits for a SQLite database that is being written.
BUSY_SECONDS = 60.0
METRICS_PER_CALL = 1000
ENTRIES_PER_CALL = 100
#: Older servers refuse longer parameters; MLflow itself cuts at 6,000 characters.
PARAM_LENGTH = 500

_ENDED = {"FINISHED", "FAILED", "KILLED"}
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


def redact(text: str) -> str:
    """`text` without user names, passwords and tokens of the addresses in it."""
    text = re.sub(r"(?<=://)[^/\s'\"]+@", "***@", text)
    return re.sub(r"(?i)\b([\w-]*(?:password|passwd|token|secret|api_?key)[\w-]*=)[^&\s'\"]+", r"\1***", text)


def reason(error: BaseException) -> str:
    """First line of an error without credentials, for one-line messages."""
    lines = str(error).strip().splitlines()
    return redact(lines[0].rstrip(". ")) if lines else type(error).__name__


def is_remote(uri: str) -> bool:
    """Whether `uri` names an HTTP server."""
    return uri.startswith(("http://", "https://"))


def connect(uri: str, folders: Folders | None = None) -> MlflowClient:
    """A client for `uri`, quiet, with short retries and without telemetry.

    A SQLite database that does not exist is created first, under a file lock and by renaming a complete file.

    Args:
        uri: Tracking URI.
        folders: Where a new database keeps its artifacts; None refuses to create one.

    Raises:
        TrackingError: If nothing answers, or the database cannot be opened; never longer than a few seconds.
    """
    probe(uri)
    _prepare_mlflow()
    try:
        if uri.startswith("sqlite:///"):
            _ensure_database(Path(uri.removeprefix("sqlite:///")), folders)
        from mlflow.tracking import MlflowClient

        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow at {redact(uri)} cannot be used: {reason(error)}.") from error
    return client


def probe(uri: str) -> None:
    """Raises within `PROBE_SECONDS` when no HTTP server answers; any answer at all counts."""
    if not is_remote(uri):
        return
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    health = urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/health", "", ""))
    try:
        with urllib.request.urlopen(health, timeout=PROBE_SECONDS):
            pass
    except urllib.error.HTTPError as answer:
        if answer.code in (502, 503, 504):
            raise TrackingError(f"MLflow server {redact(uri)} does not answer: HTTP {answer.code}.") from answer
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        why = redact(getattr(cause, "strerror", None) or str(cause))
        raise TrackingError(f"MLflow server {redact(uri)} cannot be reached: {why}.") from error


def _prepare_mlflow() -> None:
    """Settings that MLflow reads from the environment; what the user has set stays."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def _ensure_database(path: Path, folders: Folders | None) -> None:
    if _is_database(path):
        return
    if folders is None:
        raise TrackingError(f"there is no MLflow database at {path}; `harness run` creates it with the first run.")
    ensure_folder(path.parent)
    with locked(path):
        if _is_database(path):
            return
        if path.exists() and path.stat().st_size:
            raise TrackingError(
                f"{path} is not an MLflow database; move it away or set tracking.uri=sqlite:///OTHER.db."
            )
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        store = SqlAlchemyStore(f"sqlite:///{fresh}", artifact_root(path.parent).as_uri())
        store.engine.dispose()
        fresh.replace(path)


def _reading(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """A SQLite database that is not written, closed at the end of a `with`."""
    address = f"{path.absolute().as_uri()}?mode=ro"
    return contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS))


def _is_database(path: Path) -> bool:
    """Whether `path` is a SQLite file with MLflow's tables."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with _reading(path) as connection:
        try:
            query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('runs', 'alembic_version')"
            return bool(connection.execute(query).fetchone()[0] == 2)
        except sqlite3.DatabaseError:
            return False


def artifact_root(base: Path) -> Path:
    """Folder of the artifacts of a local store."""
    return base.absolute() / "mlartifacts"


def ensure_experiment(client: MlflowClient, uri: str, name: str, folders: Folders) -> str:
    """Id of the experiment `name`, created if needed; another process may create it at the same moment.

    Raises:
        TrackingError: If the experiment was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # The kind decides which view MLflow's pages open: the table of runs.
        tags = {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.note.content": "Runs of missing-modality-harness; a run's page says what was run and its score.",
        }
        location = None
        if not is_remote(uri) and not uri.startswith("databricks"):
            local = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else folders.home
            location = (artifact_root(local) / re.sub(r"[^\w.-]+", "-", name)).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=tags))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow experiment {name!r} was deleted; restore it with `mlflow experiments restore -x "
            f"{experiment.experiment_id}` or choose another with tracking.experiment=NAME."
        )
    return str(experiment.experiment_id)


def legal_names(names: Iterable[str]) -> dict[str, str]:
    """MLflow names for ours: letters, digits and `_ - . space : /` only, still different from each other.

    `+` between modalities becomes `.`; every other illegal character becomes `_`, and names that would fall
    together, or are too long, end in a short hash.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        # MLflow also refuses what is not a normalised path ("a//b", "./a", a leading or trailing slash).
        parts = re.sub(r"[^\w\-. :/]", "_", name.replace("+", "."), flags=re.ASCII).split("/")
        legal = "/".join(part if part.strip(".") else part.replace(".", "_") or "_" for part in parts) or "_"
        if legal in taken or len(legal) > 200:
            legal = f"{legal[:200]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        taken.add(legal)
        result[name] = legal
    return result


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested config as `a.b.c -> text`; sequences stay whole."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _params(record: RunRecord) -> dict[str, str]:
    flat = flatten(record.config)
    names = legal_names(flat)
    note = " … (whole in config.yaml)"
    return {
        names[key]: text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - len(note)] + note
        for key, text in flat.items()
    }


def _tags(record: RunRecord) -> dict[str, str]:
    tags = {
        "method": record.method,
        "label": record.label,
        "preset": record.preset,
        "changed": ", ".join(record.changed),
        "backbone": record.backbone,
        "dataset": str(record.dataset.get("name", "")),
        "dataset_fingerprint": str(record.dataset.get("fingerprint", "")),
        "protocol": str(record.protocol.get("name", "")),
        "supervision": str(record.protocol.get("supervision", "")),
        "mask_fingerprint": str(record.protocol.get("mask_fingerprint", "")),
        "status": record.status,
        "oracle": str(record.oracle).lower(),
        "reference": record.reference or "",
        "primary_metric": record.primary_metric,
        "schema": str(record.schema_version),
        "error": record.error,
    } | {name: str(value) for name, value in record.seeds.items()}
    return {f"harness.{name}": value[:5000] for name, value in tags.items() if value}


def run_name(record: RunRecord) -> str:
    """Readable name of the MLflow run."""
    return f"{record.display_name} · {record.protocol.get('name', '')} · seed {record.seeds.get('train_seed', 0)}"


def describe(record: RunRecord) -> str:
    """Markdown note shown on the run's page: what was run, its score, and whether to believe it."""
    lines = [
        f"**{record.display_name}** on **{record.dataset.get('name', '?')}** under "
        f"`{record.protocol.get('name', '?')}` (supervision `{record.protocol.get('supervision', '?')}`)",
        "",
    ]
    if record.status != "finished":
        lines += [f"Status: **{record.status}** {record.error}".rstrip(), ""]
    for result in record.results:
        if record.primary_metric in result.metrics:
            low_high = result.intervals.get(record.primary_metric)
            span = f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
            value = result.metrics[record.primary_metric]
            lines += [f"{record.primary_metric} ({result.condition}): **{value:.4f}**{span}", ""]
            lines += ["| pattern | n | " + record.primary_metric + " |", "| --- | ---: | ---: |"]
            lines += [
                f"| {pattern} | {result.pattern_counts.get(pattern, 0)} | {scores[record.primary_metric]:.4f} |"
                for pattern, scores in result.per_pattern.items()
                if record.primary_metric in scores
            ]
            lines += [""]
    failed = [f"{audit.name} ({audit.severity})" for audit in record.audits if not audit.passed]
    lines += [
        f"Audits: {len(record.audits)} check{'s' * (len(record.audits) != 1)}, failed: {', '.join(failed) or 'none'}"
    ]
    return "\n".join(lines)


def _final_metrics(record: RunRecord) -> dict[str, float]:
    """Scores by MLflow name: `test/<metric>` and `pattern/<pattern>/<metric>`, with the condition when several."""
    values: dict[str, float] = {f"best_valid/{name}": value for name, value in record.valid.items()}
    for result in record.results:
        where = f"/{result.condition}" if len(record.results) > 1 else ""
        values |= {f"test{where}/{name}": value for name, value in result.metrics.items()}
        for name, (low, high) in result.intervals.items():
            values |= {f"test{where}/{name}.low": low, f"test{where}/{name}.high": high}
        for pattern, scores in result.per_pattern.items():
            values |= {f"pattern{where}/{pattern}/{name}": value for name, value in scores.items()}
    cost = vars(record.cost)
    return values | {f"cost/{name}": float(value) for name, value in cost.items() if name != "best_epoch"}


def now() -> str:
    """Time stamp of a delivery."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def milliseconds(timestamp: str) -> int | None:
    """An ISO time as MLflow counts; None if it is no time."""
    try:
        return int(datetime.fromisoformat(timestamp).timestamp() * 1000)
    except ValueError:
        return None


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def user_tags() -> dict[str, str]:
    """Who writes, where the system knows it."""
    with contextlib.suppress(OSError, KeyError, ImportError):
        return {"mlflow.user": getpass.getuser()}
    return {}


def _source_tags(record: RunRecord) -> dict[str, str]:
    """What MLflow shows as source and version."""
    commit = (record.environment.get("git") or {}).get("commit")
    return {"mlflow.source.name": "harness", "mlflow.source.type": "LOCAL"} | (
        {"mlflow.source.git.commit": str(commit)} if commit else {}
    )


def _data_input(record: RunRecord) -> DatasetInput:
    """The data set with the mask that it was seen under as context, and the sizes of its splits."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data, protocol = record.dataset, record.protocol
    source = CodeDatasetSource(tags={})
    sizes = {str(name): int(count) for name, count in data.get("splits", {}).items()}
    profile = {"num_rows": sum(sizes.values()), **sizes, "version": str(data.get("version", ""))}
    entity = Dataset(
        str(data.get("name", "data")),
        # MLflow allows 36 characters for a digest; the whole fingerprint is a tag and in the record.
        str(data.get("fingerprint", ""))[:32] or "unknown",
        source._get_source_type(),
        source.to_json(),
        profile=json.dumps(profile),
    )
    context = f"{protocol.get('name', '')} · mask {str(protocol.get('mask_fingerprint', ''))[:16]}"
    return DatasetInput(entity, [InputTag("mlflow.data.context", context[:500])])


def send(
    client: MlflowClient, experiment: str, record: RunRecord, files: Path, token: str, nesting: Mapping[str, str]
) -> str:
    """Writes one ended run to MLflow; safe to repeat with the same token.

    Args:
        client: Where to.
        experiment: Experiment id.
        record: The record; it is also `files/record.json`.
        files: Folder whose content becomes the run's artifacts.
        token: Names this delivery: a complete run with it is not written again, a half-written one is removed.
        nesting: Tags that put the run below a parent; empty for none.

    Returns:
        The MLflow run id.
    """
    from mlflow.entities import Metric, Param, RunTag

    for earlier in search(client, [experiment], f"tags.`{DELIVERY}` = '{token}'"):
        if is_stored(earlier):
            _supersede(client, experiment, record.run_id, earlier.info.run_id)
            return str(earlier.info.run_id)
        client.delete_run(earlier.info.run_id)

    start = milliseconds(record.started)
    end = milliseconds(record.finished) or start
    tags = _tags(record) | dict(nesting) | user_tags() | _source_tags(record)
    tags |= {
        DELIVERY: token,
        SENT: now(),
        "mlflow.note.content": describe(record)[:7000],
    }
    run = client.create_run(experiment, start_time=start, tags=tags, run_name=run_name(record)[:250])
    run_id: str = run.info.run_id

    for params in _chunks([Param(key, value) for key, value in _params(record).items()], ENTRIES_PER_CALL):
        client.log_batch(run_id, params=params)
    stamp = end or run.info.start_time
    series = [
        (name, value, epoch)
        for epoch, row in enumerate(record.history)
        for name, value in row.items()
        if isinstance(value, (int, float))
    ]
    final = _final_metrics(record)
    names = legal_names([*final, *(name for name, _, _ in series)])
    # MLflow turns infinity into 1.8e308; values that are not finite stay in record.json only.
    metrics = [Metric(names[name], float(value), stamp, step) for name, value, step in series if math.isfinite(value)]
    metrics += [Metric(names[name], value, stamp, 0) for name, value in final.items() if math.isfinite(value)]
    metrics += [
        Metric(f"system/{name}", value, when, step)
        for step, (when, values) in enumerate(read_samples(files / SYSTEM_METRICS_FILE))
        for name, value in values.items()
    ]
    for chunk in _chunks(metrics, METRICS_PER_CALL):
        client.log_batch(run_id, metrics=chunk)

    client.log_inputs(run_id, [_data_input(record)])
    client.log_artifacts(run_id, str(files))

    client.log_batch(run_id, tags=[RunTag(RUN_ID, record.run_id)])
    client.set_terminated(run_id, _MLFLOW_STATUS.get(record.status, "FAILED"), end)
    if not is_stored(client.get_run(run_id)):
        raise TrackingError(f"MLflow did not confirm run {run_id}")
    _supersede(client, experiment, record.run_id, run_id)
    return run_id


def _supersede(client: MlflowClient, experiment: str, run_id: str, keep: str) -> None:
    """Retires older runs of the same `run_id`: tagged, then deleted as MLflow does (restorable)."""
    for run in search(client, [experiment], f"tags.`{RUN_ID}` = '{run_id}'"):
        if run.info.run_id != keep and is_stored(run):
            client.set_tag(run.info.run_id, SUPERSEDED, keep)
            client.delete_run(run.info.run_id)


def is_stored(run: Run) -> bool:
    """Whether a run was written to its end and is not retired."""
    return run.info.status in _ENDED and RUN_ID in run.data.tags and SUPERSEDED not in run.data.tags


@dataclass(frozen=True)
class Listed:
    """One stored run as a list needs it: without parameters and artifacts.

    Attributes:
        mlflow_run_id: MLflow's id.
        experiment_id: MLflow's experiment.
        experiment: Its name.
        artifact_uri: Where its artifacts are.
        start_time: Milliseconds since 1970.
        tags: Those asked for, and `harness.run_id`.
        metrics: Those asked for.
    """

    mlflow_run_id: str
    experiment_id: str
    experiment: str
    artifact_uri: str
    start_time: int
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def listed(uri: str, keys: Iterable[str] = (), metrics: Iterable[str] = (), run_id: str = "") -> list[Listed]:
    """Every run that is stored whole, in no order.

    A SQLite database is asked for just these columns: MLflow's own search reads every parameter, metric and tag of
    every run, which takes seconds for a thousand.  Servers are searched.

    Args:
        uri: Tracking URI.
        keys: Tags to read.
        metrics: Metrics to read, without their history.
        run_id: The only `harness.run_id` that is looked for, if any.

    Raises:
        TrackingError: If the store cannot be reached or read.
    """
    wanted, metrics = {RUN_ID, SENT, SUPERSEDED, *keys}, set(metrics)
    if uri.startswith("sqlite:///") and _is_database(path := Path(uri.removeprefix("sqlite:///"))):
        # A database that another version of MLflow has laid out in another way is searched.
        with contextlib.suppress(sqlite3.OperationalError):
            found = _select(path, wanted, metrics)
            return [run for run in found if run_id in ("", run.tags[RUN_ID])]
    client = connect(uri)
    try:
        names: dict[str, str] = {}
        token = None
        while True:
            page = client.search_experiments(max_results=1000, page_token=token)
            names |= {item.experiment_id: item.name for item in page}
            token = page.token
            if not token:
                break
        query = f"tags.`{RUN_ID}` = '{run_id}'" if run_id else f"tags.`{RUN_ID}` != ''"
        runs = search(client, list(names), query) if names else []
    except Exception as error:
        raise TrackingError(f"MLflow at {redact(uri)} cannot be read: {reason(error)}.") from error
    return [
        Listed(
            run.info.run_id,
            run.info.experiment_id,
            names[run.info.experiment_id],
            run.info.artifact_uri,
            run.info.start_time,
            {key: value for key, value in run.data.tags.items() if key in wanted},
            {key: value for key, value in run.data.metrics.items() if key in metrics},
        )
        for run in runs
        if is_stored(run)
    ]


def _select(path: Path, keys: set[str], metrics: set[str]) -> list[Listed]:
    """`listed` of a SQLite database, in two queries of MLflow's tables."""
    tagged = f"""
        SELECT r.run_uuid, r.experiment_id, e.name, r.artifact_uri, r.start_time, t.key, t.value
        FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id JOIN tags t ON t.run_uuid = r.run_uuid
        WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'
        AND r.status IN ({_places(_ENDED)}) AND t.key IN ({_places(keys)})"""
    measured = f"SELECT run_uuid, key, value FROM latest_metrics WHERE NOT is_nan AND key IN ({_places(metrics)})"
    runs: dict[str, Listed] = {}
    tags: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, float]] = {}
    with _reading(path) as connection:
        for run_id, experiment_id, name, artifacts, started, key, text in connection.execute(tagged, [*_ENDED, *keys]):
            tags.setdefault(run_id, {})[key] = text
            values.setdefault(run_id, {})
            runs[run_id] = Listed(run_id, str(experiment_id), name, artifacts, started, tags[run_id], values[run_id])
        for run_id, key, value in connection.execute(measured, [*metrics]) if metrics else ():
            values.setdefault(run_id, {})[key] = value
    return [run for run in runs.values() if RUN_ID in run.tags and SUPERSEDED not in run.tags]


def _places(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))


def search(client: MlflowClient, experiments: Sequence[str], query: str) -> list[Run]:
    """All runs that match and are not deleted, newest first."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(list(experiments), query, max_results=1000, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
