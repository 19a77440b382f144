"""Which real facts a model knows: the table of docs/earth.md.

    python benchmarks/earth_known.py smollm2-135m [MODEL ...]

Prints a Markdown table: for each relation the share of its facts whose whole answer greedy decoding
gives after the prompt.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from nse_plugin.data import earth
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.evaluation.known import Known, keep_known


def knows(name: str, device: str | None) -> Known:
    """What a model knows of all facts that may be edited."""
    model, tokenizer, _ = load_model(SimpleNamespace(model_name=name, device=device))
    return keep_known(model, tokenizer, parse_records(earth.facts()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as model_name in the YAMLs")
    parser.add_argument("--device", help="cpu, or the number of a GPU")
    options = parser.parse_args()
    found = {name: knows(name, options.device) for name in options.models}
    print(f"| relation | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for name, relation in earth.relations().items():
        counts = [
            (known.kept.get(relation.prompt, 0), known.asked[relation.prompt])
            for known in found.values()
        ]
        cells = [f"{kept} of {asked} ({kept / asked:.0%})" for kept, asked in counts]
        print(f"| {name} | {' | '.join(cells)} |")
    sums = [(len(known.requests), sum(known.asked.values())) for known in found.values()]
    cells = [f"{kept} of {asked} ({kept / asked:.0%})" for kept, asked in sums]
    print(f"| **all** | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
