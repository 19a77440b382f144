"""The page about a run."""

from __future__ import annotations

from collections.abc import Sequence

from nse_plugin.printable import counted
from nse_plugin.report import run_tables as tables
from nse_plugin.report.kinds import kinds_table
from nse_plugin.report.page import Page, Picture
from nse_plugin.report.run import Run
from nse_plugin.report.run_figures import run_pictures
from nse_plugin.table import Table

_NEURONS = 10
"""Rows of the table of a layer's neurons."""
_ALL = (
    "Every round wrote all neurons of the layers, so there is no figure of which neurons were "
    "written and how far rounds share them."
)
_FACTS = 2000
"""Rows of the table of facts: 0.4 MB."""


def run_tables(run: Run) -> list[Table]:
    """The tables that summarise a run, without empty ones."""
    found = [tables.overview(run), tables.facts_table(run)]
    if not run.ledger:
        return [*found, *_score_tables(run)]
    of_ledger = [tables.layers_table(run), tables.worst_requests(run)]
    return [*found, tables.rounds_table(run), *_score_tables(run), *of_ledger]


def run_page(run: Run) -> Page:
    """Everything about a run on one page."""
    edits = sum(line["edits"] for line in run.lines)
    page = Page(
        f"Run {run.folder.resolve().name}",
        f"{run.files.method} on {run.files.model_name or 'an unnamed model'}: "
        f"{counted(edits, 'edit')} in {counted(len(run.lines), 'round')}, {run.status}",
    )
    intro = "What was asked for, and what the model answers. Click a head to sort; scroll for more."
    _add(page, "Facts", intro, [tables.facts_table(run, _FACTS, width=400)])
    pictures = {picture.name: picture for picture in run_pictures(run)}
    names = ("scores", "overall", "locality", "retention")
    scores: list[Table | Picture] = [pictures[name] for name in names if name in pictures]
    scores += _score_tables(run)
    if not run.retention.empty:
        scores.append(tables.retention_table(run))
    _add(page, "Scores", "How well edits hold, and what they cost.", scores)
    if run.ledger:
        drawn = [pictures[name] for name in ("norm", "capacity") if name in pictures]
        rounds: list[Table | Picture] = [tables.rounds_table(run), *drawn]
        _add(page, "Rounds", "What became of the edits of each round.", rounds)
    if run.layers:
        _add(page, "Neurons", "Which neurons the rounds wrote, and how far they share them.", [
            *(pictures[name] for name in ("ledger", "overlap", "writes") if name in pictures),
            *([_ALL] if run.writes_all_neurons else []),
            tables.layers_table(run),
            *(tables.neurons_table(layer, frame, _NEURONS)
              for layer, frame in run.survey.neurons.items()),
        ])  # fmt: skip
    if run.ledger:
        intro = "Those whose value was missed by most."
        _add(page, "Requests", intro, [tables.worst_requests(run)])
    _add(page, "Settings", "", [tables.overview(run), _settings(run)])
    return page


def _score_tables(run: Run) -> list[Table]:
    found = [] if run.scores.empty else [tables.scores_table(run)]
    if not run.overall_scores.empty:
        found.append(tables.overall_table(run))
    if (kinds := kinds_table(run)) is not None:
        found.append(kinds)
    return found


def _settings(run: Run) -> Table:
    given = {name: value for name, value in run.files.hparams.items() if value is not None}
    rows = tuple((name, str(value)) for name, value in given.items())
    return Table("Hyperparameters", ("name", "value"), rows)


def _add(page: Page, title: str, intro: str, items: Sequence[str | Table | Picture]) -> None:
    """A section, where there is something for it."""
    if items:
        page.section(title, intro).add(*items)
