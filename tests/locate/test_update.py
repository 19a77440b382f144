"""Neuron selection and the solve against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nse_plugin.errors import StatisticsError
from nse_plugin.locate.update import (
    factor_if_regular,
    few_keys_right,
    select_by,
    smallest_right,
    solve_factored,
    solve_right,
)

KEYS = npst.arrays(
    np.float32, st.tuples(st.integers(1, 7), st.integers(1, 3)),
    elements=st.floats(-4, 4, width=16).map(lambda x: round(x * 4) / 4),
).filter(lambda keys: bool(np.abs(keys).sum() > 0))  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(KEYS, st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.75, 0.8, 0.95]))
def test_smallest_cover_and_largest_within(keys, p):
    mass = np.abs(keys.astype(np.float64)).sum(axis=1)
    score = torch.from_numpy(mass)
    total = mass.sum()
    subsets = [
        set(c) for k in range(1, len(mass) + 1) for c in itertools.combinations(range(len(mass)), k)
    ]

    def held(neurons):
        return mass[list(neurons)].sum()

    cover = set(select_by(score, p, "cover").tolist())
    assert held(cover) >= p * total
    assert len(cover) == min(len(s) for s in subsets if held(s) >= p * total)
    within = set(select_by(score, p, "within").tolist())
    # the largest head of the falling order that stays within p, and never none
    order = sorted(range(len(mass)), key=lambda j: -mass[j])
    heads = [k for k in range(1, len(mass) + 1) if held(order[:k]) <= p * total]
    assert len(within) == max(heads, default=1)
    assert held(within) == pytest.approx(held(order[: len(within)]))


def test_threshold_one_takes_all_neurons_also_dead_ones():
    score = torch.tensor([1.0, 0.0, 2.0])
    for rule in ("cover", "within"):
        assert select_by(score, 1.0, rule).tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_previous", [0, 5])
@pytest.mark.parametrize("with_covariance", [True, False])
def test_solve_against_float64_brute_force(n_previous, with_covariance):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(20, 20 if not with_covariance else 4, generator=generator)
    samples = torch.randn(20, 60, generator=generator)
    covariance = (samples @ samples.T / 60) if with_covariance else None
    previous = torch.randn(20, n_previous, generator=generator) if n_previous else None
    gram = None if previous is None else previous.double() @ previous.double().T
    right = solve_right(keys, covariance=covariance, weight=3.0, previous=gram, layer=1)
    system = np.zeros((20, 20))
    if covariance is not None:
        system += 3.0 * covariance.double().numpy()
    for k in [*keys.T, *(previous.T if previous is not None else [])]:
        system += np.outer(k.double(), k.double())
    expected = keys.double().numpy().T @ np.linalg.inv(system)
    np.testing.assert_allclose(right.double().numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_earlier", [0, 5])
def test_few_keys_against_float64_brute_force(n_earlier):
    """A is badly conditioned, as the second moments of real keys are."""
    generator = torch.Generator().manual_seed(0)
    keys, samples = (
        torch.randn(40, 4, generator=generator),
        torch.randn(40, 90, generator=generator),
    )
    scale = torch.logspace(0, -4, 40)[:, None]
    A = (scale * samples @ (scale * samples).T).double()
    earlier = torch.randn(40, n_earlier, generator=generator).double()
    factor = factor_if_regular(A)
    solved = [torch.cholesky_solve(k, factor) for k in (keys.double(), earlier)]
    right = few_keys_right(keys, solved[0], earlier, solved[1], layer=1)
    system = (A + earlier @ earlier.T + keys.double() @ keys.double().T).numpy()
    expected = np.linalg.solve(system, keys.double().numpy()).T
    np.testing.assert_allclose(right.double().numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("columns", [1, 7])
def test_a_factored_system_is_solved(columns):
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(30, 50, generator=generator)
    right = torch.randn(30, columns, generator=generator)
    A = samples @ samples.T
    found = solve_factored(factor_if_regular(A), right)
    expected = np.linalg.solve(A.double().numpy(), right.double().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_singular_covariance_has_no_factor():
    assert factor_if_regular(torch.zeros(3, 3)) is None


def test_all_neurons_equal_the_dense_solve():
    generator = torch.Generator().manual_seed(0)
    keys, residual = torch.randn(12, 3, generator=generator), torch.randn(5, 3, generator=generator)
    covariance = torch.eye(12) * 0.5
    every = torch.arange(12)
    right = solve_right(
        keys[every], covariance=covariance[every][:, every], weight=2.0, previous=None, layer=0
    )
    dense = residual @ keys.T @ torch.linalg.inv(2.0 * covariance + keys @ keys.T)
    torch.testing.assert_close(residual @ right, dense, rtol=1e-4, atol=1e-5)


def test_a_covariance_of_too_little_text_is_refused():
    """Rounding gives its null space tiny eigenvalues of both signs; a solve by LU would be finite
    and meaningless."""
    generator = torch.Generator().manual_seed(0)
    samples, keys = (torch.randn(40, n, generator=generator) for n in (20, 4))
    covariance = samples @ samples.T / 20
    with pytest.raises(StatisticsError, match="raise mom2_n_samples, so that its text has several"):
        solve_right(keys, covariance=covariance, weight=3.0, previous=None, layer=4)
    right = solve_right(keys, covariance=covariance, weight=3.0, previous=None, layer=4, ridge=1e-3)
    assert float(right.norm()) < 100 / float(keys.norm())


def test_a_singular_system_is_named():
    keys = torch.ones(6, 1)
    with pytest.raises(StatisticsError, match=r"system of layer 4 is singular \(6 neurons"):
        solve_right(keys, covariance=torch.zeros(6, 6), weight=1.0, previous=None, layer=4)


@pytest.mark.parametrize("n_previous", [0, 2])
def test_without_covariance_the_change_is_the_smallest_that_fits(n_previous):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(20, 4, generator=generator)
    previous = torch.randn(20, n_previous, generator=generator) if n_previous else None
    gram = None if previous is None else previous.double() @ previous.double().T
    right = solve_right(keys, covariance=None, weight=1.0, previous=gram, layer=1)
    few = smallest_right(keys, torch.zeros(20, 0) if previous is None else previous, layer=1)
    torch.testing.assert_close(few, right, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(right @ keys, torch.eye(4), atol=1e-4, rtol=1e-4)
    if previous is not None:  # earlier answers stay as they are
        torch.testing.assert_close(right @ previous, torch.zeros(4, n_previous), atol=1e-4, rtol=0)
    every = keys if previous is None else torch.cat([keys, previous], dim=1)
    expected = np.linalg.pinv(every.double().numpy())[:4]
    np.testing.assert_allclose(right.double().numpy(), expected, rtol=1e-3, atol=1e-5)
