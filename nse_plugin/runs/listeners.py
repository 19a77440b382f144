"""Who is told of a run: bars on a terminal, lines where piped, TensorBoard, Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nse_plugin.files import require

Listener = Callable[[str, Mapping[str, Any]], None]
"""Told ``(event, facts)``: ``start``, ``phase`` (name), ``round`` (its line), ``end``."""

_SHOWN = ("efficacy", "paraphrase", "portability", "locality")
_PHASES = ("freeze", "edit", "measure", "write")


class Bars:
    """One bar for the rounds, with running scores and the time left, one for the work inside."""

    def __init__(self) -> None:
        self._rounds: tqdm | None = None
        self._inside: tqdm | None = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Hear of an event."""
        if event == "start":
            self._rounds = tqdm(total=facts["rounds"], initial=facts["done"], unit="round")
            self._inside = tqdm(total=len(_PHASES), unit="step", leave=False)
        elif event == "phase" and self._inside is not None:
            name = facts["name"]
            self._inside.set_description(name)
            if name in _PHASES:
                self._inside.n = _PHASES.index(name)
            self._inside.refresh()
        elif event == "round" and self._rounds is not None:
            shown = {name: f"{value:.1%}" for name, value in _scores(facts)}
            self._rounds.set_postfix(shown, refresh=False)
            self._rounds.update()
        elif event == "end":
            for bar in (self._inside, self._rounds):
                if bar is not None:
                    bar.close()


class Lines:
    """One line for each round."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Hear of an event."""
        if event == "start" and facts["done"]:
            self._show(f"going on after round {facts['done']}")
        elif event == "round":
            self._show(round_text(facts))


def progress(show: Callable[[str], None]) -> Callable[[str, Mapping[str, Any]], None]:
    """Bars where standard error is a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines(show)


def round_text(line: Mapping[str, Any]) -> str:
    """A round's line in the log, for people."""
    parts = [f"{name} {value:.1%}" for name, value in _scores(line)]
    point = line["checkpoint"] or {}
    if point.get("all"):
        kept = point["all"]["efficacy"]
        parts.append(f"all so far {kept:.1%}")
    if point.get("perplexity"):
        parts.append(f"perplexity {point['perplexity']:.2f}")
    if line["repeats"]:
        parts.append(f"{line['repeats']} repeats")
    if line["superseded"]:
        parts.append(f"{line['superseded']} superseded")
    if line["stop"]:
        parts.append(f"{line['stop']['rule']}: {line['stop']['action']}")
    seconds = line["seconds"]["total"]
    return f"round {line['round']}: {line['edits']} edits, {', '.join(parts)} ({seconds:.1f} s)"


class TensorBoard:
    """Scalars for TensorBoard.

    Raises:
        MissingPackageError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        found = require(
            "torch.utils.tensorboard",
            "tensorboard: true",
            package="tensorboard",
            otherwise="or leave tensorboard out",
        )
        self._writer = found.SummaryWriter(str(folder))

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Hear of an event."""
        if event == "round":
            for name, value in scalars(facts):
                self._writer.add_scalar(name, value, facts["round"])
        elif event == "end":
            self._writer.close()


class WandB:
    """Scalars for Weights & Biases.

    Raises:
        MissingPackageError: the package is not installed.
    """

    def __init__(self, project: str, name: str) -> None:
        wandb = require("wandb", f"wandb: {project}", otherwise="or leave wandb out")
        self._run = wandb.init(project=project, name=name, resume="allow")

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Hear of an event."""
        if event == "round":
            self._run.log(dict(scalars(facts)), step=facts["round"])
        elif event == "end":
            self._run.finish()


def scalars(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of every number measured in a round, the retention rows aside."""
    for section in ("scores", "checkpoint", "seconds"):
        yield from _numbers(section, line[section] or {})


def _numbers(path: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{path}/{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{path}/{key}", float(value)


def _scores(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    scores = line["scores"] or {}
    return [(name, scores[name]) for name in _SHOWN if scores.get(name) is not None]
