"""When each method collapses, and which signals warn of it: read from the runs of comparisons.

    nse compare --config benchmarks/collapse.yaml --out collapse
    python benchmarks/collapse.py collapse [MORE ...] [--png docs/img/collapse.png]

A run has collapsed at the first measurement after which the efficacy of all edits so far, or the
locality, is under 80% of what it was at the run's first measurement (``until_collapse: 0.8``).  For
runs that were measured at the end only, the first round's own scores stand for the first one.  With
``--replay N`` their models are loaded instead, their rounds are undone one by one, and a sample of
the edits is tested in the state after every N-th round.

A warning is a signal that rises above a bound.  The bound is the largest one with which a warning
precedes every collapse of the first model; the second table applies it to all models.  The bound of
the scores so far is fixed: a tenth is lost (``until_collapse: 0.9``).

Two facts of one subject have one key where their prompts are the same up to it, so a later edit
overwrites an earlier one.  The first table therefore has the efficacy of the others, too.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.data.streams import held_out_texts
from nse_plugin.evaluation.protocol import History, MeasuredModel, measure_all
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.files import read_json, write_json
from nse_plugin.requests import EditRequest
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.reopen import open_run
from nse_plugin.runs.schema import RoundLine

SHARE = 0.8
"""Of the first measurement's score: less is a collapse."""
SAMPLE = 150
"""Edits that a replayed measurement tests at most."""
SCORES = ("efficacy", "locality")
LATEST = "efficacy_of_latest"
SIGNALS = {
    "change": "largest norm(change) / norm(original) of a layer",
    "effort": "norm of the round's own change per root of its edits, against the first round's",
    "own scores": "loss of efficacy or locality of a round's own edits, against the first round's",
    "turned": "share of the 8 dominant directions of a layer that is gone",
    "perplexity": "perplexity of held-out text, against the untouched model's",
    "scores so far": "loss of efficacy or locality of all edits, against the first measurement's",
}
FIXED = {"scores so far": 0.1}
"""Bounds that are not chosen."""


@dataclass(frozen=True)
class Curve:
    """The measurements of a run."""

    model: str
    method: str
    points: Sequence[tuple[int, Mapping[str, Any]]]
    """(edits so far, scores of all of them and perplexity) at each measurement."""
    signals: Mapping[str, Sequence[tuple[int, float]]]
    """(edits so far, value) by name, after every round that has it."""

    @classmethod
    def of(cls, folder: Path, every: int | None = None, held_out: str = "") -> Curve:
        """Of the run directory of a cell; with ``every`` as :func:`replayed` measures it."""
        files = RunFiles(folder)
        so_far = list(accumulate(line["edits"] for line in files.lines))
        if every is None:
            measured = {line["round"]: line["measurement"] for line in files.lines}
        else:
            measured = replayed(folder, every, held_out)
        found = [
            (n, m)
            for n, line in zip(so_far, files.lines)
            if (m := measured.get(line["round"])) and "all" in m
        ]
        final = files.final
        if not found and final and final["measurement"]:
            start = {"all": files.lines[0]["scores"]}
            found = [(so_far[0], start), (so_far[-1], final["measurement"])]
        base = files.manifest["base"].get("perplexity")
        signals: dict[str, list[tuple[int, float]]] = {name: [] for name in SIGNALS}
        for n, line in zip(so_far, files.lines):
            for name, value in _signals(line, files.lines[0], base):
                signals[name].append((n, value))
        for n, measured in found:
            lost = 1 - _kept(measured["all"], found[0][1]["all"])
            signals["scores so far"].append((n, lost))
        of_rounds = files.requests()
        requests = [r for line in files.lines for r in of_rounds[line["round"]]]
        points = [
            (
                n,
                {
                    **(m["all"] or {}),
                    LATEST: _of_latest(m.get("each", []), requests[:n]),
                    "perplexity": m.get("perplexity"),
                },
            )
            for n, m in found
        ]
        return cls(folder.parents[1].name, folder.parent.name, points, signals)

    def collapsed_at(self) -> int | None:
        """Edits at the collapse; None if there was none."""
        first = self.points[0][1]
        return next((n for n, now in self.points if _kept(now, first) < SHARE), None)

    def highest(self, signal: str) -> float | None:
        """Of the rounds before the collapse, or of all; None if none has the signal."""
        end = self.collapsed_at() or math.inf
        return max((value for n, value in self.signals[signal] if n < end), default=None)

    def warned_at(self, signal: str, bound: float) -> int | None:
        """Edits after which the signal was above the bound first."""
        return next((n for n, value in self.signals[signal] if value > bound), None)


