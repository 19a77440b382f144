"""Tables as text."""

from __future__ import annotations

import pandas as pd
import pytest

from nse_plugin.table import Table, best_of


@pytest.fixture
def frame():
    index = pd.Index([1, 2, 3], name="round")
    return pd.DataFrame(
        {"name": ["a", "bb", None], "share": [0.5, float("nan"), 1.0], "norm": [12.0, 3.14159, 2]},
        index=index,
    )


def test_cells_and_heads(frame):
    table = Table.of(frame, "T", heads={"norm": "||W||"}, formats={"share": ".1%"})
    assert table.heads == ("round", "name", "share", "||W||")
    assert table.rows == (("1", "a", "50.0%", "12"), ("2", "bb", "–", "3.142"),
                          ("3", "–", "100.0%", "2"))  # fmt: skip
    assert table.numeric == (True, False, True, True)
    assert Table.of(frame, "T", index=False, formats={"name": str.upper}).rows[1][0] == "BB"


def test_text_is_aligned(frame):
    text = Table.of(frame, "The caption", note="A note.").text().splitlines()
    assert text == [
        "The caption",
        "round  name  share   norm",
        "    1  a       0.5     12",
        "    2  bb        –  3.142",
        "    3  –         1      2",
        "A note.",
    ]


@pytest.mark.parametrize(("rows", "left_out"), [(24, 0), (25, 1), (500, 476)])
def test_long_tables_say_what_they_leave_out(rows, left_out):
    table = Table.of(pd.DataFrame({"n": range(rows)}), "T", index=False)
    shown = table.text().splitlines()[2:]
    numbers = [int(line) for line in shown if line.strip().isdigit()]
    assert numbers[0] == 0 and numbers[-1] == rows - 1 and len(numbers) == rows - left_out
    assert (f"({left_out} rows left out)" in shown) == (left_out > 0)


def test_a_row_of_markdown_is_one_line():
    table = Table("Why", ("cell", "error"), (("a|b", "first line\nsecond"),))
    assert table.markdown().splitlines()[2:] == ["| a\\|b | first line second |"]


def test_an_empty_table():
    assert Table.of(pd.DataFrame({"n": []}), "T", index=False).text() == "T\nn"


def test_the_best_of_a_column_is_marked_where_rows_differ():
    rows = [("none", "100.0", "9", "1"), ("a", "97.3 ± 0.4", "3", "1"), ("b", "–", "4", "1"),
            ("c", "97.3 ± 2.0", "-5", "1")]  # fmt: skip
    marks = best_of(rows, {1: max, 2: min, 3: max}, without=["none"])
    assert marks == {(3, 2): "good"}  # equal ones are no best
    assert best_of(rows, {1: max}) == {(0, 1): "good"}
    assert best_of([*rows, ("d", "90.0", "3", "1")], {1: max}, ["none"]) == {
        (1, 1): "good", (3, 1): "good",
    }  # fmt: skip
