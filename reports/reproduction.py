"""Published numbers beside ours: what was printed, what we measured, and whether the two can be told apart.

The test asks where the mean of as many runs as the paper made would fall if our runs were repeated (Student's t,
95 %, the paper's runs taken to vary as ours do).  A number is compared only with runs on the whole release, under its
protocol and supervision, on its backbone and in its metric.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from harness.dataset import is_part
from harness.record import RunRecord
from harness.reports.presets import Preset
from harness.reports.published import UNKNOWN, Published

LEVEL = 0.95
Verdict = Literal["agrees", "differs", "not compared", "failed", "not run"]


@dataclass(frozen=True)
class Line:
    """One published number and our runs of its cell.

    Attributes:
        preset: Name of the cell.
        method: Registered name.
        dataset: Registered name.
        protocol: Canonical name.
        metric: Registered name.
        published: The printed number, a fraction.
        source: Paper and table.
        confidence: How sure it is that the source states this number.
        repetitions: Runs behind it.
        seeds: Train seeds of ours that are finished.
        planned: How many there are to be.
        ours: Mean over them.
        spread: Their standard deviation; None for fewer than two.
        low: Lower end of the range in which the mean of `repetitions` other runs of ours would fall (95 %).
        high: Upper end.
        difference: `ours - published`; None where the two are not about the same thing, or runs are missing.
        p: Probability of a difference at least this large between runs of one kind (two-sided).
        verdict: `agrees` where the published number is in the range, else `differs`; or why there is no comparison.
        reason: In words, where there is none.
        run_ids: Our runs.
    """

    preset: str
    method: str
    dataset: str
    protocol: str
    metric: str
    published: float
    source: str
    confidence: str
    repetitions: int
    seeds: list[int]
    planned: int
    ours: float | None
    spread: float | None
    low: float | None
    high: float | None
    difference: float | None
    p: float | None
    verdict: Verdict
    reason: str
    run_ids: list[str]


def compare(preset: Preset, records: Sequence[RunRecord], planned: int, problem: str = "") -> list[Line]:
    """One line per number of a cell.

    Args:
        preset: The cell.
        records: Our runs of it, one per seed, finished or not.
        planned: Number of runs that it needs.
        problem: Why it cannot be run here, if so.
    """
    return [_line(preset, number, records, planned, problem) for number in preset.numbers]


def _line(preset: Preset, number: Published, records: Sequence[RunRecord], planned: int, problem: str) -> Line:
    done = [record for record in records if record.status == "finished"]
    failed = [record for record in records if record.status != "finished"]
    refusals = list(dict.fromkeys(filter(None, (why_not(number, record, preset.run) for record in done))))
    values = [value for record in done if (value := value_of(number, record)) is not None]
    ours = math.fsum(values) / len(values) if values else None
    spread = low = high = p = None
    if ours is not None and len(values) > 1:
        spread = math.sqrt(math.fsum((value - ours) ** 2 for value in values) / (len(values) - 1))
        low, high, p = expected_range(ours, spread, len(values), preset.repetitions, number.value)
    verdict: Verdict = "not compared"
    same = False
    if problem and not done:
        verdict, reason = "not run", problem
    elif failed:
        first = failed[0].error.partition("\n")[0]
        verdict, reason = "failed", f"{len(failed)} of {planned} runs failed: {first}"
    elif not done:
        verdict, reason = "not run", f"0 of {planned} runs are finished"
    elif preset.differs or refusals:
        reason = preset.differs or refusals[0]
    elif len(done) < planned:
        reason = f"{len(done)} of {planned} runs are finished{f': {problem}' if problem else ''}"
    elif low is None or high is None:
        reason, same = "one run has no spread", True
    else:
        verdict, reason, same = ("agrees" if low <= number.value <= high else "differs"), "", True
    return Line(
        preset=preset.name,
        method=number.method,
        dataset=number.dataset,
        protocol=number.protocol,
        metric=number.metric,
        published=number.value,
        source=preset.source,
        confidence=number.confidence,
        repetitions=preset.repetitions,
        seeds=[record.seeds["train_seed"] for record in done],
        planned=planned,
        ours=ours,
        spread=spread,
        low=low,
        high=high,
        difference=ours - number.value if same and ours is not None else None,
        p=p if same else None,
        verdict=verdict,
        reason=reason,
        run_ids=[record.run_id for record in records],
    )


def why_not(number: Published, record: RunRecord, settings: Mapping[str, str]) -> str:
    """Why a finished run may not be compared with a published number; empty where it may.

    Args:
        number: The number.
        record: Our run.
        settings: What is known of the run behind the number, as overrides of `harness run`.
    """
    dataset, protocol = str(record.dataset.get("name")), str(record.protocol.get("name"))
    if UNKNOWN in (number.dataset, number.protocol):
        return "the source does not state its data set or protocol"
    if record.method != number.method:
        return f"the run is of {record.method}, the number of {number.method}"
    if dataset != number.dataset:
        return f"the data set is {dataset}, published is {number.dataset}"
    if is_part(str(record.dataset.get("version", ""))):
        splits = record.dataset.get("splits", {})
        sizes = " / ".join(str(splits.get(split, "?")) for split in ("train", "valid", "test"))
        return f"the folder is not the whole release ({sizes} samples)"
    if protocol != number.protocol:
        return f"the protocol is {protocol}, published is {number.protocol}"
    ours = {"supervision": str(record.protocol.get("supervision", "")), "backbone": record.backbone}
    others = [name for name, value in ours.items() if value and value != settings.get(name, value)]
    if others:
        published = " and ".join(f"{name} {settings[name]}" for name in others)
        return f"ours has {' and '.join(f'{name} {ours[name]}' for name in others)}, published is {published}"
    result = _metrics(number, record)
    if result is None:
        return f"the run has no test condition {number.condition or number.protocol}"
    if number.metric not in result:
        return f"the run has no {number.metric}, only {', '.join(sorted(result))}"
    if not math.isfinite(result[number.metric]):
        return f"{number.metric} is undefined"
    return ""


def _metrics(number: Published, record: RunRecord) -> Mapping[str, float] | None:
    """Metrics under the number's test condition: by its name, or the only one."""
    if not number.condition and len(record.results) == 1:
        return record.results[0].metrics
    return next((result.metrics for result in record.results if result.condition == number.condition), None)


