"""FT against torch's Adam on the model itself, written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nse_plugin.errors import HparamsError, ModelError, NotFiniteError, SessionError
from nse_plugin.hparams import FTHparams, UltraEditHparams
from nse_plugin.methods import ultraedit
from nse_plugin.methods.ft import edit_round
from nse_plugin.methods.training import Training
from nse_plugin.model.prompts import encode_request
from nse_plugin.objectives import TokenLoss, nll
from nse_plugin.objectives.token_table import TokenTable
from nse_plugin.session import queries
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.session import EditSession
from tests.tiny import bits, same_bits, some_requests, tiny_model


def hparams(**changes: Any) -> FTHparams:
    settings: dict[str, Any] = dict(
        alg_name="FT", model_name="tiny", layers=[1, 2], lr=5e-3, num_steps=6, batch_size=2
    )
    return FTHparams(**{**settings, **changes})


def literal(model, tokenizer, requests, h: FTHparams) -> None:
    """Train the model's own weights, one padded batch and one token at a time."""
    layout = EditSession.of(model, tokenizer).layout
    weights = [layout.down(layer).weight for layer in h.layers]
    before = [weight.detach().clone() for weight in weights]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is weight for weight in weights))
    adam = torch.optim.Adam(weights, lr=h.lr, betas=(h.beta1, h.beta2), weight_decay=h.weight_decay)
    for _ in range(h.num_steps):
        losses = []
        for start in range(0, len(requests), h.batch_size):
            batch = requests[start : start + h.batch_size]
            loss = torch.stack([loss_of(model, tokenizer, r, h) for r in batch]).mean()
            losses += [float(loss.detach())] * len(batch)
            if float(loss.detach()) >= h.stop_loss:
                adam.zero_grad()
                loss.backward()
                adam.step()
            if h.norm_constraint is not None:
                with torch.no_grad():
                    for weight, old in zip(weights, before):
                        bound = torch.tensor(h.norm_constraint)
                        weight.copy_(torch.minimum(torch.maximum(weight, old - bound), old + bound))
        if sum(losses) / len(losses) < h.stop_loss:
            break


def loss_of(model, tokenizer, request, h: FTHparams) -> torch.Tensor:
    prompt = tokenizer.encode(request.text)
    target = tokenizer.encode(f" {request.target_new}")
    losses = []
    for i, token in enumerate(target):
        seen = prompt if h.objective_optimization == "prompt_last" else prompt + target[:i]
        logits = model(torch.tensor([seen])).logits[0, -1]
        losses.append(F.cross_entropy(logits[None], torch.tensor([token])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective_optimization": "prompt_last", "norm_constraint": 8e-3},
        {"weight_decay": 0.1, "norm_constraint": 1e-2, "batch_size": 3, "beta1": 0.5, "beta2": 0.7},
        {"stop_loss": 4.0, "num_steps": 9, "batch_size": 1},  # some batches stop before others
    ],
    ids=["FT-M", "FT-L", "decay and bound", "stop"],
)
def test_a_round_is_adam_on_the_weights(model, tokenizer, changes):
    h, requests = hparams(**{"num_steps": 3, **changes}), some_requests(3)
    expected = tiny_model(model.config.model_type)
    literal(expected, tokenizer, requests, h)
    session = EditSession.of(model, tokenizer)
    record = edit_round(session, requests, h)
    for layer in h.layers:
        name = session.layout.down_name(layer)
        moved = expected.get_parameter(name).detach() - session.weights.original(name)
        error = (model.get_parameter(name) - expected.get_parameter(name)).detach()
        assert float(error.norm()) < 1e-4 * float(moved.norm())
    for outcome, request in zip(record.outcomes, requests):
        assert outcome.z_loss == pytest.approx(float(loss_of(model, tokenizer, request, h)), 1e-3)
        assert outcome.residual_before is None and outcome.z_steps <= h.num_steps


