"""A run directory as plain values and tables of pandas; no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse_plugin.errors import DataError
from nse_plugin.files import JsonLines
from nse_plugin.runs.manifest import Manifest, read_manifest
from nse_plugin.runs.result import RunResult
from nse_plugin.session import queries
from nse_plugin.session.ledger_files import host_method, load_ledger
from nse_plugin.session.records import Ledger

if TYPE_CHECKING:
    from pandas import DataFrame

_POINTS = 24
"""Rounds after which the capacity is computed, which takes a second each in large models."""
PERPLEXITY = "perplexity"
_SCORES = ("efficacy", "paraphrase", "portability", "locality")


@dataclass(frozen=True)
class Run:
    """What a run directory holds.  The tables are made when first asked for."""

    folder: Path
    manifest: Manifest
    lines: tuple[dict[str, Any], ...]
    """``rounds.jsonl``, whole lines."""
    final: Mapping[str, Any]
    """``final.json`` of a run that ended; otherwise empty."""
    ledger: Ledger
    """The rounds that stand; empty for a host's own method, which keeps whole matrices."""

    @property
    def status(self) -> str:
        """How the run ended, or that it has not."""
        return str(self.final.get("status", "unfinished"))

    @property
    def planned(self) -> int | None:
        """How many edits there were to be, where that was known at the start."""
        stream = self.manifest.content["run"].get("stream") or {}
        found = stream.get("edits")
        return found if isinstance(found, int) else None

    @cached_property
    def layers(self) -> list[int]:
        """Layers that any round edited."""
        return queries.edited_layers(self.ledger)

    @cached_property
    def rounds(self) -> DataFrame:
        """:func:`nse_plugin.session.queries.rounds`."""
        return queries.rounds(self.ledger)

    @cached_property
    def requests(self) -> DataFrame:
        """:func:`nse_plugin.session.queries.requests`."""
        return queries.requests(self.ledger)

    @cached_property
    def columns(self) -> dict[int, DataFrame]:
        """By layer: :func:`nse_plugin.session.queries.column_norms`."""
        return {layer: queries.column_norms(self.ledger, layer) for layer in self.layers}

    @cached_property
    def frequency(self) -> DataFrame:
        """Share of the rounds that wrote a neuron: a row per layer, a column per neuron."""
        pd = queries.import_pandas()
        shares = {layer: table.notna().mean() for layer, table in self.columns.items()}
        return pd.DataFrame(shares).T.rename_axis("layer")

    @cached_property
    def overlap(self) -> DataFrame:
        """:func:`nse_plugin.session.queries.overlap` over all layers."""
        return queries.overlap(self.ledger)

    @cached_property
    def growth(self) -> DataFrame:
        """:func:`nse_plugin.session.queries.norm_growth`."""
        return queries.norm_growth(self.ledger)

    @cached_property
    def capacity(self) -> DataFrame:
        """:func:`nse_plugin.session.queries.capacity`; of a long run at even distances."""
        numbers = self.ledger.numbers()
        step = -(-len(numbers) // _POINTS) or 1
        return queries.capacity(self.ledger, after=numbers[::-1][::step])

    @cached_property
    def scores(self) -> DataFrame:
        """Scores of each round's own edits, right after it: a column per score measured."""
        return self._measured([_scores(line["scores"] or {}) for line in self.lines])

    @cached_property
    def standing_scores(self) -> DataFrame:
        """Scores of all edits so far, and of the model, after each round where that was due."""
        return self._measured([_checkpoint_scores(line["checkpoint"] or {}) for line in self.lines])

    def _measured(self, rows: list[dict[str, Any]]) -> DataFrame:
        """A row per round, without rounds and columns that hold nothing."""
        pd = queries.import_pandas()
        index = pd.Index([line["round"] for line in self.lines], name="round")
        table = pd.DataFrame(rows, index=index, dtype=float)
        return table.dropna(axis=0, how="all").dropna(axis=1, how="all")

    @cached_property
    def retention(self) -> DataFrame:
        """Efficacy of the edits of a round (row) after a later one (column)."""
        pd = queries.import_pandas()
        result = RunResult(self.status, self.folder, self.final)
        table = pd.DataFrame(result.retention_matrix(), dtype=float).sort_index()
        return table.rename_axis("edited", axis=0).rename_axis("tested", axis=1)


def read_run(folder: Path) -> Run:
    """Read the directory of a run, also of one that is at work.

    Raises:
        DataError: it is no run directory, no round of it is finished, or a file is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a run directory")
    manifest = read_manifest(folder)
    path = folder / "rounds.jsonl"
    lines = tuple(JsonLines(path))
    if not lines:
        raise DataError(
            f"{folder} has no finished round yet; look again after the first, or resume it with "
            "the command that began it"
        )
    final = _read_final(folder / "final.json")
    return Run(folder, manifest, lines, final, _ledger(folder, manifest, lines))


def mean_overlap(overlap: DataFrame) -> float | None:
    """Mean over pairs of different rounds; None where there is one round."""
    n = len(overlap)
    return float((overlap.to_numpy().sum() - n) / (n * (n - 1))) if n > 1 else None


def _ledger(folder: Path, manifest: Manifest, lines: tuple[dict[str, Any], ...]) -> Ledger:
    """The rounds that count: those with a line."""
    written = [line["file"] for line in lines]
    last = max((number for number in written if number is not None), default=0)
    files = sorted(folder.glob("round-*.safetensors"))
    if not last or (files and host_method(files[0]) is not None):
        return Ledger()
    ledger = load_ledger(folder)
    ledger.truncate(sum(number <= last for number in ledger.numbers()))
    return ledger


def _read_final(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); restore it") from error


def _scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores.get(name) for name in _SCORES}


def _checkpoint_scores(point: Mapping[str, Any]) -> dict[str, Any]:
    return _scores(point.get("all") or {}) | {PERPLEXITY: point.get(PERPLEXITY)}
