"""Tables and a figure of token overfitting: how evenly two methods learn a target's tokens.

Besides losses they show OVERTONE's decisions at each step.  OVERTONE changes an edit only if a
token is smoothed and the mixture agrees with it, or if a token is settled before the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse_plugin.errors import DataError
from nse_plugin.evaluation.overfitting import Watched
from nse_plugin.files import check_place, write_bytes
from nse_plugin.printable import printable
from nse_plugin.report.charts import line_panels, spread_out
from nse_plugin.report.figures import to_png
from nse_plugin.runs.overfit import Overfitting, Side
from nse_plugin.table import NOTHING, Table

if TYPE_CHECKING:
    from pandas import DataFrame

_STEPS_SHOWN = 6
COURSES = {
    "loss": "-log p(token)",
    "spread": "spread",
    "entropy": "entropy in nats",
    "smoothed": "smoothed",
    "disagrees": "argmax check: one-hot",
    "settled": "settled",
}
"""What is shown of each step, with its head."""
SHARES = ("smoothed", "argmax check: one-hot", "settled")
"""The heads of shares of tokens."""


def overfit_tables(made: Overfitting, shown: int = 3) -> list[str | Table]:
    """Tables of both sides, with lines of text between them.

    Args:
        shown: number of requests whose tokens are listed one by one; means are over all.
    """
    found: list[str | Table] = []
    for number, request in enumerate(made.requests[:shown]):
        found.append(printable(f"{request.text} -> {request.target_new}", one_line=True))
        found += [_tokens(side, side.edits[number], made.tokenizer) for side in made.sides]
        found.append("")
    found += [_settings(made.sides, made.settings), ""]
    for side in made.sides:
        found += [_course(side), ""]
    return [*found, _means(made.sides)]


def check_plot(plot: Path) -> None:
    """Raise :class:`DataError` if the plot cannot be written or is not a PNG file."""
    if plot.suffix != ".png":
        raise DataError(f"plot is {str(plot)!r}; give a file that ends in .png")
    check_place(plot, "the plot")


def _tokens(side: Side, edit: Watched, tokenizer: Any) -> Table:
    """The tokens of one target over the steps."""
    steps = spread_out(range(edit.steps), _STEPS_SHOWN)
    rows = []
    for course in edit.courses:
        losses = (course.steps[s] for s in steps)
        cells = (f"{at.loss:.3f} ({at.probability:.0%})" for at in losses)
        rows.append((repr(tokenizer.decode([course.token])), *cells))
    spread = "" if edit.spread is None else f", spread {edit.spread.range:.3f}"
    caption = f"{side.name}: {edit.steps} steps{spread}"
    return Table.of_numbers(caption, ("token", *(f"step {s}" for s in steps)), rows)


def _means(sides: Sequence[Side]) -> Table:
    n_several = sum(edit.spread is not None for edit in sides[0].edits)
    return Table.of_numbers(
        f"at the stop, mean over {len(sides[0].edits)} edits",
        ("", *sides[0].means()),
        (
            (side.name, *(NOTHING if v is None else f"{v:.3f}" for v in side.means().values()))
            for side in sides
        ),
        "Losses are -log p of the target's tokens. spread: largest less smallest of one target; "
        f"spread and std over the {n_several} targets of several tokens. change: norm of the "
        "change of all changed matrices, relative to theirs.",
    )


def _settings(sides: Sequence[Side], differing: dict[str, tuple[str, str]]) -> Table:
    rows = tuple((key, *values) for key, values in differing.items())
    heads = ("", *(side.name for side in sides))
    return Table("settings that differ (all others are the same)", heads, rows)


def _course(side: Side) -> Table:
    """Means over edits and tokens, at some of the steps."""
    course = side.course()
    steps = spread_out(range(len(course.get("loss", ()))), _STEPS_SHOWN)
    rows = []
    for name, shown in COURSES.items():
        spec = ".0%" if shown in SHARES else ".3f"
        rows.append((shown, *(format(course[name][s], spec) for s in steps)))
    return Table.of_numbers(
        f"{side.name}: means over edits and target tokens",
        ("", *(f"step {s}" for s in steps)),
        rows,
        "smoothed: OVERTONE's filter keeps another token than the target. one-hot: the mixture "
        "prefers another token. settled: OVERTONE's loss is at most epsilon. Without OVERTONE, "
        "these are what it would decide.",
    )


def write_plot(plot: Path, made: Overfitting) -> None:
    """Write a PNG of the losses of the first request with several tokens, a line per token, and of
    the means."""
    import pandas

    sides, tokenizer = made.sides, made.tokenizer
    number = next((i for i, edit in enumerate(sides[0].edits) if edit.spread is not None), 0)
    tokens = {
        f"{side.name}: {course.place + 1} {tokenizer.decode([course.token])!r}": pandas.Series(
            course.losses
        )
        for side in sides
        for course in side.edits[number].courses
    }
    target = sides[0].edits[number].request.target_new
    panels = {f"-log p, tokens of {target!r}": pandas.DataFrame(tokens)}
    panels |= course_panels({side.name: side.course() for side in sides})
    write_bytes(plot, to_png(line_panels(panels, x="step", shares=SHARES), dpi=100))


def course_panels(courses: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, DataFrame]:
    """Courses as panels of :func:`nse_plugin.report.charts.line_panels`, a line for each course."""
    import pandas

    return {
        shown: pandas.DataFrame(
            {side: pandas.Series(list(course[name])) for side, course in courses.items()}
        )
        for name, shown in COURSES.items()
    }
