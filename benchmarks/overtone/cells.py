"""One cell of the measurements of OVERTONE: which editor, which edits, and what they did."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from nse_plugin import BaseEditor
from nse_plugin.compare.hosts import THEIRS, Recipe, editor_of
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.easyedit.editor import ReadyModel
from nse_plugin.errors import DataError
from nse_plugin.evaluation.metrics import ask, summarise
from nse_plugin.evaluation.overfitting import relative_norm, single_edits, table_for
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.files import write_json
from nse_plugin.hparams import Hparams, MELOHparams, OvertoneHparams, WISEHparams
from nse_plugin.methods.registry import find_method
from nse_plugin.model.prompts import encode_request
from nse_plugin.requests import EditRequest, Probes
from nse_plugin.session.session import EditSession
from nse_plugin.version import __version__

_MELO_XL: Any = OvertoneHparams.from_hparams("OVERTONE/MELO/gpt2-xl").base
PAPER_LORA = {
    "lora_type": "adalora", "target_modules": ["q_proj", "v_proj"], "layers": [], "rank": 8,
    "lora_alpha": 32, "lora_dropout": 0.1, "lr": 5e-3, "num_steps": 70, "stop_loss": 0.0,
    "weight_decay": 0.0, "batch_size": 1,
}  # fmt: skip
"""EasyEdit's settings of LoRA (hparams/LoRA/llama-7b.yaml), which OVERTONE's paper uses."""
WISE = {
    "inner_params": ["model.layers[25].mlp.down_proj.weight"], "act_margin": [5.0, 20.0, 10.0],
}  # fmt: skip
"""EasyEdit's settings of WISE (hparams/WISE/llama-7b.yaml), at the same share of the depth."""
MELO = {
    "max_length": 512,
    "grace": dict(_MELO_XL.grace),
    "model": dict(
        _MELO_XL.model, name="smollm2-135m", fan_in_fan_out=False,
        target_modules=[f"model.layers.{layer}.mlp.up_proj" for layer in (23, 24)],
        grace_layer="model.layers.22.mlp.up_proj",
    ),
    "lora": dict(_MELO_XL.lora),
}  # fmt: skip
"""EasyEdit's settings of MELO (hparams/MELO/gpt2-xl.yaml), at the same share of the depth."""
EASYEDIT_FT = {"batch_size": 1, "rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight"}
"""What EasyEdit's FT has to be told beside the settings that ship for SmolLM2."""
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoRA", {}),
    "LoRA, paper": ("LoRA", PAPER_LORA),
    "LoRA, EasyEdit": ("LoRA", PAPER_LORA | {"lora_type": "lora"}),
    "FT-M": ("FT", {}),
    "NSE": ("NSE", {}),
    "MEMIT": ("MEMIT", {}),
    "FT-M, EasyEdit": ("FT", EASYEDIT_FT),
    "WISE, EasyEdit": ("WISE", WISE),
    "MELO, EasyEdit": ("MELO", MELO),
}
"""Method, and what differs from the YAML that ships for it."""
VARIANTS: dict[str, dict[str, Any] | None] = {
    "base": None,
    "full": {},
    "no clip": {"clip": False},
    "frozen reference": {"frozen_reference": True},
    "no argmax check": {"argmax_check": False},
    "no filter": {"filter": False},
    "no mixing": {"mixing": False},
}
"""Settings by name; None is the base editor's own loss."""
EASYEDITS_OWN: dict[str, type[Hparams]] = {"WISE": WISEHparams, "MELO": MELOHparams}
"""Editors that only EasyEdit has."""
SCORES = {
    "Rel": ("efficacy_tokens", "efficacy"),
    "Gen": ("paraphrase_tokens", "paraphrase"),
    "Por": ("portability_tokens", "portability"),
    "Loc": ("locality", "locality_exact"),
}
"""Columns: answer tokens under teacher forcing, as the paper counts them, and whole answers."""
STRATA = {"all": None, "one": range(1, 2), "two": range(2, 3), "many": range(3, 1000)}
"""Numbers of tokens of a target; None takes every record."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    kind: str
    """single or sequential."""
    model: str
    stratum: str
    base: str
    variant: str
    seed: int
    edits: int | None
    """Of sequential edits their number; None of single ones, to which more can be added."""

    @property
    def file(self) -> str:
        """Name of its JSON file."""
        text = "-".join(map(str, asdict(self).values()))
        return "".join(c if c.isalnum() or c in "-." else "_" for c in text) + ".json"

    @property
    def method(self) -> str:
        """Name of its row."""
        if self.variant == "base":
            return self.base
        more = "" if self.variant == "full" else f", {self.variant}"
        return f"{self.base} + OVERTONE{more}"


def run_cell(cell: Cell, n: int, data: Sequence[str], work: Path) -> dict[str, Any]:
    """Edit and measure up to ``n`` edits; resumes from what was measured before."""
    path, hparams = work / cell.file, hparams_of(cell)
    sizes = {Path(d).name: Path(d).stat().st_size if Path(d).is_file() else None for d in data}
    identity = {
        "version": __version__, "cell": asdict(cell), "hparams": hparams.to_dict(), "data": sizes,
    }  # fmt: skip
    result: dict[str, Any] = {"identity": identity, "each": [], "seconds": 0.0}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        result = known if known["identity"] == identity else result
    if len(result["each"]) < n:
        start = time.perf_counter() - result["seconds"]
        model, tokenizer, _ = load_model(hparams)
        requests, done = chosen(cell, n, data, tokenizer), len(result["each"])
        if cell.base.endswith("EasyEdit"):
            entries = theirs(model, tokenizer, requests, hparams, done)
        else:
            measure = single if cell.kind == "single" else sequential
            entries = measure(EditSession.of(model, tokenizer), requests, hparams, done)
        for entry in entries:
            result["each"].append(entry)
            result["seconds"] = time.perf_counter() - start
            write_json(path, result)
    return {**result, "each": result["each"][:n]}


def hparams_of(cell: Cell) -> Hparams:
    """Those of the base editor, or of OVERTONE around it with this variant's settings."""
    name, *more = re.split(r", (?=\w+=)", cell.base)
    method, changes = BASES[name]
    changes = changes | settings(more)
    if method in EASYEDITS_OWN:
        margins = {"margin_factor": 1.0} if (method, cell.variant) == ("WISE", "base") else {}
        values = {"alg_name": method, "model_name": cell.model, "device": "cpu"}
        hparams: Hparams = EASYEDITS_OWN[method].from_dict(values | changes | margins)
    else:
        yaml = f"{method}/{cell.model.replace(':', '-')}"
        hparams = dataclasses.replace(find_method(method).hparams.from_hparams(yaml), **changes)
    if "=" in cell.variant:
        changed = {key.replace("lambda", "lambda_"): value
                   for key, value in settings(cell.variant.split(", ")).items()}  # fmt: skip
    else:
        changed = VARIANTS[cell.variant]
    if method in EASYEDITS_OWN and changed is None:  # the same as cross entropy
        changed = {"lambda_": 1.0, "epsilon": 0.0}
    return hparams if changed is None else OvertoneHparams.wrap(hparams, **changed)


