"""Token overfitting, made visible: how evenly two ways of editing learn a target's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.data.readers import OnBad
from nse_plugin.data.streams import read_data
from nse_plugin.errors import DataError, HparamsError
from nse_plugin.evaluation.overfitting import Watched, single_edits
from nse_plugin.files import write_bytes
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.printable import printable
from nse_plugin.report.table import Table
from nse_plugin.requests import EditRequest
from nse_plugin.runs.start import read_hparams
from nse_plugin.session.session import EditSession

_STEPS_SHOWN = 6


@dataclass(frozen=True)
class Side:
    """One of the two methods compared, and its result for each request."""

    name: str
    edits: Sequence[Watched]

    def means(self) -> tuple[float | None, ...]:
        """Over the requests: steps, and at the stop the mean and largest loss, range and std."""
        spreads = [edit.spread for edit in self.edits if edit.spread is not None]
        return (
            _mean([edit.steps for edit in self.edits]),
            _mean([fmean(edit.losses) for edit in self.edits]),
            _mean([max(edit.losses) for edit in self.edits]),
            _mean([spread.range for spread in spreads]),
            _mean([spread.std for spread in spreads]),
        )


def overfit(
    hparams: str,
    show: Callable[[str], None],
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
        data: a benchmark's file, or ``atlas:10``.
        limit: read at most this number of records.
        model: another model than that of the hparams.
        shown: requests whose tokens are listed one by one; the means are over all.
        plot: a PNG of the first request's tokens over the steps.
        schema, on_bad_record: as in :func:`nse_plugin.data.streams.read_data`.

    Raises:
        HparamsError: a method is unknown, or trains no loss over target tokens.
        DataError: the data cannot be read.
        HostError: a plot is asked for and matplotlib is not there.
    """
    first = _ours(read_hparams(hparams, model_name=model))
    second = (
        _counterpart(first) if against is None else _ours(read_hparams(against, model_name=model))
    )
    if isinstance(first, OvertoneHparams) and against is None:
        first, second = second, first
    if first.model_name != second.model_name:
        raise HparamsError(
            f"model_name is {first.model_name!r} and {second.model_name!r}; give hparams of one "
            "model, or --model"
        )
    if plot is not None:
        _check_plot(plot)
    requests = read_data(data, limit, seed, schema=schema, on_bad=on_bad_record)
    loaded, tokenizer, _ = load_model(first)
    session = EditSession.of(loaded, tokenizer)
    sides = [
        Side(name_of(settings), list(single_edits(session, requests, settings)))
        for settings in (first, second)
    ]
    for number in range(min(shown, len(requests))):
        show(_one_request(requests[number], [s.edits[number] for s in sides], sides, tokenizer))
        show("")
    show(_means(sides).text())
    if plot is not None:
        write_bytes(plot, _png(sides, tokenizer))
        show(f"written to {plot}")
    return sides[0], sides[1]


def name_of(hparams: Hparams) -> str:
    """The method's name, and for OVERTONE its base editor."""
    if isinstance(hparams, OvertoneHparams):
        return f"{hparams.method} {hparams.base.method}"
    return hparams.method


def _ours(hparams: Any) -> Hparams:
    if not isinstance(hparams, Hparams):
        raise HparamsError(
            f"{hparams.alg_name} is the host's own method, whose steps cannot be watched; give "
            "hparams of a method of nse_plugin"
        )
    return hparams


def _counterpart(hparams: Hparams) -> Hparams:
    if isinstance(hparams, OvertoneHparams):
        return hparams.for_base()
    return OvertoneHparams.wrap(hparams)


def _check_plot(plot: Path) -> None:
    from nse_plugin.report.figures import import_matplotlib

    import_matplotlib()
    if plot.suffix != ".png":
        raise DataError(f"plot is {str(plot)!r}; give a file that ends in .png")


def _one_request(
    request: EditRequest, edits: Sequence[Watched], sides: Sequence[Side], tokenizer: Any
) -> str:
    """The tokens of one target over the steps, one block per side."""
    blocks = [printable(f"{request.text} -> {request.target_new}", one_line=True)]
    for side, edit in zip(sides, edits):
        steps = _evenly(edit.steps)
        rows = tuple(
            (
                repr(tokenizer.decode([course.token])),
                *(f"{course.losses[s]:.3f} ({course.probabilities[s]:.0%})" for s in steps),
            )
            for course in edit.courses
        )
        spread = "" if edit.spread is None else f", spread {edit.spread.range:.3f}"
        caption = f"{side.name}: {edit.steps} steps{spread}"
        heads = ("token", *(f"step {s}" for s in steps))
        blocks.append(Table(caption, heads, rows, (False, *(True for _ in steps))).text())
    return "\n".join(blocks)


def _means(sides: Sequence[Side]) -> Table:
    heads = ("", "steps", "mean loss", "largest loss", "spread", "std")
    rows = tuple(
        (side.name, *("–" if v is None else f"{v:.3f}" for v in side.means())) for side in sides
    )
    n_several = sum(edit.spread is not None for edit in sides[0].edits)
    return Table(
        f"at the stop, mean over {len(sides[0].edits)} edits",
        heads,
        rows,
        (False, *(True for _ in heads[1:])),
        "Losses are -log p of the target's tokens. spread: largest less smallest of one target; "
        f"spread and std over the {n_several} targets of several tokens.",
    )


def _png(sides: Sequence[Side], tokenizer: Any) -> bytes:
    """The first request with several tokens: losses over the steps, a line per token and side."""
    import pandas

    from nse_plugin.report import charts, figures

    number = next((i for i, edit in enumerate(sides[0].edits) if edit.spread is not None), 0)
    columns = {
        f"{side.name}: {course.place + 1} {tokenizer.decode([course.token])!r}": pandas.Series(
            course.losses
        )
        for side in sides
        for course in side.edits[number].courses
    }
    title = sides[0].edits[number].request.target_new
    table = pandas.DataFrame(columns)
    return figures.to_png(charts.lines(table, x="step", y="-log p(token)", title=title))


def _evenly(n: int) -> list[int]:
    """At most ``_STEPS_SHOWN`` of n steps, evenly spaced, including the first and the last."""
    if n <= _STEPS_SHOWN:
        return list(range(n))
    return [round(i * (n - 1) / (_STEPS_SHOWN - 1)) for i in range(_STEPS_SHOWN)]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
