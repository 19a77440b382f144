"""``nse inspect``: the tables, figures and page of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nse_plugin.cli.app import LOOK, command
from nse_plugin.cli.options import AS_JSON, RUN, examples
from nse_plugin.cli.output import note, show_result, show_tables


@command(
    LOOK,
    examples(
        "nse inspect run1 --html run1.html",
        "nse inspect run1 --layer 2",
        "nse inspect run1 --layer 2 --neuron 42",
        "nse inspect run1 --request 1050",
    ),
)
def inspect(
    run: RUN,
    layer: Annotated[
        int | None, typer.Option(help="Show the neurons of this layer that changed most.")
    ] = None,
    neuron: Annotated[
        int | None, typer.Option(help="With --layer: show which edits wrote this neuron.")
    ] = None,
    request: Annotated[
        str | None,
        typer.Option(metavar="CASE_ID", help="Show the outcome of this edit and what it wrote."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the figures as PNG files.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one page with everything; it works offline."),
    ] = None,
    as_json: AS_JSON = False,
) -> int:
    """Show the tables of a run, or write its figures or a page; no model is loaded."""
    from nse_plugin.report.inspection import inspect as inspect_run

    found, tables = inspect_run(
        run, note, layer=layer, neuron=neuron, request=request, plot=plot, html=html
    )
    if as_json:
        shown = [
            {"caption": table.caption, "rows": [dict(zip(table.heads, row)) for row in table.rows]}
            for table in tables
        ]
        facts = [asdict(fact) for fact in found.facts]
        show_result({"run": str(run), "status": found.status, "facts": facts, "tables": shown})
    elif (plot, html) == (None, None) or (layer, request) != (None, None):
        show_tables(*tables)
    return 0
