"""How much text the covariance needs: scores of edits against the number of tokens.

    python benchmarks/statistics_tokens.py --model MODEL --data FILE [--source factbook]
        [--texts 10 25 50 100 250 600] [--edits 40] [--round 10]

Prints a Markdown table, row by row.  The same edits are written with statistics over more and more
text, from an untouched model each time.  NSE optimises its values with the untouched model, so they
do not depend on the covariance and are computed once.  Settings: layers 4 to 8, v_lr 0.5, 15 steps,
lambda 300, no bounds, one context text.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from nse_plugin import NSEHparams
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.metrics import ask, summarise
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.methods.nse import edit_round
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.covariance import second_moments

SHOWN = ("efficacy", "paraphrase", "locality")


def settings(options: argparse.Namespace, stats_dir: str) -> NSEHparams:
    """Hyperparameters that work on SmolLM2-135M."""
    return NSEHparams(
        alg_name="NSE",
        model_name=options.model,
        device="cpu",
        layers=[4, 5, 6, 7, 8],
        v_lr=0.5,
        v_num_grad_steps=15,
        clamp_norm_factor=0.75,
        kl_factor=0.0625,
        mom2_update_weight=300.0,
        n_contexts=1,
        mom2_dataset=options.source,
        stats_dir=stats_dir,
    )


def one_row(
    session: EditSession,
    requests: Sequence[EditRequest],
    before: list[Any],
    hparams: NSEHparams,
    size: int,
) -> str:
    """Statistics over ``size`` texts, all edits, their scores at the end."""
    start = time.process_time()
    moments = second_moments(
        session.layout,
        session.tokenizer,
        hparams.layers,
        source=hparams.mom2_dataset,
        n_samples=hparams.mom2_n_samples,
        stats_dir=hparams.stats_dir,
        recompute=True,
    )
    seconds = time.process_time() - start
    for first in range(0, len(requests), size):
        edit_round(session, requests[first : first + size], hparams)
    scores = summarise(ask(session.model, session.tokenizer, requests, PROTOCOL), before)
    session.undo_all()
    one = moments[hparams.layers[0]]
    shares = [f"{100 * scores[name]:.1f}" for name in SHOWN]
    cells = [one.n_samples, one.count, f"{seconds:.0f}", *shares]
    return "| " + " | ".join(map(str, cells)) + " |"


PROTOCOL = Protocol(paraphrases=1, portability=0, locality=2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="earth:40")
    parser.add_argument("--source", default="factbook")
    parser.add_argument("--texts", type=int, nargs="+", default=[10, 25, 50, 100, 250, 600])
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--round", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        hparams = settings(options, folder)
        model, tokenizer, _ = load_model(hparams)
        session = EditSession.of(model, tokenizer)
        session.untouched.keep_values()  # only the covariance changes between rows
        requests = read_data(options.data, options.edits, 0)
        before = ask(session.model, session.tokenizer, requests, PROTOCOL)
        print("| texts | tokens | CPU seconds | " + " | ".join(SHOWN) + " |\n" + "|---" * 6 + "|")
        for number in options.texts:
            row = one_row(
                session, requests, before, replace(hparams, mom2_n_samples=number), options.round
            )
            print(row, flush=True)


if __name__ == "__main__":
    main()
