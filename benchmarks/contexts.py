"""The effect of context texts: edits without them, with generated and with fixed ones.

    python -m benchmarks.contexts --model smollm2-135m --data FILE [--edits 40] [--round 20]

Prints a Markdown table, row by row: NSE with the model's YAML, the same edits each time, tested
after the last round.  A prompt is read after each text, so that a value does not fit one position
only (arXiv 2202.05262, section 3.1); generated texts are the model's own, fixed
ones are in shared.py.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch

from benchmarks.shared import SENTENCES
from nse_plugin import EditSession
from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.metrics import ask, summarise
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round

PROTOCOL = Protocol(paraphrases=2, portability=0, locality=3)
ROWS = ("0", "1", "5", "1 fixed", "5 fixed")
SHOWN = ("efficacy", "paraphrase", "locality")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="earth:40")
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--round", type=int, default=20)
    parser.add_argument("--stats-dir", default="./data/stats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = values_for("NSE", options.model) | {"stats_dir": options.stats_dir}
    hparams = NSEHparams.from_dict(values)
    model, tokenizer, _ = load_model(hparams)
    session = EditSession.of(model, tokenizer)
    requests = read_data(options.data, options.edits, 0)
    before = ask(model, tokenizer, requests, PROTOCOL)
    print("| contexts | " + " | ".join(SHOWN) + " | CPU seconds per edit |\n" + "|---" * 5 + "|")
    for row in ROWS:
        number, _, kind = row.partition(" ")
        chosen = replace(hparams, n_contexts=int(number))
        if kind == "fixed":  # the session keeps texts by their number and length
            chosen = replace(chosen, context_length=20)
            session.untouched.use_contexts(chosen, SENTENCES[: int(number)])
        session.untouched.contexts(chosen)
        start = time.process_time()
        for first in range(0, len(requests), options.round):
            edit_round(session, requests[first : first + options.round], chosen)
        seconds = (time.process_time() - start) / len(requests)
        texts = {text for r in requests for text in (r.text, *r.rephrase_prompts)}
        scores = summarise(ask(model, tokenizer, requests, PROTOCOL), before, texts)
        session.undo_all()
        cells = [row, *(f"{100 * scores[name]:.1f}" for name in SHOWN), f"{seconds:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
