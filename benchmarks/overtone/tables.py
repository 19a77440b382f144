"""Tables and the figure of the measurements of OVERTONE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.overtone.cells import SCORES, Cell
from nse_plugin.compare.intervals import paired_differences
from nse_plugin.evaluation.overfitting import mean_course
from nse_plugin.files import write_bytes
from nse_plugin.report.charts import line_panels
from nse_plugin.report.figures import to_png
from nse_plugin.report.overfit import SHARES, course_panels


def tables(found: dict[Cell, dict[str, Any]]) -> Iterator[str]:
    """For each model, kind and stratum: scores, and what OVERTONE changed."""
    groups: dict[tuple[str, str, str], dict[Cell, dict[str, Any]]] = {}
    for cell, result in found.items():
        key = (cell.model, cell.kind, cell.stratum)
        groups.setdefault(key, {})[cell] = result
    for (model, kind, stratum), group in groups.items():
        edits = sorted({len(result["each"]) for result in group.values()})
        seeds = sorted({cell.seed for cell in group})
        yield (
            f"{model}, {kind} edits, targets: {stratum}; edits {edits}, seeds {seeds}\n\n"
            + scores_table(group)
            + "\n\n"
            + differences_table(group)
        )


def scores_table(group: dict[Cell, dict[str, Any]]) -> str:
    """A row per way of editing: answer tokens / whole answers in percent, mean over all edits."""
    heads = [*SCORES, "average", "spread", "loss", "steps", "change"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    longest = {c.seed: r["each"] for c, r in sorted(group.items(), key=lambda i: len(i[1]["each"]))}
    lines.append(row("untouched model", [[e["before"] for e in each] for each in longest.values()]))
    for method in dict.fromkeys(cell.method for cell in group):
        runs = [result["each"] for cell, result in group.items() if cell.method == method]
        lines.append(row(method, runs))
    return "\n".join(lines)


def row(name: str, runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """One row of the table of scores: means over the edits of a seed, and then over seeds."""

    def mean(score: str) -> float | None:
        found = [value for each in runs if (value := mean_of(each, score)) is not None]
        return fmean(found) if found else None

    pairs = [tuple(map(mean, both)) for both in SCORES.values()]
    known = [[pair[i] for pair in pairs if pair[i] is not None] for i in (0, 1)]
    pairs.append(tuple(fmean(values) if values else None for values in known))
    cells = [" / ".join("-" if v is None else f"{100 * v:.1f}" for v in pair) for pair in pairs]
    for extra, digits in (("spread", 3), ("loss", 3), ("steps", 0), ("change", 4)):
        value = mean(extra)
        cells.append("-" if value is None else f"{value:.{digits}f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def differences_table(group: dict[Cell, dict[str, Any]]) -> str:
    """What each variant gained against its base, in points, with intervals over edits."""
    names = [both[0] for both in SCORES.values()]
    heads = [*SCORES, "spread"]
    lines = ["| gained | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for base in dict.fromkeys(cell.base for cell in group):
        results = [as_result(c, r, [*names, "spread"]) for c, r in group.items() if c.base == base]
        gained = paired_differences(results, base)
        for method in dict.fromkeys(found["method"] for found in gained):
            by_score = {d["score"]: d for d in gained if d["method"] == method}
            parts = [shown(by_score.get(name), 100, 1) for name in names]
            parts.append(shown(by_score.get("spread"), 1, 3))
            lines.append(f"| {method} | " + " | ".join(parts) + " |")
    return "\n".join(lines)


def as_result(cell: Cell, result: dict[str, Any], names: Sequence[str]) -> Any:
    """What :func:`nse_plugin.compare.intervals.paired_differences` reads of a comparison's cell."""
    return {
        "run_info": {
            "model": cell.model, "method": cell.method, "seed": cell.seed, "status": "complete",
        },
        "scores": {name: mean_of(result["each"], name) for name in names},
        "each": [{"round": 0, **each} for each in result["each"]],
    }  # fmt: skip


def shown(difference: Any, factor: float, digits: int) -> str:
    """A difference and its interval."""
    if difference is None or difference["mean"] is None:
        return "-"
    mean, low, high = (factor * difference[name] for name in ("mean", "low", "high"))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def mean_of(each: Sequence[dict[str, Any]], name: str) -> float | None:
    """Mean over the edits that have the score."""
    there = [entry[name] for entry in each if entry.get(name) is not None]
    return fmean(there) if there else None


def plot(found: dict[Cell, dict[str, Any]], path: Path) -> None:
    """A PNG of what OVERTONE decides at each step of single edits, means over all of a method."""
    courses: dict[str, list[dict[str, list[float]]]] = {}
    for cell, result in found.items():
        courses.setdefault(cell.method, []).extend(each["course"] for each in result["each"])
    panels = course_panels({method: mean_course(each) for method, each in courses.items()})
    write_bytes(path, to_png(line_panels(panels, x="step", shares=SHARES), dpi=100))
