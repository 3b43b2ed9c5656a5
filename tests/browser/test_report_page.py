"""The HTML report in a browser: what a reader can do with it, with the mouse, the keyboard and a screen reader."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.record import AuditResult
from harness.reports.details import Inspected, Picture
from harness.reports.html import to_html
from harness.reports.leaderboard import Leaderboard
from harness.reports.table import Row, Table, TableKey
from harness.testing.records import FakeRun, make_conditions_run, make_findings, make_record, make_run

pytestmark = pytest.mark.slow

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="
THEMES = ("light", "dark")
LOCAL = ("file:", "data:", "blob:")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tables: five methods with a failure, a grid of rates, patterns, and one whose names want to run."""
    runs = [make_run("redeem", 0.8 + 0.01 * seed, train_seed=seed) for seed in range(3)]
    runs = [replace(run, found=make_findings(run.record.run_id)) for run in runs]
    runs += [make_run("zero_fill", 0.6, reference="floor"), make_run("complete", 0.9, oracle=True)]
    runs += [make_run("map", 0.7, changed=["depth=3"]), FakeRun(make_record("broken", status="failed"))]
    for method, values in {"redeem": (0.9, 0.8, 0.5), "map": (0.85, 0.7, 0.3)}.items():
        grid = dict(zip(("both_0", "both_0.5", "both_1"), values, strict=True))
        runs += [
            make_conditions_run(
                method,
                grid,
                how="mean",
                protocol="train:complete,test:both_0..1:0.5",
                dataset="mmimdb",
                train_seed=seed,
            )
            for seed in range(2)
        ]
    runs += [make_conditions_run("map", {"text": 0.55, "image": 0.65}, protocol="patterns", dataset="mmimdb")]
    hostile = make_run("redeem", 0.8, label=HOSTILE, dataset=HOSTILE, audits=[AuditResult(HOSTILE, False, HOSTILE)])
    hostile.record.dataset["task"]["labels"] = [HOSTILE] * 4
    broken = FakeRun(make_record(HOSTILE, status="failed", dataset=HOSTILE))
    broken.record.error = HOSTILE
    runs += [hostile, broken]
    inspected = [Inspected(run) for run in runs]

    def show(dataset: str, fingerprint: str, ids: Any) -> dict[str, Picture]:
        return {name: Picture(HOSTILE, PIXEL) for name in ids}

    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(Leaderboard.build(inspected), inspected, show), encoding="utf-8")
    return path


@pytest.fixture
def open_page(chromium: Any, report: Path) -> Iterator[Any]:
    """Opens the report; any message on the console, error or request fails the test at its end."""
    troubles: list[str] = []
    pages = []

    def open_at(address: str = "", **options: Any) -> Any:
        page = chromium.new_page(**{"viewport": {"width": 1440, "height": 900}, **options})
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda request: None if request.url.startswith(LOCAL) else troubles.append(request.url))
        page.goto(report.as_uri() + address)
        page.wait_for_selector("body.ready")
        pages.append(page)
        return page

    yield open_at
    for page in pages:
        assert page.title() == "Missing-modality leaderboard"
        page.close()
    assert troubles == []


def board(page: Any, name: str = "openmoji") -> Any:
    return page.locator(f'section.board[data-dataset="{name}"]').first


def names(section: Any) -> list[str]:
    found: list[str] = section.locator("tbody tr:visible .toggle").all_inner_texts()
    return found


def test_sorting_best_first_then_back(open_page: Any) -> None:
    section = board(open_page())
    before = names(section)
    assert before == ["complete", "redeem", "map (depth=3)", "zero_fill", "broken"]
    head = section.locator("thead button", has_text="accuracy")
    head.click()
    assert names(section) == before
    assert head.locator("..").get_attribute("aria-sort") == "descending"
    head.click()
    # What has no score stays last.
    assert names(section) == ["zero_fill", "map (depth=3)", "redeem", "complete", "broken"]
    section.locator("thead button", has_text="method").click()
    assert names(section) == sorted(before)
    assert head.locator("..").get_attribute("aria-sort") is None
    section.locator("thead button", has_text="method").click()
    section.locator("thead button", has_text="method").click()
    assert names(section) == before


def test_sorting_numbers_by_value_not_by_text(open_page: Any) -> None:
    section = board(open_page())
    section.locator("thead button", has_text="gap rec.").click()
    shares = [text for text in section.locator("tbody tr").all_inner_texts() if "%" in text]
    assert [text.split("%")[0].split()[-1] for text in shares] == ["0", "33", "70", "100"]


