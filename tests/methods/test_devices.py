"""Every method on every device: rounds are written, stored, resumed and undone to the bit.

What they write is compared with formulas in float64, mostly on the CPU, in the tests of each.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nse_plugin.compare.specs import parse_method
from nse_plugin.evaluation.metrics import ask
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams import SpreadHparams
from nse_plugin.hparams.overtone import OvertoneHparams
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.registry import find_method
from nse_plugin.session.ledger_files import load_rounds, save_round
from nse_plugin.session.session import EditSession
from tests.methods.brute import hparams_of, three_rounds
from tests.tiny import some_requests, tiny_model

SETTINGS: dict[str, dict[str, Any]] = {
    "NSE": {},
    "MEMIT": {},
    "AlphaEdit": {"nullspace_threshold": 1e3},  # of the tiny model's keys, most are busy
    "ROME": {"layers": [2]},
    "FT": {"layers": [1, 2], "num_steps": 2, "lr": 5e-3, "replay": True},
    "UltraEdit": {"layers": [1, 2], "batch_size": 2, "lr": 2e-2},
    "GRACE": {"inner_params": ["transformer.h[2].mlp.c_fc.weight"], "n_iter": 3},
    "LoRA": {"target_modules": ["c_attn"], "num_steps": 2, "rank": 2},
}


def hparams_for(name: str, folder: Any) -> Any:
    """Hyperparameters of a method, or of OVERTONE around it, that need little time."""
    kind = BASES[name.removesuffix("+OVERTONE")].hparams
    settings = SETTINGS[kind.method]
    if hasattr(kind, "mom2_dataset"):
        base = hparams_of(kind, **{"stats_dir": str(folder), **settings})
    else:
        base = kind(alg_name=kind.method, model_name="tiny", **settings)
    return OvertoneHparams.wrap(base) if name.endswith("+OVERTONE") else base


def said(session: EditSession, tokenizer: Any) -> torch.Tensor:
    """Logits at the end of the prompts, one by one."""
    texts = [tokenizer(r.text, return_tensors="pt").input_ids for r in some_requests(6)]
    device = session.layout.input_device
    with torch.no_grad():
        return torch.cat([session.model(ids.to(device)).logits[:, -1] for ids in texts])


@pytest.mark.parametrize("name", [*SETTINGS, "NSE+OVERTONE", "FT+OVERTONE", "LoRA+OVERTONE"])
def test_rounds_are_resumed_and_undone_to_the_bit(name, tokenizer, tmp_path, device):
    hparams = hparams_for(name, tmp_path)
    edit_round = find_method(hparams.alg_name).edit_round
    model, other = (device.put(tiny_model("gpt2")) for _ in range(2))
    session, resumed = (EditSession.of(each, tokenizer) for each in (model, other))
    before, files = said(session, tokenizer), []
    first, second, third = three_rounds()
    for requests in (first, second):
        files.append(save_round(tmp_path, edit_round(session, requests, hparams)).path)
    resumed.adopt(load_rounds(files))
    for each in (session, resumed):
        edit_round(each, third, hparams)
    after = said(session, tokenizer)
    assert torch.isfinite(after).all() and not torch.equal(after, before)
    assert torch.equal(after, said(resumed, tokenizer))
    session.undo_all()
    assert torch.equal(said(session, tokenizer), before)


@pytest.mark.parametrize(
    "name", ["NSE:stable", "MEMIT:previous-keys;stable", "AlphaEdit:consolidated;small-keys;merged"]
)
def test_a_long_stream_is_consolidated_and_undone_to_the_bit(name, tokenizer, tmp_path, device):
    """With repairs, small keys, other tokens and texts about the subjects."""
    spec = parse_method(name)
    kind: type[SpreadHparams] = BASES[spec.method].hparams  # type: ignore[assignment]
    few = {"consolidate_every_edits": 4, "kl_texts": 1, "stats_dir": str(tmp_path)}
    hparams = hparams_of(kind, **{**SETTINGS[spec.method], **spec.changes, **few})
    model = device.put(tiny_model("gpt2"))
    session = EditSession.of(model, tokenizer)
    before = said(session, tokenizer)
    for requests in three_rounds():
        BASES[spec.method].edit_round(session, requests, hparams)
    written = said(session, tokenizer)
    record = consolidate(session, hparams, without=[1])
    assert record.edits == 4 and not torch.equal(said(session, tokenizer), written)
    answered = ask(model, tokenizer, some_requests(6), Protocol())
    assert [len(each["rewrite"]) for each in answered] == [1] * 6
    session.undo(record.number)
    assert torch.equal(said(session, tokenizer), written)
    session.undo_all()
    assert torch.equal(said(session, tokenizer), before)