def test_the_ledger_holds_the_change_bit_for_bit(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    for batch in (some_requests(2), some_requests(4)[2:]):
        edit_round(session, batch, hparams())
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == flags
    other = tiny_model(model.config.model_type)
    ledger = Ledger()
    for record in session.ledger:
        ledger.append(record)
    adopted = EditSession.of(other, tokenizer)
    adopted.adopt(ledger)
    assert same_bits(model, other)
    session.undo(1)  # a change of weights can be taken back from the middle
    session.undo_all()
    assert same_bits(model, tiny_model(model.config.model_type))


def test_tables_of_rounds_without_keys_and_values(tokenizer):
    model = tiny_model("gpt2")
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams(layers=[1]))
    edit_round(session, some_requests(3)[1:], hparams(layers=[1]))
    ledger = session.ledger
    found = queries.survey(ledger)
    assert list(found.rounds["edits"]) == [1, 2]
    assert queries.requests(ledger)["residual_after"].isna().all()
    assert queries.neurons(ledger, 1)["times_written"].max() == 2
    assert found.capacity.shape == (2, 1) and len(found.overlaps[1]) == 2
    wrote = queries.who_wrote(ledger, 1, 5)
    assert list(wrote["round"]) == [1, 2] and wrote["case_id"].tolist()[0] == 0
    assert wrote["case_id"].isna().tolist() == [False, True]  # round 2 trained on two at once
    assert wrote["norm"].tolist() == pytest.approx(wrote["round_norm"].tolist())


@pytest.mark.parametrize("after", [0, 3], ids=["at once", "half-way"])
def test_an_exception_leaves_everything_as_it_was(model, tokenizer, after):
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams())
    before = bits(model)
    calls = 0

    def failing(logits, targets, reference=None):
        nonlocal calls
        calls += 1
        if calls > after:
            raise RuntimeError("no")
        return nll(logits, targets)

    failing.needs_reference = False
    with pytest.raises(RuntimeError):
        edit_round(session, some_requests(2), hparams(), failing)
    assert len(session.ledger) == 1 and not model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.requires_grad
    session.check()


def test_the_objective_is_used_told_of_the_reference_and_traced(tokenizer):
    model, requests, h = tiny_model("gpt2"), some_requests(3), hparams(num_steps=4)
    references, seen = [], []

    class Halved:
        needs_reference = True

        def __call__(self, logits, targets, reference=None):
            references.append(reference)
            loss = nll(logits, targets).train
            return TokenLoss(loss / 2, loss)  # gradients of half the loss

    class Trace:
        def record(self, owner, place, logits, targets):
            seen.append((owner.tolist(), place.tolist(), len(logits), targets.tolist()))

    session = EditSession.of(model, tokenizer)
    first = [tokenizer.encode(f" {r.target_new}") for r in requests]
    with torch.no_grad():
        start = model(torch.tensor([tokenizer.encode(requests[0].text)])).logits[0, -1]
    edit_round(session, requests, h, Halved(), Trace())
    assert torch.allclose(references[0][0], start, atol=1e-4)
    assert all(torch.equal(references[0], r) for r in references[::2])
    assert len(seen) == 2 * (4 + 1)  # two batches, before each of 4 steps and after the last
    assert seen[1][0] == [2] * len(first[2]) and seen[1][3] == first[2]
    assert seen[0][1] == [*range(len(first[0])), *range(len(first[1]))]


