"""Result tables: drawn on a terminal, lines of text elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from nse_plugin import cli
from nse_plugin.cli.tables import draw
from nse_plugin.report.edits import edit_tables
from nse_plugin.runs.edit_report import Asked, Cost, Earlier, EditedFact, EditReport
from nse_plugin.table import Table
from tests.cli.terminal import CODES, Terminal

NAMES = ("NSE:consolidated", "MEMIT:previous-keys;consolidated", "untouched")
HEADS = ("method", *(f"score number {i}" for i in range(9)), "why")
ROWS = tuple(
    (name, *(f"{10 * i + at}.{at} [-{i}.0, +{i}.5]" for i in range(9)), f"words about {name}")
    for at, name in enumerate(NAMES)
)
TABLE = Table("Scores", HEADS, ROWS, (False, *[True] * 9, False), note="A note. " * 20)


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def a_terminal_with_colours(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "")


def drawn(table: Table) -> str:
    screen = Screen()
    draw(table, screen)
    return screen.getvalue()


@pytest.mark.parametrize("width", [50, 80, 100, 132, 250])
def test_a_table_keeps_to_the_width_and_its_numbers_stay_whole(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = CODES.sub("", drawn(TABLE)).splitlines()
    assert max(map(len, lines)) <= width
    assert all(any(cell in line for line in lines) for row in ROWS for cell in row[1:-1])
    assert {head.split()[-1] for head in HEADS} <= set(" ".join(lines).split())
    bands = sum("───" in line for line in lines)
    assert bands == sum(line.startswith("untouched") for line in lines)
    assert (bands == 1) == (width == 250) and width * bands < 700


def test_narrow_tables_are_not_stretched_and_long_ones_say_what_is_left_out(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = tuple((str(i),) for i in range(100))
    lines = CODES.sub("", drawn(Table("T", ("n",), rows, (True,)))).splitlines()
    assert lines[:4] == ["T", " n", "──", " 0"] and lines[-2:] == ["99", "(76 rows left out)"]
    assert " …" in lines


def test_cells_are_shown_as_they_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    evil = ("[bold red]x[/] :smile:", "\x1b[2J\x9b2J", "[link=https://example.org]y[/link]")
    for shown in (drawn(Table("[b]T[/b]", evil, (evil,))), Table("[b]T[/b]", evil, (evil,)).text()):
        text = CODES.sub("", shown)
        assert text.count(evil[0]) == text.count(evil[2]) == 2 and "[b]T[/b]" in text
        assert "\\x1b[2J\\x9b2J" in text and "\x1b[2J" not in shown and "\x9b" not in shown


GREEN, BOLD = "\x1b[1;32m", "\x1b[1m"
MARKED = Table("T", ("n",), (("1",),), marks={(0, 0): "good"})


def test_marks_and_colours(monkeypatch, capsys):
    assert GREEN in drawn(MARKED)
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in drawn(MARKED)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert GREEN not in drawn(MARKED) and BOLD in drawn(MARKED)
    monkeypatch.setenv("NO_COLOR", "")
    assert cli.main(["models", "--no-color"]) == 0
    assert GREEN not in drawn(MARKED)


def test_a_command_draws_on_a_terminal():
    shown = Terminal("models", columns=60).rest()
    assert BOLD in shown and "────" in shown
    assert max(map(len, CODES.sub("", shown).splitlines()[:-1])) <= 60


def test_a_command_prints_lines_elsewhere_and_imports_nothing_to_draw():
    code = (
        "import sys; from nse_plugin import cli; cli.main(['models']); print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert "─" not in done.stdout and lines[-1] == "False"
    assert lines[2].startswith("smollm2-135m  SmolLM2-135M-Instruct")


ASKED = (Asked("prompt", "A is", "b", "c", True), Asked("neighbour", "D is", "e", "f", False))


def report(n_facts: int, *, before: bool = False, asked: tuple[Asked, ...] = ASKED) -> EditReport:
    facts = [EditedFact(i, "A", f"{i} is", "c", i > 0, before, asked) for i in range(n_facts)]
    cost = Cost(1.0, 2.0, None, 0, 3)
    return EditReport("my-edits", 1, tuple(facts), Earlier(0, ()), cost)


def test_an_edit_is_a_table_of_what_was_asked_and_many_are_a_row_each():
    (one,) = edit_tables(report(1))
    assert one.caption == "0 is -> c" and one.rows[1] == (
        "neighbour",
        "D is",
        "e",
        "f   <- changed",
    )
    assert one.marks == {(0, 3): "good", (1, 3): "bad"}
    (many,) = edit_tables(report(5))
    assert many.rows[0] == ("0 is", "c", "c", "NOT in effect")
    assert [many.marks[i, 3] for i in range(5)] == ["bad", *["good"] * 4]
    assert report(1).text().splitlines()[-1].startswith("NOT in effect: 1 of 1. round 1")


def test_the_report_of_many_facts_says_what_else_they_changed():
    missed = Asked("paraphrase", "So A is", "b", "b", False)
    lines = report(5, asked=(*ASKED, missed)).outcome().splitlines()
    assert lines[:2] == ["paraphrases: 0 of 5 give the new answer", "neighbours: 5 of 5 changed"]
    assert report(3).outcome().startswith("cost: ")  # all is shown of each fact
    alone = ASKED[:1]
    assert report(11, asked=alone).outcome().splitlines()[0] == (
        "neighbours were not asked (more than 10 facts)"
    )
    assert "no neighbours are known for 5 of 5 facts; give" in report(5, asked=alone).outcome()
    assert report(1, asked=alone).outcome().splitlines()[0] == (
        "no neighbours are known for this subject; give some with --neighbour"
    )


def test_the_report_names_a_repeat_and_whose_change_it_is():
    assert report(1, before=True).asked().startswith("0 is -> c (was already in effect before this")
    (many,) = edit_tables(report(5, before=True))
    assert [row[3] for row in many.rows[:2]] == ["NOT in effect", "already in effect"]
    some = "; all rounds together change 5 matrices by at most 4.8% of their norm"
    assert Cost(1.0, 2.0, 0.048, 5, 3).text().endswith(some)
    large = "change 1 matrix by 120.0% of its norm - a very large change; other answers may suffer"
    assert Cost(1.0, 2.0, 1.2, 1, 3).text().endswith(large)


def test_long_texts_are_shortened_in_the_report_and_not_in_its_json():
    long = f"begin {'word ' * 160}end"
    asked = (*ASKED[:1], Asked("paraphrase", long, long, long, False))
    fact = EditedFact(0, "A", long, "c", True, False, asked)
    one = EditReport("my-edits", 1, (fact,), Earlier(1, (long,)), Cost(1.0, 2.0, None, 0, 3))
    (table,) = edit_tables(one)
    shown = [*one.text().splitlines(), table.caption, *table.rows[1]]
    assert max(map(len, shown)) < 160
    cut = [line for line in shown if "begin" in line]
    assert len(cut) == 9 and all(" ... " in line and "end" in line for line in cut)
    assert one.to_dict()["facts"][0]["prompt"] == long
