"""OVERTONE's loss against a literal, slow, per-token computation in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nse_plugin.errors import HparamsError
from nse_plugin.objectives.overtone import Overtone

FULL = Overtone(lambda_=0.1, epsilon=0.05, n_sigma=0.5)
SWITCHES = ("clip", "filter", "argmax_check", "frozen_reference", "mixing")
MARGIN = 1e-9


class Undecided(Exception):
    """Rounding decides what the target is."""


def literal_target(logits: list[float], y: int, objective: Overtone) -> list[float]:
    """The target of one token, from methods.md, section 2, steps 1 to 3."""
    onehot = [float(k == y) for k in range(len(logits))]
    if not objective.mixing:
        return onehot
    finite = [s for s in logits if s > -math.inf]
    mean = sum(finite) / len(finite)
    var = sum((s - mean) ** 2 for s in finite) / max(len(finite) - 1, 1)
    top = max(logits)
    bound = top - objective.n_sigma * math.sqrt(var)
    kept = [s > bound or s == top or not objective.filter for s in logits]
    if objective.filter and any(s != top and abs(s - bound) <= MARGIN for s in logits):
        raise Undecided  # a logit lies on the bound
    weights = [math.exp(s - top) if keep else 0.0 for s, keep in zip(logits, kept)]
    candidate = [
        objective.lambda_ * one + (1 - objective.lambda_) * w / sum(weights)
        for one, w in zip(onehot, weights)
    ]
    others = [c for k, c in enumerate(candidate) if k != y]
    best = max(others, default=0.0)
    if abs(candidate[y] - best) <= MARGIN and logits[y] != top:
        raise Undecided
    return onehot if objective.argmax_check and candidate[y] < best - MARGIN else candidate


def literal(logits: list[float], y: int, objective: Overtone, reference: list[float]) -> float:
    """KL(target || pi) of one token."""
    source = reference if objective.frozen_reference else logits
    target = literal_target(source, y, objective)
    top = max(logits)
    norm = top + math.log(sum(math.exp(s - top) for s in logits))
    return sum(t * (math.log(t) - (s - norm)) for t, s in zip(target, logits) if t > 0)


@st.composite
def cases(draw):
    """Logits with ties and masked entries, targets, an objective, and a reference."""
    n, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    number = st.integers(-16, 16).map(lambda i: i / 4) | st.floats(-30, 30)
    rows = st.lists(st.lists(number, min_size=vocab, max_size=vocab), min_size=n, max_size=n)
    logits, reference = draw(rows), draw(rows)
    targets = draw(st.lists(st.integers(0, vocab - 1), min_size=n, max_size=n))
    masked = draw(st.sets(st.integers(0, vocab - 1)))
    for row, other, y in zip(logits, reference, targets):
        for k in masked - {y}:
            row[k] = other[k] = -math.inf
    objective = Overtone(
        lambda_=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]) | st.floats(0, 1)),
        epsilon=draw(st.sampled_from([0.0, 0.05, 1.0])),
        n_sigma=draw(st.sampled_from([0.0, 0.5, 1.0, 3.0, 50.0])),
        **{name: draw(st.booleans()) for name in SWITCHES},
    )
    return logits, targets, objective, reference


@given(cases())
@settings(max_examples=250, deadline=None)
def test_it_is_the_literal_formula(case):
    logits, targets, objective, reference = case
    rows = zip(logits, targets, reference)
    try:
        expected = [literal(row, y, objective, other) for row, y, other in rows]
    except Undecided:
        reject()
    loss = objective(
        torch.tensor(logits, dtype=torch.float64),
        torch.tensor(targets),
        torch.tensor(reference, dtype=torch.float64),
    )
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(loss.stop, expected, atol=1e-8, rtol=1e-8)
    floor = objective.epsilon if objective.clip else -math.inf
    torch.testing.assert_close(loss.train, expected.clamp(min=floor), atol=1e-8, rtol=1e-8)


def example(n: int = 7, vocab: int = 40, dtype: torch.dtype = torch.float64):
    """Logits [n, vocab] of which some rows know their target and some do not."""
    torch.manual_seed(1)
    logits = (3 * torch.randn(n, vocab)).to(dtype)
    targets = torch.randint(0, vocab, (n,))
    logits[::2, :] = logits[::2, :].scatter_add(
        1, targets[::2, None], torch.full((n, 1), 9.0, dtype=dtype)[::2]
    )
    return logits, targets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_whatever_the_dtype_it_is_computed_in_float32_at_least(dtype):
    logits, targets = example(dtype=dtype)
    loss = FULL(logits, targets)
    assert loss.train.dtype == loss.stop.dtype == torch.float32
    exact = FULL(logits.double(), targets)
    torch.testing.assert_close(loss.train.double(), exact.train, atol=1e-5, rtol=1e-5)
    leaf = logits.clone().requires_grad_()
    FULL(leaf, targets).train.sum().backward()
    assert leaf.grad.dtype == dtype


def test_the_gradient_against_finite_differences():
    """With a frozen reference the target does not move, so the numbers can be compared."""
    logits, targets = example()
    for switches in ({}, {"filter": False}, {"argmax_check": False}, {"clip": False}):
        frozen = replace(FULL, frozen_reference=True, **switches)
        torch.autograd.gradcheck(
            lambda leaf, objective=frozen: objective(leaf, targets, logits + 0.1).train,
            logits.clone().requires_grad_(),
        )


def test_no_gradient_flows_through_the_target():
    """The gradient is that of a frozen reference which says just what the model says now."""
    logits, targets = example()
    gradients = []
    for objective in (FULL, replace(FULL, frozen_reference=True)):
        leaf = logits.clone().requires_grad_()
        objective(leaf, targets, logits.clone()).train.sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("argmax_check", [True, False])
def test_without_a_filter_the_closed_form_equals_the_sum_over_the_vocabulary(argmax_check):
    """A frozen reference that says what the model says now is summed token by token."""
    logits, targets = example()
    unfiltered = replace(FULL, filter=False, argmax_check=argmax_check)
    losses, gradients = [], []
    for objective in (unfiltered, replace(unfiltered, frozen_reference=True)):
        leaf = logits.clone().requires_grad_()
        loss = objective(leaf, targets, logits.clone()).train
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_a_token_at_or_below_epsilon_has_no_gradient_at_all():
    logits, targets = example()
    kl = replace(FULL, clip=False)(logits, targets).stop
    for epsilon in (FULL.epsilon, float(kl[3])):  # the second: a loss that equals epsilon
        leaf = logits.clone().requires_grad_()
        loss = replace(FULL, epsilon=epsilon)(leaf, targets)
        loss.train.sum().backward()
        clipped = kl <= epsilon
        assert 0 < clipped.sum() < len(kl)
        assert torch.equal(leaf.grad[clipped], torch.zeros_like(leaf.grad[clipped]))
        assert (leaf.grad[~clipped].abs().sum(dim=1) > 1e-3).all()
        assert (loss.train[clipped] == epsilon).all() and torch.equal(loss.stop, kl)


@pytest.mark.parametrize("mixing", [True, False])
def test_lambda_one_and_epsilon_zero_is_cross_entropy_to_the_bit(mixing):
    logits, targets = example(dtype=torch.float32)
    settings_ = dict(lambda_=1.0 if mixing else 0.1, epsilon=0.0, n_sigma=0.5)
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = Overtone(**settings_, mixing=mixing)(ours, targets).train.mean()
    expected = F.cross_entropy(plain, targets, reduction="none").mean()
    loss.backward(), expected.backward()
    assert torch.equal(loss, expected) and torch.equal(ours.grad, plain.grad)


def test_a_frozen_reference_is_asked_for_and_needed():
    logits, targets = example()
    frozen = replace(FULL, frozen_reference=True)
    assert frozen.needs_reference and not FULL.needs_reference
    assert not replace(frozen, mixing=False).needs_reference
    with pytest.raises(HparamsError, match="frozen_reference is on"):
        frozen(logits, targets)


@pytest.mark.parametrize("logits", [[[0.0]], [[2.0, 2.0, 2.0]], [[-math.inf, 1.0, -math.inf]]])
def test_nothing_left_to_spread_over(logits):
    """One token, ties of all, one survivor of a masked vocabulary."""
    targets = torch.tensor([len(logits[0]) // 2])
    loss = FULL(torch.tensor(logits), targets)
    assert torch.isfinite(loss.train).all() and float(loss.train) >= FULL.epsilon


def test_what_is_not_a_number_is_not_hidden_by_the_clip():
    logits, targets = example()
    logits[1, 3] = math.nan
    loss = FULL(logits, targets)
    assert loss.train.isnan().tolist() == [i == 1 for i in range(len(logits))]


@pytest.mark.parametrize("name, value", [
    ("lambda_", -0.1), ("lambda_", 1.1), ("epsilon", -1.0), ("n_sigma", math.inf),
    ("epsilon", math.nan),
])  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(HparamsError, match=name.rstrip("_")):  # the key of the YAML
        Overtone(**{name: value})
