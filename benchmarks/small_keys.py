"""How small the keys of edits are, and which edits are at attention sinks: docs/methods.md.

    python benchmarks/small_keys.py smollm2-135m gemma3-270m --data counterfact.json [--limit N]
    python benchmarks/small_keys.py atlas:gpt2 --data atlas:200

Prints, for each model, quantiles of 1 / q, where q is ||k||^2 in the bare prompt over its mean
after contexts, and the prompts that ``avoid_sinks`` edits at another token than the subject's last.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import SimpleNamespace

import torch

from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.bookkeeping import rows_of
from nse_plugin.methods.registry import hparams_from
from nse_plugin.session.session import EditSession

QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
MOST = 1e6  # no bound


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="as model_name in the YAMLs")
    parser.add_argument("--data", required=True, help="as in nse run")
    parser.add_argument("--limit", type=int, help="use the first N records")
    parser.add_argument("--device", help="cpu, or the number of a GPU")
    options = parser.parse_args()
    requests = read_data(options.data, options.limit, 0)
    for name in options.models:
        model, tokenizer, _ = load_model(SimpleNamespace(model_name=name, device=options.device))
        hparams = hparams_from(name, values_for("NSE:small-keys", name))
        assert isinstance(hparams, NSEHparams)
        session = EditSession.of(model, tokenizer)
        rows = rows_of(session, requests, replace(hparams, repair_weight=MOST))
        weights = torch.tensor([one.weight for one in rows])
        shown = " ".join(
            f"{share:.2f}: {float(weights.quantile(share)):.2f}" for share in QUANTILES
        )
        moved = [request.text for request, one in zip(requests, rows) if one.past_sink]
        print(
            f"{name}: {len(rows)} edits, {len(moved)} at attention sinks; 1 / q by quantile {shown}"
        )
        for text in moved:
            print(f"    {text}")


if __name__ == "__main__":
    main()
