"""CPU seconds of rounds by part (values, keys, solve, write), and of a consolidation.

    nse models get smollm2-135m
    python benchmarks/parts.py [--model smollm2-135m] [--edits 100] [--round 20] [--steps N]

The facts are those of ``earth``, written in rounds with the shipped NSE settings and then solved
jointly.  *Padding* is the number of tokens that each step of the search for values computes, for
each token of the requests' tails, from the edited token to the end of the answer.  ``--steps``
shortens only this search.  To measure a change of the package, run this in the checkouts before and
after it.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from unittest import mock

import torch

from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data, settled
from nse_plugin.hparams import NSEHparams
from nse_plugin.locate import values
from nse_plugin.locate.rows import Rows
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.nse import edit_round
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession

PARTS = ("values", "keys", "solve", "write")


_cut = values._batches


class Padding:
    """Counts the tokens that a step of the search for values computes and needs."""

    def __init__(self) -> None:
        self.computed = self.needed = 0

    def batches(self, rows: Sequence[Rows], token_budget: int) -> list[list[int]]:
        """The batches of a round's requests."""
        found = _cut(rows, token_budget)
        for batch in found:
            tails = [rows[i].tail for i in batch]
            self.computed += len(tails) * max(tails)
            self.needed += sum(tails)
        return found


def line(name: str, record: RoundRecord, padding: str, total: float) -> str:
    """A row of the table."""
    cells = [f"{record.seconds.get(part, 0.0):.2f}" for part in PARTS]
    return f"| {name} | {' | '.join(cells)} | {total:.2f} | {padding} |"


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
    print("| CPU-s | " + " | ".join(PARTS) + " | all | padding |")
    print("|---|" + "---:|" * (len(PARTS) + 2))
    for start in range(0, len(requests), options.round):
        began, padding = time.process_time(), Padding()
        with mock.patch.object(values, "_batches", padding.batches):
            record = edit_round(session, requests[start : start + options.round], hparams)
        name = f"round {record.number} of {len(record.requests)}"
        ratio = f"{padding.computed / padding.needed:.2f}"
        print(line(name, record, ratio, time.process_time() - began), flush=True)
    began = time.process_time()
    record = consolidate(session, hparams)
    name = f"consolidation of {len(record.requests)}"
    print(line(name, record, "", time.process_time() - began), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    print(f"\nhighest memory: {peak:.1f} GiB")


if __name__ == "__main__":
    main()