def replayed(folder: Path, every: int, held_out: str) -> dict[int, dict[str, Any]]:
    """Measurements of a finished run after every N-th round, by round.

    They are kept in a file beside the run directory, so that each is made once.
    """
    files, kept = RunFiles(folder), folder.with_name(f"{folder.name}-replayed.json")
    found = {int(k): v for k, v in (read_json(kept) if kept.is_file() else {}).items()}
    missing = {line["round"] for line in files.lines if line["round"] % every == 0} - found.keys()
    if not missing:
        return found
    model, session = open_run(folder)
    protocol = replace(
        Protocol.from_dict(files.manifest["run"]["protocol"]), retention=SAMPLE, each=True,
        paraphrases=0, portability=0, generation=0, fluency=0, key_space=0, weights=False,
        negation=False, distractor=False,
    )  # fmt: skip
    requests = [r for line in files.lines for r in files.frozen.read(line["round"])[0]]
    texts = held_out_texts(held_out, str(files.model_name), requests)
    for number in sorted(missing, reverse=True):
        while session.ledger.numbers() and session.ledger.numbers()[-1] > number:
            session.undo_last()
        history = History(files.frozen.read)
        for line in files.lines[:number]:
            history.add(line["round"], files.frozen.read(line["round"])[0])
        measured = MeasuredModel(model, session.tokenizer, held_out=texts)
        found[number] = measure_all(protocol, measured, history, number)
        write_json(kept, found)
    return found


def _signals(line: RoundLine, first: RoundLine, base: float | None) -> Iterator[tuple[str, float]]:
    """Names and values of the signals that a round has."""
    layers, layers_first = ((x["edit"] or {}).get("layers") or {} for x in (line, first))
    changes = [layer.get("relative_change") for layer in layers.values()]
    if changes and None not in changes:
        yield "change", max(changes)
    efforts = [
        layer["norm"] / _root(line) / (layers_first[name]["norm"] / _root(first))
        for name, layer in layers.items()
        if layer.get("norm") and layers_first.get(name, {}).get("norm")
    ]
    if efforts:
        yield "effort", max(efforts)
    yield "own scores", 1 - _kept(line["scores"] or {}, first["scores"] or {})
    measured = line["measurement"] or {}
    drifts = [d for d in measured.get("direction_drift", {}).values() if d is not None]
    if drifts:
        yield "turned", max(drifts)
    if base and measured.get("perplexity"):
        yield "perplexity", measured["perplexity"] / base


def _of_latest(each: Sequence[Mapping[str, Any]], requests: Sequence[EditRequest]) -> float | None:
    """Efficacy of the edits whose prompt up to the subject's end no later one shares."""
    latest = {r.key_text: r.case_id for r in requests}
    found = [e["efficacy"] for e in each if e["case_id"] in set(latest.values())]
    return fmean(found) if found else None


def _kept(scores: Mapping[str, Any], first: Mapping[str, Any]) -> float:
    """The smallest share of a score that is left."""
    pairs = [(scores.get(s), first.get(s)) for s in SCORES]
    return min((now / was for now, was in pairs if was and now is not None), default=1.0)


def _root(line: RoundLine) -> float:
    """Root of the number of edits that a round solved; of all of them in a consolidation."""
    return math.sqrt(sum(line["edit"]["status"].values()) or 1) if line["edit"] else 1.0


