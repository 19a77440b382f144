"""A comparison as figures: scores over edits, retention, efficacy against time."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Literal

from nse_plugin.compare.results import ComparisonResult
from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.compare.tables import by_method, summaries
from nse_plugin.report import charts, figures
from nse_plugin.report.page import Picture

if TYPE_CHECKING:
    from pandas import DataFrame

OVER_EDITS = {"efficacy": "efficacy of all edits so far", "locality": "locality of all so far"}
FINAL = {
    "efficacy": "efficacy: does the edit hold?",
    "paraphrase": "paraphrase: in other words, too?",
    "locality": "locality: is the rest as it was?",
}
"""Scores after the last round that a figure shows, and the question that each answers."""
GROUPS = ("methods", "variants")
"""There are figures of the methods, and of variants beside the methods that they vary."""


def edited_methods(result: ComparisonResult, model: str) -> list[str]:
    """All methods but the untouched model, in order."""
    return [method for method in by_method(result["cells"], model) if method != UNTOUCHED]


def members(result: ComparisonResult, model: str, group: str) -> list[str]:
    """The methods of one of :data:`GROUPS`; a variant has a colon in its name: NSE:one-pass."""
    known = edited_methods(result, model)
    variants = [name for name in known if ":" in name]
    if group == "variants":
        bases = {name.partition(":")[0] for name in variants}
        return [name for name in known if name in bases or name in variants]
    plain = [name for name in known if ":" not in name]
    return [] if variants and len(plain) < 2 else plain  # one alone says nothing


def final_scores(result: ComparisonResult, model: str, group: str) -> Picture | None:
    """A row per method: scores after the last round, with the standard deviation over seeds."""
    import pandas as pd

    names, scores = members(result, model, group), summaries(result, model)

    def table(value: Literal["mean", "sd"]) -> DataFrame:
        def of(name: str, score: str) -> float | None:
            found = scores.get((name, score))
            return None if found is None else found[value]

        columns = {head: [of(name, score) for name in names] for score, head in FINAL.items()}
        return pd.DataFrame(columns, index=names, dtype=float)

    means, spreads = table("mean").dropna(how="all"), table("sd")
    means = means.dropna(axis="columns", how="all")
    if means.empty:
        return None
    best = "; ".join(f"best {column} {means[column].idxmax()}" for column in means.columns)
    return Picture(
        f"{model}-{group}-final",
        f"{model}, {group}: after the last round, mean and standard deviation over seeds; the best "
        "of each score is filled.",
        f"Dots with bars, a row per method and a panel per score: {best}.",
        lambda theme: charts.dots(means, spreads.loc[means.index], theme=theme),
    )


def over_edits(result: ComparisonResult, model: str, score: str, group: str) -> Picture | None:
    """A line per method: a score of all edits so far, each time they were measured."""
    everything = over_edits_table(result, model, score)
    table = everything[[name for name in members(result, model, group) if name in everything]]
    table = table.dropna(how="all")
    if table.empty:
        return None
    return Picture(
        f"{model}-{group}-{score}",
        f"{model}, {group}: {OVER_EDITS[score]}, mean over seeds",
        f"Lines of {OVER_EDITS[score]} by the number of edits: {_ends(table)}.",
        lambda theme: charts.lines(
            table, x="edits", y=OVER_EDITS[score], percent=True, limits=(None, None), theme=theme
        ),
    )


def efficacy_against_time(result: ComparisonResult, model: str, group: str) -> Picture | None:
    """A point per method: seconds per edit across, efficacy after the last round up."""
    table = times_of(result, model)
    table = table.loc[[name for name in members(result, model, group) if name in table.index]]
    if table.empty:
        return None
    said = ", ".join(f"{name} {row.efficacy:.1%}" for name, row in table.iterrows())
    return Picture(
        f"{model}-{group}-time",
        f"{model}, {group}: efficacy after the last round against time",
        f"Points of efficacy by seconds per edit: {said}.",
        lambda theme: charts.points(table, x="seconds per edit", y="efficacy", theme=theme),
    )


def retention(result: ComparisonResult, model: str, method: str) -> Picture | None:
    """A method's retention matrix, mean over seeds; None if edits were tested only once, which
    :func:`left_at_the_end` shows."""
    table = retention_table(result, model, method)
    if len(table.columns) < 2:
        return None
    return Picture(
        f"{model}-{method}-retention",
        f"{model}, {method}: what is left of each round's edits",
        f"Heat map; after the last round {fmean(table.iloc[:, -1].dropna()):.1%} are left.",
        lambda theme: figures.heat_map(
            table, x="after round", y="edited in", value="efficacy", percent=True,
            limits=(0.0, 1.0), theme=theme,
        ),
    )  # fmt: skip


def left_at_the_end(result: ComparisonResult, model: str, group: str) -> Picture | None:
    """A line per method over the rounds, if they were tested only at the end."""
    import pandas as pd

    tables = {name: retention_table(result, model, name) for name in members(result, model, group)}
    left = {name: found.iloc[:, 0] for name, found in tables.items() if len(found.columns) == 1}
    if not left:
        return None
    table = pd.DataFrame(left)
    first = ", ".join(f"{name} {value:.1%}" for name, value in table.iloc[0].items())
    return Picture(
        f"{model}-left-{group}",
        f"{model}, {group}: what is left of each round's edits at the end",
        f"Lines; of the edits of round {table.index[0]} are left: {first}.",
        lambda theme: charts.lines(
            table, x="edited in round", y="efficacy after the last round", percent=True,
            limits=(0.0, 1.02), theme=theme,
        ),
    )  # fmt: skip


def over_edits_table(result: ComparisonResult, model: str, score: str) -> DataFrame:
    """Mean over seeds at each number of edits that all seeds reached, a column per method."""
    import pandas as pd

    columns = {}
    for method, cells in by_method(result["cells"], model).items():
        found: dict[int, list[float]] = {}
        for cell in cells:
            for point in cell["points"]:
                value = (point["all"] or {}).get(score)
                if value is not None:
                    found.setdefault(point["edits"], []).append(value)
        most = max(map(len, found.values()), default=0)
        columns[method] = {n: fmean(values) for n, values in found.items() if len(values) == most}
    return pd.DataFrame(columns).sort_index().dropna(axis="columns", how="all")


def times_of(result: ComparisonResult, model: str) -> DataFrame:
    """Seconds per edit and efficacy of the methods that have both, mean over seeds."""
    import pandas as pd

    rows = {}
    for method, cells in by_method(result["cells"], model).items():
        done = [
            (cell["seconds"]["edit"], efficacy)
            for cell in cells
            if cell["run_info"]["status"] == "complete" and cell["seconds"]
            if (efficacy := cell["scores"].get("efficacy")) is not None
        ]
        if method != UNTOUCHED and done:
            rows[method] = [fmean(column) for column in zip(*done)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "efficacy"])


def retention_table(result: ComparisonResult, model: str, method: str) -> DataFrame:
    """A method's retention, mean over seeds: a row per round edited, a column per round tested."""
    import pandas as pd

    found: dict[int, dict[int, list[float]]] = {}
    for cell in by_method(result["cells"], model).get(method, []):
        for tested, row in cell["retention"].get("efficacy", {}).items():
            for edited, value in row.items():
                if value is not None:
                    found.setdefault(int(tested), {}).setdefault(int(edited), []).append(value)
    means = {t: {e: fmean(values) for e, values in row.items()} for t, row in found.items()}
    return pd.DataFrame(means).sort_index().sort_index(axis="columns")


def _ends(table: DataFrame) -> str:
    last = table.ffill().iloc[-1]
    return ", ".join(f"{name} ends at {value:.1%}" for name, value in last.items())
