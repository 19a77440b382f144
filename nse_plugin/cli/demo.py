"""``nse demo``: a run on the embedded world, as a first look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import examples
from nse_plugin.cli.output import show


@command(EDIT, examples("nse demo", "nse demo --model atlas:llama --edits 200 --out run1"))
def demo(
    model: Annotated[
        str, typer.Option(help="Embedded model: atlas:gpt2 or atlas:llama.")
    ] = "atlas:gpt2",
    edits: Annotated[int, typer.Option(help="Number of facts to edit.")] = 100,
    rounds: Annotated[int, typer.Option(help="Number of rounds they are edited in.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed that chooses the facts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("run-demo"),
) -> int:
    """Edit facts of an embedded world in rounds and measure after each."""
    from nse_plugin.runs.demo import Demo

    summary = Demo(model, edits, rounds, seed, out, show).run()
    show(
        f"\nafter {summary.rounds} rounds: efficacy {summary.efficacy:.1%}, "
        f"paraphrase {summary.paraphrase:.1%}, untouched facts {summary.untouched:.1%}, "
        f"first round {summary.retention_first:.1%}, {summary.seconds_per_edit:.3f} s per edit"
    )
    show(f"written to {out}: summary.json, rounds.jsonl, manifest.json, round-*.safetensors")
    return 0
