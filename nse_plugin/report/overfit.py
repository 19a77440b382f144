"""Token overfitting, made visible: how evenly two ways of editing learn a target's tokens.

Beside losses it shows what OVERTONE decides at each step: it changes an edit only where a token is
smoothed and the mixture agrees with it, or where a token is settled before the others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nse_plugin.data.models import load_model
from nse_plugin.data.readers import OnBad
from nse_plugin.data.streams import read_data
from nse_plugin.errors import DataError, HparamsError
from nse_plugin.evaluation.overfitting import Watched, mean_course, single_edits
from nse_plugin.files import check_place, write_bytes
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.printable import printable
from nse_plugin.report.charts import line_panels, spread_out
from nse_plugin.report.figures import to_png
from nse_plugin.runs.start import read_hparams
from nse_plugin.session.session import EditSession
from nse_plugin.table import NOTHING, Table

if TYPE_CHECKING:
    from pandas import DataFrame

_STEPS_SHOWN = 6
_LOADING = ("model_name", "device", "dtype", "fp16", "model_parallel")
"""Settings that decide what model is loaded; both sides share it."""
COURSES = {
    "loss": "-log p(token)",
    "spread": "spread",
    "entropy": "entropy in nats",
    "smoothed": "smoothed",
    "disagrees": "argmax check: one-hot",
    "settled": "settled",
}
"""What is shown of each step, and as what."""
SHARES = ("smoothed", "argmax check: one-hot", "settled")
"""Those that are shares of tokens."""


@dataclass(frozen=True)
class Side:
    """One of the two methods compared, and its result for each request."""

    name: str
    edits: Sequence[Watched]

    def course(self) -> dict[str, list[float]]:
        """Over the requests and their target tokens, step by step."""
        return mean_course([edit.course for edit in self.edits])

    def means(self) -> dict[str, float | None]:
        """Over the requests: steps; at the stop losses and their spread; change."""
        spreads = [edit.spread for edit in self.edits if edit.spread is not None]
        return {
            "steps": _mean([edit.steps for edit in self.edits]),
            "mean loss": _mean([fmean(edit.losses) for edit in self.edits]),
            "largest loss": _mean([max(edit.losses) for edit in self.edits]),
            "spread": _mean([spread.range for spread in spreads]),
            "std": _mean([spread.std for spread in spreads]),
            "change": _mean([edit.change for edit in self.edits if edit.change is not None]),
        }

    def to_dict(self) -> dict[str, Any]:
        """Of JSON types: the means at the stop, and those of each step."""
        about = {"method": self.name, "edits": len(self.edits)}
        return {**about, **self.means(), "course": self.course()}


def overfit(
    hparams: str,
    show: Callable[[str | Table], None],
    *,
    against: str | None = None,
    data: str = "atlas:10",
    limit: int | None = None,
    seed: int = 0,
    model: str | None = None,
    shown: int = 3,
    plot: Path | None = None,
    schema: str | None = None,
    on_bad_record: OnBad = "stop",
) -> tuple[Side, Side]:
    """Edit each request alone, in two ways, and show how the tokens of its target were learnt.

    Args:
        hparams: name or path of a method's YAML.
        against: of another.  Without it, OVERTONE's base where hparams are OVERTONE's, and
            OVERTONE around them where they are not.
        data: a benchmark's file, ``atlas:10`` or ``earth:10``.
        limit: read at most this number of records.
        model: another model than that of the hparams.
        shown: requests whose tokens are listed one by one; the means are over all.
        plot: a PNG of the first request's tokens over the steps, and of the means.
        schema, on_bad_record: as in :func:`nse_plugin.data.streams.read_data`.

    Raises:
        HparamsError: a method is unknown, or trains no loss over target tokens, or the two need
            models that are loaded in different ways.
        DataError: the data cannot be read.
    """
    first = _ours(read_hparams(hparams, model_name=model))
    if against is not None:
        second = _ours(read_hparams(against, model_name=model))
    elif isinstance(first, OvertoneHparams):
        first, second = first.for_base(), first
    else:
        second = OvertoneHparams.wrap(first)
    differing = differing_settings(first, second)
    loading = [f"{name} is {a} and {b}" for name, (a, b) in differing.items() if name in _LOADING]
    if loading:
        raise HparamsError(
            "; ".join(loading) + "; both sides edit one loaded model: give hparams that agree in "
            "these, or --model for another model_name"
        )
    if plot is not None:
        if plot.suffix != ".png":
            raise DataError(f"plot is {str(plot)!r}; give a file that ends in .png")
        check_place(plot, "the plot")
    requests = read_data(data, limit, seed, schema=schema, on_bad=on_bad_record)
    loaded, tokenizer, _ = load_model(first)
    session = EditSession.of(loaded, tokenizer)
    sides = [
        Side(name_of(settings), list(single_edits(session, requests, settings)))
        for settings in (first, second)
    ]
    for number, request in enumerate(requests[:shown]):
        show(printable(f"{request.text} -> {request.target_new}", one_line=True))
        for side in sides:
            show(_tokens(side, side.edits[number], tokenizer))
        show("")
    show(_settings(sides, differing))
    show("")
    for side in sides:
        show(_course(side))
        show("")
    show(_means(sides))
    if plot is not None:
        write_bytes(plot, _png(sides, tokenizer))
        show(f"written to {plot}")
    return sides[0], sides[1]


def name_of(hparams: Hparams) -> str:
    """The method's name, and for OVERTONE its base editor."""
    if isinstance(hparams, OvertoneHparams):
        return f"{hparams.method} {hparams.base.method}"
    return hparams.method


def differing_settings(first: Hparams, second: Hparams) -> dict[str, tuple[str, str]]:
    """Settings that the two do not share, as text by key; OVERTONE's base's count as its own."""
    flat = []
    for hparams in (first, second):
        values = hparams.to_dict()
        base = values.pop("base", {})
        flat.append({**base, **values, "alg_name": name_of(hparams)})
    one, other = (
        {key: repr(values[key]) if key in values else NOTHING for key in {**flat[0], **flat[1]}}
        for values in flat
    )
    return {key: (one[key], other[key]) for key in one if one[key] != other[key]}


def _ours(hparams: Any) -> Hparams:
    if not isinstance(hparams, Hparams):
        raise HparamsError(
            f"{hparams.alg_name} is the host's own method, whose steps cannot be watched; give "
            "hparams of a method of nse_plugin"
        )
    return hparams


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
    """The means over edits and tokens at some of the steps."""
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


def _png(sides: Sequence[Side], tokenizer: Any) -> bytes:
    """Losses of the first request with several tokens, a line per token, and all means."""
    import pandas

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
    return to_png(line_panels(panels, x="step", shares=SHARES), dpi=100)


def course_panels(courses: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, DataFrame]:
    """What :func:`nse_plugin.report.charts.line_panels` draws of courses: a line for each."""
    import pandas

    return {
        shown: pandas.DataFrame(
            {side: pandas.Series(list(course[name])) for side, course in courses.items()}
        )
        for name, shown in COURSES.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
