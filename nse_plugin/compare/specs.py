"""The syntax of ``--methods``: a method, changes to its settings, and its loss.

``NSE``, a named variant ``NSE:no-rewinding``, any hyperparameters ``NSE:v_lr=0.2;layers=[1,2]``,
both ``NSE:by-update;p=0.6``, with OVERTONE's loss ``NSE+OVERTONE``, ours where the host has a
method of that name ``ROME-plugin``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nse_plugin.data.defaults import defaults_for
from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams import (
    Hparams,
    OvertoneHparams,
    parse_yaml,
    read_method_yaml,
    yaml_dir,
)
from nse_plugin.methods.registry import METHODS

UNTOUCHED = "untouched"
"""The name of the row that no method has edited."""
OVERTONE = "OVERTONE"
_SUFFIX = "-plugin"
_OF_THE_MODEL = ("model_name", "device", "dtype", "fp16")
_OVERTONE_KEYS = {
    field.name.rstrip("_")
    for field in dataclasses.fields(OvertoneHparams)
    if field.name not in {shared.name for shared in dataclasses.fields(Hparams)}
}
_FORM = re.compile(r"(.*?)(?:\+([A-Za-z]\w*))?", re.DOTALL)


@dataclass(frozen=True)
class Variant:
    """A named change of hyperparameters."""

    changes: Mapping[str, Any]
    about: str


_SHARED = {
    "consolidated": Variant(
        {"repair_rounds": 1, "consolidate_every": 5},
        "every 5 rounds, all edits are solved together, and repaired (ours)",
    ),
    "margin": Variant(
        {"value_margin": 0.25}, "values go a quarter further than the edited prompt needs (ours)"
    ),
    "merged": Variant(
        {"merge_subjects": True}, "edits of one subject share a value (arXiv 2502.07322)"
    ),
    "polyak": Variant(
        {"v_optimizer": "polyak", "v_num_grad_steps": 12},
        "values are optimised without a learning rate, in 12 evaluations (ours)",
    ),
    "repair": Variant(
        {"repair_rounds": 1}, "edits that the model does not give are written once more (ours)"
    ),
    "repair-all": Variant(
        {"repair_rounds": 1, "repair_every": 5},
        "repair, and every 5 rounds of the earlier edits that are lost (ours)",
    ),
}
_OTHER_TOKENS = {
    "other-tokens": Variant(
        {"other_token_weight": 1.0}, "the prompts' other tokens keep what they give (ours)"
    ),
}
_STABLE = ("polyak", "merged", "consolidated")
VARIANTS: dict[str, dict[str, Variant]] = {
    "AlphaEdit": {**_SHARED},
    "FT": {
        "breadth-first": Variant(
            {"replay": True, "target_eos": True, "batch_size": 20},
            "epochs over all edits so far, with the end of the text (arXiv 2509.22072)",
        ),
    },
    "MEMIT": {
        "previous-keys": Variant(
            {"use_previous_keys": True}, "the solve spares the edits of earlier rounds"
        ),
        **_SHARED,
        **_OTHER_TOKENS,
    },
    "NSE": {
        **_SHARED,
        **_OTHER_TOKENS,
        "no-rewinding": Variant(
            {"rewind": False}, "values are optimised against the edited model"
        ),
        "no-selection": Variant({"neuron_threshold": 1.0}, "every neuron is written"),
        "one-pass": Variant({"max_iterations": 1}, "one write pass"),
        "no-previous-keys": Variant(
            {"use_previous_keys": False}, "the solve does not spare earlier edits"
        ),
        "by-update": Variant(
            {"selection_by": "update", "neuron_threshold": 0.8},
            "neurons by their change in the full update, p = 0.8",
        ),
        "norm-anchor": Variant(
            {"value_norm_anchor": True}, "values keep the original model's norm (arXiv 2602.02543)"
        ),
        "protected": Variant(
            {"protect_top_directions": 8},
            "the change stays out of the 8 largest singular directions (arXiv 2601.11042)",
        ),
        "ridge": Variant(
            {"ridge": 0.1}, "a multiple of the identity is added in the solve (arXiv 2502.01636)"
        ),
        "stable": Variant(
            {key: value for name in _STABLE for key, value in _SHARED[name].changes.items()},
            "for long streams: polyak, merged and consolidated together (ours)",
        ),
        "sphere": Variant(
            {"soft_projection": 0.8},
            "the change is smaller along the matrix's dominant directions (arXiv 2510.01172)",
        ),
    },
}  # fmt: skip
"""By method and name.  ``p=0.6`` is no variant but a short name of a key."""

SHORT_KEYS: dict[str, dict[str, str]] = {"NSE": {"p": "neuron_threshold"}}
"""Short names of keys, by method."""


@dataclass(frozen=True)
class MethodSpec:
    """One entry of ``--methods``."""

    name: str
    """As given."""
    method: str
    """Name of the method, without ``-plugin``."""
    ours: bool = False
    """``-plugin``: ours, even where the host has one of that name."""
    overtone: bool = False
    """With OVERTONE's loss."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that differ from the YAML."""

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w.+=-]+", "_", self.name)

    def about(self) -> str:
        """What is changed, in words where there are some."""
        variants = VARIANTS.get(self.method, {})
        items = _split(self.name)[1] or []
        named = [variants[item].about for item in items if item in variants]
        return "; ".join(named) or ", ".join(f"{k} = {v}" for k, v in self.changes.items())

    def values(self, model_key: str, model_name: Any, folder: Path | None = None) -> dict[str, Any]:
        """The keys of the method's YAML for a model, with the changes made.

        A YAML ``<folder>/METHOD/MODEL.yaml`` goes before a shipped one; without any these are
        settings for a model without a YAML.  With OVERTONE they are the keys under ``base``; its
        own settings are those of ``OVERTONE/METHOD/MODEL``, or the published ones where there is
        no such YAML.

        Raises:
            HparamsError: there is no such YAML and the method needs one, or it is damaged.
        """
        path = _find(f"{self.method}/{model_key}", folder)
        found = defaults_for(self.method, model_name) if path is None else read_method_yaml(path)
        if not self.overtone:
            return {**found, **self.changes, "model_name": model_name}
        own_path = _find(f"{OVERTONE}/{self.method}/{model_key}", folder)
        outer = {"alg_name": OVERTONE} if own_path is None else read_method_yaml(own_path)
        its_own = {key: value for key, value in self.changes.items() if key in _OVERTONE_KEYS}
        rest = {key: value for key, value in self.changes.items() if key not in _OVERTONE_KEYS}
        base = {**found, **rest, "model_name": model_name}
        shared = {key: base[key] for key in _OF_THE_MODEL if key in base}
        return {**outer, **its_own, "base": base, **shared}


