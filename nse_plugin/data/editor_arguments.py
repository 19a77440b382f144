"""Turn the arguments of the embedded editor into validated records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from nse_plugin.errors import RequestError, did_you_mean
from nse_plugin.requests import EditRequest, as_requests, check_round

Record = dict[str, Any]

OPTIONS: dict[str, Any] = {
    "subject": None,
    "loc_prompts": None,
    "requests": None,
    "test_generation": False,
    "eval_metric": "exact match",
    "pre_edit": None,
    "pre_file": None,
    "copy": False,
    # for methods of EasyEdit that are not here; taken and left alone
    "keep_original_weight": False,
    "train_ds": None,
    "metric_kwargs": None,
}
"""Keyword arguments beside those in the signatures, with their defaults."""


def read_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments with defaults for those left out.

    Raises:
        RequestError: one is unknown; the message names the nearest.
    """
    for name in kwargs:
        if name not in OPTIONS:
            raise RequestError(
                f"unknown argument {name!r}{did_you_mean(name, OPTIONS)}; "
                f"there are: {', '.join(OPTIONS)}"
            )
    return {**OPTIONS, **kwargs}


def requests_of(
    prompts: Any, target_new: Any, options: Mapping[str, Any], columns: Mapping[str, Any]
) -> Sequence[EditRequest | Mapping[str, Any]]:
    """The requests given, or one per prompt from EasyEdit's parallel lists (left unchanged)."""
    if options["requests"] is not None:
        return options["requests"]
    columns = {**columns, "subject": options["subject"], "loc_prompts": options["loc_prompts"]}
    prompts, targets = _listed(prompts), _listed(target_new)
    count = len(prompts)
    given = {name: value for name, value in columns.items() if value is not None}
    if "loc_prompts" in given:
        given["loc_prompts"] = list(islice(cycle(_listed(given["loc_prompts"])), count))
    lists = {"target_new": targets}
    for name in ("ground_truth", "target_neg", "rephrase_prompts", "subject", "loc_prompts"):
        if name in given:
            lists[name] = _listed(given[name])
    for name, values in lists.items():
        _check_count(name, len(values), count)
    keys = {"rephrase_prompts": "rephrase_prompt", "loc_prompts": "loc_prompt"}
    records: list[Record] = []
    for index, prompt in enumerate(prompts):
        record: Record = {"prompt": prompt, "ground_truth": None}
        for name, values in lists.items():
            record[keys.get(name, name)] = values[index]
        for section in ("portability", "locality"):
            groups = given.get(f"{section}_inputs", {})
            record[section] = _probes_of(f"{section}_inputs", groups, index, count)
        records.append(record)
    return records


def _probes_of(
    where: str, groups: Mapping[str, Any], index: int, count: int
) -> dict[str, dict[str, Any]]:
    """One request's part of locality_inputs or portability_inputs; kinds it lacks are left out."""
    found = {}
    if not isinstance(groups, Mapping):
        raise RequestError(
            f"{where} is a {type(groups).__name__}; give {{kind: {{'prompt': [...], "
            "'ground_truth': [...]}}, with one entry per prompt in each list"
        )
    for kind, group in groups.items():
        try:
            prompts, answers = _listed(group["prompt"]), _listed(group["ground_truth"])
        except (TypeError, KeyError):
            raise RequestError(
                f"{where}[{kind!r}] is {group!r}; give {{'prompt': [...], 'ground_truth': [...]}}"
            ) from None
        _check_count(f"{where}[{kind!r}]['prompt']", len(prompts), count)
        _check_count(f"{where}[{kind!r}]['ground_truth']", len(answers), count)
        if prompts[index]:
            found[kind] = {"prompt": prompts[index], "ground_truth": answers[index]}
    return found


def _check_count(name: str, found: int, count: int) -> None:
    if found != count:
        raise RequestError(f"{found} {name} for {count} prompts; give one per prompt")


def checked_records(requests: Sequence[EditRequest | Mapping[str, Any]], size: int) -> list[Record]:
    """Records with case_id, every one of them valid and no chunk against itself.

    Raises:
        RequestError: one is not, or there is none.
    """
    records: list[Record] = []
    for index, request in enumerate(requests):
        if isinstance(request, EditRequest):
            request = request.to_dict()
        defaults: Record = {
            "case_id": index,
            "ground_truth": None,
            "portability": {},
            "locality": {},
        }
        records.append({**defaults, **request})
    parsed = as_requests(records)
    for start in range(0, max(len(parsed), 1), max(size, 1)):
        check_round(parsed[start : start + max(size, 1)])
    return records


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)
