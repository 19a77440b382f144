"""Spread over seeds, and paired differences to a reference method with confidence intervals.

There are two intervals, since a comparison usually has few seeds:

* the bootstrap resamples *edits within each seed* (paired: the same edits of both methods), and
  takes percentiles of the mean of the seeds' mean differences.  It tells how much the difference
  would vary with other facts in the same number of runs, but not the variation between runs;
* Student's t over the seeds' mean differences tells how much it would vary with other runs.  With 3
  seeds (2 degrees of freedom) it is 4.3 standard errors wide to either side.

Edits of one run disturb each other, so the bootstrap is slightly too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nse_plugin.compare.results import ENDED, CellResult, Difference, ScoreSummary
from nse_plugin.errors import DataError
from nse_plugin.runs.differences import differences

CONFIDENCE = 0.95
RESAMPLES = 10_000

Cells = Sequence[CellResult]


def mean_and_deviation(cells: Cells) -> list[ScoreSummary]:
    """Mean, sd, least and greatest over seeds, of every score of the cells that ended."""
    found: list[ScoreSummary] = []
    for (model, method), group in _by(cells, "model", "method", ended=ENDED).items():
        names = dict.fromkeys(name for cell in group for name in cell["scores"])
        for name in names:
            values = [v for cell in group if (v := cell["scores"].get(name)) is not None]
            found.append({
                "model": model, "method": method, "score": name, "n": len(values),
                "mean": float(np.mean(values)) if values else None,
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "min": min(values, default=None), "max": max(values, default=None),
            })  # fmt: skip
    return found


def paired_differences(
    cells: Cells,
    reference: str,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> list[Difference]:
    """Differences of each method's scores from the reference's, on the seeds that both completed.

    All methods and scores of a model are resampled with the same draws.

    Raises:
        DataError: two cells differ in their data or protocol.
    """
    found: list[Difference] = []
    for (model,), group in _by(cells, "model").items():
        by_method = _by(group, "method")
        base = {c["run_info"]["seed"]: c for c in by_method.get((reference,), [])}
        draws = {s: _Draws(cell, s, resamples) for s, cell in base.items()}
        for (method,), own in by_method.items():
            if method == reference:
                continue
            seeds = {c["run_info"]["seed"]: c for c in own}
            pairs = {seed: (c, base[seed]) for seed, c in seeds.items() if seed in base}
            for mine, theirs in pairs.values():
                _refuse_unlike(mine, theirs)
            for name in dict.fromkeys(
                name for mine, _ in pairs.values() for name in mine["scores"]
            ):
                found.append(_difference(model, method, reference, name, pairs, draws, confidence))
    return found


def _refuse_unlike(own: CellResult, base: CellResult) -> None:
    """Raise :class:`DataError` if two cells were not measured in the same way."""
    for key in ("data", "order", "protocol", "stream"):
        found = differences(base["run_info"].get(key), own["run_info"].get(key), key)
        if found:
            raise DataError(
                f"{own['run_info']['method']} and {base['run_info']['method']} were not measured "
                f"in one way, so they cannot be compared: {'; '.join(found[:4])}. Run both with "
                "the same data and protocol"
            )


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, by bisection of its distribution function.

    Args:
        probability: 0.5 to below 1.
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, degrees: int) -> float:
    """Abramowitz and Stegun 26.7.3 (odd) and 26.7.4 (even): a finite sum in theta."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1, degrees // 2 + 1):
        total += term
        term *= cosine**2 * (2 * k) / (2 * k + 1) if odd else cosine**2 * (2 * k - 1) / (2 * k)
    area = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return 0.5 + area / 2


class _Draws:
    """How often each edit of a seed is drawn in each resample: [resamples, edits]."""

    def __init__(self, cell: CellResult, stream: int, resamples: int) -> None:
        self.edits = [_key(entry) for entry in cell["each"]]
        n = len(self.edits)
        generator = np.random.default_rng([0, stream])
        share = np.full(n, 1 / max(n, 1))
        self.counts = (
            generator.multinomial(n, share, size=resamples) if n else np.zeros((resamples, 0))
        )


def _difference(
    model: str,
    method: str,
    reference: str,
    score: str,
    pairs: Mapping[int, tuple[CellResult, CellResult]],
    draws: Mapping[int, _Draws],
    confidence: float,
) -> Difference:
    means, resampled, n_edits = [], [], 0
    for stream, (own, base) in pairs.items():
        gaps = _gaps(own, base, score, draws[stream])
        if gaps is None:  # a score of the whole cell, such as perplexity
            gap = _gap(own["scores"].get(score), base["scores"].get(score))
            means += [] if math.isnan(gap) else [gap]
            continue
        there = ~np.isnan(gaps)
        means.append(float(gaps[there].mean()))
        n_edits += int(there.sum())
        counts = draws[stream].counts
        weights = counts[:, there].sum(axis=1)
        with np.errstate(invalid="ignore"):
            resampled.append(counts[:, there] @ gaps[there] / weights)
    low = high = None
    if resampled and len(resampled) == len(means):
        tail = (1 - confidence) / 2
        low, high = map(float, np.nanquantile(np.mean(resampled, axis=0), [tail, 1 - tail]))
    t_low, t_high = _t_interval(means, confidence)
    return {
        "model": model, "method": method, "reference": reference, "score": score,
        "n_seeds": len(means), "n_edits": n_edits,
        "mean": float(np.mean(means)) if means else None,
        "low": low, "high": high, "t_low": t_low, "t_high": t_high, "confidence": confidence,
    }  # fmt: skip


def _gap(mine: float | None, theirs: float | None) -> float:
    """The difference; NaN if one of the two is missing."""
    return math.nan if mine is None or theirs is None else mine - theirs


def _gaps(own: CellResult, base: CellResult, score: str, draws: _Draws) -> np.ndarray | None:
    """Differences edit by edit, [edits]; None if no edit has the score."""
    mine, theirs = ({_key(e): e.get(score) for e in cell["each"]} for cell in (own, base))
    found = [_gap(mine.get(key), theirs[key]) for key in draws.edits]
    return None if all(map(math.isnan, found)) else np.array(found)


def _key(entry: Mapping[str, Any]) -> tuple[int, Any]:
    return entry["round"], entry["case_id"]


def _t_interval(values: Sequence[float], confidence: float) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    centre = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * error
    return centre - half, centre + half


def _by(
    cells: Cells, *keys: str, ended: Sequence[str] = ("complete",)
) -> dict[tuple[str, ...], list[CellResult]]:
    """The cells with one of these states, by fields of ``run_info``."""
    groups: dict[tuple[str, ...], list[CellResult]] = {}
    for cell in cells:
        if cell["run_info"]["status"] in ended:
            info = cell["run_info"]
            groups.setdefault(tuple(info[key] for key in keys), []).append(cell)  # type: ignore[literal-required]
    return groups
