"""The base editors by name with their capabilities; OVERTONE wraps them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nse_plugin.hparams import (
    AlphaEditHparams,
    FTHparams,
    GRACEHparams,
    Hparams,
    LoRAHparams,
    MEMITHparams,
    NSEHparams,
    ROMEHparams,
    UltraEditHparams,
)
from nse_plugin.methods import alphaedit, ft, grace, lora, memit, nse, rome, ultraedit
from nse_plugin.session.records import RoundRecord


@dataclass(frozen=True)
class Method:
    """One editing method and its capabilities."""

    name: str
    """``alg_name`` in hparams and the host's table."""
    edit_round: Callable[..., RoundRecord]
    """``edit_round(session, requests, hparams, objective, trace)``: ``objective`` is its loss over
    target tokens, and ``trace`` records every evaluation of it."""
    hparams: type[Hparams]
    attaches: bool = False
    """It attaches modules to the model and does not change the weights."""


BASES = {
    method.name: method
    for method in (
        Method("AlphaEdit", alphaedit.edit_round, AlphaEditHparams),
        Method("FT", ft.edit_round, FTHparams),
        Method("GRACE", grace.edit_round, GRACEHparams, attaches=True),
        Method("LoRA", lora.edit_round, LoRAHparams, attaches=True),
        Method("MEMIT", memit.edit_round, MEMITHparams),
        Method("NSE", nse.edit_round, NSEHparams),
        Method("ROME", rome.edit_round, ROMEHparams),
        Method("UltraEdit", ultraedit.edit_round, UltraEditHparams),
    )
}
