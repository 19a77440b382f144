"""The differences between EasyEdit's methods and ours without their known causes.

    EASYEDIT_ROOT=... python benchmarks/easyedit_differences.py MEMIT \
        --model gpt2-xl/atlas-gpt2 --stats-dir statistics

ROME, MEMIT, AlphaEdit: both write the same rounds with *our* context texts; printed are scores and
the distance of the weights, relative to what was written.  GRACE: EasyEdit's codebook is asked as
the last edit left it, and at each prompt's own last token.  One method per process: EasyEdit keeps
state in its modules.  See docs/results/easyedit.md for folder and statistics.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from nse_plugin.compare.hosts import editor_of, recipe
from nse_plugin.compare.plan import Cell, ModelSpec
from nse_plugin.compare.pool import ModelPool
from nse_plugin.compare.settings import CompareSettings
from nse_plugin.compare.specs import parse_method
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.model_state import share_given
from nse_plugin.runs.backends import Backend, backend_of
from nse_plugin.session.session import EditSession

MODULES = {
    "ROME": "easyeditor.models.rome.rome_main",
    "MEMIT": "easyeditor.models.memit.memit_main",
    "AlphaEdit": "easyeditor.models.alphaedit.AlphaEdit_main",
}


def cell_of(entry: str, options: argparse.Namespace) -> Cell:
    """The cell that a comparison would have."""
    stats = None if options.stats_dir is None else os.path.abspath(options.stats_dir)
    settings = CompareSettings(
        methods=entry, data=f"atlas:{options.edits}", rounds=options.rounds, out=os.getcwd(),
        stats_dir=stats,
    )  # fmt: skip
    return Cell(parse_method(entry), ModelSpec.parse(options.model), 0, settings)


def edit(backend: Backend, requests: list[Any], rounds: int) -> dict[str, torch.Tensor]:
    """Write all rounds; the weights that changed."""
    size = -(-len(requests) // rounds)
    for number, first in enumerate(range(0, len(requests), size), start=1):
        backend.edit(requests[first : first + size], number)
    model = backend.model
    return {name: model.get_parameter(name).detach().clone() for name in backend.originals()}


def scores(backend: Backend, requests: list[Any]) -> str:
    """Efficacy and paraphrase, as words."""
    asked = [(r.text, r.target_new) for r in requests]
    said = [(text, r.target_new) for r in requests for text in r.rephrase_prompts[:2]]
    efficacy, paraphrase = (
        share_given(backend.model, backend.tokenizer, *zip(*pairs)) for pairs in (asked, said)
    )
    return f"efficacy {efficacy:.1%}, paraphrase {paraphrase:.1%}"


def same_contexts(options: argparse.Namespace, requests: list[Any]) -> None:
    """Ours and EasyEdit's with our contexts."""
    ours, theirs = (cell_of(options.method + end, options) for end in ("-plugin", ""))
    pool = ModelPool()
    with pool.lend(recipe(ours).hparams) as (model, tokenizer):
        hparams = recipe(ours).hparams
        backend = backend_of(EditSession.of(model, tokenizer), hparams)
        contexts = [f"{text}{{}}" for text in backend.prepare(None)]
        got = edit(backend, requests, options.rounds)
        originals = {name: t.clone() for name, t in backend.originals().items()}
        print(f"{options.method}-plugin: {scores(backend, requests)}")
    with pool.lend(recipe(theirs).hparams) as (model, tokenizer):
        editor, _ = editor_of(recipe(theirs), model, tokenizer)
        templates = ["{}", *contexts] if options.method == "ROME" else [["{}"], contexts]
        importlib.import_module(MODULES[options.method]).CONTEXT_TEMPLATES_CACHE = templates
        backend = backend_of(editor)
        expected = edit(backend, requests, options.rounds)
        print(f"{options.method}: {scores(backend, requests)}")
    for name, tensor in expected.items():
        written = (tensor - originals[name]).norm()
        print(f"{name}: difference {float((got[name] - tensor).norm() / written):.1e} of the write")


def asked_at_its_own_token(options: argparse.Namespace, requests: list[Any]) -> None:
    """EasyEdit's GRACE, where it looks for a key."""
    cell = cell_of("GRACE", options)
    with ModelPool().lend(recipe(cell).hparams) as (model, tokenizer):
        editor, _ = editor_of(recipe(cell), model, tokenizer)
        backend = backend_of(editor)
        edit(backend, requests, options.rounds)
        print(f"GRACE, as the last edit left it: {scores(backend, requests)}")
        adapter = next(m for m in model.modules() if type(m).__name__ == "GRACEAdapter")
        found = []
        for request in requests:
            adapter.key_id = len(tokenizer(request.text)["input_ids"]) - 1
            found.append(share_given(model, tokenizer, [request.text], [request.target_new]))
        print(f"GRACE, at each prompt's last token: efficacy {sum(found) / len(found):.1%}")


def main() -> None:
    """Read the options and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=[*MODULES, "GRACE"])
    parser.add_argument("--model", default="atlas:gpt2")
    parser.add_argument("--stats-dir")
    parser.add_argument("--edits", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if Path(options.model).is_dir():
        options.model = os.path.abspath(options.model)
    options.stats_dir = None if options.stats_dir is None else os.path.abspath(options.stats_dir)
    requests = read_data(f"atlas:{options.edits}", None, 0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # EasyEdit writes there
        compared = asked_at_its_own_token if options.method == "GRACE" else same_contexts
        compared(options, requests)
        os.chdir("/")


if __name__ == "__main__":
    main()
