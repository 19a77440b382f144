"""``nse undo`` and ``nse export``: what becomes of finished rounds."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_undo(commands: argparse._SubParsersAction) -> None:
    """Add ``undo`` to the subcommands."""
    undo = commands.add_parser(
        "undo",
        help="take one round of a run directory back, whichever it is",
        epilog="example: nse undo run1 --round 7 --reason 'wrong source'",
    )
    undo.add_argument("run", type=Path, help="folder of nse demo or nse run")
    undo.add_argument("--round", type=int, required=True, help="number of its round-*.safetensors")
    undo.add_argument("--reason", default="", help="kept in undone.json")
    undo.set_defaults(call=_undo)


def _undo(options: argparse.Namespace) -> int:
    from nse_plugin.runs.undo import undo_round, undone_text

    print(undone_text(options.run, undo_round(options.run, options.round, options.reason)))
    return 0


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add ``export`` to the subcommands."""
    export = commands.add_parser(
        "export",
        help="write a run's edits as a LoRA adapter, as changed matrices or as a model",
        epilog="example: nse export run1 --to peft --out adapter1 --rank 32",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="folder of nse demo or nse run")
    export.add_argument("--to", required=True, choices=("peft", "delta", "full"))
    export.add_argument("--out", type=Path, required=True, help="a new folder")
    export.add_argument("--rank", type=int, help="upper bound for the adapter's rank")
    export.add_argument("--device", help="cpu, or the number of a GPU, instead of the run's")
    export.set_defaults(call=_export)


def _export(options: argparse.Namespace) -> int:
    from nse_plugin.export.of_run import export_run

    export_run(
        options.run, options.to, options.out, print, rank=options.rank, device=options.device
    )
    return 0
