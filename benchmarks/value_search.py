"""The cost of finding the values: Adam, its early stop, Polyak's steps, and a margin.

For each kind of search the values of all edits in the untouched model, then the scores after the
same edits in the same rounds with the same context texts; a seed draws records and contexts.

    python benchmarks/value_search.py --data counterfact.json [--model smollm2-135m]
                                      [--edits 60] [--round-size 10] [--seeds 0 1]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.hparams import NSEHparams
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import compute_values
from nse_plugin.objectives import nll
from nse_plugin.requests import EditRequest
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.session.session import EditSession

ADAM = {"smollm2-135m": {"v_num_grad_steps": 20, "v_lr": 0.5}}
"""Adam's settings, set by hand, of models whose YAMLs have Polyak's steps."""
POLYAK = {"v_optimizer": "polyak", "v_stop": "loss", "v_num_grad_steps": 12}
SCORES = ("efficacy", "paraphrase", "locality")
QUIET = Protocol(every=0, generation=0, fluency=0, perplexity=0, portability=0, locality=3)


def searches(model: str) -> dict[str, dict[str, Any]]:
    """Changes to the settings of a model's YAML, by the name of the search."""
    adam = {"v_optimizer": "adam", "value_margin": 0.0, **ADAM.get(model, {})}
    return {
        "Adam": {**adam, "v_stop": "loss"},
        "Adam, stop by rank": {**adam, "v_stop": "rank"},
        "Polyak": {**POLYAK, "value_margin": 0.0},
        "Polyak, margin 0.25": {**POLYAK, "value_margin": 0.25},
    }


def found(
    session: EditSession, hparams: NSEHparams, requests: Sequence[EditRequest]
) -> dict[str, float]:
    """Of the values of all requests: cost per edit, mean loss, and how far they are from h."""
    contexts = session.untouched.contexts(hparams)
    rows = encode_round(session.layout, session.tokenizer, requests, contexts)
    start = time.process_time()
    values = compute_values(session.layout, rows, hparams, nll).lengthened(hparams)
    seconds = time.process_time() - start
    distance = (values.z - values.base).norm(dim=1) / values.base.norm(dim=1)
    return {
        "evaluations": float(values.steps.float().mean()),
        "CPU-s per edit": seconds / len(requests),
        "loss": float(values.loss.mean()),
        "||delta|| / ||h||": float(distance.mean()),
    }


def scores(
    session: EditSession, hparams: NSEHparams, requests: Sequence[EditRequest], size: int
) -> dict[str, float]:
    """What the edits score after the last round."""
    with tempfile.TemporaryDirectory() as folder:
        backend = SessionBackend(session, hparams)
        result = SequentialScheduler(backend, requests, size, QUIET, Path(folder) / "run").run()
    session.undo_all()
    return {name: result.final["measurement"]["all"][name] for name in SCORES}


def main() -> None:
    """Print a row per seed and kind of search as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--round-size", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    hparams = NSEHparams.from_hparams(f"NSE/{given.model.replace(':', '-')}")
    model, tokenizer, _ = load_model(hparams)
    session = EditSession.of(model, tokenizer)
    for seed in given.seeds:
        requests = read_data(given.data, None, seed)
        random.Random(seed).shuffle(requests)
        requests = requests[: given.edits]
        for name, changes in searches(given.model).items():
            settings = replace(hparams, seed=seed, **changes)
            row = found(session, settings, requests)
            row |= scores(session, settings, requests, given.round_size)
            cells = "  ".join(f"{key} {value:.3f}" for key, value in row.items())
            print(f"{given.model}  seed {seed}  {name:19}  {cells}", flush=True)


if __name__ == "__main__":
    main()
