"""Time left of a sweep: from cells of the same method on the same data set, and honest about the others."""

from types import SimpleNamespace
from typing import Any

from harness.record import Cost
from harness.sweep import Forecast
from harness.testing.records import make_record


def cell(name: str, method: str = "redeem") -> Any:
    return SimpleNamespace(
        run_id=name, method_name=method, table=SimpleNamespace(spec=SimpleNamespace(name="openmoji"))
    )


def took(seconds: float, status: Any = "finished", skipped: bool = False) -> Any:
    record = make_record(status=status)
    record.cost = Cost(total_seconds=seconds)
    return SimpleNamespace(record=record, skipped=skipped)


CELLS = [cell("a"), cell("b"), cell("c"), cell("slow", "ragpt")]


def test_nothing_is_guessed_before_a_cell_has_ended() -> None:
    assert Forecast(CELLS, 1, {}).text() == "time left unknown"


def test_cells_of_a_method_that_has_not_ended_make_it_at_least() -> None:
    forecast = Forecast(CELLS, 1, {})
    forecast.ended(CELLS[0], took(30))
    assert forecast.text() == "at least 60 s left"
    forecast.ended(CELLS[3], took(600))
    assert forecast.text() == "about 60 s left", "a slow method says nothing of a fast one"


def test_what_the_store_knows_counts_until_this_sweep_knows_better() -> None:
    known = {("redeem", "openmoji"): 10.0, ("ragpt", "openmoji"): 50.0}
    forecast = Forecast(CELLS, 1, known)
    assert forecast.text() == "about 80 s left"
    forecast.ended(CELLS[0], took(15))
    assert forecast.text() == "about 80 s left"


def test_several_at_a_time_take_no_less_than_the_longest() -> None:
    known = {("redeem", "openmoji"): 10.0, ("ragpt", "openmoji"): 50.0}
    assert Forecast(CELLS, 2, known).text() == "about 50 s left"
    assert Forecast(CELLS, 0, known).text() == "about 80 s of computing left", "a cluster's room is not known"


def test_failed_and_skipped_cells_say_nothing_of_the_others() -> None:
    forecast = Forecast(CELLS[:3], 1, {})
    forecast.ended(CELLS[0], took(1, status="failed"))
    forecast.ended(CELLS[1], took(0, skipped=True))
    assert forecast.text() == "time left unknown"
    forecast.ended(CELLS[2], took(9))
    assert forecast.text() == ""