def settings(texts: Sequence[str]) -> dict[str, Any]:
    """Values by key, of ``key=value`` with JSON values."""
    return {key: json.loads(value) for key, _, value in (text.partition("=") for text in texts)}


def chosen(cell: Cell, n: int, data: Sequence[str], tokenizer: Any) -> list[EditRequest]:
    """The first n edits of the stratum with portability and locality, shuffled by the seed.

    Of stratum ``all`` every record is taken, in its order.
    """
    every = [r for name in data for r in read_data(name, None, cell.seed, on_bad="skip")]
    found, lengths = (
        list({request.text: request for request in every}.values()),
        STRATA[cell.stratum],
    )
    if lengths is not None:
        found = [
            request
            for request in found
            if request.portability and request.locality
            and len(encode_request(tokenizer, request, with_target=True).target_ids) in lengths
        ]  # fmt: skip
        found = random.Random(cell.seed).sample(found, len(found))
    if len(found) < n:
        raise DataError(
            f"{len(found)} records have portability, locality and a target of stratum "
            f"{cell.stratum!r}; give --edits {len(found)} or more data"
        )
    return found[:n]


def single(
    session: EditSession, requests: Sequence[EditRequest], hparams: Hparams, done: int
) -> Iterator[dict[str, Any]]:
    """Each edit by itself, from the untouched model."""
    for number, request in enumerate(requests[done:], start=done):
        before = ask(session.model, session.tokenizer, [request], Protocol())
        for edit in single_edits(session, [request], hparams):
            answered = ask(session.model, session.tokenizer, [request], Protocol())
            course = {name: [round(v, 5) for v in values] for name, values in edit.course.items()}
            spread = None if edit.spread is None else edit.spread.range
            yield {
                "case_id": number, **summarise(answered, before), "spread": spread,
                "loss": fmean(edit.losses), "steps": edit.steps, "change": edit.change,
                "before": summarise(before, before), "course": course,
            }  # fmt: skip


