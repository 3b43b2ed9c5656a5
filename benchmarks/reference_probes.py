"""Reference figures of a data card: logistic regression on frozen pooled features, nothing missing.

    python benchmarks/reference_probes.py openmoji [openmoji_subgroup cdda text=name …]
    python benchmarks/reference_probes.py av_digits tuxpaint_stamps encoders.audio=speech_embedding

`OPTION=VALUE` sets an option of the data set named before it, `encoders.KIND=NAME` its encoder of that kind.  C is
chosen on `valid`, the score is on `test`; the interval is a 95 % bootstrap over near-duplicate groups, so that variants
of one item do not count as independent.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import registry
from harness.config import PathsConfig, default_encoders
from harness.features import FeatureStore
from harness.files import Folders
from harness.types import DataTable

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
RESAMPLES = 2000

Matrix = npt.NDArray[np.float64]


def blocks(table: DataTable, store: FeatureStore, encoders: dict[str, str]) -> dict[str, Matrix]:
    """Pooled features per modality: centred on train, scaled to mean square norm 1."""
    train = table.splits["train"]
    result = {}
    for modality in table.spec.modalities:
        name = encoders[modality.kind]
        config = registry.encoders.get(name)()
        pooled = store.get(table, modality, name, config).pooled.astype(np.float64)  # type: ignore[arg-type]
        pooled = pooled - pooled[train].mean(axis=0)
        result[modality.name] = pooled / np.sqrt((pooled[train] ** 2).sum(axis=1).mean())
    return result


def probe(features: Matrix, table: DataTable) -> npt.NDArray[np.int64]:
    """Test predictions of the regression whose C is best on valid."""
    from sklearn.linear_model import LogisticRegression

    train, valid, test = (table.splits[split] for split in ("train", "valid", "test"))
    best, chosen = -1.0, None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=400).fit(features[train], table.labels[train])
        score = float((model.predict(features[valid]) == table.labels[valid]).mean())
        if score > best:
            best, chosen = score, model
    assert chosen is not None
    return np.asarray(chosen.predict(features[test]))


def interval(hits: npt.NDArray[Any], groups: npt.NDArray[Any]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, resampling groups."""
    rng = np.random.default_rng(0)
    _, member = np.unique(groups, return_inverse=True)
    total, right = np.bincount(member), np.bincount(member, weights=hits)
    draws = rng.integers(len(total), size=(RESAMPLES, len(total)))
    means = right[draws].sum(axis=1) / total[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def report(name: str, options: dict[str, str], folders: Folders) -> None:
    """Prints one Markdown table."""
    from sklearn.metrics import f1_score

    encoders = default_encoders()
    values: dict[str, Any] = {}
    plugin = registry.datasets.get(name)
    for key, value in options.items():
        if key.startswith("encoders."):
            encoders[key.removeprefix("encoders.")] = value
        else:
            values[key] = type(getattr(plugin(), key))(value)
    table = plugin(**values).load(folders.data, folders.cache)  # type: ignore[attr-defined]
    train, test = table.splits["train"], table.splits["test"]
    truth = table.labels[test]
    parts = blocks(table, FeatureStore(folders.cache / "features"), encoders)
    names = list(parts)
    predictions = {"majority": np.full(len(test), np.bincount(table.labels[train]).argmax())}
    predictions |= {modality: probe(parts[modality], table) for modality in names}
    predictions["all"] = probe(np.concatenate([parts[modality] for modality in names], axis=1), table)
    used = ", ".join(f"{part.name}: {encoders[part.kind]}" for part in table.spec.modalities)
    size = f"{len(table.ids)} samples, {table.spec.task.num_outputs} classes, test {len(test)}"
    print(f"\n{table.spec.name} ({used}): {size}\n")
    print("| features | accuracy | 95 % interval | macro F1 |\n|---|---|---|---|")
    groups = table.groups[test] if table.groups is not None else np.arange(len(test))
    for row, predicted in predictions.items():
        low, high = interval(predicted == truth, groups)
        macro = f1_score(truth, predicted, average="macro", zero_division=0.0)
        print(f"| {row} | {(predicted == truth).mean():.3f} | {low:.3f} to {high:.3f} | {macro:.3f} |", flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", metavar="DATASET [OPTION=VALUE …]")
    parser.add_argument("--home", default=os.environ.get("HARNESS_HOME", ""), help="folder of data and caches")
    chosen = parser.parse_args(arguments)
    folders = Folders.resolve(PathsConfig(home=str(Path(chosen.home).absolute()) if chosen.home else ""))
    jobs: list[tuple[str, dict[str, str]]] = []
    for word in chosen.datasets:
        key, equals, value = word.partition("=")
        if equals:
            jobs[-1][1][key] = value
        else:
            jobs.append((word, {}))
    for name, options in jobs:
        report(name, options, folders)


if __name__ == "__main__":
    main(sys.argv[1:])
