"""Where each method breaks, and whether the size of the change said so before: off a comparison.

    nse compare --config benchmarks/collapse.yaml --out collapse
    python benchmarks/collapse.py collapse [--choose-on atlas-gpt2] [--png docs/img/collapse.png]

A run has collapsed at the first measurement after which the efficacy of all edits so far, or the
locality, is under 80% of what it was at the first measurement.  The warning is the largest
||change|| / ||original|| of an edited layer, which every round logs and ``--max-change`` bounds.
Its bound is the largest that still precedes every collapse of the model it is chosen on; the second
table shows on all models how many edits before the collapse it fires, and on runs without a
collapse whether it fires at all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from nse_plugin.runs.reading import RunFiles

SHARE = 0.8
"""Of the first measurement's score: less is a collapse."""


@dataclass(frozen=True)
class Curve:
    """What was measured of one method in one model; one entry per measurement."""

    model: str
    method: str
    edits: Sequence[int]
    efficacy: Sequence[float]
    locality: Sequence[float]
    perplexity: Sequence[float | None]
    changes: Sequence[tuple[int, float]]
    """(edits so far, largest relative change of a layer) after every round."""

    @classmethod
    def of(cls, folder: Path) -> Curve:
        """Of the run directory of a cell."""
        lines = RunFiles(folder).lines
        so_far = list(accumulate(line["edits"] for line in lines))
        points = [(n, line["measurement"]) for n, line in zip(so_far, lines)]
        found = [(n, point) for n, point in points if point is not None]
        changes = []
        for n, line in zip(so_far, lines):
            layers = (line["edit"] or {}).get("layers", {}).values()
            changes.append((n, max((at["relative_change"] for at in layers), default=0.0)))
        return cls(
            folder.parents[1].name,
            folder.parent.name,
            [n for n, _ in found],
            [point["all"]["efficacy"] for _, point in found],
            [point["all"]["locality"] for _, point in found],
            [point["perplexity"] for _, point in found],
            changes,
        )

    def collapsed_at(self) -> int | None:
        """Edits at the collapse; None if there was none."""
        for i, n in enumerate(self.edits):
            scores = (self.efficacy, self.locality)
            if any(score[i] < SHARE * score[0] for score in scores):
                return n
        return None

    def warned_at(self, bound: float) -> int | None:
        """Edits after which the change was above the bound first."""
        return next((n for n, change in self.changes if change > bound), None)

    def before_collapse(self) -> float | None:
        """The largest change up to the measurement before the collapse."""
        end = self.collapsed_at()
        if end is None:
            return None
        held = [n for n in self.edits if n < end]
        return max(change for n, change in self.changes if not held or n <= held[-1])


def table(curves: Sequence[Curve]) -> str:
    """Where each breaks, and its scores at the start and the end."""
    lines = [
        "| model | method | collapse | efficacy | locality | perplexity | change at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in curves:
        end = c.collapsed_at()
        at = f"{end} edits" if end else f"none up to {c.edits[-1]}"
        last = c.perplexity[-1]
        ppl = "-" if last is None else f"{c.perplexity[0]:.2f} -> {last:.4g}"
        lines.append(
            f"| {c.model} | {c.method} | {at} | {100 * c.efficacy[0]:.1f} -> "
            f"{100 * c.efficacy[-1]:.1f} | {100 * c.locality[0]:.1f} -> {100 * c.locality[-1]:.1f}"
            f" | {ppl} | {c.changes[-1][1]:.2f} |"
        )
    return "\n".join(lines)


def warnings(curves: Sequence[Curve], bound: float) -> str:
    """When the bound would have fired."""
    lines = [
        f"Bound of the relative change: {bound:.2f}",
        "",
        "| model | method | collapse | warning | edits before the collapse |",
        "|---|---|---|---|---|",
    ]
    for c in curves:
        end, at = c.collapsed_at(), c.warned_at(bound)
        if end is None:
            said = "-" if at is None else "false alarm"
        else:
            said = "missed" if at is None or at >= end else str(end - at)
        lines.append(f"| {c.model} | {c.method} | {end or '-'} | {at or '-'} | {said} |")
    return "\n".join(lines)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """A row of figures per model: efficacy and locality over edits."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(c.model for c in curves))
    figure = Figure(figsize=(10, 4 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 2, squeeze=False, sharey=True)
    for row, model in zip(axes, models):
        for axis, score in zip(row, ("efficacy", "locality")):
            for number, c in enumerate(c for c in curves if c.model == model):
                style = "-" if ":" not in c.method and "_" not in c.method else "--"
                axis.plot(c.edits, getattr(c, score), style, color=f"C{number}", label=c.method)
            axis.set(title=f"{model}: {score} of all edits so far", xlabel="edits", ylim=(0, 1.02))
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print both tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("comparison", type=Path, help="folder that nse compare wrote")
    parser.add_argument(
        "--choose-on", help="the model that the bound is chosen on; default the first"
    )
    parser.add_argument("--png", type=Path, help="where to draw the curves")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.comparison.glob("cells/*/*/*/rounds.jsonl"))
    curves = [curve for curve in map(Curve.of, folders) if curve.method != "untouched"]
    chosen = options.choose_on or curves[0].model
    print(table(curves))
    held = [c.before_collapse() for c in curves if c.model == chosen]
    bounds = [change for change in held if change is not None]
    if bounds:
        print("\n" + warnings(curves, math.floor(100 * min(bounds)) / 100))
    if options.png:
        draw(curves, options.png)


if __name__ == "__main__":
    main()