def value_of(number: Published, record: RunRecord) -> float | None:
    """Our value for a published number; None where the run has none."""
    value = (_metrics(number, record) or {}).get(number.metric, math.nan)
    return value if math.isfinite(value) else None


def expected_range(
    mean: float, spread: float, runs: int, others: int, value: float
) -> tuple[float, float, float | None]:
    """95 % range of the mean of `others` further runs, and the two-sided p-value of `value` as such a mean."""
    from scipy.stats import t

    scale = spread * math.sqrt(1 / runs + 1 / others)
    half = float(t.ppf(0.5 + LEVEL / 2, runs - 1)) * scale
    p = float(2 * t.sf(abs(value - mean) / scale, runs - 1)) if scale > 0 else None
    return mean - half, mean + half, p


_COUNTED: Mapping[Verdict, str] = {
    "agrees": "agree",
    "differs": "differ",
    "not compared": "not compared",
    "failed": "failed",
    "not run": "not run",
}


def summary(lines: Sequence[Line]) -> str:
    """How many numbers agree, differ and are open, in one sentence."""
    count = Counter(line.verdict for line in lines)
    told = [f"{count[verdict]} {word}" for verdict, word in _COUNTED.items() if count[verdict]]
    tested = count["agrees"] + count["differs"]
    chance = f"; of {tested} tests about {tested * (1 - LEVEL):.1f} differ by chance alone" if tested else ""
    return f"{len(lines)} published number{'s' * (len(lines) != 1)}: {', '.join(told)}{chance}."


HEADERS = ("cell", "metric", "published", "ours", "± 95 %", "difference", "spread", "p", "seeds", "verdict")


def cells(line: Line) -> list[str]:
    """A line as texts, in the order of `HEADERS`."""
    half = None if line.high is None or line.low is None else (line.high - line.low) / 2
    reason = f": {line.reason}" if line.reason else ""
    return [
        line.preset,
        line.metric,
        f"{line.published:.4f}",
        _text(line.ours, ".4f"),
        _text(half, ".4f"),
        _text(line.difference, "+.4f"),
        _text(line.spread, ".4f"),
        _text(line.p, ".3g"),
        f"{len(line.seeds)} of {line.planned}",
        f"{line.verdict}{reason}",
    ]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def to_markdown(title: str, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """A page: table, what its columns mean, notes."""
    from tabulate import tabulate

    rows = [[cell.replace("|", "\\|") for cell in cells(line)] for line in lines]
    table = tabulate(rows, HEADERS, tablefmt="pipe", disable_numparse=True)
    sources = sorted({f"{line.source} ({line.repetitions} runs, confidence {line.confidence})" for line in lines})
    listed = "".join(f"- {note}\n" for note in (*(f"Published: {source}" for source in sources), *notes))
    return f"# {title}\n\n{summary(lines)}\n\n{table}\n\n{EXPLANATION}\n\n{listed}"


#: What the columns mean.
EXPLANATION = (
    "Scores are fractions. `ours` is the mean over seeds, `spread` their standard deviation. `± 95 %` says where the "
    "mean of as many runs as the paper made would fall if ours were repeated: a published number in that range agrees, "
    "and `p` is the probability of a difference at least as large. All our runs have one draw of masks; that the paper "
    "had another is not in the range."
)


def to_csv(title: str, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """All fields, one row per number."""
    del title, notes
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = list(Line.__dataclass_fields__)
    writer.writerow(names)
    for line in lines:
        values = asdict(line)
        writer.writerow(
            [" ".join(map(str, cell)) if isinstance(cell := values[name], list) else cell for name in names]
        )
    return buffer.getvalue()


def to_json(title: str, lines: Sequence[Line], notes: Sequence[str]) -> str:
    """All fields."""
    content = {
        "title": title,
        "summary": summary(lines),
        "notes": list(notes),
        "lines": [asdict(line) for line in lines],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


RENDERERS: Mapping[str, Callable[[str, Sequence[Line], Sequence[str]], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
}
