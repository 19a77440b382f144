"""EasyEdit's metrics before and after an edit compared, and their means over edits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nse_plugin.errors import RequestError


def finalize_locality(metric: dict[str, Any]) -> dict[str, Any]:
    """Add ``{kind}_acc`` to ``metric["post"]["locality"]`` and return the metric.

    Per probe it is the share of tokens whose first choice is as before the edit; of generated
    texts, whether they are the same.

    Args:
        metric: one entry of an editor's metrics, with ``pre`` and ``post``.

    Raises:
        RequestError: ``pre`` lacks a kind that ``post`` has, has another number of probes, or holds
            scores of other groups.
    """
    _refuse_other_groups(metric)
    before, after = metric["pre"]["locality"], metric["post"]["locality"]
    for key in [key for key in after if key.endswith(("_output", "_gen_content"))]:
        texts = key.endswith("_gen_content")
        kind = key.removesuffix("_gen_content" if texts else "_output")
        if key not in before or len(before[key]) != len(after[key]):
            raise RequestError(
                f"case {metric.get('case_id')}: locality {kind!r} has {len(after[key])} outputs "
                f"after the edit and {len(before.get(key, []))} before; "
                "measure both with the same record"
            )
        after[f"{kind}_acc"] = [
            float(old == new) if texts else _share(old, new)
            for old, new in zip(before[key], after[key], strict=True)
        ]
        protocol = "free_generation_output_match" if texts else "argmax_token_match"
        metric["post"].setdefault("metric_meta", {})[f"locality.{kind}"] = {
            "result_key": f"locality.{kind}_acc",
            "protocol": f"pre_post_{protocol}",
            "scorer": "exact_match" if texts else "token_match",
            "comparable_group": f"locality.lm.pre_post_{protocol}",
        }
    return metric


def _refuse_other_groups(metric: Mapping[str, Any]) -> None:
    """Raise :class:`RequestError` if the scores before and after are of different kinds."""
    before = metric["pre"].get("metric_meta", {})
    for section, meta in metric["post"].get("metric_meta", {}).items():
        now = meta["comparable_group"]
        was = before.get(section, meta)["comparable_group"]
        if was != now:
            raise RequestError(
                f"case {metric.get('case_id')}: {section} is {was} before the edit and {now} after "
                "it, which cannot be compared; measure both with one evaluation_type, one "
                "eval_metric and one judge"
            )


def mean_metrics(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages over the cases of an editor's metrics, as EasyEdit prints them.

    Returns:
        By phase (``pre``, ``post``): the means of ``rewrite_acc`` and so on, and by section
        (``locality``, ``portability``) those of each ``{kind}_acc``; each case counts once.
    """
    means: dict[str, Any] = {}
    for phase in ("pre", "post"):
        values: dict[tuple[str, ...], list[float]] = {}
        for metric in metrics:
            for path, value in _numbers(metric.get(phase, {})):
                values.setdefault(path, []).append(value)
        means[phase] = {}
        for path, numbers in values.items():
            section = means[phase]
            for name in path[:-1]:
                section = section.setdefault(name, {})
            section[path[-1]] = sum(numbers) / len(numbers)
    return means


def _share(old: Sequence[int], new: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(old, new)) / len(old) if old else math.nan


def _numbers(section: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
    """(path, mean) of every score in nested metrics."""
    for key, value in section.items():
        if isinstance(value, Mapping) and key != "metric_meta":
            yield from _numbers(value, (*path, key))
        elif key.endswith(("_acc", "_ppl", "ngram_entropy")):
            values = value if isinstance(value, list) else [value]
            numbers = [number for number in values if not math.isnan(number)]
            if numbers:
                yield (*path, key), sum(numbers) / len(numbers)
