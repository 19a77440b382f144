"""UltraEdit against the paper's formulas in float64, one request and one token at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nse_plugin.errors import ModelError
from nse_plugin.hparams import UltraEditHparams
from nse_plugin.methods.ultraedit import edit_round
from nse_plugin.model.probe import layout_of
from nse_plugin.objectives import NLL
from nse_plugin.session.ledger_files import load_rounds, round_path, save_round
from nse_plugin.session.session import EditSession
from tests.tiny import bits, same_bits, some_requests, tiny_model


def hparams(**changes: Any) -> UltraEditHparams:
    settings: dict[str, Any] = dict(
        alg_name="UltraEdit", model_name="tiny", layers=[1, 2], lr=2e-2, batch_size=2
    )
    return UltraEditHparams(**{**settings, **changes})


def literal(model, tokenizer, rounds, h: UltraEditHparams) -> None:
    """Edit a model in float64; what is normalised are all features so far, kept as they are."""
    layout = layout_of(model)
    seen: dict[int, list[torch.Tensor]] = {layer: [] for layer in h.layers}
    for requests in rounds:
        new: dict[int, list[torch.Tensor]] = {layer: [] for layer in h.layers}
        for request in requests:
            for layer, rows in features(model, tokenizer, layout, request, h.layers).items():
                new[layer].append(rows)
        for layer, rows in new.items():
            z = torch.cat(rows)
            seen[layer].append(z)
            every = torch.cat(seen[layer])
            normal = (z - every.mean(0)) / (every.std(0) + torch.finfo(torch.float32).eps)
            hidden, d_ff = z[:, : layout.d_ff], layout.d_ff
            v = torch.stack([-h.lr * row[:d_ff].norm() ** 2 * row[d_ff:] for row in normal])
            inverse = torch.linalg.inv(hidden.T @ hidden + torch.eye(d_ff).double())
            with torch.no_grad():
                shift = inverse @ hidden.T @ v  # [d_ff, d_model]
                layout.down(layer).weight.add_(layout.to_weight(shift.T))


def features(model, tokenizer, layout, request, layers) -> dict[int, torch.Tensor]:
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(layer):
        def hook(_module, args, output):
            output.retain_grad()
            kept[layer] = (args[0], output)

        return hook

    handles = [layout.down(n).register_forward_hook(keep(n)) for n in layers]
    prompt = tokenizer.encode(request.text)
    target = tokenizer.encode(f" {request.target_new}")
    logits = model(torch.tensor([prompt + target[:-1]])).logits[0]
    F.cross_entropy(logits[len(prompt) - 1 :], torch.tensor(target), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    at = slice(len(prompt) - 1, None)
    return {
        layer: torch.cat([inputs[0, at].detach(), output.grad[0, at]], dim=1)
        for layer, (inputs, output) in kept.items()
    }


def batches():
    requests = some_requests(6)
    requests[3] = replace(requests[3], target_new="Garn, the capital of Ostrell by the old bridge")
    return requests[:2], requests[2:5], requests[5:]


def test_rounds_are_the_papers_formulas(model, tokenizer):
    h = hparams()
    expected = tiny_model(model.config.model_type).double()
    literal(expected, tokenizer, batches(), h)
    session = EditSession.of(model, tokenizer)
    for batch in batches():
        edit_round(session, batch, h)
    factors = [record.writes[0].left is not None for record in session.ledger]
    assert factors == [True, False, True]  # of many tokens the matrix is smaller
    for layer in h.layers:
        name = session.layout.down_name(layer)
        moved = expected.get_parameter(name).detach() - session.weights.original(name)
        error = model.get_parameter(name) - expected.get_parameter(name)
        assert float(moved.norm()) > 1e-3
        assert float(error.detach().norm()) < 1e-3 * float(moved.norm())


def test_a_first_round_of_one_token_says_that_it_writes_nothing(model, tokenizer, caplog):
    session, before = EditSession.of(model, tokenizer), bits(model)
    edit_round(session, [replace(some_requests(1)[0], target_new="a")], hparams())
    assert same_bits(model, before)
    assert [message.split(";")[1] for message in caplog.messages] == [
        " give the first round two edits or more"
    ]
    edit_round(session, some_requests(2)[1:], hparams())
    assert not same_bits(model, before) and len(caplog.messages) == 1


def test_how_a_round_is_cut_into_batches_is_without_effect(tokenizer):
    found = []
    for batch_size in (1, 2):
        model = tiny_model("llama")
        record = edit_round(
            EditSession.of(model, tokenizer), some_requests(2), hparams(batch_size=batch_size)
        )
        found.append(record)
    for one, other in zip(found[0].writes, found[1].writes):
        assert one.case_ids == other.case_ids and set(one.case_ids) == {0, 1}
        torch.testing.assert_close(one.change(48), other.change(48), rtol=1e-3, atol=1e-5)


def test_resumed_and_undone_to_the_bit_with_the_moments(tokenizer, tmp_path):
    first, second, third = batches()
    model = tiny_model("gpt2")
    session = EditSession.of(model, tokenizer)
    for batch in (first, second):
        save_round(tmp_path, edit_round(session, batch, hparams()))
    other = tiny_model("gpt2")
    resumed = EditSession.of(other, tokenizer)
    resumed.adopt(load_rounds([round_path(tmp_path, number) for number in (1, 2)]))
    for each in (session, resumed):
        edit_round(each, third, hparams())
    assert same_bits(model, other)

    session.undo(2)  # its features are no longer counted
    kept = [session.ledger[index].moments[1] for index in (0, 1)]
    after = session.previous_keys.moments(1)
    assert after.count == kept[0].count + kept[1].count
    assert torch.equal(after.mean, kept[0].merged(kept[1]).mean)
    session.undo_all()
    assert session.previous_keys.moments(1) is None
    assert same_bits(model, tiny_model("gpt2"))


def test_a_failure_after_the_write_leaves_everything_as_it_was(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    before = bits(model)

    class Failing(NLL):
        calls = 0

        def __call__(self, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("no")
            return super().__call__(*arguments)

    with pytest.raises(RuntimeError):
        edit_round(session, some_requests(2), hparams(), Failing())
    assert len(session.ledger) == 0
    assert same_bits(model, before)
    with pytest.raises(ModelError, match="rewrite_module_tmp is 'transformer.h.{}.attn'"):
        edit_round(session, some_requests(1), hparams(rewrite_module_tmp="transformer.h.{}.attn"))
