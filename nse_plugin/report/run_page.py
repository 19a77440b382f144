"""The page about a run."""

from __future__ import annotations

from nse_plugin.printable import counted
from nse_plugin.report import run_tables as tables
from nse_plugin.report.kinds import kinds_table
from nse_plugin.report.page import Page, Picture
from nse_plugin.report.run import PERPLEXITY, Run
from nse_plugin.report.run_figures import run_pictures
from nse_plugin.table import Table

_NEURONS = 10
"""Rows of the table of a layer's neurons."""
_ALL_WRITTEN = (
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
        f"{run.method} on {run.model_name or 'an unnamed model'}: "
        f"{counted(edits, 'edit')} in {counted(len(run.lines), 'round')}, {run.status}",
    )
    pictures = {picture.name: picture for picture in run_pictures(run)}

    def drawn(*names: str) -> list[Picture]:
        return [pictures[name] for name in names if name in pictures]

    intro = "The requests, and the model's answers. Click a head to sort; scroll for more."
    page.section("Facts", intro).add(tables.facts_table(run, _FACTS, width=400))
    figures = drawn("scores", "overall", "locality", "retention")
    scores = _score_tables(run)
    if figures or scores:
        page.section("Scores", "How well edits hold, and what they cost.").add(
            *figures, *scores, None if run.retention.empty else tables.retention_table(run)
        )
    if run.ledger:
        intro = "The outcomes of the edits of each round."
        page.section("Rounds", intro).add(tables.rounds_table(run), *drawn("norm", "capacity"))
    if run.layers:
        neurons = run.survey.neurons.items()
        intro = "Which neurons the rounds wrote, and how far they share them."
        page.section("Neurons", intro).add(
            *drawn("ledger", "overlap", "writes"),
            _ALL_WRITTEN if run.writes_all_neurons else None,
            tables.layers_table(run),
            *(tables.neurons_table(layer, frame, _NEURONS) for layer, frame in neurons),
        )
    if run.ledger:
        intro = "The requests with the worst outcomes and largest residuals."
        page.section("Requests", intro).add(tables.worst_requests(run))
    page.section("Settings").add(tables.overview(run), _settings(run))
    return page


def _score_tables(run: Run) -> list[Table]:
    """Scores of each round's own edits right after it, of all edits so far, and by kind."""
    frames = {
        "Scores of each round's own edits": run.scores,
        "Scores of all edits so far": run.overall_scores,
    }
    found = [
        Table.of(frame, caption, formats={**dict.fromkeys(frame.columns, ".1%"), PERPLEXITY: ".3f"})
        for caption, frame in frames.items()
        if not frame.empty
    ]
    kinds = kinds_table(run)
    return found if kinds is None else [*found, kinds]


def _settings(run: Run) -> Table:
    given = {name: value for name, value in run.hparams.items() if value is not None}
    rows = tuple((name, str(value)) for name, value in given.items())
    return Table("Hyperparameters", ("name", "value"), rows)
