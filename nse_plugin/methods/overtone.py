"""OVERTONE (arXiv 2502.00602, ICML 2025): a base editor with its token loss replaced.

Everything else about the editor stays: what it edits, its other losses, its steps, its rule for
stopping.  Only the cross entropy of the target's tokens is replaced by OVERTONE's loss
(:mod:`nse_plugin.objectives.overtone`); the rule for stopping sees that loss without its clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from nse_plugin.errors import HparamsError
from nse_plugin.hparams.base import check_hparams
from nse_plugin.hparams.host_editors import HostEditorHparams
from nse_plugin.hparams.overtone import OvertoneHparams
from nse_plugin.methods.bases import BASES
from nse_plugin.objectives import TokenTrace
from nse_plugin.objectives.overtone import Overtone
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: OvertoneHparams,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Write one round with the base editor and OVERTONE's loss.

    The record is the base's, its ``method`` included.

    Raises:
        HparamsError: the base is an editor that only EasyEdit has.
    """
    check_hparams(hparams)
    if isinstance(hparams.base, HostEditorHparams):
        raise HparamsError(
            f"base is {hparams.base.method}, an editor that only EasyEdit has; use "
            "nse_plugin.BaseEditor where EasyEdit is the host, or choose another base"
        )
    base = BASES[hparams.base.method]
    return base.edit_round(session, requests, hparams.for_base(), objective_of(hparams), trace)


def objective_of(hparams: OvertoneHparams) -> Overtone:
    """The objective of these hyperparameters."""
    return Overtone(**{field.name: getattr(hparams, field.name) for field in fields(Overtone)})
