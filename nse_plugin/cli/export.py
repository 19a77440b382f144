"""``nse export``: write the edits of a run in a format that other tools load."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from nse_plugin.cli.app import KEEP, command
from nse_plugin.cli.options import AS_JSON, DEVICE, RUN, examples
from nse_plugin.cli.output import show_result, show_tables, working
from nse_plugin.table import Table


@command(
    KEEP,
    examples(
        "nse export run1 --to peft --out adapter1 --max-rank 32",
        "nse export run1 --to full --out m1",
    ),
)
def export(
    run: RUN,
    to: Annotated[
        Literal["peft", "delta", "full"],
        typer.Option(help="A LoRA adapter, the changed matrices only, or a whole model."),
    ],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    rank: Annotated[
        int | None,
        typer.Option("--max-rank", "--rank", help="Largest rank of the adapter; exact without it."),
    ] = None,
    equal_ranks: Annotated[
        bool,
        typer.Option(help="Pad all layers of the adapter to one rank, as most servers want it."),
    ] = True,
    device: DEVICE = None,
    as_json: AS_JSON = False,
) -> int:
    """Write a run's edits as a LoRA adapter, as changed matrices or as a model."""
    from nse_plugin.runs.reading import RunFiles

    RunFiles(run)  # an error for a folder that is not a run, before torch is imported
    with working() as listener:
        from nse_plugin.export.of_run import export_run

        exported = export_run(
            run, to, out, rank=rank, equal_ranks=equal_ranks, device=device, listener=listener
        )
    if as_json:
        show_result(asdict(exported))
        return 0
    if exported.layers:
        rows = tuple(
            (str(fit.layer), str(fit.rank), str(fit.full_rank), f"{fit.relative_error:.2e}")
            for fit in exported.layers
        )
        heads = ("layer", "rank", "of", "relative error")
        show_tables(Table("Ranks of the adapter", heads, rows, (True,) * 4))
    show_result(exported.text())
    return 0
