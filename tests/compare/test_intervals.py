"""Means, spread and intervals, against sums written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from nse_plugin.compare.intervals import mean_and_deviation, paired_differences, t_quantile
from nse_plugin.compare.results import SCHEMA
from nse_plugin.errors import DataError


def cell(method, seed, values, model="m", status="complete", **scores):
    """A cell whose edits have these efficacies."""
    there = [v for v in values if v is not None]
    each = [{"round": 1, "case_id": i, "efficacy": v} for i, v in enumerate(values)]
    mean = sum(there) / len(there) if there else None
    return {
        "schema": SCHEMA, "each": each, "scores": {"efficacy": mean, **scores},
        "run_info": {"model": model, "method": method, "seed": seed, "status": status},
    }  # fmt: skip


def one(found, score="efficacy"):
    (result,) = [entry for entry in found if entry["score"] == score]
    return result


def test_summary():
    cells = [cell("A", 0, [1, 0]), cell("A", 1, [1, 1]), cell("A", 2, [0, 0], status="collapsed")]
    found = one(mean_and_deviation(cells))
    assert (found["n"], found["mean"], found["min"], found["max"]) == (2, 0.75, 0.5, 1.0)
    assert found["sd"] == pytest.approx(math.sqrt(2 * 0.25**2))
    assert one(mean_and_deviation(cells[:1]))["sd"] is None


def test_bootstrap_against_every_resample():
    """Of three, three and two edits all 27 x 27 x 4 resamples are written out.

    Two seeds are alike: if they were resampled with the same draws, the interval would be wider.
    """
    base = [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5]]
    own = [[1.0, 0.0, 0.25], [1.0, 0.0, 0.25], [1.0, 0.0]]
    gaps = [[a - b for a, b in zip(x, y)] for x, y in zip(own, base)]
    means = [[sum(drawn) / len(g) for drawn in itertools.product(g, repeat=len(g))] for g in gaps]
    every = [sum(drawn) / 3 for drawn in itertools.product(*means)]
    cells = [cell("A", s, v) for s, v in enumerate(base)]
    cells += [cell("B", s, v) for s, v in enumerate(own)]
    found = one(paired_differences(cells, "A", resamples=100_000, confidence=0.8))
    assert found["mean"] == pytest.approx(sum(sum(g) / len(g) for g in gaps) / 3)
    low, high = np.quantile(every, [0.1, 0.9])
    assert found["low"] == pytest.approx(low, abs=0.02)
    assert found["high"] == pytest.approx(high, abs=0.02)
    assert (found["n_seeds"], found["n_edits"]) == (3, 8)


def test_pairs_are_what_makes_it_narrow():
    base = [float(i % 2) for i in range(40)]
    same = [cell("A", 0, base), cell("B", 0, base)]
    found = one(paired_differences(same, "A"))
    assert (found["mean"], found["low"], found["high"]) == (0, 0, 0)


def test_edits_without_the_score_and_seeds_of_one_method_only():
    cells = [
        cell("A", 0, [0.0, None, 0.0]), cell("B", 0, [1.0, 1.0, None]),
        cell("A", 1, [0.0]), cell("B", 2, [1.0]),
    ]  # fmt: skip
    found = one(paired_differences(cells, "A", resamples=100))
    assert (found["n_seeds"], found["n_edits"], found["mean"]) == (1, 1, 1.0)
    assert found["t_low"] is None
    failed = [cell("A", 0, [0.0], status="failed"), cell("B", 0, [1.0])]
    assert paired_differences(failed, "A") == []


def test_scores_of_a_whole_model_have_the_interval_over_seeds_only():
    cells = [cell("A", s, [1.0], perplexity=2.0) for s in range(3)]
    cells += [cell("B", s, [1.0], perplexity=3.0 + s) for s in range(3)]
    found = one(paired_differences(cells, "A"), "perplexity")
    assert found["low"] is None and found["mean"] == 2.0
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5%
    assert (found["t_low"], found["t_high"]) == pytest.approx((2 - half, 2 + half))


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),  # tables of Student's t
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.95, 3, 2.3534), (0.975, 4, 2.7764),
     (0.995, 9, 3.2498), (0.975, 30, 2.0423), (0.9, 101, 1.2899), (0.5, 5, 0.0)],
)  # fmt: skip
def test_t_quantile(probability, degrees, value):
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=1e-4)


def test_without_scores_of_single_edits_there_is_the_interval_over_seeds():
    """``protocol: each: false`` keeps none."""
    cells = [cell("A", s, [], perplexity=2.0) for s in range(2)]
    cells += [cell("B", s, [], perplexity=3.0 + s) for s in range(2)]
    found = one(paired_differences(cells, "A"), "perplexity")
    assert found["mean"] == 1.5 and found["low"] is None and found["t_low"] is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": {"negation": True}}, r"protocol\.negation was None, is True"),
        ({"stream": "b"}, "the requests differ"),
    ],
)
def test_cells_with_other_groups_of_scores_are_not_compared(changes, said):
    cells = [cell("A", 0, [1, 0]), cell("B", 0, [1, 1])]
    for entry in cells:
        entry["run_info"] |= {"protocol": {}, "stream": "a"}
    assert one(paired_differences(cells, "A"))["mean"] == 0.5
    cells[1]["run_info"] |= changes
    with pytest.raises(DataError, match=f"B and A were not measured in one way.*: {said}"):
        paired_differences(cells, "A")
