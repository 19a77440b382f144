"""``nse undo``: undo a round of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from nse_plugin.cli.app import KEEP, command
from nse_plugin.cli.options import AS_JSON, RUN, examples
from nse_plugin.cli.output import show_result


@command(KEEP, examples("nse undo run1 --round 7 --reason 'wrong source'"))
def undo(
    run: RUN,
    number: Annotated[
        int, typer.Option("--round", help="Number of the round's file round-NNNN.safetensors.")
    ],
    reason: Annotated[str, typer.Option(help="Kept in undone.json.")] = "",
    as_json: AS_JSON = False,
) -> int:
    """Undo any one round of a run; no model is loaded."""
    from nse_plugin.runs.undo import undo_round, undone_text

    active = undo_round(run, number, reason)
    as_values = {"undone": number, "active": active}
    show_result(as_values if as_json else undone_text(run, active))
    return 0
