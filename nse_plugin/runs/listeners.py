"""Listeners of a run: progress bars or log lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nse_plugin.evaluation.settings import percentages
from nse_plugin.files import require
from nse_plugin.printable import counted, printable
from nse_plugin.statistics.covariance import PROGRESS_LOG

Listener = Callable[[str, Mapping[str, Any]], None]
"""Called with ``(event, facts)``: ``start``, ``phase`` (name, and optionally detail, a function
whose text says how far it is), ``note`` (text), ``round`` (its line), ``end``."""

_PHASES = {
    "freeze": ("asking the untouched model", "ask the untouched model"),
    "edit": ("editing", "edit"),
    "measure": ("measuring", "measure"),
    "write": ("writing to disk", "other"),
    "untouched": ("measuring the untouched model", "measure"),
    "final": ("final measurement", "measure"),
    "loading": ("", "load the model"),
    "asking": ("", "ask the untouched model"),
    "computing": ("", "statistics"),
}
"""By the first word of a phase's name: what is shown instead of the name, and the part of a run's
time to which it counts."""
QUIET = 30.0
"""Seconds between progress lines if standard error is not a terminal."""


@contextmanager
def progress(show: Callable[[str], None], rounds: bool = True) -> Iterator[Listener]:
    """Bars if standard error is a terminal, otherwise lines of text; nothing if the logger
    ``nse_plugin.progress`` has a level above INFO.

    Args:
        rounds: show the scores of each round; false if the caller shows them.
    """
    if PROGRESS_LOG.level > logging.INFO:
        yield lambda _event, _facts: None
        return
    if sys.stderr is not None and sys.stderr.isatty():
        bars = Bars()
        try:
            with repeated(1.0, bars.refresh):
                yield bars
        finally:
            bars.close()
        return
    lines = Lines(show, rounds)
    with repeated(1.0, lines.say_what_is_done):
        yield lines


@contextmanager
def repeated(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call a function at regular intervals from a thread, as long as the context is open."""
    closed = threading.Event()

    def work() -> None:
        with suppress(BrokenPipeError):  # the main thread raises it with its next line
            while not closed.wait(seconds):
                call()

    thread = threading.Thread(target=work, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


class Shares:
    """The shares of editing, measuring and the rest in the time of a run."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._part, self._since = "other", time.monotonic()

    def hear(self, event: str, facts: Mapping[str, Any]) -> None:
        """Count the time up to an event; a phase lasts until the next one begins."""
        if event not in ("phase", "round", "end"):
            return
        now = time.monotonic()
        self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._since
        first_word = facts["name"].partition(" ")[0] if event == "phase" else ""
        self._part, self._since = _PHASES.get(first_word, ("", "other"))[1], now

    def text(self) -> str:
        """``edit 71%, measure 25%, statistics 3%, other 1%``; empty before any time has passed."""
        total = sum(self._seconds.values())
        by_size = sorted(self._seconds.items(), key=lambda pair: -pair[1])
        return ", ".join(f"{part} {s / total:.0%}" for part, s in by_size if s > 0)


class Bars:
    """One bar for the rounds, with running scores and the time left, one for the work inside."""

    def __init__(self) -> None:
        self._rounds: tqdm | None = None
        self._inside: tqdm | None = None
        self._phase: Mapping[str, Any] = {}
        self._shares = Shares()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show an event."""
        self._shares.hear(event, facts)
        if event == "start":
            self.close()
            self._rounds = tqdm(total=facts["rounds"], initial=facts["done"], unit="round")
        elif event == "phase":
            if self._inside is None:
                self._inside = tqdm(bar_format="{desc} ({elapsed}{postfix})", leave=False)
            self._phase = facts
            self._inside.reset()
            self._describe()
            self._inside.set_postfix_str(self._shares.text())
        elif event == "note":
            tqdm.write(printable(facts["text"]), file=sys.stderr)
        elif event == "round" and self._rounds is not None:
            shown = percentages(facts["scores"])
            self._rounds.set_postfix(shown, refresh=False)
            self._rounds.update()
        elif event == "end":
            self.close()

    def refresh(self) -> None:
        """Refresh the elapsed time of the bars."""
        self._describe()
        for bar in (self._inside, self._rounds):
            if bar is not None:
                bar.refresh()

    def _describe(self) -> None:
        """Set the text of the bar for the work inside; it is drawn with the next refresh."""
        if self._inside is not None:
            parts = [_doing(self._phase["name"]), *_detail(self._phase)]
            self._inside.set_description_str(", ".join(parts), refresh=False)

    def close(self) -> None:
        """Close both bars; the bar of the rounds stays on the screen."""
        inside, rounds, self._inside, self._rounds = self._inside, self._rounds, None, None
        for bar in (inside, rounds):
            if bar is not None:
                bar.close()


class Lines:
    """A line for each round, and one in between after :data:`QUIET` seconds without any."""

    def __init__(self, show: Callable[[str], None], rounds: bool = True) -> None:
        self._show, self._with_rounds = show, rounds
        self._phase: Mapping[str, Any] = {}
        self._since = 0.0
        self._number, self._total = 0, None
        self._shares = Shares()
        self._said = time.monotonic()

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show an event."""
        self._shares.hear(event, facts)
        if event == "start":
            self._number, self._total = facts["done"], facts["rounds"]
            if facts["done"] and facts["done"] == facts["rounds"]:
                self._say(f"nothing was left to do: {counted(facts['done'], 'round')} done before")
            elif facts["done"]:
                self._say(f"resumed after round {facts['done']}")
        elif event == "phase":
            self._phase, self._since = facts, time.monotonic()
        elif event == "note":
            self._say(facts["text"])
        elif event == "round":
            self._number = facts["round"]
            self._said = time.monotonic()
            if self._with_rounds:
                self._say(round_text(facts))
        elif event == "end" and self._shares.text():
            self._say(f"time: {self._shares.text()}")

    def say_what_is_done(self) -> None:
        """Show the phase if nothing was shown for :data:`QUIET` seconds."""
        now = time.monotonic()
        if self._phase and now - self._said >= QUIET:
            of = f"{self._number} of {self._total} rounds done"
            done = [of, *_detail(self._phase)] if self._total else _detail(self._phase)
            parts = [f"{now - self._since:.0f} s so far", *done]
            self._say(f"{_doing(self._phase['name'])} ({', '.join(parts)})")

    def _say(self, line: str) -> None:
        self._said = time.monotonic()
        self._show(line)


def round_text(line: Mapping[str, Any]) -> str:
    """The line about a round, for people."""
    parts = [f"{name} {share}" for name, share in percentages(line["scores"]).items()]
    point, edit = line["measurement"] or {}, line["edit"] or {}
    if point.get("all"):
        parts.append(f"all so far {point['all']['efficacy']:.1%}")
    if point.get("perplexity"):
        parts.append(f"perplexity {point['perplexity']:.2f}")
    if point.get("ability") is not None:
        parts.append(f"unedited facts {point['ability']:.1%}")
    layers = edit.get("layers", {}).values()
    changes = [layer["relative_change"] for layer in layers if "relative_change" in layer]
    if changes:
        parts.append(f"weights changed by {max(changes):.1%}")
    if drifts := [d for d in point.get("direction_drift", {}).values() if d is not None]:
        parts.append(f"dominant directions turned by {max(drifts):.1%}")
    if line["repeats"]:
        parts.append(counted(line["repeats"], "repeat"))
    counts = {
        "superseded": line["superseded"],
        "repaired": edit.get("repaired"),
        "earlier ones written again": edit.get("written_again"),
        "edited past an attention sink": edit.get("past_sinks"),
        "out of bounds": len(line["left_out"]),
    }
    parts += [f"{count} {what}" for what, count in counts.items() if count]
    if joint := edit.get("consolidated"):
        parts.append(
            f"all {joint['edits']} edits solved jointly, {joint['in_effect']} in effect "
            f"({joint['earlier_before']} of {joint['earlier']} before)"
        )
    if edit.get("put_back"):
        parts.append("a joint solve of all edits was put back")
    if line["stop"]:
        parts.append(f"{line['stop']['rule']}: {line['stop']['action']}")
    seconds = line["seconds"]
    spent = [f"{part} {seconds[part]:.1f}" for part in ("edit", "measure") if part in seconds]
    return (
        f"round {line['round']}: {counted(line['edits'], 'edit')}, {', '.join(parts)} "
        f"({seconds['total']:.1f} s: {', '.join(spent)})"
    )


class TensorBoard:
    """Scalars for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        found = require(
            "torch.utils.tensorboard",
            "tensorboard: true",
            package="tensorboard",
            otherwise="or leave tensorboard out",
        )
        self._writer = found.SummaryWriter(str(folder))

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show an event."""
        if event == "round":
            for name, value in scalars(facts):
                self._writer.add_scalar(name, value, facts["round"])
        elif event == "end":
            self._writer.close()


class WandB:
    """Scalars for Weights & Biases."""

    def __init__(self, project: str, name: str) -> None:
        wandb = require("wandb", f"wandb: {project}", otherwise="or leave wandb out")
        self._run = wandb.init(project=project, name=name)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show an event."""
        if event == "round":
            self._run.log(dict(scalars(facts)), step=facts["round"])
        elif event == "end":
            self._run.finish()


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of every number measured in a round, without the rows of retention."""
    for section in ("scores", "measurement", "seconds"):
        yield from _numbers(section, line[section] or {})


def _numbers(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{path}/{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}/{key}", float(value)


def _doing(phase: str) -> str:
    """A phase of the scheduler, for people."""
    name, _, number = phase.partition(" ")
    text = _PHASES.get(name, ("", ""))[0] or phase
    return f"{text}, round {number}" if number.isdigit() else text


def _detail(phase: Mapping[str, Any]) -> list[str]:
    """What a phase says of how far it is, if it does."""
    return [phase["detail"]()] if "detail" in phase else []
