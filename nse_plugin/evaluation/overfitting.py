"""Token overfitting of single edits: each request alone, from the untouched model, watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nse_plugin.errors import HparamsError, SessionError
from nse_plugin.hparams import Hparams
from nse_plugin.methods.registry import find_method
from nse_plugin.objectives.token_table import Spread, TokenCourse, TokenTable
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession


@dataclass(frozen=True)
class Watched:
    """One edit and how its target's tokens were learnt; empty courses where nothing was trained."""

    request: EditRequest
    courses: tuple[TokenCourse, ...]

    @property
    def steps(self) -> int:
        """Evaluations of the loss."""
        return max((len(course.losses) for course in self.courses), default=0)

    @property
    def losses(self) -> list[float]:
        """Of the target's tokens, at the step where the edit stopped."""
        return [course.losses[-1] for course in self.courses]

    @property
    def spread(self) -> Spread | None:
        """How far apart they are; None of fewer than two tokens."""
        return Spread.of(self.losses) if len(self.courses) > 1 else None


def single_edits(
    session: EditSession, requests: Sequence[EditRequest], hparams: Hparams
) -> Iterator[Watched]:
    """Edit one request after the other, each from the untouched model.

    While an item is being used, its edit is in the model; afterwards it is undone.

    Raises:
        HparamsError: the method does not tell of its steps.
        SessionError: the session has rounds already.
    """
    method = find_method(hparams.alg_name)
    if not method.takes_trace:
        raise HparamsError(
            f"{method.name} trains no loss over target tokens that could be watched; choose "
            "another method"
        )
    if len(session.ledger):
        raise SessionError(
            f"the session has {len(session.ledger)} rounds, and single edits start from the "
            "untouched model; call session.undo_all(), or load the model again"
        )
    for request in requests:
        table = TokenTable()
        method.edit_round(session, [request], hparams, trace=table)
        try:
            yield Watched(request, tuple(table.courses(0)))
        finally:
            session.undo_all()
