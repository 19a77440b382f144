"""The schema of a comparison's files.

``results/<model>/<method>/<seed>.json`` holds a :class:`CellResult`, ``results.json`` a
:class:`ComparisonResult`.  Scores are shares from 0 to 1 as :mod:`nse_plugin.evaluation.metrics`
defines them; None stands for a score that was not measured or is not finite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from nse_plugin.errors import DataError
from nse_plugin.files import read_json

SCHEMA = 1
CellStatus = Literal["complete", "collapsed", "stopped", "nothing_written", "failed"]
ENDED: tuple[CellStatus, ...] = ("complete", "stopped")
"""Cells whose scores are means over all edits in effect at their end."""


class RunInfo(TypedDict):
    """The cell, and how it ended."""

    model: str
    method: str
    """As given to ``--methods``; ``untouched`` for the model without edits."""
    seed: int
    status: CellStatus
    """``collapsed``: a stop rule undid the last round; ``stopped``: it was kept."""
    error: str | None
    """Why it failed or collapsed."""
    rounds: int
    edits: int
    data: str
    order: str
    protocol: dict[str, Any]
    stream: str
    """Hash of the requests in their order: equal for all methods of a model and seed."""


class MethodInfo(TypedDict):
    """The method of a cell."""

    name: str
    about: str
    """In words: what a variant changes."""
    implementation: str
    """``nse_plugin`` or ``EasyEdit``."""
    hparams: dict[str, Any]
    ignored: list[str]
    """Keys of the YAML that the host's method does not have."""


class MetaInfo(TypedDict):
    """The machine of a cell."""

    versions: dict[str, str]
    commits: dict[str, str | None]
    hardware: dict[str, Any]
    threads: int
    host: str
    finished: str
    """UTC."""


class Seconds(TypedDict):
    """Means per edit over all rounds of the cell, including those before an interrupt."""

    parts: dict[str, float]
    """By the method's names: ``values``, ``keys``, ``solve``, ``write`` ..."""
    other: float
    """The rest of ``edit``."""
    edit: float
    evaluation: float
    prepare: float
    """Total seconds for the statistics; close to 0 if they were on disk."""
    wall: float
    """Total seconds of the cell since it was started or last resumed."""


class Memory(TypedDict):
    """Bytes; None if this machine cannot measure it."""

    before: int | None
    """Memory of the process before the cell, with the model loaded."""
    peak: int | None
    """Peak memory of the process during the cell."""
    own_process: bool
    """The process ran only this cell."""
    cuda_peak: int | None
    """Peak memory of torch on the GPUs during the cell."""


class RoundPoint(TypedDict):
    """The scores after one round."""

    round: int
    edits: int
    """Number of all edits so far."""
    scores: dict[str, float | None] | None
    """Scores of this round's edits, right after it."""
    all: dict[str, float | None] | None
    """Scores of all edits so far, if a measurement was due."""


class CellResult(TypedDict):
    """One cell of the grid."""

    schema: int
    run_info: RunInfo
    method_info: MethodInfo
    meta_info: MetaInfo
    scores: dict[str, float | None]
    """After the last round, over all edits."""
    each: list[dict[str, Any]]
    """The scores of each edit, with its ``case_id`` and ``round``."""
    points: list[RoundPoint]
    retention: dict[str, dict[str, dict[str, float | None]]]
    """By score, round tested, round edited."""
    seconds: Seconds | None
    memory: Memory | None


class ScoreSummary(TypedDict):
    """One score of one method on one model, over seeds."""

    model: str
    method: str
    score: str
    n: int
    """Number of seeds that have it."""
    mean: float | None
    sd: float | None
    """With n - 1; None for one seed."""
    min: float | None
    max: float | None


class Difference(TypedDict):
    """A method's score minus the reference's, paired by seed, and by edit within a seed."""

    model: str
    method: str
    reference: str
    score: str
    n_seeds: int
    n_edits: int
    """Pairs of (seed, edit)."""
    mean: float | None
    low: float | None
    """Bootstrap over edits within each seed."""
    high: float | None
    t_low: float | None
    """Student's t over the seeds' differences; None for one seed."""
    t_high: float | None
    confidence: float


class ComparisonResult(TypedDict):
    """All results of a comparison."""

    schema: int
    settings: dict[str, Any]
    cells: list[CellResult]
    summaries: list[ScoreSummary]
    differences: list[Difference]


def read_cell(path: Path) -> CellResult | None:
    """A cell's result, or None if there is none yet.

    Raises:
        DataError: the file is damaged or of another schema.
    """
    if not path.exists():
        return None
    found = read_json(path, "remove it to make it again")
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {found.get('schema')}, and this version reads {SCHEMA}; remove it "
            "to make it again"
        )
    return cast(CellResult, found)
