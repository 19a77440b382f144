"""Result tables: drawn on a terminal, lines of text elsewhere."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from nse_plugin import cli
from nse_plugin.cli.tables import draw
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
