"""How far a consolidation depends on the order in which its edits came.

    python benchmarks/consolidation_order.py [--model atlas:gpt2] [--data atlas:60] [--size 20]

The same edits come in three orders, in rounds, and each stream is consolidated; a fourth stream is
one round of all edits.  Prints, for each edited layer, the largest norm(change - other change) /
norm(change) of two streams before and after that, and the efficacy of each stream.  What is left
after it comes from the values: a value depends by rounding, which its optimisation can enlarge, on
the requests in its batch.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch

from nse_plugin import hparams_for
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import score_answers
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession

Changes = list[torch.Tensor]
"""The change of each edited layer's matrix."""


def changes(session: EditSession, layers: Sequence[int]) -> Changes:
    """The change that the model holds now."""
    found = [session.weights.change(session.layout.down_name(layer)) for layer in layers]
    return [change.clone() for change in found if change is not None]


def efficacy(session: EditSession, requests: Sequence[EditRequest]) -> float:
    """Share of requests whose whole target greedy decoding gives."""
    texts, targets = zip(*((r.text, r.target_new) for r in requests))
    exact = score_answers(session.model, session.tokenizer, texts, targets).exact
    return sum(exact) / len(exact)


def apart(streams: Sequence[Changes]) -> list[float]:
    """The largest relative difference of two streams, by layer."""
    return [
        max(float((a - b).norm() / a.norm()) for a, b in combinations(of_layer, 2))
        for of_layer in zip(*streams)
    ]


def main() -> None:
    """Edit, consolidate and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="atlas:gpt2")
    parser.add_argument("--data", default="atlas:60")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--size", type=int, default=20, help="edits per round")
    parser.add_argument("--stats-dir")
    given = parser.parse_args()
    torch.set_num_threads(1)
    hparams = replace(hparams_for("NSE", given.model), device="cpu")
    if given.stats_dir:
        hparams = replace(hparams, stats_dir=given.stats_dir)
    requests = read_data(given.data, given.limit, 0)
    model, tokenizer, _ = load_model(hparams)
    session = EditSession.of(model, tokenizer)
    before: list[Changes] = []
    after: list[Changes] = []
    for seed in (0, 1, 2, None):
        order = list(requests)
        size = len(order) if seed is None else given.size
        if seed is not None:
            random.Random(seed).shuffle(order)
        for first in range(0, len(order), size):
            edit_round(session, order[first : first + size], hparams)
        before.append(changes(session, hparams.layers))
        said = [efficacy(session, requests)]
        consolidate(session, hparams)
        after.append(changes(session, hparams.layers))
        said.append(efficacy(session, requests))
        name = "one round" if seed is None else f"order {seed}"
        print(f"{name}: efficacy {said[0]:.1%}, consolidated {said[1]:.1%}", flush=True)
        session.undo_all()
    for layer, *found in zip(hparams.layers, apart(before), apart(after)):
        print(f"layer {layer}: {found[0]:.1e} apart, consolidated {found[1]:.1e}")


if __name__ == "__main__":
    main()
