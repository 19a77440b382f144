"""The embedded host: an editor with EasyEdit's interface, for use without EasyEdit.

Scripts written for EasyEdit's ``BaseEditor`` run on it with the same arguments and metrics.  It
differs in these points:

* There are no side effects: no ``logs/`` folder, no ``results.json``, no seeding, and no change of
  the tokenizer.
* ``pre`` of every request is measured before the call's first edit, also in later chunks of
  ``batch_edit``; ``case_id`` continues through the chunks.
* All input is checked before anything is changed, and a misspelt argument is an error.
* ``normal_edit(sequential_edit=True)`` keeps its edit, which EasyEdit undoes.

As in EasyEdit, an edit that is not sequential is undone after it was measured, so the returned
model is the *unedited* one.  Use ``sequential_edit=True`` to keep the edits, or ``copy=True`` to
get an edited copy.  As in EasyEdit, ``weights_copy`` holds the weights before the call's *last*
write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import nn
from tqdm import tqdm

from nse_plugin.data.editor_arguments import RecordAndRequest, check_all, read_arguments
from nse_plugin.data.models import find_device, load_model
from nse_plugin.errors import HparamsError, RequestError
from nse_plugin.evaluation.before_after import finalize_locality, mean_metrics
from nse_plugin.evaluation.edit_quality import compute_many
from nse_plugin.files import write_json
from nse_plugin.methods.registry import apply_function
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession

log = logging.getLogger(__name__)

Metrics = list[dict[str, Any]]


class BaseEditor:
    """Edits a model with a method, and measures it before and after.

    Args:
        hparams: a method's hyperparameters; ``model_name`` is a path, a hub name, ``atlas:gpt2``,
            ``atlas:llama``, or a ready ``(model, tokenizer)``.

    Raises:
        HparamsError: the method, device or dtype does not exist.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, hparams: Any) -> None:
        if not hasattr(hparams, "alg_name"):  # the name of a YAML, for one
            raise HparamsError(
                f"hparams is {hparams!r:.80}; give the hyperparameters of a method, such as "
                "NSEHparams.from_hparams('NSE/gpt2-xl')"
            )
        self.hparams = hparams
        self.alg_name: str = hparams.alg_name
        self.apply_algo: Callable[..., tuple[nn.Module, Any]] = apply_function(self.alg_name)
        self.device = find_device(getattr(hparams, "device", None))
        self.model, self.tok, self.model_name = load_model(hparams)

    @classmethod
    def from_hparams(cls, hparams: Any) -> BaseEditor:
        """The constructor under the name that EasyEdit's scripts use."""
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
            prompts: texts that contain their subject, or ``{}`` in its place.
            locality_inputs: ``{kind: {"prompt": one entry per request, "ground_truth": the
                same}}``; an entry is a text, a list of texts, or None.
            sequential_edit: keep each edit; otherwise it is undone after it was measured.
            **kwargs: ``subject`` (required), ``test_generation``, ``eval_metric``, ``pre_edit``,
                ``pre_file``, ``loc_prompts``, ``copy`` (edit a copy of ``self.model``), or
                ``requests`` instead of everything that describes them.

        Returns:
            Metrics (per request: case_id, requested_rewrite, pre, post), the model, and the weights
            before the last write, by parameter name.

        Raises:
            HparamsError: ``batch_size`` in the hparams is not 1, which EasyEdit requires.
            RequestError: the input is inconsistent or names no subject.  Nothing is changed.
        """
        options, requests = read_arguments(
            kwargs, prompts, target_new, ground_truth, target_neg, rephrase_prompts,
            locality_inputs, portability_inputs,
        )  # fmt: skip
        size = getattr(self.hparams, "batch_size", 1)
        if size != 1:
            raise HparamsError(
                f"edit() writes one request at a time and batch_size is {size}; "
                "set it to 1, or call batch_edit()"
            )
        return self._run(requests, 1, sequential_edit, verbose, options)

    def edit_requests(
        self,
        requests: Sequence[EditRequest | Mapping[str, Any]],
        sequential_edit: bool = False,
        verbose: bool = True,
        test_generation: bool = False,
        **kwargs: Any,
    ) -> tuple[Metrics, nn.Module, Any]:
        """Like :meth:`edit`, for request dicts or :class:`EditRequest` objects."""
        kwargs |= {"requests": requests, "test_generation": test_generation}
        return self.edit(sequential_edit=sequential_edit, verbose=verbose, **kwargs)

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
            RequestError: as :meth:`edit`, or the requests of a chunk contradict each other.
        """
        size = getattr(self.hparams, "batch_size", None)
        if not isinstance(size, int) or size < 1:
            raise HparamsError(
                f"batch_edit() needs batch_size in the hparams, a number from 1; it is {size!r}"
            )
        options, requests = read_arguments(
            kwargs, prompts, target_new, ground_truth, target_neg, rephrase_prompts,
            locality_inputs, portability_inputs,
        )  # fmt: skip
        return self._run(requests, size, sequential_edit, verbose, options, timed=True)

    def normal_edit(
        self,
        prompts: str | Sequence[str] | None = None,
        target_new: str | Sequence[str] | None = None,
        sequential_edit: bool = False,
        **kwargs: Any,
    ) -> tuple[None, nn.Module, Any]:
        """Write all requests in one round and measure nothing; ``subject`` is required here too."""
        options, requests = read_arguments(kwargs, prompts, target_new)
        asked = check_all(requests, len(requests))
        edited, originals = self._apply(self.model, asked, options["copy"])
        if sequential_edit and not options["copy"]:
            self.model = edited
        elif not options["copy"]:
            self._put_back()
        return None, edited, originals

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
        asked = check_all(requests, size)
        metrics = self._before(asked, options)
        model, edited, originals = self.model, self.model, None
        copying = options["copy"]
        starts = range(0, len(asked), size)
        for start in tqdm(starts, desc=self.alg_name, disable=None if verbose else True):
            chunk = asked[start : start + size]
            began = perf_counter()
            edited, originals = self._apply(model, chunk, copying)
            seconds = perf_counter() - began
            try:
                posts = self._measure(edited, chunk, options)
            finally:
                if not sequential and not copying:
                    self._put_back()
            if sequential:
                model, copying = edited, False
            for index, ((record, _), post) in enumerate(zip(chunk, posts), start=start):
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

    def _apply(
        self, model: nn.Module, chunk: Sequence[RecordAndRequest], copy: bool
    ) -> tuple[nn.Module, Any]:
        return self.apply_algo(
            model,
            self.tok,
            [request for _, request in chunk],
            self.hparams,
            copy=copy,
            return_orig_weights=True,
            keep_original_weight=False,
        )

    def _put_back(self) -> None:
        """Undo the last write."""
        session = EditSession.of(self.model)
        session.put_back(session.ledger.numbers()[-1])

    def _before(self, asked: Sequence[RecordAndRequest], options: Mapping[str, Any]) -> Metrics:
        known = options["pre_edit"]
        if known is None:
            posts = self._measure(self.model, asked, options)
            metrics: Metrics = [{"pre": entry} for entry in posts]
            if options["pre_file"] is not None:
                write_json(Path(options["pre_file"]), metrics)
            return metrics
        if len(known) != len(asked):
            raise RequestError(
                f"pre_edit has {len(known)} entries for {len(asked)} requests; "
                "give the list that an earlier call wrote for the same requests"
            )
        return [{"pre": entry["pre"]} for entry in known]

    def _measure(
        self, model: nn.Module, asked: Sequence[RecordAndRequest], options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        return compute_many(
            model,
            self.hparams,
            self.tok,
            [record for record, _ in asked],
            eval_metric=options["eval_metric"],
            test_generation=options["test_generation"],
        )
