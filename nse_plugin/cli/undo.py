"""``nse undo``: undo a round of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nse_plugin.cli.app import KEEP, command
from nse_plugin.cli.options import examples
from nse_plugin.cli.output import show


@command(KEEP, examples("nse undo run1 --round 7 --reason 'wrong source'"))
def undo(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    number: Annotated[
        int, typer.Option("--round", help="Number of the round's file round-NNNN.safetensors.")
    ],
    reason: Annotated[str, typer.Option(help="Kept in undone.json.")] = "",
) -> int:
    """Undo any one round of a run; no model is loaded."""
    from nse_plugin.runs.undo import undo_round, undone_text

    show(undone_text(run, undo_round(run, number, reason)))
    return 0
