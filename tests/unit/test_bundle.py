"""Bundles: what holds is accepted, and every way of tampering with one is found and named."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness import bundle, tracking
from harness.bundle import MANIFEST, Verification, verify_bundle, write_bundle
from harness.cli import main
from harness.cli.store import Store
from harness.errors import DataError, UsageError
from harness.identity import run_id
from harness.masking import MaskTable
from harness.metrics import metric_versions
from harness.predictions import pool_conditions, save_predictions
from harness.record import ConditionResult, RunRecord
from harness.scoring import Layout, bootstrap_interval, evaluate_aggregate, evaluate_predictions
from harness.testing.bundles import KINDS, Guard, claims, mutant
from harness.testing.records import MODALITIES, make_predictions, make_record
from harness.tracking import StoredRun
from harness.types import Predictions, TaskSpec

TASK = TaskSpec("multiclass", 4, ("a", "b", "c", "d"), "accuracy")
Files = dict[str, bytes]


def conditions_of(count: int) -> dict[str, Predictions]:
    whole = make_predictions(0.8, count)
    if count == 60:
        return {"both_0.7": whole}
    shown = np.zeros_like(whole.present)
    parts = {}
    for column, name in enumerate(MODALITIES):
        shown = np.zeros_like(whole.present)
        shown[:, column] = True
        parts[name] = dataclasses.replace(make_predictions(0.6 + 0.2 * column, count), present=shown)
    return parts


def scores(parts: dict[str, Predictions]) -> list[ConditionResult]:
    pool = pool_conditions(parts)
    results = []
    if len(parts) > 1:
        _, patterns, counts = evaluate_predictions(TASK, pool)
        for name, how in (("pooled", "pool"), ("mean_of_patterns", "mean")):
            low_high = bootstrap_interval(TASK, "accuracy", pool.logits, pool.labels, 0, layout=Layout.of(pool, how))
            extra = (patterns, counts) if how == "pool" else ({}, {})
            overall = evaluate_aggregate(TASK, pool, how)
            results.append(ConditionResult(name, overall, {"accuracy": list(low_high)}, *extra, how))
    for name, part in parts.items():
        overall, patterns, counts = evaluate_predictions(TASK, part)
        low_high = bootstrap_interval(TASK, "accuracy", part.logits, part.labels, 0)
        results.append(ConditionResult(name, overall, {"accuracy": list(low_high)}, patterns, counts))
    return results


def make_files(folder: Path, count: int = 60) -> tuple[RunRecord, Files]:
    """A run as the runner would store it: one condition with 60 samples, two with any other number."""
    parts = conditions_of(count)
    pool = pool_conditions(parts)
    record = make_record("redeem", protocol="both_0.7" if len(parts) == 1 else "patterns")
    ids = next(iter(parts.values())).ids
    other = np.ones((2, 2), dtype=np.bool_)
    present = {"train": other, "valid": other}
    if len(parts) == 1:
        present["test"] = pool.present
    masks = MaskTable(
        record.protocol["name"],
        "as told",
        0,
        "openmoji",
        record.dataset["fingerprint"],
        MODALITIES,
        {"train": ("t0", "t1"), "valid": ("v0", "v1"), "test": ids},
        present,
        {name: part.present for name, part in parts.items()} if len(parts) > 1 else {},
    )
    masks.save(folder / "mask")
    save_predictions(pool, folder / "predictions.parquet")
    record.config = {
        "method": {"name": "redeem", "preset": "clean"},
        "dataset": {"name": "openmoji"},
        "backbone": {"name": "fusion"},
        "protocol": record.protocol["name"],
        "supervision": "observed",
        **record.seeds,
    }
    record.protocol |= {"mask_fingerprint": masks.fingerprint, "shown_fingerprint": masks.fingerprint}
    record.protocol |= {"counts": masks.counts()}
    record.metric_versions = metric_versions(TASK)
    record.results = scores(parts)
    record.predictions_sha256 = hashlib.sha256((folder / "predictions.parquet").read_bytes()).hexdigest()
    record.run_id = identity(record)
    files = {
        name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in bundle.RUN_FILES
    } | texts(record)
    return record, files


def identity(record: RunRecord) -> str:
    mask = record.protocol["mask_fingerprint"]
    config = {name: value for name, value in record.config.items() if name != "dataset"}
    return run_id(
        config,
        dataset_fingerprint=record.dataset["fingerprint"],
        mask_fingerprint=f"{mask}:{mask}",
        plugins=record.fingerprints,
        metrics=record.metric_versions,
    )


def texts(record: RunRecord) -> Files:
    return {
        "record.json": record.to_json().encode(),
        "config.yaml": yaml.safe_dump(record.config).encode(),
        "environment.json": json.dumps(record.environment).encode(),
    }


def failure(result: Verification) -> tuple[str, str]:
    """The one check that failed."""
    assert not result.passed
    (failed,) = [check for check in result.checks if not check.passed]
    assert failed is result.checks[-1]
    return failed.name, failed.detail


@pytest.mark.parametrize("count", [60, 40])
def test_a_bundle_holds(count: int, tmp_path: Path) -> None:
    record, files = make_files(tmp_path, count)
    path = tmp_path / "b.zip"
    digest = write_bundle(path, {record.run_id: files})
    result = verify_bundle(path)
    assert [check for check in result.checks if not check.passed] == []
    assert [check.name for check in result.checks][-2:] == ["scores", "intervals"]
    assert result.digest == digest
    again = tmp_path / "again.zip"
    assert write_bundle(again, {record.run_id: files}) == digest
    assert again.read_bytes() == path.read_bytes()


def flip_prediction(record: RunRecord, files: Files, folder: Path) -> None:
    """A wrong answer made right, every hash mended."""
    parts = conditions_of(60)
    part = parts["both_0.7"]
    row = int(np.flatnonzero(part.logits.argmax(axis=1) != part.labels)[0])
    part.logits[row, part.labels[row]] = 9.0
    save_predictions(pool_conditions(parts), folder / "p.parquet")
    files["predictions.parquet"] = (folder / "p.parquet").read_bytes()
    record.predictions_sha256 = hashlib.sha256(files["predictions.parquet"]).hexdigest()


def other_predictions(record: RunRecord, files: Files, folder: Path) -> None:
    flip_prediction(record, files, folder)
    record.predictions_sha256 = "0" * 64


def flip_mask(record: RunRecord, files: Files, folder: Path) -> None:
    """One flag of the table, its own sha256, the record and the run id mended."""
    masks = MaskTable.load(folder / "mask")
    test = masks.present["test"].copy()
    test[0] = ~test[0]
    masks = dataclasses.replace(masks, present={**masks.present, "test": test})
    masks.save(folder / "new")
    files["mask.parquet"] = (folder / "new.parquet").read_bytes()
    files["mask.json"] = (folder / "new.json").read_bytes()
    record.protocol |= {"mask_fingerprint": masks.fingerprint, "shown_fingerprint": masks.fingerprint}
    record.protocol |= {"counts": masks.counts()}
    record.run_id = identity(record)


def another_mask(record: RunRecord, files: Files, folder: Path) -> None:
    flip_mask(dataclasses.replace(record, protocol=dict(record.protocol)), files, folder)


def raise_score(record: RunRecord, files: Files, folder: Path) -> None:
    record.results[0].metrics["accuracy"] += 1e-9


def raise_pattern(record: RunRecord, files: Files, folder: Path) -> None:
    record.results[0].per_pattern["text"]["f1_macro"] += 1e-9


def drop_pattern(record: RunRecord, files: Files, folder: Path) -> None:
    del record.results[0].per_pattern["text"]


def narrow_interval(record: RunRecord, files: Files, folder: Path) -> None:
    record.results[0].intervals["accuracy"][0] += 1e-6


def other_config(record: RunRecord, files: Files, folder: Path) -> None:
    record.config["method"]["k"] = 7


def other_seed(record: RunRecord, files: Files, folder: Path) -> None:
    record.seeds["train_seed"] = 3


def other_metric(record: RunRecord, files: Files, folder: Path) -> None:
    record.metric_versions["accuracy"] = "0"
    record.run_id = identity(record)


def shown_more(record: RunRecord, files: Files, folder: Path) -> None:
    record.protocol["shown_fingerprint"] = "0" * 64


def called_oracle(record: RunRecord, files: Files, folder: Path) -> None:
    """Shown less than the table says: refused of oracles too."""
    flip_mask(record, files, folder)
    record.oracle = True


def failed_run(record: RunRecord, files: Files, folder: Path) -> None:
    record.status = "failed"


@pytest.mark.parametrize(
    ("tamper", "name", "says"),
    [
        (flip_prediction, "scores", "metrics accuracy: the record says"),
        (other_predictions, "predictions", "the record says 000000"),
        (flip_mask, "masks", "sample 's00000' under 'both_0.7' was not shown"),
        (another_mask, "masks", "fingerprint is not the record's"),
        (raise_score, "scores", "metrics accuracy: the record says"),
        (raise_pattern, "scores", "per_pattern text f1_macro: the record says"),
        (drop_pattern, "scores", "other entries"),
        (narrow_interval, "intervals", "intervals accuracy: the record says"),
        (other_config, "run id", "the record is of another"),
        (other_seed, "record", "train_seed is 3 in the record and 0 in its config"),
        (other_metric, "scores", "version 0, here 1"),
        (shown_more, "run id", "is not called an oracle"),
        (called_oracle, "masks", "sample 's00000' under 'both_0.7' was not shown"),
        (failed_run, "record", "the run is failed"),
    ],
)
def test_a_forger_who_mends_every_hash_is_found(
    tamper: Callable[[RunRecord, Files, Path], None], name: str, says: str, tmp_path: Path
) -> None:
    record, files = make_files(tmp_path)
    tamper(record, files, tmp_path)
    write_bundle(tmp_path / "b.zip", {record.run_id: files | texts(record)})
    assert failure(verify_bundle(tmp_path / "b.zip"))[0] == name
    assert says in failure(verify_bundle(tmp_path / "b.zip"))[1]


def test_every_changed_byte_shows(tmp_path: Path) -> None:
    record, files = make_files(tmp_path)
    path, mutant = tmp_path / "b.zip", tmp_path / "m.zip"
    write_bundle(path, {record.run_id: files})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    before = sorted(tmp_path.iterdir())
    # The end of the archive is where its own bookkeeping lies.
    places = [*rng.integers(len(content), size=150), *range(len(content) - 200, len(content), 4)]
    for place in map(int, places):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        mutant.write_bytes(changed)
        assert not verify_bundle(mutant).passed, place
    for cut in map(int, rng.integers(len(content), size=20)):
        mutant.write_bytes(content[:cut])
        assert not verify_bundle(mutant).passed
    mutant.unlink()
    assert sorted(tmp_path.iterdir()) == before


def repacked(content: bytes, change: Callable[[dict[str, bytes]], None], **info: int) -> bytes:
    """The archive with other members, its manifest and comment as they were."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        members = {name: old.read(name) for name in old.namelist()}
        change(members)
        for name, data in sorted(members.items()):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100644 << 16
            for key, value in info.items():
                setattr(entry, key, value)
            new.writestr(entry, data)
        new.comment = old.comment
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "info", "says"),
    [
        (lambda members: members.update({"../../evil": b"x"}), {}, "'../../evil', which is no part"),
        (lambda members: members.update({"/etc/evil": b"x"}), {}, "'/etc/evil', which is no part"),
        (lambda members: members.update({f"runs/{'0' * 64}/model.pkl": b"x"}), {}, "no part of a bundle"),
        (lambda members: members.update({f"runs/{'0' * 64}/record.json": b"x"}), {}, "lacks runs/0000"),
        (lambda members: members.pop(MANIFEST), {}, "lacks manifest.json"),
        (lambda members: members.pop(min(set(members) - {MANIFEST})), {}, "lacks runs/"),
        (lambda members: members.update({MANIFEST: members[MANIFEST] + b" "}), {}, "manifest.json has sha256"),
        (lambda members: None, {"external_attr": 0o120777 << 16}, "a link or a folder"),
        (lambda members: None, {"compress_type": zipfile.ZIP_DEFLATED}, "is compressed"),
        (lambda members: None, {"extract_version": 45}, "bytes outside the files"),
    ],
)
def test_strange_archives_are_refused(
    change: Callable[[dict[str, bytes]], None], info: dict[str, int], says: str, tmp_path: Path
) -> None:
    record, files = make_files(tmp_path)
    path = tmp_path / "b.zip"
    write_bundle(path, {record.run_id: files})
    path.write_bytes(repacked(path.read_bytes(), change, **info))
    assert says in failure(verify_bundle(path))[1]


