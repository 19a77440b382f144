"""The tables of a run, for the terminal and the page."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from nse_plugin.errors import DataError, did_you_mean
from nse_plugin.printable import counted
from nse_plugin.report.run import Run, mean_overlap
from nse_plugin.runs.facts import ORDER
from nse_plugin.runs.reading import left_out_rounds
from nse_plugin.session import queries
from nse_plugin.session.records import rounds_named, were_undone
from nse_plugin.table import NOTHING, Table

if TYPE_CHECKING:
    from pandas import DataFrame

_STATUSES = {
    "out_of_bounds": "left out",
    "residual_left": "falls short",
    "converged": "converged",
}
"""The statuses of an edit, from the worst, with their heads."""
_MOST = 10
_COLUMNS = {
    "case_id": "request",
    "residual_before": "residual before",
    "residual_after": "after",
    "z_norm": "z norm",
    "z_shift": "z shift",
    "z_loss": "loss",
    "z_steps": "steps",
}


def overview(run: Run) -> Table:
    """The run, and how it ended."""
    edits = sum(line["edits"] for line in run.lines)
    of = f" of {run.planned}" if run.planned not in (None, edits) else ""
    rows = [
        ("status", run.status),
        ("model", run.model_name or "unknown"),
        ("method", run.method or "unknown"),
        ("edits", f"{edits}{of} in {counted(len(run.lines), 'round')}"),
    ]
    joint = run.consolidated()
    if joint is not None:
        measured = run.measured()
        order = "; all edits were last measured before it" if joint["after"] >= measured else ""
        rows.append((
            "consolidated",
            f"{counted(joint['edits'], 'edit')} solved jointly as round {joint['file']}, after "
            f"{counted(joint['after'], 'round')}: {joint['answered_before']} in effect before it, "
            f"{joint['answered']} afterwards{order}",
        ))  # fmt: skip
    if left_out := left_out_rounds(run.folder):
        rows.append(("left out", f"{rounds_named(left_out)}, by a consolidation"))
    stop = run.final["stop"] if run.final else None
    if stop is not None:
        rows.append(("stop rule", f"{stop['rule']} was {stop['value']}, bound {stop['bound']}"))
    if run.ledger.undone:
        numbers = [entry.number for entry in run.ledger.undone]
        since = run.undone_since(run.measured())
        order = f"before {were_undone(since)}" if since else "without them"
        rows.append(("undone", f"{rounds_named(numbers)}; all edits were last measured {order}"))
    if not run.ledger:
        rows.append(("ledger", "none: no round is active, or the host's method keeps none"))
    return Table(f"Run {run.folder}", ("what", "value"), tuple(rows))


def facts_table(run: Run, most: int = _MOST, width: int = 28) -> Table:
    """The facts with their outcomes, the worst first.

    Args:
        width: longest cell in characters; the rest is cut off.
    """
    rows = tuple(
        (
            *(
                textwrap.shorten(text or NOTHING, width, placeholder="…")
                for text in (
                    fact.prompt,
                    fact.old,
                    fact.new,
                    None if fact.outcome == "not tested" else fact.answer,
                )
            ),
            fact.outcome,
            str(fact.round),
            str(fact.case_id),
        )
        for fact in run.facts[:most]
    )
    counts = Counter(fact.outcome for fact in run.facts)
    said = ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])
    shown = f"{most} of {len(run.facts)} shown; " if len(run.facts) > most else ""
    note = "The answers are those of the last measurement of single edits, by greedy decoding."
    since = next((fact.undone_since for fact in run.facts if fact.undone_since), ())
    if since:
        note += (
            f" Not tested: the facts were not asked since {were_undone(since)}, and may have other "
            "answers now."
        )
    joint = run.consolidated()
    if joint is not None and joint["after"] >= run.measured():
        note += " After the consolidation, only the prompts of the edits were tested."
    return Table(
        f"Facts ({shown}{said})",
        ("prompt", "old answer", "new answer", "answer at the end", "outcome", "round", "request"),
        rows,
        numeric=(False,) * 5 + (True, False),
        note=note,
        searchable=True,
        marks={(at, 4): "bad" for at, row in enumerate(rows) if row[4] in ORDER[:2]},
    )


def rounds_table(run: Run) -> Table:
    """Per round: edits, their outcomes, neurons written and the norm of the change per layer."""
    frame = run.survey.rounds
    counts = [f"neurons_{layer}" for layer in run.layers]
    norms = {f"norm_{layer}": f"norm, layer {layer}" for layer in run.layers}
    shown = frame[["edits", *_STATUSES]].assign(neurons=frame[counts].sum(axis=1).astype(int))
    shown = shown.join(frame[[*norms, "seconds"]])
    note = "neurons: written in all layers together; norm: of the round's change"
    for entry in run.ledger.active()[:1]:  # a consolidation replaces all rounds before it
        if entry.within:
            note += (
                f"; round {entry.number}: all edits in effect then, solved jointly, in the place "
                "of the rounds before it"
            )
    formats = {"seconds": ".2f", **dict.fromkeys(norms, ".4g")}
    return Table.of(shown, "Rounds", heads=_STATUSES | norms, formats=formats, note=note)


def layers_table(run: Run) -> Table:
    """Per layer: how much was written, how far rounds overlap, how much of the keys is used."""
    import pandas as pd

    rows = []
    for layer in run.layers:
        written = run.survey.columns[layer].notna().sum()
        overlap = run.survey.overlaps[layer]
        rows.append(
            {
                "layer": layer,
                "neurons": len(written),
                "written": int((written > 0).sum()),
                "more than once": int((written > 1).sum()),
                "mean overlap": mean_overlap(overlap),
                "highest overlap": _highest(overlap),
                "norm": float(run.survey.growth[layer].iloc[-1]),
                "capacity used": float(run.survey.capacity[layer].iloc[-1]),
            }
        )
    frame = pd.DataFrame(rows)
    note = (
        "overlap: Jaccard index of the neurons of two rounds; norm: of the sum of all changes; "
        "capacity used: effective dimensions of all keys, as a share of the neurons"
    )
    formats = {"mean overlap": ".2f", "norm": ".4g", "capacity used": ".1%"}
    return Table.of(frame, "Layers", index=False, formats=formats, note=note)


def worst_requests(run: Run, most: int = _MOST) -> Table:
    """The requests with the worst outcomes: those left out, then by the residual left."""
    severity = {status: at for at, status in enumerate(_STATUSES)}
    frame = run.survey.requests.assign(severity=run.survey.requests["status"].map(severity))
    frame = frame.sort_values(["severity", "residual_after"], ascending=[True, False])
    shown = f"{most} of {len(frame)} " if len(frame) > most else ""
    return _outcomes(frame.head(most), f"Worst requests ({shown}by outcome, then residual)")


def retention_table(run: Run) -> Table:
    """Efficacy of each round's edits after later rounds."""
    frame = run.retention
    heads = {"edited": "round edited", **{n: f"after {n}" for n in frame.columns}}
    formats = dict.fromkeys(frame.columns, ".0%")
    return Table.of(frame, "Retention: efficacy of a round's edits", heads=heads, formats=formats)


