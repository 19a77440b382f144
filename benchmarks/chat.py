"""Edit in plain text or in chat format, and ask in both: which edits are seen where?

    nse models get smollm2-135m
    python benchmarks/chat.py --model smollm2-135m --edits 60

Facts are those of ``earth`` that the model knows in plain text.  All are written in rounds of 20
with the shipped NSE settings, the weights are restored between the two streams, and the scores are
taken after the last round.
"""

from __future__ import annotations

import argparse
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data, settled
from nse_plugin.evaluation.known import keep_known
from nse_plugin.evaluation.metrics import ask, summarise
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.session.session import EditSession

SHOWN = ("efficacy", "paraphrase", "locality")
ROUND = 20


def main() -> None:
    """Print the two-by-two table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    hparams = NSEHparams.from_hparams(f"NSE/{options.model}")
    model, tokenizer, _ = load_model(hparams)
    records = read_data("earth", None, options.seed, choose=True)
    known = keep_known(model, tokenizer, records, limit=options.edits)
    requests = settled("earth", known.requests)
    formats: dict[str, Any] = {"plain": tokenizer, "chat": ChatTokenizer(tokenizer)}
    frozen = {name: ask(model, asked, requests, Protocol()) for name, asked in formats.items()}

    print(f"{len(requests)} edits of {options.model} in rounds of {ROUND}, seed {options.seed}\n")
    print("| edited in | asked in | " + " | ".join(SHOWN) + " |")
    print("|---|---|" + "---:|" * len(SHOWN))
    for edited, tokens in formats.items():
        session = EditSession.of(model, tokens)
        for start in range(0, len(requests), ROUND):
            edit_round(session, requests[start : start + ROUND], hparams)
        for name, asked in formats.items():
            scores = summarise(ask(model, asked, requests, Protocol()), frozen[name])
            cells = " | ".join(f"{100 * scores[score]:.1f}" for score in SHOWN)
            print(f"| {edited} | {name} | {cells} |", flush=True)
        session.undo_all()
        EditSession.forget(model)


if __name__ == "__main__":
    main()
