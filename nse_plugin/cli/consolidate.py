"""``nse consolidate``: solve all edits of a run jointly."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from nse_plugin.cli.app import KEEP, command
from nse_plugin.cli.options import AS_JSON, DEVICE, RUN, examples
from nse_plugin.cli.output import interrupt_says, note, show_result, working
from nse_plugin.errors import HparamsError
from nse_plugin.printable import counted


@command(
    KEEP,
    examples(
        "nse consolidate run1 --repair-rounds 3",
        "nse consolidate run1 --without 5 --without 7",
        "nse undo run1 --round 21",
    ),
)
def consolidate(
    run: RUN,
    device: DEVICE = None,
    repair_rounds: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Repair edits that are not in effect afterwards, up to N times; by default as "
            "often as the run's hyperparameters say.",
        ),
    ] = None,
    without: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Leave out the edits of this round, also of one inside a consolidation; can be "
            "given several times.",
        ),
    ] = None,
    as_json: AS_JSON = False,
) -> int:
    """Solve all edits of a run jointly, as one round in place of the others.

    Keys are recomputed; the stored values are reused and, without repair, not optimised again. The
    new round can be undone like any other.
    """
    from nse_plugin.runs.consolidate import can_consolidate
    from nse_plugin.runs.reading import RunFiles
    from nse_plugin.session.records import rounds_named

    files = RunFiles(run)  # an error for a folder that is not a run
    if not can_consolidate(files):
        raise HparamsError(
            f"{run} is a run of {files.method}, whose rounds cannot be consolidated; "
            "those of NSE, MEMIT and AlphaEdit can"
        )
    with interrupt_says(lambda: f"{run} is as it was before"), working() as listener:
        from nse_plugin.runs.edits import EditFolder

        folder = EditFolder(run, device=device, listener=listener)
        line = folder.consolidate(repair_rounds, without=without or ())
    left_out = f", without those of {rounds_named(without)}" if without else ""
    text = (
        f"round {line['file']} of {run} solves {counted(line['edits'], 'edit')} jointly{left_out}; "
        f"{line['answered_before']} of them were in effect before, {line['answered']} are now"
    )
    show_result(line if as_json else text)
    if line["answered"] < line["answered_before"]:
        note(f"fewer than before; undo it with: nse undo {quote(str(run))} --round {line['file']}")
    return 0