def neurons_table(layer: int, frame: DataFrame, most: int = 2 * _MOST) -> Table:
    """The neurons of a layer that were changed most, from ``queries.neurons``."""
    written = frame[frame["times_written"] > 0].sort_values("norm", ascending=False)
    return Table.of(
        written.head(most),
        f"Layer {layer}: {min(most, len(written))} of {len(written)} neurons written "
        f"({len(frame)} in all), by norm",
        heads={"times_written": "writes", "key_mass": "key mass"},
        formats={"norm": ".4g", "key_mass": ".3%", "rounds": _spans},
    )


def neuron_table(run: Run, layer: int, neuron: int) -> Table:
    """The rounds and requests that wrote a neuron.

    Raises:
        DataError: no round edited the layer, or there is no such neuron.
    """
    frame = queries.who_wrote(run.ledger, layer, neuron)
    return Table.of(
        frame,
        f"Neuron {neuron} of layer {layer}: who wrote it",
        index=False,
        heads={"case_id": "request", "round_norm": "norm of the round"},
        formats={"norm": ".4g", "round_norm": ".4g"},
        note="" if len(frame) else "No active round wrote it.",
    )


def request_tables(run: Run, case_id: int | str) -> list[Table]:
    """The outcome of a request, and its writes.

    Raises:
        DataError: no active round has the request.
    """
    frame = queries.requests(run.ledger)
    names = frame["case_id"].astype(str)
    found = frame[names == str(case_id)]
    if found.empty:
        near = did_you_mean(str(case_id), names.tolist())
        raise DataError(f"no active round of {run.folder} has a request {case_id!r}{near}")
    writes = Table.of(
        queries.request_writes(run.ledger, case_id),
        f"Request {case_id}: what it wrote",
        index=False,
        heads={"pass_number": "pass", "neurons": "neurons changed most"},
        formats={"norm": ".4g", "share": ".1%", "neurons": _numbers},
        note="share: of the norms of all requests in the write",
    )
    return [_outcomes(found, f"Request {case_id}: its outcome"), writes]


def _outcomes(frame: DataFrame, caption: str) -> Table:
    columns = ["case_id", "round", "status", "passes", *list(_COLUMNS)[1:]]
    return Table.of(
        frame[columns],
        caption,
        index=False,
        heads=_COLUMNS,
        formats={"status": lambda name: _STATUSES.get(name, str(name))},
        note="residual: distance from the value aimed at; z shift: of the value from where the "
        "search for it began",
    )


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values)) or NOTHING


def _spans(values: tuple[int, ...]) -> str:
    """Rising numbers with consecutive ones as ranges: ``1-4, 7``."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][-1] + 1:
            spans[-1][1:] = [value]
        else:
            spans.append([value])
    return ", ".join("-".join(map(str, span)) for span in spans) or NOTHING


def _highest(overlap: DataFrame) -> str:
    """The pair of different rounds that overlap most, the earliest of equals."""
    numbers = list(overlap.index)
    pairs = [(a, b) for at, a in enumerate(numbers) for b in numbers[at + 1 :]]
    if not pairs:
        return NOTHING
    a, b = max(pairs, key=lambda pair: overlap.loc[pair])
    return f"{overlap.loc[a, b]:.2f} (rounds {a}, {b})"
