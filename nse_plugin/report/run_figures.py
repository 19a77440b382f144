"""The figures of a run, each with a text alternative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nse_plugin.report.charts import lines
from nse_plugin.report.figures import binned, heat_map, heat_maps
from nse_plugin.report.page import Picture
from nse_plugin.report.run import DRIFT, PERPLEXITY, Run, mean_overlap

if TYPE_CHECKING:
    from pandas import DataFrame

_STRETCHES = 192
_TOKENS = "locality"
"""The score that counts tokens, where the others count whole answers."""
_OFTEN = 0.995
"""Quantile of the norms at which the colours end: a few neurons change much more."""


def run_pictures(run: Run) -> list[Picture]:
    """All figures for which the run has data."""
    pictures = list(_of_scores(run))
    if run.layers:  # methods that attach modules write no layer
        chosen = [] if run.writes_all_neurons else [writes(run), overlap(run)]
        pictures += [ledger(run), *chosen]
        if len(run.survey.growth) > 1:
            norms, capacity = map(_by_layer, (run.survey.growth, run.survey.capacity))
            about = "Norm of the sum of all changes, layer by layer."
            pictures.append(_over_rounds("norm", about, norms, "norm of the change", ".4g"))
            about = (
                "Key space that previous keys use: effective dimensions as a share of the neurons."
            )
            pictures.append(
                _over_rounds("capacity", about, capacity, "key space in use", percent=True)
            )
    return pictures


def ledger(run: Run) -> Picture:
    """Round x neuron, a panel per layer: how much a round changed a neuron."""
    import pandas as pd

    tables = {f"layer {n}": binned(table, _STRETCHES) for n, table in run.survey.columns.items()}
    norms = pd.concat(table.stack() for table in tables.values())
    high = float(norms.quantile(_OFTEN)) if len(norms) else None  # few columns change a lot
    return Picture(
        "ledger",
        "How much each round changed each neuron; grey: not written."
        + _stretches(run, _STRETCHES),
        f"Heat maps of rounds by neurons for layers {', '.join(map(str, run.layers))}; the colour "
        f"is the norm of the change, which is up to {norms.max():.3g} and on average "
        f"{norms.mean():.3g}.",
        lambda theme: heat_maps(
            tables, x="neuron", y="round", value="norm of the change", limits=(0.0, high),
            theme=theme,
        ),
    )  # fmt: skip


def writes(run: Run) -> Picture:
    """Layer x neuron: the share of rounds that wrote a neuron."""
    table = binned(run.frequency)
    shares = run.frequency.mean(axis=1).items()
    means = ", ".join(f"layer {layer} {share:.0%}" for layer, share in shares)
    return Picture(
        "writes",
        "Share of the rounds that wrote a neuron." + _stretches(run),
        f"Heat map of layers by neurons. A round writes on average of the neurons: {means}.",
        lambda theme: heat_map(
            table, x="neuron", y="layer", value="share of rounds", percent=True,
            limits=(0.0, 1.0), theme=theme,
        ),
    )  # fmt: skip


def overlap(run: Run) -> Picture:
    """Round x round: Jaccard index of the neurons written."""
    table = run.survey.overlaps[None]
    mean = mean_overlap(table)
    said = "" if mean is None else f" The mean overlap of two different rounds is {mean:.2f}."
    return Picture(
        "overlap",
        "Overlap of the neurons that two rounds wrote, all layers together (Jaccard index).",
        f"Heat map of {len(table)} by {len(table)} rounds.{said}",
        lambda theme: heat_map(
            table, x="round", y="round", value="Jaccard index", limits=(0.0, 1.0),
            theme=theme,
        ),
    )  # fmt: skip


def _of_scores(run: Run) -> Iterator[Picture]:
    import pandas as pd

    own = run.scores
    so_far = run.overall_scores.drop(columns=[PERPLEXITY, DRIFT], errors="ignore")
    after, sums = "right after its round", "all edits so far"
    pictures = (
        ("scores", own, "Scores of each round's own edits, right after it."),
        ("overall", so_far, "Scores of all edits so far."),
    )
    for name, table, caption in pictures:
        answers = table.drop(columns=_TOKENS, errors="ignore")
        if not answers.empty:
            yield _scores(name, caption, answers)
    there = {
        head: table[_TOKENS] for head, table in ((after, own), (sums, so_far)) if _TOKENS in table
    }
    if there:
        table = pd.DataFrame(there).sort_index()
        yield _scores("locality", "Locality: tokens about other facts that stay the same.", table)
    if not run.retention.empty:
        yield retention(run)


def _scores(name: str, caption: str, table: DataFrame) -> Picture:
    return _over_rounds(name, caption, table, "score", percent=True, limits=(0.0, 1.02))


def _over_rounds(
    name: str, caption: str, table: DataFrame, y: str, spec: str = ".1%", **options: Any
) -> Picture:
    """A line per column over the rounds."""
    return Picture(
        name,
        caption,
        f"Line chart over rounds. {_ends(table, spec)}",
        lambda theme: lines(table, x="round", y=y, theme=theme, **options),
    )


def retention(run: Run) -> Picture:
    """Round edited x round tested: the efficacy; a line if tested once."""
    table = run.retention
    tested, last = table.columns[-1], table.iloc[:, -1].dropna()
    said = (
        f"After round {tested}, efficacy is lowest for round {last.idxmin()} with {last.min():.0%} "
        f"and highest for round {last.idxmax()} with {last.max():.0%}."
    )
    if len(table.columns) == 1:
        return Picture(
            "retention",
            f"What is left of each round's edits after round {tested}.",
            f"Line over the rounds edited. {said}",
            lambda theme: lines(
                table, x="edited in round", y=f"efficacy after round {tested}", percent=True,
                limits=(0.0, 1.02), theme=theme,
            ),
        )  # fmt: skip
    return Picture(
        "retention",
        "Efficacy of the edits of a round (row) after a later round (column), in percent.",
        f"Heat map of rounds edited by rounds tested. {said}",
        lambda theme: heat_map(
            table, x="tested after round", y="edited in round", value="efficacy",
            percent=True, limits=(0.0, 1.0), theme=theme,
        ),
    )  # fmt: skip


def _stretches(run: Run, bins: int = 128) -> str:
    width = -(-run.frequency.shape[1] // bins)
    return f" Means over {width} neurons side by side." if width > 1 else ""


def _by_layer(table: DataFrame) -> DataFrame:
    return table.rename(columns=lambda layer: f"layer {layer}")


def _ends(table: DataFrame, spec: str) -> str:
    """Where each line begins and ends."""
    found = ((name, table[name].dropna()) for name in table.columns)
    texts = (f"{n} from {v.iloc[0]:{spec}} to {v.iloc[-1]:{spec}}" for n, v in found if len(v))
    return f"{', '.join(texts)}.".capitalize()