@pytest.mark.parametrize(("cases", "seed"), [(190, 0), pytest.param(2000, 1, marks=pytest.mark.slow)])
def test_no_damaged_or_forged_bundle_passes_or_does_harm(cases: int, seed: int, tmp_path: Path, guard: Guard) -> None:
    """See `benchmarks/fuzz_bundles.py` for 10,000 of them."""
    record, files = make_files(tmp_path)
    path, spoiled = tmp_path / "b.zip", tmp_path / "m.zip"
    write_bundle(path, {record.run_id: files})
    content, before = path.read_bytes(), {*tmp_path.iterdir(), spoiled}
    kinds: dict[str, int] = {}
    for number in range(cases):
        kind, mutated = mutant(content, number, seed)
        spoiled.write_bytes(mutated)
        with guard.watching():
            result = verify_bundle(spoiled)
        if result.passed:
            # The hashes were made anew: it is another bundle, and says so, but of the same proven claims.
            assert kind.endswith("_mended"), (number, kind)
            assert result.digest != hashlib.sha256(members_of(content)[MANIFEST]).hexdigest()
            assert claims(result.records[record.run_id]) == claims(record), (number, kind)
        kinds[kind] = kinds.get(kind, 0) + 1
    assert kinds.keys() == KINDS.keys()
    assert not guard.written
    assert {*tmp_path.iterdir()} <= before


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """Allows what is written below a temporary folder of the verifier's own."""
    allowed, before = tmp_path_factory.mktemp("verifier"), tempfile.tempdir
    tempfile.tempdir = str(allowed)
    yield Guard(allowed)
    tempfile.tempdir = before


