"""Turn the arguments of the embedded editor into validated records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from nse_plugin.errors import RequestError, did_you_mean
from nse_plugin.request_fields import is_missing, listed
from nse_plugin.requests import EditRequest, check_round

Record = dict[str, Any]
RecordAndRequest = tuple[Record, EditRequest]
"""A record in EasyEdit's fields, for measuring and reporting, and the request to write."""

OPTIONS: dict[str, Any] = {
    "subject": None,
    "loc_prompts": None,
    "requests": None,
    "test_generation": False,
    "eval_metric": "exact match",
    "pre_edit": None,
    "pre_file": None,
    "copy": False,
    # accepted and ignored: for methods that only EasyEdit has
    "keep_original_weight": False,
    "train_ds": None,
    "metric_kwargs": None,
}
"""Keyword arguments beyond those in the signatures, with their defaults."""


def read_arguments(
    kwargs: Mapping[str, Any],
    prompts: Any,
    target_new: Any,
    ground_truth: Any = None,
    target_neg: Any = None,
    rephrase_prompts: Any = None,
    locality_inputs: Any = None,
    portability_inputs: Any = None,
) -> tuple[dict[str, Any], Sequence[EditRequest | Mapping[str, Any]]]:
    """The keyword arguments with all defaults, and the requests: those among them, or one per
    prompt from EasyEdit's parallel lists (left unchanged).

    Raises:
        RequestError: a keyword argument is unknown, or the lists differ in length.
    """
    for name in kwargs:
        if name not in OPTIONS:
            raise RequestError(
                f"unknown argument {name!r}{did_you_mean(name, OPTIONS)}; "
                f"there are: {', '.join(OPTIONS)}"
            )
    options = {**OPTIONS, **kwargs}
    if options["requests"] is not None:
        return options, options["requests"]
    columns = {
        "ground_truth": ground_truth,
        "target_neg": target_neg,
        "rephrase_prompts": rephrase_prompts,
        "subject": options["subject"],
        "loc_prompts": options["loc_prompts"],
    }
    probes = {"portability": portability_inputs, "locality": locality_inputs}
    prompts = listed(prompts)
    count = len(prompts)
    lists = {"target_new": listed(target_new)}
    lists |= {name: listed(value) for name, value in columns.items() if value is not None}
    if "loc_prompts" in lists:
        lists["loc_prompts"] = list(islice(cycle(lists["loc_prompts"]), count))
    for name, values in lists.items():
        _check_count(name, len(values), count)
    keys = {"rephrase_prompts": "rephrase_prompt", "loc_prompts": "loc_prompt"}
    records: list[Record] = []
    for index, prompt in enumerate(prompts):
        record: Record = {"prompt": prompt, "ground_truth": None}
        for name, values in lists.items():
            record[keys.get(name, name)] = values[index]
        for section, groups in probes.items():
            record[section] = _probes_of(f"{section}_inputs", groups or {}, index, count)
        records.append(record)
    return options, records


def _probes_of(
    where: str, groups: Mapping[str, Any], index: int, count: int
) -> dict[str, dict[str, Any]]:
    """One request's probes from locality_inputs or portability_inputs, by kind."""
    found = {}
    if not isinstance(groups, Mapping):
        raise RequestError(
            f"{where} is a {type(groups).__name__}; give {{kind: {{'prompt': [...], "
            "'ground_truth': [...]}}, with one entry per prompt in each list"
        )
    for kind, group in groups.items():
        try:
            prompts, answers = listed(group["prompt"]), listed(group["ground_truth"])
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


def check_all(
    requests: Sequence[EditRequest | Mapping[str, Any]], size: int
) -> list[RecordAndRequest]:
    """Each request with its record; all are checked, in the chunks of ``size`` to be written.

    Raises:
        RequestError: one is not valid, a chunk contradicts itself, or there is none.
    """
    asked: list[RecordAndRequest] = []
    for index, given in enumerate(requests):
        record: Record = {"case_id": index, "ground_truth": None, "portability": {}, "locality": {}}
        if isinstance(given, EditRequest):
            asked.append(({**record, **given.to_dict()}, given))
        else:
            record |= given
            request = EditRequest.from_dict(record, index)
            if not isinstance(record["target_new"], str):  # a year, or an answer and its aliases
                record["target_new"] = request.target_new
            if request.rephrase_prompts and is_missing(record.get("rephrase_prompt")):
                record["rephrase_prompt"] = request.to_dict()["rephrase_prompt"]
            asked.append((record, request))
    for start in range(0, max(len(asked), 1), max(size, 1)):
        check_round([request for _, request in asked[start : start + max(size, 1)]])
    return asked
