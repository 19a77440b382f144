"""The effect of undoing a middle round on the others: the table of docs/undo.md.

    python benchmarks/undo.py [--model atlas:gpt2] [--rounds 10] [--size 10] [--undo 5] [--seeds 5]

Prints a Markdown table.  Scores are shares of prompts whose whole new answer greedy decoding gives;
other facts are those of other subjects that the untouched model knew.  "Never written" is a
second session that edits the same rounds without the one that is undone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace

from nse_plugin import NSEHparams
from nse_plugin.data import atlas
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import score_answers
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession

N_OTHER = 200


def share(session: EditSession, requests: Sequence[EditRequest], truth: bool = False) -> list[bool]:
    """Whether each request's new (or true) answer is given."""
    answers = [str(r.ground_truth) if truth else r.target_new for r in requests]
    texts = [request.text for request in requests]
    return score_answers(session.model, session.tokenizer, texts, answers).exact


def measure(
    session: EditSession, parts: list[list[EditRequest]], undone: int, known: list[EditRequest]
) -> list[float]:
    """Scores of the undone round (new, true answers), of earlier and later ones, of the rest."""
    earlier = [request for part in parts[: undone - 1] for request in part]
    later = [request for part in parts[undone:] for request in part]
    scores = [share(session, some) for some in (parts[undone - 1], earlier, later)]
    scores.insert(1, share(session, parts[undone - 1], truth=True))
    scores.append(share(session, known, truth=True))
    return [statistics.mean(score) for score in scores]


def one_seed(name: str, rounds: int, size: int, undone: int, seed: int, stats: str) -> list:
    """Scores before the undo, after it, and where the round was never written."""
    records = atlas.edit_set(rounds * size, seed=seed)
    requests = parse_records(records)
    parts = [requests[i : i + size] for i in range(0, len(requests), size)]
    others = parse_records(atlas.other_facts(records, N_OTHER, seed))
    shipped = NSEHparams.from_hparams(f"NSE/{atlas.model_dir(name).name}")
    hparams = replace(shipped, stats_dir=stats, device="cpu")
    loaded, tokenizer, _ = load_model(hparams)  # a session does not keep its model alive
    session = EditSession.of(loaded, tokenizer)
    known = [r for r, ok in zip(others, share(session, others, truth=True)) if ok]
    for part in parts:
        edit_round(session, part, hparams)
    before = measure(session, parts, undone, known)
    session.undo(undone)
    after = measure(session, parts, undone, known)
    session.undo_all()
    for part in parts[: undone - 1] + parts[undone:]:
        edit_round(session, part, hparams)
    return [before, after, measure(session, parts, undone, known)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="atlas:gpt2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--size", type=int, default=10)
    parser.add_argument("--undo", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as stats:
        runs = [
            one_seed(options.model, options.rounds, options.size, options.undo, seed, stats)
            for seed in range(options.seeds)
        ]
    print(
        f"{options.model}, {options.rounds} rounds of {options.size}, round {options.undo} undone; "
        f"mean of seeds 0 to {options.seeds - 1}\n"
    )
    print("| | before the undo | after it | never written |\n|---|---|---|---|")
    names = (
        f"edits of round {options.undo}",
        f"the true answers of round {options.undo}",
        f"edits of rounds 1 to {options.undo - 1}",
        f"edits of rounds {options.undo + 1} to {options.rounds}",
        "other facts",
    )
    for row, name in enumerate(names):
        cells = [f"{statistics.mean(run[stage][row] for run in runs):.1%}" for stage in range(3)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
