"""The embedded host: an editor with EasyEdit's interface, for machines that do not have EasyEdit.

Scripts written for EasyEdit's ``BaseEditor`` run on it with the same arguments and read the same
metrics.  What it does not take over:

* Nothing happens beside the work: no ``logs/`` folder, no ``results.json``, no seeding, and a
  tokenizer that was handed in is left as it is.
* ``pre`` of every request is measured on the model as it was before the call's first edit, also in
  later chunks of ``batch_edit``; ``case_id`` runs on through the chunks.
* All input is checked before anything is changed, and a misspelt argument is an error.
* ``normal_edit(sequential_edit=True)`` keeps its edit; EasyEdit takes it back all the same.

Like EasyEdit, an edit that is not sequential is taken back after it was measured, so the model
returned then is the *unedited* one.  Say ``sequential_edit=True`` to keep the edits, or
``copy=True`` to get an edited copy.  Like EasyEdit, ``weights_copy`` holds what the *last* write of
the call replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nse_plugin.errors import HparamsError, RequestError, did_you_mean
from nse_plugin.evaluation.edit_quality import compute_many, finalize_locality, mean_metrics
from nse_plugin.files import write_json
from nse_plugin.requests import EditRequest, as_requests, check_round
from nse_plugin.toolkit.loading import find_device, load_model

log = logging.getLogger(__name__)

Metrics = list[dict[str, Any]]
Record = dict[str, Any]

_OPTIONS: dict[str, Any] = {
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


class BaseEditor:
    """Edits a model by a method and measures it before and after.

    Args:
        hparams: a method's hyperparameters; ``model_name`` is a path, a hub name, ``atlas:gpt2``,
            ``atlas:llama``, or a ready ``(model, tokenizer)``.

    Raises:
        HparamsError: no such method, device or dtype.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, hparams: Any) -> None:
        if hparams is None:
            raise HparamsError("hparams is None; give the hyperparameters of a method")
        self.hparams = hparams
        self.alg_name: str = hparams.alg_name
        self.apply_algo: Callable[..., tuple[nn.Module, Any]] = _apply_function(self.alg_name)
        self.device = find_device(getattr(hparams, "device", None))
        self.model, self.tok, self.model_name = load_model(hparams)

    @classmethod
    def from_hparams(cls, hparams: Any) -> BaseEditor:
        """The same as the constructor; EasyEdit's scripts call it."""
        return cls(hparams)

    def edit(
        self,
        prompts: str | Sequence[str] | None = None,
        target_new: str | Sequence[str] | None = None,
        ground_truth: str | Sequence[str] | None = None,
        target_neg: str | Sequence[str] | None = None,
        rephrase_prompts: str | Sequence[Any] | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        sequential_edit: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> tuple[Metrics, nn.Module, Any]:
        """Write requests one at a time, measuring each before and after.

        Args:
            prompts: texts that hold their subject, or hold ``{}`` in its place.
            locality_inputs: ``{kind: {"prompt": one entry per request, "ground_truth": the
                same}}``; an entry is a text, a list of texts, or None.
            sequential_edit: keep each edit; otherwise it is taken back once it is measured.
            **kwargs: ``subject`` (needed), ``test_generation``, ``eval_metric``, ``pre_edit``,
                ``pre_file``, ``loc_prompts``, ``copy`` (edit a copy, leave ``self.model``), or
                ``requests`` in place of all that describes them.

        Returns:
            Metrics (per request: case_id, requested_rewrite, pre, post), the model, and what the
            last write replaced, by parameter name.

        Raises:
            RequestError: the input does not fit together or names no subject.  Nothing is changed.
        """
        columns = {
            "ground_truth": ground_truth,
            "target_neg": target_neg,
            "rephrase_prompts": rephrase_prompts,
            "locality_inputs": locality_inputs,
            "portability_inputs": portability_inputs,
        }
        options = _options(kwargs)
        self._check_single()
        records = _records(prompts, target_new, options, columns)
        return self._run(records, 1, sequential_edit, verbose, options)

    def edit_requests(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]],
        sequential_edit: bool = False,
        verbose: bool = True,
        test_generation: bool = False,
        **kwargs: Any,
    ) -> tuple[Metrics, nn.Module, Any]:
        """Like :meth:`edit`, from request dicts or :class:`EditRequest`s.

        Raises:
            HparamsError: ``batch_size`` in the hparams is not 1, as EasyEdit demands.
        """
        options = _options({"test_generation": test_generation, **kwargs})
        self._check_single()
        return self._run(requests, 1, sequential_edit, verbose, options)

    def batch_edit(
        self,
        prompts: str | Sequence[str] | None = None,
        target_new: str | Sequence[str] | None = None,
        ground_truth: str | Sequence[str] | None = None,
        target_neg: str | Sequence[str] | None = None,
        rephrase_prompts: str | Sequence[Any] | None = None,
        locality_inputs: Mapping[str, Any] | None = None,
        portability_inputs: Mapping[str, Any] | None = None,
        sequential_edit: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> tuple[Metrics, nn.Module, Any]:
        """Write requests in chunks of ``hparams.batch_size``; otherwise as :meth:`edit`.

        Returns:
            As :meth:`edit`; each metric also has ``time``, the seconds its chunk's edit took.

        Raises:
            HparamsError: the hparams have no ``batch_size``.
            RequestError: as :meth:`edit`, or a chunk contradicts itself.
        """
        size = getattr(self.hparams, "batch_size", None)
        if not isinstance(size, int) or size < 1:
            raise HparamsError(
                f"batch_edit() needs batch_size in the hparams, a number from 1; it is {size!r}"
            )
        columns = {
            "ground_truth": ground_truth,
            "target_neg": target_neg,
            "rephrase_prompts": rephrase_prompts,
            "locality_inputs": locality_inputs,
            "portability_inputs": portability_inputs,
        }
        options = _options(kwargs)
        records = _records(prompts, target_new, options, columns)
        return self._run(records, size, sequential_edit, verbose, options, timed=True)

    def normal_edit(
        self,
        prompts: str | Sequence[str] | None = None,
        target_new: str | Sequence[str] | None = None,
        sequential_edit: bool = False,
        **kwargs: Any,
    ) -> tuple[None, nn.Module, Any]:
        """Write all requests in one go and measure nothing; ``subject`` is needed here too."""
        options = _options(kwargs)
        records = _records(prompts, target_new, options, {})
        records = _checked(records, len(records))
        edited, originals = self._apply(self.model, records, options["copy"])
        if sequential_edit and not options["copy"]:
            self.model = edited
        elif not options["copy"]:
            self._put_back(originals)
        return None, edited, originals

    def _check_single(self) -> None:
        size = getattr(self.hparams, "batch_size", 1)
        if size != 1:
            raise HparamsError(
                f"edit() writes one request at a time and batch_size is {size}; "
                "set it to 1, or call batch_edit()"
            )

    # --- the work -----------------------------------------------------------------------------

    def _run(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]],
        size: int,
        sequential: bool,
        verbose: bool,
        options: Mapping[str, Any],
        timed: bool = False,
    ) -> tuple[Metrics, nn.Module, Any]:
        records = _checked(requests, size)
        metrics = self._before(records, options)
        model, edited, originals = self.model, self.model, None
        copying = options["copy"]
        starts = range(0, len(records), size)
        for start in tqdm(starts, desc=self.alg_name, disable=None if verbose else True):
            chunk = records[start : start + size]
            began = perf_counter()
            edited, originals = self._apply(model, chunk, copying)
            seconds = perf_counter() - began
            try:
                posts = self._measure(edited, chunk, options)
            finally:
                if not sequential and not copying:
                    self._put_back(originals)
            if sequential:
                model, copying = edited, False
            for index, (record, post) in enumerate(zip(chunk, posts), start=start):
                metrics[index].update(case_id=index, requested_rewrite=record, post=post)
                if timed:
                    metrics[index]["time"] = seconds
                finalize_locality(metrics[index])
                if verbose:
                    log.info("%d: %s -> %s", index, record["prompt"], record["target_new"])
        if sequential and not options["copy"]:
            self.model = edited
        if verbose:
            log.info("means: %s", mean_metrics(metrics))
        return metrics, edited, originals

    def _apply(self, model: nn.Module, chunk: list[Record], copy: bool) -> tuple[nn.Module, Any]:
        return self.apply_algo(
            model,
            self.tok,
            chunk,
            self.hparams,
            copy=copy,
            return_orig_weights=True,
            keep_original_weight=False,
        )

    @torch.no_grad()
    def _put_back(self, originals: Any) -> None:
        """Undo a write by what it returned: tensors by parameter name, or a function."""
        if callable(originals):
            originals()
            return
        for name, original in (originals or {}).items():
            parameter = self.model.get_parameter(name)
            parameter.copy_(original.to(parameter.device, parameter.dtype))

    def _before(self, records: list[Record], options: Mapping[str, Any]) -> Metrics:
        known = options["pre_edit"]
        if known is None:
            posts = self._measure(self.model, records, options)
            metrics: Metrics = [{"pre": entry} for entry in posts]
            if options["pre_file"] is not None:
                write_json(Path(options["pre_file"]), metrics)
            return metrics
        if len(known) != len(records):
            raise RequestError(
                f"pre_edit has {len(known)} entries for {len(records)} requests; "
                "give the list that an earlier call wrote for the same requests"
            )
        return [{"pre": entry["pre"]} for entry in known]

    def _measure(
        self, model: nn.Module, records: list[Record], options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        return compute_many(
            model,
            self.hparams,
            self.tok,
            records,
            eval_metric=options["eval_metric"],
            test_generation=options["test_generation"],
        )


# --- input --------------------------------------------------------------------------------------


def _options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name not in _OPTIONS:
            raise RequestError(
                f"unknown argument {name!r}{did_you_mean(name, _OPTIONS)}; "
                f"there are: {', '.join(_OPTIONS)}"
            )
    return {**_OPTIONS, **kwargs}


def _records(
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


def _checked(requests: Sequence[EditRequest | Mapping[str, Any]], size: int) -> list[Record]:
    """Records with case_id, every one of them valid and no chunk against itself.

    Raises:
        RequestError: one is not, or there is none.
    """
    records: list[Record] = []
    for index, request in enumerate(requests):
        if isinstance(request, EditRequest):  # its template says where the subject is
            request = {**request.to_dict(), "prompt": request.prompt}
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


# --- the model ----------------------------------------------------------------------------------


def _apply_function(alg_name: str) -> Callable[..., tuple[nn.Module, Any]]:
    from nse_plugin.methods.registry import apply_function

    return apply_function(alg_name)
