"""Token overfitting of single edits, each starting from the untouched model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from nse_plugin.errors import SessionError
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.methods.overtone import objective_of
from nse_plugin.methods.registry import find_method
from nse_plugin.objectives.token_table import Spread, TokenCourse, TokenStep, TokenTable
from nse_plugin.requests import EditRequest
from nse_plugin.session.adapters import Adapters
from nse_plugin.session.session import EditSession


@dataclass(frozen=True)
class Watched:
    """One edit and the losses of its target's tokens during training; no courses if untrained."""

    request: EditRequest
    courses: tuple[TokenCourse, ...]
    change: float | None
    """See :func:`relative_norm`."""

    @property
    def steps(self) -> int:
        """Evaluations of the loss."""
        return max((len(course.steps) for course in self.courses), default=0)

    @property
    def losses(self) -> list[float]:
        """The losses of the target's tokens at the last step."""
        return [course.losses[-1] for course in self.courses]

    @property
    def spread(self) -> Spread | None:
        """How far these losses are apart; None for fewer than two tokens."""
        return Spread.of(self.losses) if len(self.courses) > 1 else None

    @property
    def course(self) -> dict[str, list[float]]:
        """Means over the target's tokens at each step, by field of TokenStep, and ``spread``."""
        rows = list(zip(*(course.steps for course in self.courses)))  # [steps][tokens]
        means = {
            name: [fmean(getattr(token, name) for token in row) for row in rows]
            for name in TokenStep._fields
        }
        return {**means, "spread": [Spread.of([token.loss for token in row]).range for row in rows]}


def mean_course(courses: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Means over edits of :attr:`Watched.course`; one that stops early keeps its last values."""
    courses = [course for course in courses if course["loss"]]
    longest = max((len(course["loss"]) for course in courses), default=0)
    return {
        name: [
            fmean(course[name][min(step, len(course[name]) - 1)] for course in courses)
            for step in range(longest)
        ]
        for name in (courses[0] if courses else ())
    }


def single_edits(
    session: EditSession, requests: Sequence[EditRequest], hparams: Hparams
) -> Iterator[Watched]:
    """Edit one request after the other, each from the untouched model.

    An edit is in the model until the next item is asked for.

    Raises:
        SessionError: the session has rounds already.
    """
    method = find_method(hparams.alg_name)
    if len(session.ledger):
        raise SessionError(
            f"the session has {len(session.ledger)} rounds, and single edits start from the "
            "untouched model; call session.undo_all(), or load the model again"
        )
    for request in requests:
        table = table_for(hparams)
        method.edit_round(session, [request], hparams, trace=table)
        try:
            yield Watched(request, tuple(table.courses(0)), relative_norm(session))
        finally:
            session.undo_all()


def table_for(hparams: Hparams) -> TokenTable:
    """An empty table for OVERTONE's decisions with these settings, or with defaults for a base."""
    wrapped = hparams if isinstance(hparams, OvertoneHparams) else OvertoneHparams.wrap(hparams)
    return TokenTable(objective_of(wrapped))


@torch.no_grad()
def relative_norm(session: EditSession) -> float | None:
    """||change|| / ||weight||, Frobenius, over all matrices that the session changed together.

    None if it changed no matrix, as with GRACE's codebook.
    """
    weights, attached = session.weights, session.attached.current
    pairs = [
        (change, weights.original(name))
        for name in weights.names()
        if (change := weights.change(name)) is not None
    ]
    if isinstance(attached, Adapters):
        pairs += attached.changes()
    if not pairs:
        return None
    squares = [(change.float().norm() ** 2, weight.float().norm() ** 2) for change, weight in pairs]
    changed, original = (float(sum(column)) for column in zip(*squares))
    return (changed / original) ** 0.5
