"""Two facts of one subject: the effect of editing the second on the first.

Pairs of edits of the embedded world that share a subject and differ in the relation, written in one
round, and in two.

    python benchmarks/same_subject.py [--model atlas-llama] [--pairs 15]
                                      [--methods NSE NSE:merged MEMIT MEMIT:merged]
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch

from nse_plugin.compare.specs import parse_method
from nse_plugin.data import atlas
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.repair import answered
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession


def pairs(n: int) -> list[list[EditRequest]]:
    """The first two edits of each of some subjects."""
    by_subject = defaultdict(list)
    for request in parse_records(atlas.edit_set(600)):
        by_subject[request.subject].append(request)
    return [found[:2] for found in by_subject.values() if len(found) > 1][:n]


def main() -> None:
    """Print a row per method: the share of edits that are in effect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="atlas-llama")
    parser.add_argument("--pairs", type=int, default=15)
    methods = ["NSE", "NSE:merged", "MEMIT", "MEMIT:merged", "AlphaEdit", "AlphaEdit:merged"]
    parser.add_argument("--methods", nargs="+", default=methods)
    given = parser.parse_args()
    torch.set_num_threads(1)
    both = pairs(given.pairs)
    first, second = ([pair[i] for pair in both] for i in (0, 1))
    print(f"{len(both)} pairs\nmethod: in one round; in two rounds: the first, the second")
    for name in given.methods:
        spec = parse_method(name)
        values = spec.values(given.model, given.model.replace("-", ":", 1))
        hparams = BASES[spec.method].hparams.from_dict(values)
        model, tokenizer, _ = load_model(hparams)
        session, edit_round = EditSession.of(model, tokenizer), BASES[spec.method].edit_round

        def share(requests: list[EditRequest], session: EditSession = session) -> float:
            return float(answered(session, requests, 4096).float().mean())

        edit_round(session, first + second, hparams)
        at_once = share(first + second)
        session.undo_all()
        edit_round(session, first, hparams)
        edit_round(session, second, hparams)
        print(f"{name}: {at_once:.1%}; {share(first):.1%}, {share(second):.1%}", flush=True)


if __name__ == "__main__":
    main()
