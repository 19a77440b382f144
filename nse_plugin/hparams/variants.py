"""The YAML of a method by name, and changes to it: ``NSE/gpt2-xl``, ``NSE:stable/gpt2-xl``.

Changes follow a colon, separated by semicolons: named variants, such as ``NSE:no-rewinding``, and
keys with values, such as ``NSE:by-update;p=0.6``.  In place of the model there may be the path of a
YAML: ``NSE:stable/my.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams.yaml_files import find_yaml, parse_yaml, read_yaml


@dataclass(frozen=True)
class Variant:
    """A named change of hyperparameters."""

    changes: Mapping[str, Any]
    about: str


_SHARED = {
    "consolidated": Variant(
        {"repair_rounds": 1, "consolidate_every_edits": 100},
        "every 100 edits, all of them are solved jointly, and repaired (ours)",
    ),
    "margin": Variant(
        {"value_margin": 0.25}, "values go a quarter further than the edited prompt needs (ours)"
    ),
    "merged": Variant(
        {"merge_subjects": True}, "edits of one subject share a value (arXiv 2502.07322)"
    ),
    "other-facts": Variant(
        {"kl_texts": 5, "kl_factor": 0.25},
        "values change less of what the model writes about the subject (ours)",
    ),
    "polyak": Variant(
        {"v_optimizer": "polyak", "v_num_grad_steps": 12},
        "values are optimised without a learning rate, in 12 evaluations (ours)",
    ),
    "repair": Variant(
        {"repair_rounds": 1}, "edits that are not in effect are written again (ours)"
    ),
    "repair-all": Variant(
        {"repair_rounds": 1, "repair_every": 5},
        "repair, and every 5 rounds also of earlier edits no longer in effect (ours)",
    ),
    "small-keys": Variant(
        {"avoid_sinks": True, "repair_weight": 4.0},
        "no edit at an attention sink; repairs of other small keys weigh more (ours)",
    ),
}
_OTHER_TOKENS = Variant(
    {"other_token_weight": 1.0}, "the outputs of the prompts' other tokens are preserved (ours)"
)
REPAIRS = 3
"""Repairs at most in long streams and in folders of edits: one can displace other edits."""
_STABLE = {
    **_SHARED["merged"].changes,
    **_SHARED["consolidated"].changes,
    "consolidate_below": 0.95,
    "repair_rounds": REPAIRS,
    **_SHARED["small-keys"].changes,
    **_OTHER_TOKENS.changes,
}
_ABOUT_STABLE = (
    f"merged, consolidated (also when under 95% of the edits are in effect) with up to {REPAIRS} "
    "repairs, small-keys and other-tokens (ours)"
)
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
            {"use_previous_keys": True}, "the solve preserves the edits of earlier rounds"
        ),
        **_SHARED,
        "other-tokens": _OTHER_TOKENS,
        "stable": Variant(_STABLE, f"for long streams: {_ABOUT_STABLE}"),
    },
    "NSE": {
        **_SHARED,
        "other-tokens": _OTHER_TOKENS,
        "stable": Variant(
            {**_STABLE, "max_iterations": 1}, f"for long streams: one pass, {_ABOUT_STABLE}"
        ),
        "no-rewinding": Variant(
            {"rewind": False}, "values are optimised in the edited model"
        ),
        "no-selection": Variant({"neuron_threshold": 1.0}, "every neuron is written"),
        "one-pass": Variant({"max_iterations": 1}, "one write pass"),
        "no-previous-keys": Variant(
            {"use_previous_keys": False}, "the solve does not preserve earlier edits"
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
        "sphere": Variant(
            {"soft_projection": 0.8},
            "the change is smaller along the matrix's dominant directions (arXiv 2510.01172)",
        ),
    },
    "ROME": {"other-facts": _SHARED["other-facts"]},
}  # fmt: skip
"""By method and name.  ``p=0.6`` is a short name of a key, not a variant."""

SHORT_KEYS: dict[str, dict[str, str]] = {"NSE": {"p": "neuron_threshold"}}
"""Short names of keys, by method."""


_CHANGED = re.compile(r"(?P<method>\w+:[^/]*)/(?P<model>.+)", re.DOTALL)


def read_named(name_or_path: str | Path) -> dict[str, Any]:
    """The keys of a YAML by path, or by shipped name with changes after the method.

    Raises:
        HparamsError: there is no such file or change.
    """
    name = str(name_or_path)
    found = None if Path(name).is_file() else _CHANGED.fullmatch(name)
    if found is None:
        return read_yaml(find_yaml(name))
    (method, items), place = split_changes(found["method"]), found["model"]
    changes = changes_of(method, items, found["method"])
    if not (place.endswith((".yaml", ".yml")) and Path(place).is_file()):
        return with_changes(read_yaml(find_yaml(f"{method}/{place}")), changes)
    values = read_yaml(Path(place))
    if str(values.get("alg_name")).removesuffix("-plugin") != method:
        raise HparamsError(
            f"{name!r} changes {method}, and {place} has alg_name: {values.get('alg_name')}; give "
            f"the YAML of {method}, or name its own method before the colon"
        )
    return with_changes(values, changes)


def read_method_yaml(name_or_path: str | Path) -> dict[str, Any]:
    """The same for the YAML of a method, which has an ``alg_name``.

    Raises:
        HparamsError: there is no such file or change, or no ``alg_name``.
    """
    config = read_named(name_or_path)
    if not isinstance(config.get("alg_name"), str):
        raise HparamsError(
            f"{name_or_path} has no alg_name; give a method's YAML, such as NSE/gpt2-xl"
        )
    return config


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; a changed ``v_lr`` also replaces ``v_lr_relative``, and vice versa."""
    replaced = {_other_form(key) for key, value in changes.items() if value is not None}
    return {key: value for key, value in values.items() if key not in replaced} | dict(changes)


def _other_form(key: str) -> str:
    relative = "_relative"
    return key.removesuffix(relative) if key.endswith(relative) else key + relative


OVERTONE_ELSEWHERE = (
    "only nse compare takes METHOD+OVERTONE; elsewhere OVERTONE needs a YAML, such as --hparams "
    "OVERTONE/NSE/atlas-gpt2"
)


def split_changes(text: str) -> tuple[str, list[str] | None]:
    """The method, and the changes after the colon; None without a colon."""
    if text.upper().endswith("+OVERTONE"):
        raise HparamsError(f"method is {text!r}; {OVERTONE_ELSEWHERE}")
    method, colon, rest = text.partition(":")
    items = [item.strip() for item in rest.split(";") if item.strip()]
    return method.strip(), items if colon else None


def changes_of(method: str, items: Sequence[str] | None, text: str) -> dict[str, Any]:
    """Keys and values of ``no-rewinding;p=0.6``; later ones replace earlier ones.

    Args:
        items: the changes, from :func:`split_changes`.
        text: the whole text, for errors.

    Raises:
        HparamsError: there is no such variant, or a change cannot be read.
    """
    if items is None:
        return {}
    variants, short = VARIANTS.get(method, {}), SHORT_KEYS.get(method, {})
    if not items:
        raise HparamsError(f"method {text!r}: nothing follows the colon; leave it out")
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
        try:
            found[short.get(key, key)] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise HparamsError(f"method {text!r}: cannot read {item!r}: {error}") from error
    if "alg_name" in found or "model_name" in found:
        raise HparamsError(
            f"method {text!r}: alg_name and model_name cannot be changed here; name another "
            "method or model"
        )
    return found
