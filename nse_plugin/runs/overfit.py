"""Token overfitting: the same single edits by two methods, observed token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.data.readers import OnBad
from nse_plugin.data.streams import read_data
from nse_plugin.errors import HparamsError
from nse_plugin.evaluation.overfitting import Watched, mean_course, single_edits
from nse_plugin.evaluation.questions import mean
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.requests import EditRequest
from nse_plugin.runs.start import read_hparams
from nse_plugin.session.session import EditSession
from nse_plugin.table import NOTHING

_LOADING = ("model_name", "device", "dtype", "fp16", "model_parallel")
"""Settings that decide which model is loaded; both sides share it."""


@dataclass(frozen=True)
class Side:
    """One of the two methods, and its result for each request."""

    name: str
    edits: Sequence[Watched]

    def course(self) -> dict[str, list[float]]:
        """Means over the requests and their target tokens, step by step."""
        return mean_course([edit.course for edit in self.edits])

    def means(self) -> dict[str, float | None]:
        """Means over the requests: steps, losses at the stop and their spread, change."""
        spreads = [edit.spread for edit in self.edits if edit.spread is not None]
        return {
            "steps": mean([edit.steps for edit in self.edits]),
            "mean loss": mean([fmean(edit.losses) for edit in self.edits]),
            "largest loss": mean([max(edit.losses) for edit in self.edits]),
            "spread": mean([spread.range for spread in spreads]),
            "std": mean([spread.std for spread in spreads]),
            "change": mean([edit.change for edit in self.edits if edit.change is not None]),
        }

    def to_dict(self) -> dict[str, Any]:
        """The means at the stop and at each step, as JSON types."""
        about = {"method": self.name, "edits": len(self.edits)}
        return {**about, **self.means(), "course": self.course()}


@dataclass(frozen=True)
class Overfitting:
    """Both sides of a comparison, and what they were made with."""

    sides: tuple[Side, Side]
    requests: Sequence[EditRequest]
    settings: dict[str, tuple[str, str]]
    """See :func:`differing_settings`."""
    tokenizer: Any


def overfit(
    hparams: str,
    *,
    against: str | None = None,
    data: str = "atlas:10",
    limit: int | None = None,
    seed: int = 0,
    model: str | None = None,
    schema: str | None = None,
    on_bad_record: OnBad = "stop",
) -> Overfitting:
    """Edit each request alone by two methods, and observe how the tokens of its target are learnt.

    Args:
        hparams: name or path of a method's YAML.
        against: name or path of another one.  By default OVERTONE around the method, or the base
            method if ``hparams`` are OVERTONE's.
        data: a benchmark's file, ``atlas:10`` or ``earth:10``.
        limit: read at most this number of records.
        model: the model, instead of that of the hparams.
        schema, on_bad_record: as in :func:`nse_plugin.data.streams.read_data`.

    Raises:
        HparamsError: a method is unknown, trains no loss over target tokens, or the two methods
            load the model in different ways.
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
    requests = read_data(data, limit, seed, schema=schema, on_bad=on_bad_record)
    loaded, tokenizer, _ = load_model(first)
    session = EditSession.of(loaded, tokenizer)
    one, other = (
        Side(name_of(settings), list(single_edits(session, requests, settings)))
        for settings in (first, second)
    )
    return Overfitting((one, other), requests, differing, tokenizer)


def name_of(hparams: Hparams) -> str:
    """The method's name, and for OVERTONE its base editor."""
    if isinstance(hparams, OvertoneHparams):
        return f"{hparams.method} {hparams.base.method}"
    return hparams.method


def differing_settings(first: Hparams, second: Hparams) -> dict[str, tuple[str, str]]:
    """Settings in which the two differ, as text by key; those of OVERTONE's base count as its
    own."""
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
