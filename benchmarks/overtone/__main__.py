"""OVERTONE around other editors, with intervals over edits, on any model and any records.

Single edits (each from the untouched model) or sequential ones, by the number of target tokens:

    python -m benchmarks.overtone --model smollm2-135m --data zsre.json --work run-overtone \\
        --bases "LoRA, paper" FT-M NSE --strata one many --edits 25

The bases are those of ``cells.py``: ``LoRA, paper`` has the settings of the paper's LoRA, and all
others are what ships for the model in ``hparams/``; ``"LoRA, paper, stop_loss=0.05"`` changes a
setting.  ``..., EasyEdit`` is EasyEdit's own editor, tested by its own evaluator, if EASYEDIT_ROOT
names a checkout; its LoRA is plain LoRA, since PEFT 0.18 refuses its AdaLoRA, and what to compare
it with is ``'LoRA, paper, lora_type="lora"'``.  A cell (model, stratum, base, variant, kind,
seed) is a JSON file in the work folder; the same command resumes after an interruption, and
prints the tables of its cells.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import torch

from benchmarks.overtone.cells import STRATA, VARIANTS, Cell, run_cell
from benchmarks.overtone.tables import plot, tables


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overtone", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", nargs="+", required=True, help="JSON files, or atlas:N, earth:N")
    parser.add_argument("--bases", nargs="+", default=["LoRA, paper"])
    parser.add_argument(
        "--variants", nargs="+", default=["base", "full"],
        help=f"{', '.join(VARIANTS)}, or settings such as 'lambda=0.3, epsilon=0.05'",
    )  # fmt: skip
    parser.add_argument("--strata", nargs="+", choices=STRATA, default=["many", "one"])
    parser.add_argument("--kind", choices=("single", "sequential"), default="single")
    parser.add_argument("--edits", type=int, default=25, help="edits per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("run-overtone"), help="folder of cells")
    parser.add_argument("--plot", type=Path, help="write a PNG of the steps of single edits")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = {}
    for key in product(options.strata, options.bases, options.variants, options.seeds):
        edits = options.edits if options.kind == "sequential" else None
        cell = Cell(options.kind, options.model, *key, edits)
        found[cell] = run_cell(cell, options.edits, options.data, options.work)
        print(f"{cell.file} {found[cell]['seconds']:.0f} s", flush=True)
    for text in tables(found):
        print(f"\n{text}", flush=True)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
