"""Published numbers: how many, which, and what they say about each other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness import registry
from harness.errors import DataError
from harness.protocol import parse_protocol
from harness.reports.published import (
    COLUMNS,
    EXTERNAL_DATASETS,
    EXTERNAL_METHODS,
    EXTERNAL_METRICS,
    FOLDER,
    UNKNOWN,
    Published,
    check_unique,
    lookup,
    published,
    read_published,
)

REDEEM, RAGPT = "REDEEM (KDD 2025)", "RAGPT (AAAI 2025)"
MAP, MAP_QUOTED = "MAP (CVPR 2023), project page", "MAP (CVPR 2023), quoted in missing_aware_prompts issue 13"
LOG = "third-party reproduction log (2026)"
HEADER = ",".join(COLUMNS)
ROW = "redeem,mmimdb,f1_micro,text_0.7,,,0.5994,,REDEEM (KDD 2025),Table 1,high,printed,"


def of_table(paper: str, table: str) -> list[Published]:
    return [number for number in published() if (number.paper, number.table) == (paper, table)]


def test_counts() -> None:
    assert Counter((number.paper, number.table) for number in published()) == {
        (REDEEM, "Table 1"): 12 * 12,
        (REDEEM, "Table 3"): 9 * 3,
        (REDEEM, "Figure 3a"): 3 * 5,
        (REDEEM, "Figure 3b"): 3 * 5,
        (REDEEM, "Figure 4"): 3 * 2 * 5,
        (REDEEM, "Figure 5"): 5 * 2 * 5,
        (RAGPT, "Table 1"): 10 * 12,
        (RAGPT, "Table 3"): 8 * 4,
        (RAGPT, "Figure 3a"): 3 * 5,
        (RAGPT, "Figure 3b"): 3 * 5,
        (RAGPT, "Figure 5"): 5 * 2 * 5,
        (RAGPT, "Figure 6"): 5 * 2 * 5,
        (MAP, "quantitative results"): 9 * 3 * 7,
        (MAP_QUOTED, "issue 13"): 1,
        ("missing_aware_prompts issue 13", "issue 13"): 1,
        (LOG, "log"): 2 * (4 + 3 + 3) + 3,
        ("AOEPT (ICML 2026), reading notes", "notes"): 4 * 3,
        ("ANGA (CVPR 2026), third-party notes", "notes"): 6,
        ("MPLMM (ACL 2024)", "Table 1"): 2 * 7 + 4 * 7,
        ("PriMD", "Table 1"): 4 * 7 + 4 * 7 + 4 * 4,
        ("table script on GitHub that quotes the literature", "script"): 2 * 8,
        ("BALM (CVPR 2026), reading note", "note"): 3,
        ("plotting script on GitHub", "comment"): 3 * 5,
        ("aggregator wizwand.com", "page"): 3,
    }


@pytest.mark.parametrize(
    ("method", "dataset", "protocol", "metric", "value", "paper", "how_read"),
    [
        ("redeem", "mmimdb", "text_0.7", "f1_micro", 0.5994, REDEEM, "printed"),
        ("redeem", "mmimdb", "both_0.7", "f1_samples", 0.5093, REDEEM, "printed"),
        ("redeem", "hateful_memes", "image_0.7", "auroc", 0.6430, REDEEM, "printed"),
        ("redeem", "food101", "both_0.7", "accuracy", 0.7865, REDEEM, "printed"),
        ("ragpt", "mmimdb", "image_0.7", "f1_micro", 0.4644, RAGPT, "printed"),
        ("map", "food101", "image_0.7", "accuracy", 0.7562, RAGPT, "printed"),
        ("if_mmin", "hateful_memes", "both_0.7", "auroc", 0.5519, RAGPT, "printed"),
        ("redeem", "hateful_memes", "both_0.9", "auroc", 0.6590, REDEEM, "digitised"),
        ("ragpt", "hateful_memes", "train:text_0.3,test:text_0.9", "auroc", 0.6307, RAGPT, "printed"),
        ("map", "mmimdb", "both_0.7", "f1_macro", 0.4266, MAP_QUOTED, "quoted"),
        ("map", "food101", "text_1", "accuracy", 0.681, MAP, "digitised"),
        ("ragpt", "hateful_memes", "concat_text_0.7", "auroc", 0.6802, LOG, "printed"),
    ],
)
def test_golden_cells(
    method: str, dataset: str, protocol: str, metric: str, value: float, paper: str, how_read: str
) -> None:
    best, *_ = (number for number in lookup(method, dataset, protocol, metric) if number.paper == paper)
    assert (best.value, best.how_read, best.variant) == (value, how_read, "")


def test_conditions_and_variants_are_asked_for_by_name() -> None:
    protocol = "train:complete,test:patterns_proper"
    assert lookup("mmin", "iemocap", protocol, "uar") == ()
    copied, other = lookup("mmin", "iemocap", protocol, "uar", condition="audio+video")
    assert (copied.value, copied.confidence, other.value, other.confidence) == (0.6543, "high", 0.6343, "low")
    (router,) = lookup("redeem", "mmimdb", "text_0.7", "f1_micro", variant="no router (plain mean)")
    assert router.value == 0.5401
    assert lookup("redeem", "mmimdb", "text_0.7", "f1_macro") == ()
    assert lookup("if_mmin", UNKNOWN, UNKNOWN, "accuracy", variant="noise level 1 of 5") == ()


def test_reliable_numbers_come_first() -> None:
    found = lookup("redeem", "hateful_memes", "text_0.7", "auroc")
    assert [(number.table, number.value, number.confidence) for number in found] == [
        ("Table 1", 0.7145, "high"),
        ("Table 3", 0.7145, "high"),
        ("Figure 4", 0.7100, "low"),
    ]


def test_mean_of_redeems_improvements_is_not_what_its_text_says() -> None:
    cells: dict[tuple[str, str, str], dict[str, float]] = {}
    for number in of_table(REDEEM, "Table 1"):
        cells.setdefault((number.dataset, number.protocol, number.metric), {})[number.method] = number.value
    assert len(cells) == 12
    gains = [100 * (row["redeem"] / max(row[name] for name in row if name != "redeem") - 1) for row in cells.values()]
    assert all(gain > 0 for gain in gains)
    assert sum(gains) / len(gains) == pytest.approx(5.32, abs=0.005)


def test_the_two_main_tables_differ_in_one_row_only() -> None:
    here, there = (
        {(n.method, n.dataset, n.protocol, n.metric): n for n in of_table(paper, "Table 1")}
        for paper in (REDEEM, RAGPT)
    )
    assert {key[0] for key in here} - {key[0] for key in there} == {"momke", "redeem"}
    differing = {key: (here[key].value, there[key].value) for key in there if here[key].value != there[key].value}
    assert {(method, dataset) for method, dataset, *_ in differing} == {("smil", "food101")}
    assert list(differing.values()) == [(0.6183, 0.5183), (0.5886, 0.4986), (0.6077, 0.4677)]
    assert all(here[key].confidence == there[key].confidence == "low" for key in differing)


def test_figures_that_contradict_tables_are_marked() -> None:
    main = {(n.paper, n.method, n.dataset, n.protocol, n.metric): n.value for n in published() if n.table == "Table 1"}
    figures = [n for n in published() if n.table in ("Figure 4", "Figure 6", "Figure 3a", "Figure 3b")]
    contradicting = {}
    for n in figures:
        # K = 5 is the setting of the tables, but for RAGPT on MM-IMDb without images.
        wanted = "K=3" if (n.method, n.dataset, n.protocol) == ("ragpt", "mmimdb", "image_0.7") else "K=5"
        printed = main.get((n.paper, n.method, n.dataset, n.protocol, n.metric))
        if printed is not None and n.variant in ("", wanted) and abs(n.value - printed) > 2.5e-4:
            contradicting[n.table, n.method, n.dataset, n.protocol] = (n.value, printed)
            assert n.confidence == "low"
    assert contradicting == {
        ("Figure 3a", "redeem", "mmimdb", "image_0.7"): (0.4754, 0.4954),
        ("Figure 3b", "redeem", "hateful_memes", "both_0.7"): (0.6669, 0.6702),
        ("Figure 3a", "ragpt", "mmimdb", "both_0.7"): (0.5039, 0.5089),
        ("Figure 4", "redeem", "hateful_memes", "text_0.7"): (0.7100, 0.7145),
        ("Figure 4", "msp", "hateful_memes", "text_0.7"): (0.6160, 0.5960),
    }


def series(paper: str, table: str, method: str, protocols: str) -> list[float]:
    return [n.value for n in of_table(paper, table) if n.method == method and n.protocol.startswith(protocols)]


def test_curves_of_baselines_differ_between_the_papers() -> None:
    def differences(method: str, what: str) -> list[float]:
        pairs = zip(series(REDEEM, "Figure 4", method, what), series(RAGPT, "Figure 6", method, what), strict=True)
        return [round(100 * (here - there), 2) for here, there in pairs]

    assert differences("msp", "text") == [1.0, 1.0, 0.5, 2.0, 3.0]
    assert differences("msp", "both") == [0.0, 1.0, 0.5, 0.0, 3.0]
    assert differences("map", "text") == [0.5, 0.0, 0.0, 0.0, 3.5]
    assert differences("map", "both") == [0.0] * 5


def test_two_columns_of_redeems_figure_5_stand_under_other_names_in_ragpts() -> None:
    for here, there in (("map", "msp"), ("msp", "shaspec")):
        for what in ("train:text", "train:both"):
            values = series(REDEEM, "Figure 5", here, what)
            assert len(values) == 5
            assert values == series(RAGPT, "Figure 5", there, what)
    for number in of_table(REDEEM, "Figure 5"):
        assert (number.confidence == "low") == (number.method in ("map", "msp"))


def test_two_ablations_share_a_value() -> None:
    found = [n for n in of_table(REDEEM, "Table 3") if n.dataset == "hateful_memes" and n.value == 0.6137]
    assert {n.variant for n in found} == {"random retrieval", "no generator (padding)"}
    assert all(n.note for n in found)


def test_averages_of_mmin_are_means_of_their_conditions() -> None:
    protocol = "train:complete,test:patterns_proper"
    rows = [n for n in published() if n.paper == "MPLMM (ACL 2024)" and n.method == "mmin" and n.dataset == "iemocap"]
    (mean,) = [n.value for n in rows if n.condition == "mean_of_patterns"]
    conditions = [n.value for n in rows if n.condition != "mean_of_patterns"]
    assert len(conditions) == 6
    assert {n.protocol for n in rows} == {protocol}
    assert sum(conditions) / 6 == pytest.approx(mean, abs=1e-4)


def test_every_name_is_registered_or_marked_as_external() -> None:
    numbers = published()
    for known, external, used in (
        (registry.methods.names(), EXTERNAL_METHODS, {n.method for n in numbers}),
        (registry.metrics.names(), EXTERNAL_METRICS, {n.metric for n in numbers}),
        (registry.datasets.names(), EXTERNAL_DATASETS, {n.dataset for n in numbers} - {UNKNOWN}),
    ):
        assert used - set(known) - set(external) == set()
        # What becomes a plugin is struck off the list, so that its numbers stand beside its runs.
        assert set(external) & set(known) == set()
        assert set(external) - used == set()


def test_protocols_and_conditions_exist() -> None:
    modalities = ("audio", "video", "text")
    patterns = {"+".join(m for i, m in enumerate(modalities) if code >> i & 1) for code in range(1, 8)}
    for number in published():
        if number.protocol == UNKNOWN:
            continue
        protocol = parse_protocol(number.protocol)
        assert protocol.name == number.protocol, "canonical"
        conditions = patterns | set(protocol.aggregates) if "patterns" in number.protocol else {""}
        assert number.condition in conditions


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method,value\n", "the columns must be method, dataset"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('0.5994', '59.94')}\n", "line 3: value is '59.94', not a fraction"),
        (f"{HEADER}\n{ROW.replace('0.5994', '')}\n", "line 2: value is empty"),
        (f"{HEADER}\n{ROW.replace('0.5994', 'nan')}\n", "value is 'nan'"),
        (f"{HEADER}\n{ROW.replace(',,REDEEM', ',-0.1,REDEEM')}\n", "spread is '-0.1'"),
        (f"{HEADER}\n{ROW.replace('high', 'sure')}\n", "confidence is 'sure', not one of high, medium, low"),
        (f"{HEADER}\n{ROW.replace('printed', 'guessed')}\n", "how_read is 'guessed'"),
        (f"{HEADER}\n{ROW.replace('Table 1', ' Table 1')}\n", "table begins or ends with a space"),
        (f"{HEADER}\n{ROW},more\n", "more than 13 cells"),
    ],
)
def test_a_wrong_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=r"numbers\.csv") as caught:
        read_published(path)
    assert says in str(caught.value)


def test_a_right_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(f"{HEADER}\n{ROW.replace(',,REDEEM', ',0.0012,REDEEM')}\n")
    (number,) = read_published(path)
    assert (number.value, number.spread, number.condition, number.note) == (0.5994, 0.0012, "", "")


def test_a_cell_stands_once(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(f"{HEADER}\n{ROW}\n{ROW.replace('0.5994', '0.6')}\n")
    with pytest.raises(DataError, match=r"Table 1 / redeem / mmimdb / text_0.7 / f1_micro is there twice"):
        check_unique(read_published(path))


def test_files_are_described() -> None:
    readme = (FOLDER / "README.md").read_text()
    files = {path.name for path in FOLDER.glob("*.csv")}
    assert files
    assert {name for name in files if f"| `{name}` |" not in readme} == set()
