"""Names and texts of records are other people's: in every format they stay text, and change nothing around them."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from harness import registry
from harness.cli import main
from harness.record import RunRecord
from harness.reports.html import to_html
from harness.reports.latex import latex, to_latex
from harness.reports.leaderboard import Leaderboard
from harness.reports.render import to_markdown, to_terminal
from harness.reports.tabular import to_csv
from harness.testing.hostile import WORDS
from harness.testing.records import FakeRun, make_record, make_run

NAMES = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "$(rm -rf .)", "`id`", "; touch x", "a'b\"c"),
    *(
        "\\input{/etc/passwd}",
        "\\write18{id}",
        "}\\end{table}",
        "%",
        "a | b",
        "|---|",
        "# top",
        "](javascript:alert(1))",
    ),
    *("one\ntwo", "one\rtwo", "one\u2028two", "\n\\input{/a}", "\u202edlrow", "\u2066x", "\x1b[2J", "\0", "\ud800"),
    *("=cmd|' /C calc'!A0", "+1", "@x", "\t=1", "\r=1", "</textarea>", "{{7*7}}", "{% raw %}", "&lt;b&gt;", "~~x~~"),
)
names = st.one_of(st.sampled_from((*NAMES, *(word for word in WORDS if word))), st.text(min_size=1, max_size=30))


def board_of(name: str) -> Leaderboard:
    """Two rows of which one has a name wherever a record has one."""
    run = make_run("redeem", 0.8)
    run.record.label, run.record.changed = name, [f"k={name}"]
    run.record.config["method"] |= {name: name}
    failed = FakeRun(make_record("broken", status="failed"))
    for record in (run.record, failed.record):
        record.dataset |= {"name": name, "license": name, "citation": name, "version": name}
        record.dataset["task"]["labels"] = [name] * 4
        record.environment = {name: name}
        record.run_id = name
    failed.record.error = name
    # As reports get them: read from a file.
    run, failed = (replace(one, record=RunRecord.from_json(one.record.to_json())) for one in (run, failed))
    return Leaderboard.build([replace(run, link=f"https://example.org/{run.record.label}"), failed])


@cache
def plain(render: Callable[[Leaderboard], str]) -> str:
    """What a format makes of a name that is a word."""
    return render(board_of("plain"))


def hostile(check: Callable[..., None]) -> Callable[..., None]:
    """A property over names, with every one of `NAMES` among them."""
    for name in NAMES:
        check = example(name=name)(check)
    return settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])(
        given(name=names)(check)
    )


class Tags(HTMLParser):
    """What a browser would make of a page: tags, attributes that run something, and addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]


@hostile
def test_html(name: str) -> None:
    page = to_html(board_of(name))
    page.encode()
    found, expected = Tags(page), Tags(plain(to_html))
    assert not Counter(found.tags) - Counter(expected.tags)
    assert found.handlers == []
    assert all(address.startswith(("#", "https://example.org/")) for address in found.addresses)


def commands(text: str) -> set[str]:
    return set(re.findall(r"\\(?:[A-Za-z]+|.)", text))


@hostile
def test_latex(name: str) -> None:
    text, expected = to_latex(board_of(name)), plain(to_latex)
    text.encode("ascii", errors="strict")
    allowed = commands(expected) | commands("".join(map(latex, "\\{}_%&#$~^–·<>[]`'\"…")))
    assert commands(text) <= allowed
    assert len(text.splitlines()) == len(expected.splitlines())
    bare = re.sub(r"\\[{}%]", "", text)
    assert bare.count("{") == bare.count("}")
    assert [line[:1] == "%" for line in text.splitlines()] == [line[:1] == "%" for line in expected.splitlines()]


@hostile
def test_markdown(name: str) -> None:
    text, expected = to_markdown(board_of(name)), plain(to_markdown)
    text.encode()
    lines = text.splitlines()
    assert [line[:2] for line in lines] == [line[:2] for line in expected.splitlines()]
    assert "<script" not in text.replace("\\<", "")
    for line, other in zip(lines, expected.splitlines(), strict=True):
        free = [re.sub(r"\\.", "", row) for row in (line, other)]
        for sign in "|<>`*[]":
            assert free[0].count(sign) == free[1].count(sign), (sign, line)


@hostile
def test_terminal(name: str) -> None:
    text = to_terminal(board_of(name))
    assert all(char.isprintable() or char == "\n" for char in text)
    text.encode()


@hostile
def test_spreadsheets(name: str) -> None:
    text = to_csv(board_of(name))
    text.encode()
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == len(list(csv.reader(io.StringIO(plain(to_csv)))))
    assert not [cell for row in rows for cell in row if cell[:1] in set("=+@\t\r") or cell[:2] == "-c"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=names)
def test_errors_are_one_line_that_a_terminal_may_show(capsys: pytest.CaptureFixture[str], name: str) -> None:
    # Hypothesis tries words of our sources, too, and some are methods.
    assume(not {*re.findall(r"\w+", name)} & {*registry.methods.names()})
    assert main(["run", f"method={name}", "--dry-run"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("harness: error: ")
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    assert len(text) < 4100


def test_a_command_to_copy_is_one_that_a_shell_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """`harness reproduce --dry-run` prints the same runs as a sweep; options may hold anything."""
    own = "paths.data='/a b/$(touch owned);`id`'"
    assert main(["reproduce", "redeem/table1/hateful_memes_both_0.7", own, "--dry-run"]) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("the same runs: ")
    words = shlex.split(line)
    assert words[:2] == ["harness", "sweep"]
    assert own in words
