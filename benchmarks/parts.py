"""CPU seconds of a round by part (values, keys, solve, write), and of a consolidation.

    nse models get smollm2-135m
    python benchmarks/parts.py [--model smollm2-135m] [--edits 100] [--round 20] [--steps N]

The facts are those of ``earth``, written in rounds with the shipped NSE settings and then solved
jointly.  ``--steps`` shortens only the search for values.  To measure a change of the package, run
this in the checkouts before and after it.
"""

from __future__ import annotations

import argparse
import time

import torch

from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data, settled
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.nse import edit_round
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession

PARTS = ("values", "keys", "solve", "write")


def line(name: str, record: RoundRecord, total: float) -> str:
    """A row of the table."""
    cells = [f"{record.seconds.get(part, 0.0):.2f}" for part in PARTS]
    return f"| {name} | {' | '.join(cells)} | {total:.2f} |"


def main() -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--round", type=int, default=20)
    parser.add_argument("--steps", type=int, help="evaluations of each value's loss at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.perf_counter = time.process_time  # other work on the machine does not count
    hparams = NSEHparams.from_hparams(f"NSE/{options.model}")
    if options.steps:
        hparams.v_num_grad_steps = options.steps
    model, tokenizer, _ = load_model(hparams)
    requests = settled("earth", read_data("earth", options.edits, 0, choose=True))
    session = EditSession.of(model, tokenizer)
    print("| CPU-s | " + " | ".join(PARTS) + " | all |")
    print("|---|" + "---:|" * (len(PARTS) + 1))
    for start in range(0, len(requests), options.round):
        began = time.process_time()
        record = edit_round(session, requests[start : start + options.round], hparams)
        name = f"round {record.number} of {len(record.requests)}"
        print(line(name, record, time.process_time() - began), flush=True)
    began = time.process_time()
    record = consolidate(session, hparams)
    name = f"consolidation of {len(record.requests)}"
    print(line(name, record, time.process_time() - began), flush=True)


if __name__ == "__main__":
    main()