def _find(name: str, folder: Path | None) -> Path | None:
    """The YAML of this name in the folder, or the shipped one, or None."""
    for root in (folder, yaml_dir()):
        if root is not None and (path := root / f"{name}.yaml").is_file():
            return path
    return None


def parse_methods(text: str) -> list[MethodSpec]:
    """``NSE,ROME,NSE:p=0.6``; commas inside brackets belong to a value.

    Raises:
        HparamsError: an entry cannot be read, or is given twice.
    """
    entries = [entry.strip() for entry in re.split(r",(?![^\[]*\])", text) if entry.strip()]
    if not entries:
        raise HparamsError("methods is empty; give e.g. NSE,ROME,MEMIT")
    specs = [parse_method(entry) for entry in entries]
    for folder in (found := [spec.folder.lower() for spec in specs]):
        if found.count(folder) > 1:
            twice = [spec.name for spec in specs if spec.folder.lower() == folder]
            raise HparamsError(f"methods names {' and '.join(twice)}; give each once")
    return specs


def parse_method(text: str) -> MethodSpec:
    """One entry; see the head of this module.

    Raises:
        HparamsError: the method, the variant or the form is not known.
    """
    name, rest, loss = _split(text)
    if loss is not None and loss.upper() != OVERTONE:
        raise HparamsError(
            f"method {text!r}: {loss!r} is not a loss{did_you_mean(loss.upper(), [OVERTONE])}; "
            f"after '+' only {OVERTONE} can stand, e.g. NSE+OVERTONE or NSE:p=0.6+OVERTONE"
        )
    method = name.removesuffix(_SUFFIX)
    known = sorted(set(METHODS) - {OVERTONE})
    if method not in known:
        raise HparamsError(
            f"method {text!r}: {name!r} is not a method{did_you_mean(method, known)}; "
            f"there are: {', '.join(known)}"
        )
    if rest == []:
        raise HparamsError(f"method {text!r}: nothing follows the colon; leave it out")
    return MethodSpec(
        name=text.strip(),
        method=method,
        ours=name.endswith(_SUFFIX),
        overtone=loss is not None,
        changes=_changes(text, method, rest or []),
    )


def _split(text: str) -> tuple[str, list[str] | None, str | None]:
    """Method, items after the colon (None without one), loss after the plus (None without one)."""
    head, loss = _FORM.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
    name, colon, rest = head.partition(":")
    items = [item.strip() for item in rest.split(";") if item.strip()]
    return name.strip(), items if colon else None, loss


def _changes(text: str, method: str, items: list[str]) -> dict[str, Any]:
    """Keys and values of ``no-rewinding;p=0.6``; a later one replaces an earlier one."""
    variants, short = VARIANTS.get(method, {}), SHORT_KEYS.get(method, {})
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            if item not in variants:
                named = ", ".join(variants) or "none"
                raise HparamsError(
                    f"method {text!r}: {method} has no variant {item!r}"
                    f"{did_you_mean(item, variants)}; there are: {named}, or give key=value"
                )
            found |= variants[item].changes
            continue
        if not key or not value:
            raise HparamsError(f"method {text!r}: {item!r} is not key=value, e.g. v_lr=0.2")
        found[short.get(key, key)] = _value(text, item, value)
    if "alg_name" in found or "model_name" in found:
        raise HparamsError(f"method {text!r}: alg_name and model_name are set by the comparison")
    return found


def _value(text: str, item: str, value: str) -> Any:
    """A value as YAML reads it: number, true/false, list, text, null."""
    try:
        return parse_yaml(value)
    except yaml.YAMLError as error:
        raise HparamsError(f"method {text!r}: cannot read {item!r}: {error}") from error