def test_search_takes_every_word_and_escape_clears(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("/")
    page.keyboard.type("redeem openmoji")
    assert names(page) == ["redeem"]
    assert page.locator("#shown").inner_text() == "1 of 10 rows"
    assert page.locator("section.board:visible").count() == 1
    assert page.locator(".overview tbody tr:visible").count() == 1
    page.keyboard.press("Escape")
    assert page.locator("#shown").inner_text() == "10 rows"
    page.fill("#query", "nosuchmethod")
    assert page.locator("#shown").inner_text() == "no row fits"
    assert page.locator("section.board:visible").count() == 0


def test_filters_by_table_and_by_kind_of_row(open_page: Any) -> None:
    page = open_page()
    page.select_option('select[data-facet="dataset"]', "mmimdb")
    assert set(names(page)) == {"redeem", "map"}
    page.select_option('select[data-facet="dataset"]', "openmoji")
    page.select_option("#kinds", "method")
    assert names(page) == ["redeem", "map (depth=3)"]
    page.select_option("#kinds", "failed")
    assert names(page) == ["complete", "map (depth=3)", "zero_fill", "broken"]  # all but redeem lack seeds
    page.select_option("#kinds", "ranked")
    assert names(page) == ["redeem", "map (depth=3)", "zero_fill"]


def test_all_columns_on_demand(open_page: Any) -> None:
    page = open_page()
    wide = board(page).locator("thead th", has_text="predict s")
    assert not wide.is_visible()
    page.check("#wide")
    assert wide.is_visible()


def test_details_on_click_and_by_address(open_page: Any) -> None:
    page = open_page()
    section = board(page)
    button = section.locator(".toggle", has_text="redeem")
    button.click()
    details = section.get_by_role("region", name="Details of redeem")
    assert button.get_attribute("aria-expanded") == "true"
    assert page.locator(f"#{button.get_attribute('aria-controls')}").count() == 1
    titles = details.locator("h3").all_inner_texts()
    wanted = {
        "Runs",
        "Checks",
        "Cost",
        "Training loss",
        "Validation: accuracy",
        "Calibration",
        "Confusion, sum of 3 seeds",
        "Recovered embeddings, mean of 3 seeds",
        "Whom it asks",
    }
    assert wanted <= set(titles)
    assert details.locator("table.runs tbody tr").count() == 3
    assert details.locator("table.confusion tbody tr").count() == 4
    assert details.locator(".worst img").count() == 8
    assert details.locator("svg[role=img][aria-label]").count() == 3
    details.locator("summary", has_text="2 test samples").click()
    asked = details.locator("ul.asked > li")
    assert asked.count() == 2
    assert asked.first.locator("ol > li").all_inner_texts()[0].startswith("✓ a\nweight 0.700")
    assert asked.first.locator("img").count() == 3
    address = page.evaluate("location.hash")
    section.locator("thead button", has_text="method").click()
    assert details.is_visible()
    button.click()
    assert details.count() == 0
    other = open_page(address)
    assert board(other).get_by_role("region", name="Details of redeem").is_visible()


def test_four_labels_are_not_four_classes(chromium: Any, tmp_path: Path) -> None:
    """Of each of several labels stands its precision, recall and F1, also where there are as many as counts."""
    made = make_run("redeem", 0.8)
    assert made.scores is not None
    labels = np.eye(4, dtype=np.float32)[made.scores.labels]
    run = replace(made, scores=replace(made.scores, labels=labels, logits=np.where(labels > 0, 1.0, -1.0)))
    run.record.dataset["task"]["kind"] = "multilabel"
    run.record.primary_metric, run.record.results[0].metrics = "f1_micro", {"f1_micro": 1.0}
    inspected = [Inspected(run)]
    path = tmp_path / "labels.html"
    path.write_text(to_html(Leaderboard.build(inspected), inspected), encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("body.ready")
    page.locator(".toggle").click()
    table = page.locator(".details .grid-scroll table", has_text="precision")
    assert table.locator("tbody tr").first.inner_text().split()[2:] == ["1.000", "1.000", "1.000"]
    assert page.locator("table.confusion").count() == 0
    page.close()


def test_a_score_in_the_overview_opens_its_row(open_page: Any) -> None:
    page = open_page()
    row = page.locator("table.matrix tbody tr", has_text="zero_fill")
    row.locator("a").first.click()
    details = page.get_by_role("region", name="Details of zero_fill")
    assert details.is_visible()
    assert details.locator("table.runs tbody tr").count() == 1


def test_the_keyboard_is_enough(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the tables"
    page.keyboard.press("Enter")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "toggle":
            break
    name = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.get_by_role("region", name=f"Details of {name}").first.is_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Space")
    assert page.locator(".details").count() == 0


def test_figures_follow_the_filter(open_page: Any) -> None:
    page = open_page()
    section = board(page)
    section.locator(".figures").scroll_into_view_if_needed()
    chart = section.locator("figure", has_text="Scores").locator("svg")
    chart.wait_for()
    assert chart.locator("text", has_text="map (depth=3)").count() == 1
    page.fill("#query", "redeem")
    chart.locator("text", has_text="map (depth=3)").wait_for(state="detached")
    assert chart.locator("text", has_text="redeem").count() == 1
    choice = section.get_by_label("Cost on the horizontal axis")
    page.fill("#query", "")
    choice.wait_for()
    choice.select_option("train_seconds")
    assert "training, seconds" in section.locator("figure").last.inner_text()


def test_grids_show_a_curve_with_bands(open_page: Any) -> None:
    page = open_page()
    section = page.locator('section.board[data-protocol^="train"]')
    section.locator(".figures").scroll_into_view_if_needed()
    curve = section.locator("figure", has_text="Robustness").locator("svg")
    curve.wait_for()
    assert curve.locator(".band").count() == 2
    assert curve.locator("text", has_text="missing rate").count() == 1


def test_colours_by_system_and_by_choice(open_page: Any) -> None:
    for system, other in (("light", "dark"), ("dark", "light")):
        page = open_page(color_scheme=system)
        shades = {system: page.evaluate("getComputedStyle(document.body).backgroundColor")}
        for _ in range(2):
            page.click("#theme")
            shades[page.evaluate("document.documentElement.dataset.theme")] = page.evaluate(
                "getComputedStyle(document.body).backgroundColor"
            )
        assert shades[system] != shades[other]
        page.click("#theme")
        assert page.locator("#theme").inner_text() == "◐ system"


CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", THEMES)
def test_contrast_of_every_text_and_mark(open_page: Any, theme: str) -> None:
    page = open_page(color_scheme=theme)
    for button in board(page).locator(".toggle").all():
        button.click()
    board(page).locator("svg").first.wait_for()
    found = page.evaluate(CONTRAST.partition("\n")[2].rstrip().rstrip(";"))
    assert len(found["texts"]) > 200
    assert found["texts"][0][0] >= 4.5, found["texts"][:5]
    assert found["marks"][0][0] >= 3.0, found["marks"][:3]


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(open_page: Any, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: pip install -e '.[browser]'")
    page = open_page(color_scheme=theme)
    board(page).locator(".toggle", has_text="redeem").click()
    board(page).locator("svg").first.wait_for()
    found = axe.Axe().run(page).response["violations"]
    assert [(item["id"], [node["html"][:120] for node in item["nodes"]][:2]) for item in found] == []


def test_hostile_texts_are_shown_and_do_nothing(open_page: Any) -> None:
    page = open_page()
    section = board(page, HOSTILE.replace('"', '\\"'))
    for button in section.locator(".toggle").all():
        button.click()
    section.locator(".figures").scroll_into_view_if_needed()
    section.locator("svg").first.wait_for()
    assert section.locator("script").count() == 0
    assert section.locator("img:not([src^='data:'])").count() == 0
    assert HOSTILE in section.inner_text()


@pytest.mark.parametrize("width", [360, 768, 1440, 2200])
def test_no_page_is_wider_than_its_window(open_page: Any, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    board(page).locator(".toggle", has_text="redeem").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_draws_every_figure_on_white(open_page: Any) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    for section in page.locator("section.board").all():
        assert section.locator("svg").count() >= 1
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".tools").is_visible()


def test_without_javascript_the_tables_can_be_read(chromium: Any, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    shown = board(page).locator("tbody th.name").all_inner_texts()
    assert [text.split()[0].removesuffix("oracle,") for text in shown[:2]] == ["complete", "redeem"]
    assert "need JavaScript" in page.locator("noscript").inner_text()
    assert not page.locator(".tools").is_visible()
    context.close()


def test_five_thousand_runs_stay_usable(chromium: Any, tmp_path: Path) -> None:
    # Statistics are tested elsewhere; tables by hand, so that this is about the page.
    board, inspected = Leaderboard([]), []
    for number in range(10):
        key = TableKey(f"data_{number}", "f" * 64, "both_0.7", "both_0.7", "observed", "m" * 64, "accuracy", "1")
        board.tables.append(Table(key, True, ["text+image", "text", "image"], {}, []))
        for method in range(100):
            options: dict[str, Any] = {"dataset": key.dataset, "count": 60}
            runs = [make_run(f"method_{method:03d}", 0.5 + method / 300, train_seed=n, **options) for n in range(5)]
            record = runs[0].record
            row = Row(record.method, record.method, "fusion", "finished", rank=1, low=0.4, high=0.6)
            row.score, row.config = record.results[0].metrics["accuracy"], record.config
            row.per_pattern = {name: scores["accuracy"] for name, scores in record.results[0].per_pattern.items()}
            row.runs = [
                {"run_id": run.record.run_id, "mlflow_run_id": "", "train_seed": n, "status": "finished"}
                for n, run in enumerate(runs)
            ]
            board.tables[-1].rows.append(row)
            inspected += [Inspected(run) for run in runs]
    path = tmp_path / "large.html"
    path.write_text(to_html(board, inspected), encoding="utf-8")
    assert path.stat().st_size < 3_000_000
    page = chromium.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("body.ready")
    page.fill("#query", "method_077 data_3")
    assert names(page) == ["method_077"]
    page.locator(".toggle:visible").click()
    assert page.locator("table.runs tbody tr").count() == 5
    page.close()
