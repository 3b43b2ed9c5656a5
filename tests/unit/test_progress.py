"""Progress: bars on a terminal with a time left that can be believed, and nothing of them elsewhere."""

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness import progress
from harness.progress import Pace, duration_text, note, say, track


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


def sit_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest takes stderr back between a fixture and its test."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


@pytest.fixture(autouse=True)
def a_screen_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_screen", progress._Screen())


# -- time left ---------------------------------------------------------------------------------------------------------


def test_nothing_is_guessed_before_a_piece_is_done() -> None:
    assert Pace(10, began=0.0).left(now=99.0) is None


def test_time_left_counts_down_within_a_piece_and_waits_for_a_slow_one() -> None:
    pace = Pace(5, began=0.0)
    pace.step(now=10.0)
    assert pace.left(now=10.0) == 40.0
    assert pace.left(now=17.0) == 33.0
    assert pace.left(now=20.0) == pace.left(now=500.0) == 30.0, "three more and this one at any moment"
    pace.step(now=500.0)
    assert pace.left(now=500.0) == 750.0, "the slow piece has its say"


def test_nothing_is_left_at_the_end() -> None:
    pace = Pace(1, began=0.0)
    pace.step(now=7.0)
    assert pace.left(now=7.0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (89, "89 s"), (91, "2 min"), (89 * 60, "89 min"), (2.26 * 3600, "2.3 h")]
)
def test_durations_have_few_digits(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


# -- where it is shown -------------------------------------------------------------------------------------------------


def test_a_terminal_shows_label_count_time_left_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_at_a_terminal(monkeypatch)
    for number in track(range(3), "epochs", most=True):
        note(f"accuracy 0.{number}")
        say(f"line {number}")
        assert progress._screen.display is not None
        progress._screen.display.refresh()
    shown = terminal.getvalue()
    for part in ("epochs", "1/3", "at most", "accuracy 0.2", "line 0"):
        assert part in shown
    assert progress._screen.display is None


def test_bars_may_be_nested_and_left_early(monkeypatch: pytest.MonkeyPatch) -> None:
    sit_at_a_terminal(monkeypatch)

    def both() -> Iterator[int]:
        for outer in track(range(2), "runs"):
            for inner in track(range(9), "epochs"):
                assert len(progress._screen.notes) == 2
                if inner == 1:
                    break
                yield outer
            assert len(progress._screen.notes) == 1

    assert list(both()) == [0, 1]
    assert progress._screen.display is None

    def stopped() -> None:
        for _ in track(range(2), "runs"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert progress._screen.display is None


def test_items_without_a_length_are_counted_if_told_and_may_say_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_at_a_terminal(monkeypatch)
    assert list(track(iter("ab"), "cells", total=2, left=lambda: "at least 5 min left")) == ["a", "b"]
    assert "at least 5 min left" in terminal.getvalue()
    assert list(track(iter("ab"), "cells")) == ["a", "b"]


def test_a_worker_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = sit_at_a_terminal(monkeypatch)
    progress.be_quiet()
    assert list(track(range(3), "epochs")) == [0, 1, 2]
    note("unseen")
    assert terminal.getvalue() == ""


def test_piped_it_is_silent_and_loads_nothing() -> None:
    code = (
        "import sys\nfrom harness.progress import note, say, track\n"
        "for _ in track(range(3), 'epochs'):\n    note('unseen')\nsay('a line')\n"
        "assert 'rich' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "a line\n")