def test_what_does_not_fit_is_refused(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    with pytest.raises(ModelError, match="layers"):
        edit_round(session, some_requests(1), hparams(layers=[9]))
    with pytest.raises(ModelError, match="rewrite_module_tmp is 'model.layers.{}.mlp.up_proj'"):
        edit_round(
            session, some_requests(1), hparams(rewrite_module_tmp="model.layers.{}.mlp.up_proj")
        )
    template = session.layout.templates()["rewrite_module_tmp"]
    edit_round(session, some_requests(1), hparams(rewrite_module_tmp=f"{template}.weight"))
    with pytest.raises(NotFiniteError, match="lower the learning rate"):
        edit_round(session, some_requests(2), hparams(lr=1e37))
    assert len(session.ledger) == 1
    session.check()


def test_easyedits_values():
    assert hparams(norm_constraint=False).norm_constraint is None
    assert hparams(norm_constraint="5e-4").norm_constraint == 5e-4
    with pytest.raises(HparamsError, match=r"kl_factor is 1.0.*write 0.0 or leave it out"):
        hparams(kl_factor=1)
    with pytest.raises(HparamsError, match="did you mean 'prompt_last'"):
        hparams(objective_optimization="promptz_last")


def test_replay_trains_on_all_edits_so_far(model, tokenizer):
    h = hparams(replay=True, batch_size=6, num_steps=3)  # one mini-batch: no order
    requests = some_requests(4)
    changed = replace(requests[0], case_id=9, target_new="Garn")
    later = [requests[3], changed]  # the last one takes the place of the first
    expected = tiny_model(model.config.model_type)
    literal(expected, tokenizer, requests[:3], h)
    literal(expected, tokenizer, [requests[3], changed, *requests[1:3]], h)
    session = EditSession.of(model, tokenizer)
    edit_round(session, requests[:3], h)
    record = edit_round(session, later, h)
    for layer in h.layers:
        name = session.layout.down_name(layer)
        moved = expected.get_parameter(name).detach() - session.weights.original(name)
        error = (model.get_parameter(name) - expected.get_parameter(name)).detach()
        assert float(error.norm()) < 1e-3 * float(moved.norm())
    assert [(o.case_id, o.earlier_round) for o in record.outcomes] == [
        (3, None), (9, None), (1, 1), (2, 1)
    ]  # fmt: skip
    assert record.edits == 2 and [r.case_id for r in record.requests] == [3, 9, 1, 2]
    with pytest.raises(SessionError, match="round 2 wrote edits of it again"):
        session.undo(1)


def test_replay_mixes_old_and_new_and_is_the_same_again(tokenizer, monkeypatch):
    found, orders = [], []

    def watched(session, requests, *args, **named):
        orders.append([request.case_id for request in requests])
        return Training(session, requests, *args, **named)

    monkeypatch.setattr("nse_plugin.methods.ft.Training", watched)
    for _ in range(2):
        model = tiny_model("llama")
        session = EditSession.of(model, tokenizer)
        edit_round(session, some_requests(3), hparams(replay=True, num_steps=2))
        table, h = TokenTable(), hparams(replay=True, num_steps=2)
        record = edit_round(session, some_requests(6)[3:], h, trace=table)
        assert [o.case_id for o in record.outcomes] == [3, 4, 5, 0, 1, 2]
        for i, request in enumerate(some_requests(6)[3:] + some_requests(3)):
            loss = float(loss_of(model, tokenizer, request, hparams()).detach())
            assert record.outcomes[i].z_loss == pytest.approx(loss, 1e-3)
            target = encode_request(tokenizer, request, with_target=True).target_ids
            assert tuple(course.token for course in table.courses(i)) == tuple(target)
        edit_round(session, some_requests(6)[3:], h)  # the same edits, in an order of its own
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))
    first, second, third = orders[:3]
    assert orders[3:] == [first, second, third] and first == [0, 1, 2]
    assert sorted(second) == sorted(third) == list(range(6)) and second != third
    for order in (second, third):
        assert {*order[:3]} not in ({0, 1, 2}, {3, 4, 5}), "old and new come one after the other"


def test_replay_names_a_round_that_it_cannot_train_on_again(tokenizer):
    model = tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    ultraedit.edit_round(
        session,
        some_requests(1),
        UltraEditHparams(alg_name="UltraEdit", model_name="tiny", layers=[1]),
    )
    with pytest.raises(SessionError, match="round 1 was written by UltraEdit, which keeps no"):
        edit_round(session, some_requests(2)[1:], hparams(replay=True))