def theirs(
    model: Any, tokenizer: Any, requests: Sequence[EditRequest], hparams: Hparams, done: int
) -> Iterator[dict[str, Any]]:
    """Each edit by itself with EasyEdit's own editor and evaluator, from the untouched model.

    WISE looks at one prompt at a time, and EasyEdit's evaluator gives it no more.  MELO's edits
    stay on the model, so each one gets a model of its own.
    """
    stays = isinstance(hparams, OvertoneHparams) and hparams.base.method == "MELO"
    editor = hosts_editor(model, tokenizer, hparams)
    others = [probe.prompt for r in requests for probes in r.locality.values() for probe in probes]
    for number, request in enumerate(requests[done:], start=done):
        torch.manual_seed(number)
        np.random.seed(number)  # WISE draws what it may change
        if stays and number > done:
            editor = hosts_editor(*load_model(hparams)[:2], hparams)
        metrics, *_ = editor.edit(
            prompts=[request.text], subject=[request.subject], target_new=[request.target_new],
            rephrase_prompts=list(request.rephrase_prompts[:1]),
            locality_inputs=by_kind(request.locality),
            portability_inputs=by_kind(request.portability),
            loc_prompts=[others[number - 1]],  # of another edit; WISE is trained to leave it alone
            sequential_edit=False, verbose=False,
        )  # fmt: skip
        yield {
            "case_id": number,
            **scores_of(metrics[0]["post"]),
            "before": scores_of(metrics[0]["pre"]) | {"locality": 1.0},
        }


def hosts_editor(model: Any, tokenizer: Any, hparams: Hparams) -> Any:
    """EasyEdit's editor of a loaded model, if need be with OVERTONE."""
    if not isinstance(hparams, OvertoneHparams):
        return editor_of(Recipe(hparams, THEIRS), model, tokenizer)[0]
    base: Any = dataclasses.replace(hparams.base, model_name=ReadyModel(model, tokenizer))
    if base.method == "MELO":  # loads a second tokenizer and does not use it
        base.lora = {**base.lora, "cls_name": model.config._name_or_path}
    return BaseEditor.from_hparams(dataclasses.replace(hparams, base=base))


def by_kind(probes: Probes) -> dict[str, Any]:
    """Questions as EasyEdit takes those of one edit."""
    return {
        kind: {"prompt": [[p.prompt for p in some]], "ground_truth": [[p.answer for p in some]]}
        for kind, some in probes.items()
    }


def scores_of(found: dict[str, Any]) -> dict[str, float]:
    """EasyEdit's scores under our names: shares of answer tokens under teacher forcing."""
    each = {
        "efficacy_tokens": found["rewrite_acc"],
        "paraphrase_tokens": found.get("rephrase_acc", []),
        "portability_tokens": [v for values in found["portability"].values() for v in values],
        "locality": [v for name, values in found["locality"].items() if name.endswith("_acc")
                     for v in values],
    }  # fmt: skip
    return {name: fmean(values) for name, values in each.items() if values}


def sequential(
    session: EditSession, requests: Sequence[EditRequest], hparams: Hparams, done: int
) -> Iterator[dict[str, Any]]:
    """All edits one after the other, from the first on; answers after the last one.

    Locality is not asked of what another edit was about.
    """
    before = ask(session.model, session.tokenizer, requests, Protocol())
    edit_round, tables = find_method(hparams.alg_name).edit_round, []
    for request in requests:
        tables.append(table_for(hparams))
        edit_round(session, [request], hparams, trace=tables[-1])
    edited = {text for request in requests for text in (request.text, *request.rephrase_prompts)}
    now = ask(session.model, session.tokenizer, requests, Protocol())
    norm = relative_norm(session)
    for number in range(done, len(requests)):
        at_stop = [course.losses[-1] for course in tables[number].courses(0)]
        yield {
            "case_id": number, **summarise([now[number]], [before[number]], edited),
            "spread": max(at_stop) - min(at_stop) if len(at_stop) > 1 else None,
            "loss": fmean(at_stop), "change": norm,
            "before": summarise([before[number]], [before[number]]),
        }  # fmt: skip
