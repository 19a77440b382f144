"""The knowledge of the embedded models, and scores of editing them: the table of docs/atlas.md.

    python benchmarks/atlas_quality.py [--models gpt2 llama] [--seeds 5]

Prints a Markdown table per model.  Scores are shares of prompts whose whole answer greedy decoding
gives; editing is NSE with the shipped hyperparameters.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from types import SimpleNamespace

from nse_plugin.data import atlas
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.evaluation.model_state import share_given
from nse_plugin.runs.demo import Demo
from nse_plugin.runs.settings import DemoSettings


def recall(name: str) -> list[tuple[str, str]]:
    """Rows about the knowledge of the untouched model."""
    model, tokenizer, _ = load_model(SimpleNamespace(model_name=f"atlas:{name}", device="cpu"))
    requests = parse_records(atlas.facts())
    truth = [str(request.ground_truth) for request in requests]
    hops = [
        (probe.prompt, record["answer_true"])
        for request, full in zip(requests, atlas.facts())
        for probe, record in zip(
            [p for probes in request.portability.values() for p in probes], full["portability"]
        )
    ]
    asked = {
        f"recall of the {len(requests)} facts": zip([r.text for r in requests], truth),
        "recall by a phrasing held out for that subject": zip(
            [r.rephrase_prompts[0] for r in requests], truth
        ),
    }
    if hops:
        asked[f"{len(hops)} questions that need two facts"] = hops
    return [
        (name, f"{share_given(model, tokenizer, *zip(*pairs)):.1%}")
        for name, pairs in asked.items()
    ]


def edited(name: str, edits: int, rounds: int, seeds: int) -> list[tuple[str, str]]:
    """Rows about a run: mean over seeds, and the lowest of them."""
    runs = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            settings = DemoSettings(f"atlas:{name}", edits, rounds, seed, folder)
            runs.append(Demo(settings, lambda _line: None).run()[1])
    what = f"{edits} edits in {rounds} round{'s' if rounds > 1 else ''}"
    scores = ["efficacy", "paraphrase", "other_facts"] + (["retention_first"] if rounds > 1 else [])
    rows = []
    for score in scores:
        values = [getattr(run, score) for run in runs]
        mean, low = statistics.mean(values), min(values)
        rows.append((f"{what}: {score.replace('_', ' of the ')}", f"{mean:.1%} (lowest {low:.1%})"))
    seconds = statistics.mean(run.seconds_per_edit for run in runs)
    return [*rows, (f"{what}: seconds per edit", f"{seconds:.3f}")]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(atlas.MODELS))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    columns = []
    for name in options.models:
        rows = recall(name)
        rows += edited(name, 20, 1, options.seeds) + edited(name, 200, 10, options.seeds)
        columns.append(rows)
    print(
        f"| seeds 0 to {options.seeds - 1} | "
        + " | ".join(f"atlas:{n}" for n in options.models)
        + " |"
    )
    print("|---" * (len(columns) + 1) + "|")
    for row in zip(*columns):
        print(f"| {row[0][0]} | " + " | ".join(value for _, value in row) + " |")


if __name__ == "__main__":
    main()