def test_the_guard_sees_what_is_written_elsewhere(tmp_path: Path, guard: Guard) -> None:
    """A guard that cannot fail would prove nothing."""
    with guard.watching():
        with tempfile.TemporaryDirectory() as allowed:
            (Path(allowed) / "a").write_text("b")
        assert not guard.written
        (tmp_path / "evil").write_text("x")
        (tmp_path / "evil").rename(tmp_path / "worse")
        (tmp_path / "worse").unlink()
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("/etc")
    assert [line.split()[0] for line in guard.written] == [
        "open",
        "os.rename",
        "os.rename",
        "os.remove",
        "os.mkdir",
    ] + ["os.symlink"] * 2
    guard.written.clear()


def test_oversized_archives_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, files = make_files(tmp_path)
    path = tmp_path / "b.zip"
    write_bundle(path, {record.run_id: files})
    monkeypatch.setattr("harness.files.MAX_VALUES", 100)
    assert "claims" in failure(verify_bundle(path))[1]
    monkeypatch.setattr(bundle, "MAX_BYTES", 1000)
    assert "at most 1,000" in failure(verify_bundle(path))[1]
    with pytest.raises(UsageError, match="export fewer runs"):
        write_bundle(path, {record.run_id: files})


def test_what_cannot_be_bundled(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one run"):
        write_bundle(tmp_path / "b.zip", {})
    with pytest.raises(DataError, match=r"has no config\.yaml"):
        write_bundle(tmp_path / "b.zip", {"0" * 64: {}})
    with pytest.raises(DataError, match="no such file"):
        verify_bundle(tmp_path / "b.zip")


def test_the_command_needs_no_torch_and_ends_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, files = make_files(tmp_path)
    path = tmp_path / "b.zip"
    digest = write_bundle(path, {record.run_id: files})
    code = (
        "import sys\nfrom harness.cli import main\n"
        "code = main(['verify', sys.argv[1]])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=tmp_path, check=True, capture_output=True)
    assert main(["verify", str(path), "--digest", digest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert main(["verify", str(path), "--digest", "0" * 64]) == 4
    assert "not the one that was given" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["verify", str(path)]) == 4
    assert "FAILED" in capsys.readouterr().out


def test_export_takes_finished_runs_by_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, files = make_files(tmp_path)
    failed = make_record("map", status="failed")
    older = dataclasses.replace(record, run_id="1" * 64, finished="2025-01-01T00:00:00+00:00")

    class Stored(StoredRun):
        def artifact(self, name: str) -> bytes:
            assert self.record is record
            return files[name]

    stored = [Stored(item, "m", "1") for item in (record, older, failed)]
    monkeypatch.setattr(Store, "exists", lambda self: True)
    monkeypatch.setattr(tracking, "load_runs", lambda uri: stored)
    out = str(tmp_path / "out.zip")
    for chosen in (["--last"], [record.run_id[:8]]):
        assert main(["export", *chosen, "-o", out]) == 0
        assert verify_bundle(Path(out)).digest == capsys.readouterr().out.strip()
        assert list(verify_bundle(Path(out)).records) == [record.run_id]
    for wrong, says in [
        ([], "name run ids"),
        (["--last", "1111"], "not both"),
        (["ffffffffffff"], "0 recorded runs"),
        ([failed.run_id], "is failed; only finished runs"),
    ]:
        assert main(["export", *wrong, "-o", out]) == 2
        assert says in capsys.readouterr().err
