"""``nse compare``: methods side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_compare(commands: argparse._SubParsersAction) -> None:
    """Add ``compare`` to the subcommands."""
    compare = commands.add_parser(
        "compare",
        help="methods side by side on the same streams; the same command goes on",
        epilog="example: nse compare --methods NSE,NSE:one-pass,MEMIT --models atlas:gpt2 "
        "--data atlas:200 --rounds 10 --seeds 0,1,2 --engine processes --jobs 2 --out compared",
    )
    compare.add_argument(
        "--methods",
        required=True,
        help="NSE,ROME,...; NSE:no-rewinding, NSE:p=0.6, METHOD:key=value;key=value, "
        "NSE+OVERTONE; METHOD-plugin for ours inside EasyEdit",
    )
    compare.add_argument(
        "--models", default="atlas:gpt2", help="atlas:gpt2,atlas:llama, folders, or name=folder"
    )
    compare.add_argument("--data", default="atlas:200", help="a JSON file, or atlas:200 (default)")
    compare.add_argument("--rounds", type=int, default=10, help="in how many (default 10)")
    compare.add_argument("--seeds", default="0,1,2", help="of draw and order (default 0,1,2)")
    compare.add_argument("--out", default="compared", help="folder (default compared)")
    compare.add_argument("--limit", type=int, help="the first so many records")
    compare.add_argument("--order", help="given, shuffled or grouped; a file's default is shuffled")
    compare.add_argument("--every", type=int, help="measure all earlier edits every so many rounds")
    compare.add_argument("--held-out", help="text file for the perplexity, atlas or none")
    compare.add_argument("--reference", help="differences are taken to it (default the first)")
    compare.add_argument("--hparams-dir", help="METHOD/MODEL.yaml here go before shipped ones")
    compare.add_argument("--device", help="cpu, or the number of a GPU, instead of the YAMLs'")
    compare.add_argument("--stats-dir", help="folder of the statistics, instead of the YAMLs'")
    compare.add_argument("--engine", default="serial", help="serial (default), processes or ray")
    compare.add_argument("--jobs", type=int, default=1, help="cells at a time (default 1)")
    compare.add_argument("--threads", type=int, default=1, help="of torch in a cell (default 1)")
    compare.set_defaults(call=_compare)


def _compare(options: argparse.Namespace) -> int:
    from nse_plugin.compare.comparison import (
        exit_code,
        read_comparison,
        shown_tables,
        write_report,
    )

    result = read_comparison(vars(options)).run(print)
    print("\n" + shown_tables(result))
    write_report(Path(options.out), result)
    print(f"written to {options.out}: report.html, table.md, results.json, results/, cells/")
    return exit_code(result)
