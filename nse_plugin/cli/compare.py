"""``nse compare``: methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import examples
from nse_plugin.cli.output import interrupt_says, show

_GRID, _MEASURED, _HOW = "What is compared", "What is measured", "How it is run"


@command(
    EDIT,
    examples(
        "nse compare --methods NSE,MEMIT --data atlas:100 --rounds 5 --seeds 0,1 --out compared",
        "nse compare --methods 'NSE,NSE:one-pass,NSE+OVERTONE' --engine processes --jobs 2",
    ),
)
def compare(
    methods: Annotated[
        str,
        typer.Option(
            help="NSE,ROME,...; variants as NSE:no-rewinding, NSE:p=0.6 or METHOD:key=value;"
            "key=value; NSE+OVERTONE; METHOD-plugin for this package's method inside EasyEdit.",
            rich_help_panel=_GRID,
        ),
    ],
    models: Annotated[
        str,
        typer.Option(
            help="atlas:gpt2,atlas:llama, model folders, or name=folder.", rich_help_panel=_GRID
        ),
    ] = "atlas:gpt2",
    data: Annotated[
        str, typer.Option(help="A JSON file, or atlas:N.", rich_help_panel=_GRID)
    ] = "atlas:200",
    rounds: Annotated[int, typer.Option(help="Number of rounds.", rich_help_panel=_GRID)] = 10,
    seeds: Annotated[
        str, typer.Option(help="Seeds of the draw and the order.", rich_help_panel=_GRID)
    ] = "0,1,2",
    limit: Annotated[
        int | None, typer.Option(help="Read at most N records.", rich_help_panel=_GRID)
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            help="Format of the records, e.g. counterfact; by default recognised.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    on_bad_record: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What to do with a record that cannot be used.", rich_help_panel=_GRID),
    ] = "stop",
    order: Annotated[
        str | None,
        typer.Option(
            help="given, shuffled or grouped; records of a file are shuffled by default.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(help="Re-test all earlier edits every N rounds.", rich_help_panel=_MEASURED),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="Text file for the perplexity, atlas or none.", rich_help_panel=_MEASURED
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Method that the others are compared with; the first one by default.",
            rich_help_panel=_MEASURED,
        ),
    ] = None,
    hparams_dir: Annotated[
        str | None,
        typer.Option(
            help="Folder with METHOD/MODEL.yaml, which override the shipped ones.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu, or the number of a GPU, instead of the YAMLs' device.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    stats_dir: Annotated[
        str | None,
        typer.Option(help="Folder of the statistics, instead of the YAMLs'.", rich_help_panel=_HOW),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="serial, processes or ray.", rich_help_panel=_HOW)
    ] = "serial",
    jobs: Annotated[int, typer.Option(help="Number of cells at a time.", rich_help_panel=_HOW)] = 1,
    threads: Annotated[
        int, typer.Option(help="Number of torch's threads in each cell.", rich_help_panel=_HOW)
    ] = 1,
    out: Annotated[
        str, typer.Option(help="Folder of the comparison.", rich_help_panel=_HOW)
    ] = "compared",
) -> int:
    """Compare methods side by side on the same streams of edits.

    The same command resumes a comparison that was interrupted; methods, models and seeds may be
    added to it.
    """
    options = dict(locals())
    from nse_plugin.compare.comparison import (
        exit_code,
        read_comparison,
        shown_tables,
        write_report,
    )

    with interrupt_says(lambda: _finished_cells(Path(out))):
        result = read_comparison(options).run(show)
    show("\n" + shown_tables(result))
    write_report(Path(out), result)
    show(f"written to {out}: report.html, table.md, results.json, results/, cells/")
    return exit_code(result)


def _finished_cells(folder: Path) -> str:
    done = sum(1 for _ in folder.glob("results/**/*.json"))
    cells = "1 finished cell is" if done == 1 else f"{done} finished cells are"
    return f"{cells} in {folder}; the same command resumes the others from their last round"
