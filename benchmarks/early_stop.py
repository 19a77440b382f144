"""Early stop by rank against the plain stop by loss: seconds and scores of the same edits.

Each pair of runs edits the same records in the same rounds with the same context texts; a seed
draws both the records and the contexts.

    python benchmarks/early_stop.py --data counterfact.json [--models NSE/smollm2-135m]
                                    [--edits 60] [--round-size 10] [--seeds 0 1]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.hparams import NSEHparams
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.session.session import EditSession

SCORES = ("efficacy", "paraphrase", "paraphrase_probability", "locality", "locality_probability")
QUIET = Protocol(every=0, generation=0, fluency=0, perplexity=0, portability=0, locality=3)


def one_run(session: EditSession, hparams: NSEHparams, requests: Any, size: int) -> dict[str, Any]:
    """CPU seconds and evaluations of the loss per edit, and the scores after the last round."""
    seconds = 0.0

    class Timed(SessionBackend):
        def edit(self, requests: Any, number: int) -> Any:
            nonlocal seconds
            start = time.process_time()
            written = super().edit(requests, number)
            seconds += time.process_time() - start
            return written

    session.untouched.covariances(hparams)
    with tempfile.TemporaryDirectory() as folder:
        backend = Timed(session, hparams)
        result = SequentialScheduler(backend, requests, size, QUIET, Path(folder) / "run").run()
        steps = [outcome.z_steps for record in session.ledger for outcome in record.outcomes]
    session.undo_all()
    scores = result.final["measurement"]["all"]
    return {
        "CPU-s per edit": seconds / len(requests),
        "evaluations": sum(steps) / len(steps),
        **{name: scores[name] for name in SCORES},
    }


def main() -> None:
    """Print a row per model, seed and stop as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="+", default=["NSE/smollm2-135m"])
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--round-size", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.models:
        hparams = NSEHparams.from_hparams(name)
        model, tokenizer, _ = load_model(hparams)
        session = EditSession.of(model, tokenizer)
        for seed in given.seeds:
            requests = read_data(given.data, None, seed)
            random.Random(seed).shuffle(requests)
            for stop in ("loss", "rank"):
                settings = replace(hparams, v_stop=stop, seed=seed)
                row = one_run(session, settings, requests[: given.edits], given.round_size)
                cells = "  ".join(f"{key} {value:.3f}" for key, value in row.items())
                print(f"{name}  seed {seed}  v_stop {stop}  {cells}", flush=True)


if __name__ == "__main__":
    main()
