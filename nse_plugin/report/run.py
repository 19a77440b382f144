"""A run directory as plain values and tables of pandas, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse_plugin.errors import DataError
from nse_plugin.evaluation.settings import MAIN_SCORES
from nse_plugin.runs.facts import ORDER, Fact, facts_of
from nse_plugin.runs.reading import RunFiles
from nse_plugin.session.queries import Survey, survey
from nse_plugin.session.tables import edited_layers

if TYPE_CHECKING:
    from pandas import DataFrame

_POINTS = 24
"""Number of rounds after which the capacity is computed; in large models each takes a second."""
PERPLEXITY, DRIFT = "perplexity", "dominant directions turned"


class Run(RunFiles):
    """A run directory with a finished round, also while the run is at work.

    Tables are made on demand.

    Raises:
        DataError: it is not a run directory, has no finished round, or a file is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        if not self.lines:
            raise DataError(
                f"{folder} has no finished round yet; look again after the first, or resume the "
                "run with the command that began it"
            )

    @property
    def status(self) -> str:
        """How the run ended, or ``unfinished``."""
        return self.final["status"] if self.final else "unfinished"

    @property
    def planned(self) -> int | None:
        """The number of edits planned; None if it was not known at the start."""
        stream = self.manifest["run"]["stream"]
        return None if stream is None else stream["count"]

    @cached_property
    def facts(self) -> list[Fact]:
        """Every fact, the worst outcomes first."""
        return sorted(facts_of(self), key=lambda fact: ORDER.index(fact.outcome))

    @cached_property
    def layers(self) -> list[int]:
        """Layers that any round edited."""
        return edited_layers(self.ledger)

    @cached_property
    def survey(self) -> Survey:
        """All tables of the ledger, which read each round file once."""
        numbers = self.ledger.numbers()
        step = -(-len(numbers) // _POINTS) or 1
        return survey(self.ledger, after=numbers[::-1][::step])

    @cached_property
    def frequency(self) -> DataFrame:
        """Share of the rounds that wrote a neuron: a row per layer, a column per neuron."""
        import pandas as pd

        shares = {layer: table.notna().mean() for layer, table in self.survey.columns.items()}
        return pd.DataFrame(shares).T.rename_axis("layer")

    @property
    def writes_all_neurons(self) -> bool:
        """Whether every round wrote all neurons of its layers."""
        return bool((self.frequency.to_numpy() == 1).all())

    @cached_property
    def scores(self) -> DataFrame:
        """Scores of each round's own edits, right after it: a column per score measured."""
        return self._measured([_scores(line["scores"] or {}) for line in self.lines])

    @cached_property
    def overall_scores(self) -> DataFrame:
        """Scores of all edits so far and of the model, after each round with a measurement."""
        points = [line["measurement"] or {} for line in self.lines]
        return self._measured(
            [
                _scores(p.get("all") or {}) | {PERPLEXITY: p.get(PERPLEXITY), DRIFT: _drift(p)}
                for p in points
            ]
        )

    def _measured(self, rows: list[dict[str, Any]]) -> DataFrame:
        """A row per round, without empty rows and columns."""
        import pandas as pd

        index = pd.Index([line["round"] for line in self.lines], name="round")
        table = pd.DataFrame(rows, index=index, dtype=float)
        return table.dropna(axis=0, how="all").dropna(axis=1, how="all")

    @cached_property
    def retention(self) -> DataFrame:
        """Efficacy of the edits of a round (row) after a later one (column)."""
        import pandas as pd

        table = pd.DataFrame(self.retention_matrix(), dtype=float).sort_index()
        return table.rename_axis("edited", axis=0).rename_axis("tested", axis=1)


def mean_overlap(overlap: DataFrame) -> float | None:
    """Mean over pairs of different rounds; None if there is one round."""
    n = len(overlap)
    return float((overlap.to_numpy().sum() - n) / (n * (n - 1))) if n > 1 else None


def _drift(measurement: Mapping[str, Any]) -> float | None:
    """The largest drift of an edited matrix."""
    drifts = (measurement.get("direction_drift") or {}).values()
    return max((drift for drift in drifts if drift is not None), default=None)


def _scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores.get(name) for name in MAIN_SCORES}
