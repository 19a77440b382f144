"""``nse overfit``: how evenly edits learn the tokens of their targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nse_plugin.cli.app import LOOK, command
from nse_plugin.cli.options import AS_JSON, MODEL, Group, examples, with_fields
from nse_plugin.cli.output import show_result, working
from nse_plugin.runs.settings import CommonSettings


@command(
    LOOK,
    examples(
        "nse overfit --hparams NSE/atlas-gpt2",
        "nse overfit --hparams OVERTONE/NSE/atlas-gpt2 --data atlas:30 --plot tokens.png",
        "nse overfit --hparams OVERTONE/LoRA/smollm2-135m --data earth:5",
    ),
)
@with_fields(Group("Records", CommonSettings, ("limit", "schema", "on_bad_record")))
def overfit(
    given: dict[str, Any],
    hparams: Annotated[str, typer.Option(help="Name or path of a method's YAML.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="Name or path of the YAML to compare with; by default OVERTONE around the "
            "method, or OVERTONE's base method."
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="A JSON file, atlas:N or earth:N.")] = "atlas:10",
    seed: Annotated[
        int, typer.Option(help="Seed that chooses the facts of atlas:N and earth:N.")
    ] = 0,
    model: MODEL = None,
    shown: Annotated[int, typer.Option(min=0, help="Number of edits shown token by token.")] = 3,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a PNG of the first edit's tokens and of the means over all edits.",
        ),
    ] = None,
    as_json: AS_JSON = False,
) -> int:
    """Show how evenly the tokens of a target are learnt, with and without OVERTONE."""
    with working() as listener:
        from nse_plugin.report.overfit import check_plot, overfit_tables, write_plot
        from nse_plugin.runs.overfit import overfit as edit_both

        listener("phase", {"name": "editing each fact alone, with both methods"})
        if plot is not None:
            check_plot(plot)
        made = edit_both(hparams, against=against, data=data, seed=seed, model=model, **given)
        found = overfit_tables(made, shown)
        if plot is not None:
            write_plot(plot, made)
            found.append(f"written to {plot}")
    for one in [[side.to_dict() for side in made.sides]] if as_json else found:
        show_result(one)
    return 0
