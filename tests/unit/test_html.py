"""The HTML page: self-contained, small, escaped, and everything behind a row is in it.  Chromium reads it elsewhere."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from harness.record import AuditResult
from harness.reports.details import Inspected, Picture
from harness.reports.html import pack, to_html, unpack
from harness.reports.leaderboard import Leaderboard
from harness.testing.records import FakeRun, make_conditions_run, make_findings, make_record, make_run

HOSTILE = "</script><script>alert('x')</script>|`_%&$\\\"><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Tags, texts, and what could reach outside or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page_of(runs: list[FakeRun], **options: Any) -> str:
    inspected = [Inspected(run) for run in runs]
    return to_html(Leaderboard.build(inspected), inspected, **options)


def packed(page: str) -> dict[str, Any]:
    found = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert found
    data: dict[str, Any] = unpack(found.group(1))
    return data


@pytest.fixture(scope="module")
def runs() -> list[FakeRun]:
    runs = [make_run("redeem", 0.8 + 0.01 * seed, train_seed=seed) for seed in range(3)]
    runs += [make_run("zero_fill", 0.6, reference="floor"), make_run("complete", 0.9, oracle=True)]
    return [*runs, FakeRun(make_record("broken", status="failed")), make_run("redeem", 0.75, mask="n" * 64)]


def test_nothing_is_fetched(runs: list[FakeRun]) -> None:
    page = page_of(runs)
    parsed = Page(page)
    assert all(reference.startswith("#") for reference in parsed.references)
    assert not {"link", "img", "iframe", "object", "base"} & set(parsed.tags)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_it_is_small(runs: list[FakeRun]) -> None:
    assert len(page_of(runs)) < 55_000


def test_the_same_runs_give_the_same_bytes(runs: list[FakeRun]) -> None:
    assert page_of(runs) == page_of(runs)


def test_every_row_leads_to_its_records(runs: list[FakeRun]) -> None:
    data = packed(page_of(runs))
    ids = [run[3] for table in data["tables"] for row in table["rows"] for run in row["runs"]]
    assert sorted(ids) == sorted(run.record.run_id[:16] for run in runs)
    assert all(run[4] == "0" * 32 for table in data["tables"] for row in table["rows"] for run in row["runs"])


def test_a_server_gets_links_and_a_local_store_those_of_harness_ui() -> None:
    from harness.tracking import StoredRun

    made = make_run("redeem", 0.8)

    class Stored(StoredRun):
        def predictions(self) -> Any:
            return made.predictions()

    address = "/#/experiments/7/runs/"
    for uri, start in (
        ("https://me:secret@mlflow.example.org/team", "https://mlflow.example.org/team"),
        ("sqlite:////home/me/mlflow.db", "http://127.0.0.1:5000"),
    ):
        page = page_of([Stored(made.record, "f" * 32, "7", uri)])  # type: ignore[list-item]
        assert packed(page)["places"] == [start + address]
        assert packed(page)["tables"][0]["rows"][0]["places"] == [0]
        assert "secret" not in str(packed(page))
        assert "/home/me" not in str(packed(page))


def test_behind_a_row(runs: list[FakeRun]) -> None:
    table = next(table for table in packed(page_of(runs))["tables"] if len(table["rows"]) > 1)
    row = next(row for row in table["rows"] if row["name"] == "redeem")
    assert row["score"] == pytest.approx(0.81)
    assert sum(map(sum, row["confusion"])) == 600
    assert row["curves"]["valid/accuracy"] == [0.5, 0.54, [[0, 25, 50, 75, 100]] * 3]
    assert table["levels"] == 100
    assert len(row["worst"]) == 8
    assert row["audits"] == [["split overlap", True, "leak", ""]]
    assert row["inspected"] == 3
    assert table["config"]["protocol"] == "both_0.7"
    assert row["config"] == {"method.name": "redeem"}
    failed = next(row for row in table["rows"] if row["name"] == "broken")
    assert failed["kind"] == "failed"
    assert failed["error"] == "TrainingError: the loss is not finite at step 3."


def test_what_was_recovered_and_who_was_asked() -> None:
    plain = [make_run("redeem", 0.8, train_seed=seed) for seed in range(2)]
    runs = [replace(run, found=make_findings(run.record.run_id, 0.7 + 0.1 * seed)) for seed, run in enumerate(plain)]
    asked: list[str] = []

    def show(dataset: str, fingerprint: str, ids: Any) -> dict[str, Picture]:
        asked.extend(ids)
        return {}

    (row,) = packed(page_of(runs, show=show))["tables"][0]["rows"]
    assert row["looked"] == 2
    # Condition, shown, hidden, samples, cosine, to others, error: means over the seeds.
    assert row["recovered"][0] == ["both_0.7", "text", "image", 70, 0.75, 0.5, 0.25]
    assert row["asked"][0] == ["both_0.7", "image", 70, 2, 0.5, 0.6, [0.7, 0.3]]
    assert row["examples"][0][:6] == ["s00000", "both_0.7", "text", "image", "a", "b"]
    assert row["examples"][0][6] == [["t1", "a", 0.9, 0.7, 1.0], ["t2", "c", 0.8, 0.3, 0.0]]
    assert {"s00000", "s00001", "t1", "t2"} <= set(asked)
    assert "recovered" not in packed(page_of(plain))["tables"][0]["rows"][0]


def test_scores_in_overviews_lead_to_their_rows(runs: list[FakeRun]) -> None:
    page = page_of([*runs, make_run("redeem", 0.7, dataset="mmimdb"), make_run("zero_fill", 0.6, dataset="mmimdb")])
    parsed = Page(page)
    rows = set(re.findall(r'<tr id="(run-[0-9a-f]{12})"', page))
    targets = {reference.removeprefix("#") for reference in parsed.references if reference.startswith("#run-")}
    assert targets
    assert targets <= rows


def test_checks_that_any_seed_failed_are_named() -> None:
    bad = AuditResult("non_interference", False, "logits changed")
    data = packed(page_of([make_run("redeem", 0.8), make_run("redeem", 0.8, train_seed=1, audits=[bad])]))
    assert ["non_interference", False, "leak", "seed 1: logits changed"] in data["tables"][0]["rows"][0]["audits"]


def test_grids_carry_rates_and_bands() -> None:
    grid = {"both_0": 0.9, "both_0.5": 0.8, "both_1": 0.45}
    page = page_of([make_conditions_run("redeem", grid, how="mean", protocol="train:both_0.5,test:both_0..1:0.5")])
    (table,) = packed(page)["tables"]
    assert table["rates"] == {"both_0": 0.0, "both_0.5": 0.5, "both_1": 1.0}
    assert [band[:2] for band in table["rows"][0]["bands"]] == [["both_0", 0.9], ["both_0.5", 0.8], ["both_1", 0.45]]


def test_pictures_are_shown_where_they_are_given(runs: list[FakeRun]) -> None:
    asked = []

    def show(dataset: str, fingerprint: str, ids: Any) -> dict[str, Picture]:
        asked.append((dataset, len(fingerprint)))
        return {name: Picture("a text", "data:image/webp;base64,AAAA") for name in ids}

    data = packed(page_of(runs, show=show))
    assert asked == [("openmoji", 64)] * 2
    worst = data["tables"][0]["rows"][0]["worst"][0]
    assert data["tables"][0]["samples"][worst[0]] == {"text": "a text", "image": "data:image/webp;base64,AAAA"}


def test_hostile_texts_stay_texts() -> None:
    run = make_run("redeem", 0.8, label=HOSTILE, config={"method": {HOSTILE: HOSTILE}})
    run.record.dataset |= {"name": HOSTILE, "license": HOSTILE, "citation": HOSTILE, "version": HOSTILE}
    run.record.dataset["task"]["labels"] = [HOSTILE] * 4
    run.record.environment = {"host": HOSTILE}
    failed = FakeRun(make_record(HOSTILE, status="failed", dataset=HOSTILE))
    failed.record.error = HOSTILE
    page = page_of([run, failed, make_run("redeem", 0.8)])
    parsed = Page(page)
    plain = Page(page_of([make_run("redeem", 0.8), FakeRun(make_record("x", status="failed", dataset="b"))]))
    assert parsed.tags.count("script") == plain.tags.count("script") == 3
    assert "img" not in parsed.tags
    assert parsed.handlers == []
    assert "<script>alert" not in page
    assert any(HOSTILE in text for text in parsed.texts)
    rows = [row for table in packed(page)["tables"] for row in table["rows"]]
    assert HOSTILE in [row["error"] for row in rows]


def test_values_that_json_lacks_become_null_and_odd_letters_pass() -> None:
    assert unpack(pack({"a": float("nan"), "b": [float("inf"), 1.5], "c": "é\ud800"})) == {
        "a": None,
        "b": [None, 1.5],
        "c": "é?",
    }


@pytest.mark.parametrize(
    ("measured", "packed_as"),
    # 1/32 is a tie, which Python and JavaScript round to different sides; small numbers keep the form of their chart.
    [(123.456789, 123.4568), (0.03125, 0.0312), (0.004321987, 0.004321987)],
)
def test_details_show_the_numbers_of_the_tables(measured: float, packed_as: float) -> None:
    run = make_run("redeem", 0.8, config={"trainer": {"lr": 0.0123456}})
    run.record.results[0].metrics["mae"] = measured
    (row,) = packed(page_of([run]))["tables"][0]["rows"]
    assert row["metrics"]["mae"] == packed_as
    assert f"{packed_as:.4f}" == f"{measured:.4f}"
    assert packed(page_of([run]))["tables"][0]["config"]["trainer.lr"] == 0.0123456, "options are never rounded"


def test_a_curve_has_the_seed_of_its_own_run() -> None:
    runs = [FakeRun(make_record("redeem", status="failed", train_seed=0)), make_run("redeem", 0.8, train_seed=1)]
    (row,) = packed(page_of(runs))["tables"][0]["rows"]
    assert [run[0] for run in row["runs"]] == [0, 1]
    assert (len(row["curves"]["loss"][2]), row["curve_seeds"]) == (1, [1])


def test_without_runs_the_board_alone_is_shown(runs: list[FakeRun]) -> None:
    page = to_html(Leaderboard.build(runs))
    row = next(row for row in packed(page)["tables"][0]["rows"] if row["name"] == "redeem")
    assert "confusion" not in row
    assert row["audits"] == [["", True, "", "3 checks passed"]]


def test_no_runs() -> None:
    page = to_html(Leaderboard.build([]))
    assert "No runs yet" in page
    assert "script" not in Page(page).tags


def test_an_undefined_score_is_never_written_as_nan() -> None:
    run = make_run("redeem", 0.8)
    run.record.results[0].per_pattern["text"]["accuracy"] = float("nan")
    assert not re.search(r">\s*nan\s*<", page_of([run]))
