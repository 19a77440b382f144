"""Progress that never falls silent, on a terminal and piped."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from nse_plugin.runs import listeners
from nse_plugin.runs.listeners import Bars, Lines, progress, repeated, round_text


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""
    now = [1000.0]
    monkeypatch.setattr(listeners.time, "monotonic", lambda: now[0])
    return now


def test_a_piped_run_speaks_every_thirty_seconds_while_it_loads_freezes_and_edits(clock):
    said: list[str] = []
    lines = Lines(said.append)
    lines("phase", {"name": "loading the model"})
    for _ in range(65):
        clock[0] += 1
        lines.say_what_is_done()
    assert said == ["loading the model (30 s so far)", "loading the model (60 s so far)"]
    said.clear()
    lines("start", {"rounds": 4, "done": 0})
    lines("phase", {"name": "freeze 3"})
    clock[0] += 40
    lines.say_what_is_done()
    assert said == ["asking the untouched model, round 3 (40 s so far, 0 of 4 rounds done)"]


def test_a_phase_can_say_how_far_it_is(clock):
    said: list[str] = []
    lines = Lines(said.append)
    cells = ["ROME", "GRACE"]
    lines("phase", {"name": "running cells", "detail": lambda: f"at {cells[0]}"})
    clock[0] += 40
    lines.say_what_is_done()
    del cells[0]
    clock[0] += 40
    lines.say_what_is_done()
    assert said == ["running cells (40 s so far, at ROME)", "running cells (80 s so far, at GRACE)"]


def test_a_round_counts_as_said(clock):
    said: list[str] = []
    lines = Lines(said.append, rounds=False)
    lines("start", {"rounds": None, "done": 2})
    lines("phase", {"name": "edit"})
    for _ in range(5):
        clock[0] += 20
        lines("round", {"round": 3})
        lines.say_what_is_done()
    assert said == ["resumed after round 2"]


def test_the_end_says_where_the_time_went(clock):
    said: list[str] = []
    lines = Lines(said.append, rounds=False)
    for name, seconds in [
        ("untouched model", 5), ("freeze 1", 20), ("edit", 50), ("measure", 10), ("write", 5),
        ("final measurement", 10),
    ]:  # fmt: skip
        lines("phase", {"name": name})
        clock[0] += seconds
    lines("end", {})
    assert said == ["time: edit 50%, measure 25%, ask the untouched model 20%, other 5%"]


def test_bars_on_a_terminal_lines_elsewhere(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with progress(print) as told:
        assert isinstance(told, Lines)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(RuntimeError), progress(print) as told:
        assert isinstance(told, Bars)
        told("phase", {"name": "loading the model"})
        told("start", {"rounds": 2, "done": 0})
        told("phase", {"name": "edit"})
        told("round", {"round": 1, "scores": {"efficacy": 0.5}})
        raise RuntimeError  # as an interrupt: the bars are closed all the same
    shown = terminal.getvalue()
    assert "loading the model" in shown and "editing" in shown and "efficacy=50.0%" in shown
    assert "1/2" in shown and shown.endswith("\n")


def test_the_line_of_a_consolidation():
    joint = {"edits": 4, "in_effect": 3, "earlier": 2, "earlier_before": 1}
    line = {
        "round": 2, "edits": 2, "scores": {"efficacy": 0.5}, "measurement": None, "repeats": 0,
        "superseded": 0, "left_out": [], "stop": None, "seconds": {"edit": 1.0, "total": 1.0},
    }  # fmt: skip
    said = "round 2: 2 edits, efficacy 50.0%, "
    assert round_text({**line, "edit": {"consolidated": joint}}) == (
        f"{said}all 4 edits solved jointly, 3 in effect (1 of 2 before) (1.0 s: edit 1.0)"
    )
    assert round_text({**line, "edit": {"consolidated": None, "put_back": True}}) == (
        f"{said}a joint solve of all edits was put back (1.0 s: edit 1.0)"
    )


def test_the_thread_ends_with_its_context():
    called = threading.Event()
    with repeated(0.001, called.set):
        assert called.wait(5)
    called.clear()
    time.sleep(0.01)
    assert not called.is_set()
