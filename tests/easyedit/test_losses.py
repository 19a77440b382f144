"""What is put in the place of a cross entropy, and what is put back; without EasyEdit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nse_plugin.easyedit.losses import TermLoss
from nse_plugin.easyedit.snapshot import Snapshot
from nse_plugin.errors import HostError
from nse_plugin.objectives import TokenLoss, nll
from nse_plugin.objectives.overtone import Overtone
from tests.tiny import tiny_model


class Halved:
    """Trains on half the loss and reports ten times of it."""

    needs_reference = False

    def __call__(self, logits, targets, reference=None):
        loss = nll(logits, targets).train
        return TokenLoss(loss / 2, loss * 10)


def some(*shape, vocab=7, ignored=()):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, vocab, generator=generator).requires_grad_()
    targets = torch.randint(vocab, shape, generator=generator)
    for place in ignored:
        targets[place] = -100
    return logits, targets


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_it_stands_in_for_torchs_cross_entropy(reduction):
    logits, targets = some(6, ignored=[(1,), (4,)])
    ours = TermLoss(nll, "FT").cross_entropy(reduction=reduction)(logits, targets)
    torch.testing.assert_close(ours, F.cross_entropy(logits, targets, reduction=reduction))


def test_the_value_is_for_stopping_and_the_gradient_for_training():
    logits, targets = some(6)
    loss = TermLoss(Halved(), "FT").cross_entropy()(logits, targets)
    plain = F.cross_entropy(logits, targets)
    torch.testing.assert_close(loss, 10 * plain)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(plain / 2, logits)
    torch.testing.assert_close(gradient, expected)


def test_a_clipped_loss_still_falls_below_its_clip_for_the_editor():
    logits, targets = some(5)
    sure = (logits.detach() + 20 * F.one_hot(targets, 7)).requires_grad_()
    loss = TermLoss(Overtone(0.5, epsilon=0.05), "FT").cross_entropy()(sure, targets)
    assert loss < 0.01
    assert not torch.autograd.grad(loss, sure)[0].any()


def test_a_models_loss_is_the_mean_over_requests_of_the_mean_over_their_targets():
    logits, labels = some(2, 5, ignored=[(0, slice(0, 2)), (1, slice(0, 4))])
    loss = TermLoss(nll, "LoRA").loss_function(logits, labels, vocab_size=7)
    rows = [
        F.cross_entropy(logits[0, 1:4], labels[0, 2:5]),
        F.cross_entropy(logits[1, 3:4], labels[1, 4:5]),
    ]
    torch.testing.assert_close(loss, sum(rows) / 2)
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)
    again = TermLoss(nll, "LoRA").loss_function(logits, labels, 7, shift_labels=shifted)
    assert torch.equal(loss, again)


def test_target_tokens_are_counted():
    logits, targets = some(6, ignored=[(1,), (4,)])
    term = TermLoss(nll, "FT")
    term.cross_entropy()(logits, targets)
    term.since_step = 0
    term.cross_entropy()(logits, targets)
    assert (term.tokens, term.since_step) == (8, 4)


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 0.1), ("reduction", "other")])
def test_another_cross_entropy_than_the_known_one_is_refused(name, value):
    with pytest.raises(HostError, match=f"FT.*{name}.*{value}.*14cea82"):
        TermLoss(nll, "FT").cross_entropy(**{name: value})


def test_shapes_that_are_not_known_are_refused():
    logits, targets = some(2, 3)
    with pytest.raises(HostError, match=r"\(2, 3, 7\)"):
        TermLoss(nll, "FT").cross_entropy()(logits, targets)
    with pytest.raises(HostError, match="num_items_in_batch=4"):
        TermLoss(nll, "LoRA").loss_function(logits, targets, num_items_in_batch=4)


def test_a_request_without_target_tokens_is_named():
    logits, labels = some(2, 5, ignored=[(1, slice(0, 5))])
    with pytest.raises(HostError, match="cut a request off"):
        TermLoss(nll, "LoRA").loss_function(logits, labels)


def test_a_model_is_put_back_as_it_was():
    model = tiny_model("llama")
    values = {name: p.detach().clone() for name, p in model.state_dict().items()}
    modules, attributes = dict(model.named_modules()), set(vars(model))
    before = Snapshot(model)
    block = model.model.layers[1]
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    sum(p.sum() for p in block.parameters()).backward()
    before.remember(optimizer)
    optimizer.step()
    block.mlp.down_proj = nn.Identity()
    model.something, model.config.use_cache = 1, not model.config.use_cache
    model.register_forward_hook(lambda *_: None)
    model.lm_head.weight.requires_grad_(False)
    before.restore()
    assert dict(model.named_modules()) == modules and set(vars(model)) == attributes
    assert all(torch.equal(values[name], p) for name, p in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.config.use_cache is True and not model._forward_hooks
