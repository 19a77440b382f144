"""Consolidate a session: see :mod:`nse_plugin.methods.together`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from nse_plugin.errors import HparamsError
from nse_plugin.hparams import Hparams, OvertoneHparams, SpreadHparams
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.overtone import objective_of
from nse_plugin.methods.together import StoredValues, solve_together
from nse_plugin.objectives import nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession


def consolidate(
    session: EditSession,
    hparams: Hparams,
    repair_rounds: int | None = None,
    *,
    without: Collection[int] = (),
) -> RoundRecord:
    """Solve all edits in effect jointly, in place of the active rounds.

    Args:
        hparams: of NSE, MEMIT or AlphaEdit, with the layers that the rounds wrote.
        repair_rounds: how often edits that are not in effect afterwards are repaired, instead of
            the hyperparameters' number.
        without: numbers of rounds in effect, also inside a consolidation, whose edits are left out.

    Returns:
        The new round; its outcomes say of each request whether it was in effect before and after.

    Raises:
        HparamsError: the method has no values, or ``repair_rounds`` is negative.
        SessionError: no round is active; one has no values, or edited other layers; a round to
            leave out is not in effect; or the weights were changed outside the session.  Model and
            ledger are as before.
    """
    base = hparams.for_base() if isinstance(hparams, OvertoneHparams) else hparams
    if not isinstance(base, SpreadHparams):
        raise HparamsError(
            f"alg_name is {base.alg_name!r}, and consolidation solves for values, which NSE, MEMIT "
            "and AlphaEdit have; give the hyperparameters of one of them"
        )
    if repair_rounds is not None:
        base = replace(base, repair_rounds=repair_rounds)
    objective = objective_of(hparams) if isinstance(hparams, OvertoneHparams) else nll
    edit_round = BASES[base.method].edit_round

    def write(
        requests: Sequence[EditRequest], hparams: SpreadHparams, stored: StoredValues
    ) -> RoundRecord:
        return edit_round(session, requests, hparams, objective, stored=stored)

    return solve_together(session, base, write, without=without)
