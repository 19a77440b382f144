"""How small the keys of edits are, and which edits are at attention sinks: docs/methods.md.

    python benchmarks/small_keys.py smollm2-135m gemma3-270m --data counterfact.json [--limit N]
    python benchmarks/small_keys.py atlas:gpt2 --data atlas:200
    python benchmarks/small_keys.py smollm2-135m --data counterfact.json --spill 20

Prints, for each model, quantiles of 1 / q, where q is ||k||^2 in the bare prompt over its mean
after contexts, and the prompts that ``avoid_sinks`` edits at another token than the subject's last.

With ``--spill N`` each of these is edited alone, with NSE:stable: at its subject, and at another
token where the prompt with other subjects is spared, and where it is not.  Its paraphrases and its
prompt with the subjects of the first N records are asked: how many give the new answer, too?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch

from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.hparams import NSEHparams
from nse_plugin.locate import small_keys
from nse_plugin.methods import nse
from nse_plugin.methods.bookkeeping import rows_of
from nse_plugin.methods.registry import hparams_from
from nse_plugin.methods.repair import answered
from nse_plugin.requests import EditRequest
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
    parser.add_argument(
        "--spill", type=int, help="subjects to ask after each edit at another token"
    )
    parser.add_argument("--stats-dir", help="folder of the statistics")
    options = parser.parse_args()
    requests = read_data(options.data, options.limit, 0)
    for name in options.models:
        model, tokenizer, _ = load_model(SimpleNamespace(model_name=name, device=options.device))
        hparams = hparams_from(name, values_for("NSE:stable", name))
        assert isinstance(hparams, NSEHparams)
        hparams = replace(hparams, stats_dir=options.stats_dir)
        session = EditSession.of(model, tokenizer)
        rows = rows_of(session, requests, replace(hparams, repair_weight=MOST))
        weights = torch.tensor([one.weight for one in rows])
        shown = " ".join(
            f"{share:.2f}: {float(weights.quantile(share)):.2f}" for share in QUANTILES
        )
        moved = [request for request, one in zip(requests, rows) if one.past_sink]
        print(
            f"{name}: {len(rows)} edits, {len(moved)} at attention sinks; 1 / q by quantile {shown}"
        )
        for request in moved:
            print(f"    {request.text}")
        if options.spill and moved:
            asked = [request.subject for request in requests[: options.spill]]
            subjects = small_keys.OTHER_SUBJECTS
            for avoid, others in ((False, ()), (True, ()), (True, subjects)):
                small_keys.OTHER_SUBJECTS = others
                shown = spill(session, moved, asked, replace(hparams, avoid_sinks=avoid))
                print(
                    f"edited {'past the sink' if avoid else 'at the subject'}, {len(others)} other "
                    "subjects spared: "
                    + ", ".join(f"{what} {share:.1%}" for what, share in shown.items())
                )


def paraphrased(edit: EditRequest) -> list[EditRequest]:
    """The same edit with each of its paraphrases as prompt."""
    record = {"subject": edit.subject, "target_new": edit.target_new}
    return [EditRequest.from_dict({**record, "prompt": text}) for text in edit.rephrase_prompts]


def spill(
    session: EditSession, edits: Sequence[EditRequest], asked: Sequence[str], hparams: NSEHparams
) -> dict[str, float]:
    """Write each edit alone: the shares of prompts that then have the new answer."""
    given: dict[str, list[bool]] = {"in effect": [], "paraphrases": [], "other subjects": []}
    for edit in edits:
        nse.edit_round(session, [edit.without_probes()], hparams)
        asks = {
            "in effect": [edit],
            "paraphrases": paraphrased(edit),
            "other subjects": [
                replace(edit, subject=name) for name in asked if name != edit.subject
            ],
        }
        for what, some in asks.items():
            given[what] += answered(session, some, hparams.token_budget).tolist()
        session.undo_last()
    return {what: sum(found) / len(found) for what, found in given.items()}


if __name__ == "__main__":
    main()