def table(curves: Sequence[Curve]) -> str:
    """Where each breaks: scores at the first measurement and at the collapse, or at the end."""
    lines = [
        "| model | method | collapse | efficacy | not overwritten | locality | perplexity |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in curves:
        end = c.collapsed_at()
        last, now = next(p for p in c.points if p[0] == (end or c.points[-1][0]))
        first = c.points[0][1]
        shown = ("efficacy", LATEST, "locality")
        ends = [_both(first.get(s), now.get(s), 100, ".1f") for s in shown]
        ends.append(_both(first["perplexity"], now["perplexity"], 1, ".2f"))
        at = f"{end} edits" if end else f"none up to {last}"
        lines.append(f"| {c.model} | {c.method} | {at} | {' | '.join(ends)} |")
    return "\n".join(lines)


def _both(first: float | None, now: float | None, times: float, spec: str) -> str:
    return " -> ".join("-" if x is None else f"{times * x:{spec}}" for x in (first, now))


def warnings(curves: Sequence[Curve]) -> str:
    """Of each signal: the bound chosen on the first model, and what it does on all."""
    chosen = curves[0].model
    lines = [
        f"| signal | bound, chosen on {chosen} | model | collapses warned of | edits before | "
        "false alarms |",
        "|---|---|---|---|---|---|",
    ]
    for signal in SIGNALS:
        there = [c for c in curves if c.highest(signal) is not None]
        highest = [c.highest(signal) for c in there if c.model == chosen and c.collapsed_at()]
        if not highest:
            continue
        bound = FIXED.get(signal, 0.999 * min(x for x in highest if x is not None))
        for model in dict.fromkeys(c.model for c in there):
            ends, early, alarms, held = 0, [], 0, 0
            for c in there:
                if c.model != model:
                    continue
                end, at = c.collapsed_at(), c.warned_at(signal, bound)
                if end is None:
                    held, alarms = held + 1, alarms + (at is not None)
                else:
                    ends += 1
                    early += [end - at] if at is not None and at < end else []
            span = f"{min(early)} to {max(early)}" if early else "-"
            lines.append(
                f"| {signal} | {bound:.3g} | {model} | {len(early)} of {ends} | {span} | "
                f"{alarms} of {held} |"
            )
    return "\n".join(lines)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """A row of figures per model: efficacy and locality over edits."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(c.model for c in curves))
    figure = Figure(figsize=(10, 4 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False, sharey=True)
    for row, model in zip(axes, models):
        for axis, score in zip(row, SCORES):
            methods = list(dict.fromkeys(c.method for c in curves))
            for c in (c for c in curves if c.model == model):
                style = "-" if "_" not in c.method else "--"
                edits, values = zip(*((n, now[score]) for n, now in c.points))
                color = f"C{methods.index(c.method) % 10}"
                axis.plot(edits, values, style, color=color, label=c.method.replace("_", ":", 1))
            axis.set(title=f"{model}: {score} of all edits so far", xlabel="edits", ylim=(0, 1.02))
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print both tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("comparisons", type=Path, nargs="+", help="folders of nse compare")
    parser.add_argument("--replay", type=int, metavar="N", help="measure after every N rounds anew")
    parser.add_argument("--held-out", default="factbook", help="prose of the replayed perplexity")
    parser.add_argument("--png", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    found = [
        p.parent for c in options.comparisons for p in sorted(c.glob("cells/*/*/*/rounds.jsonl"))
    ]
    edited = [folder for folder in found if folder.parent.name != UNTOUCHED]
    curves = [Curve.of(folder, options.replay, options.held_out) for folder in edited]
    for folder in (f for f, curve in zip(edited, curves) if not curve.points):
        print(f"left out, since nothing was measured yet: {folder}")
    curves = [curve for curve in curves if curve.points]
    print(table(curves))
    print("\n" + warnings(curves))
    if options.png:
        draw([c for c in curves if len(c.points) > 2], options.png)


if __name__ == "__main__":
    main()
