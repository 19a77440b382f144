"""Consolidate a run directory: solve all its edits jointly, as one more round."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nse_plugin.errors import NotFiniteError
from nse_plugin.files import JsonLines, now
from nse_plugin.hparams import SpreadHparams
from nse_plugin.hparams.overtone import base_of
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.registry import hparams_from
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.runs.reading import RunFiles, consolidations
from nse_plugin.runs.schema import ROUNDS, Consolidation, Final

_ENOUGH = 0.98
"""Final efficacy of a run from which a consolidation is not suggested."""


def would_help(files: RunFiles, final: Final) -> bool:
    """Whether a consolidation can restore edits that are not in effect at the end of a run."""
    scores = (final["measurement"] or {}).get("all") or {}
    efficacy = scores.get("efficacy")
    if final["rounds"] < 2 or efficacy is None or efficacy >= _ENOUGH:
        return False
    return can_consolidate(files)


def can_consolidate(files: RunFiles) -> bool:
    """Whether the method of a run has the values that a consolidation solves for."""
    if files.host_method() is not None:
        return False
    return isinstance(base_of(hparams_from(str(files.folder), files.hparams)), SpreadHparams)


def consolidate_run(
    folder: Path,
    backend: SessionBackend,
    repair_rounds: int | None = None,
    without: Collection[int] = (),
) -> Consolidation:
    """Solve all edits of a run jointly and store the round, whole or not at all.

    Args:
        backend: the run's method and model, with the active rounds and the contexts.
        repair_rounds: instead of the number in the run's hyperparameters.
        without: numbers of rounds in effect whose edits are left out.

    Raises:
        HparamsError, SessionError: as :func:`nse_plugin.methods.consolidate.consolidate`.
        DataError: the folder cannot be written.
        NotFiniteError: the solve led to NaN or infinity.
    """
    lines = consolidations(folder, writable=True)
    record = consolidate(backend.session, backend.hparams, repair_rounds, without=without)
    try:
        if problem := backend.problem():
            raise NotFiniteError(f"{problem} is not finite after the consolidation; it was undone")
        saved = backend.save(folder, record.number)
        line = Consolidation(
            file=record.number,
            after=len(JsonLines(folder / ROUNDS)),
            edits=record.edits,
            answered_before=sum(bool(o.answered_before_consolidation) for o in record.outcomes),
            answered=sum(bool(o.answered) for o in record.outcomes),
            edit=record.summary(),
            time=now(),
            sha256=saved.sha256,
        )
        lines.append(line)
    except BaseException:
        backend.session.drop_last()
        raise
    return line
