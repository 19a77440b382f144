"""The syntax of ``--methods``: a method, changes to its settings, and its loss.

``NSE``; with changes ``NSE:no-rewinding;p=0.6`` (:mod:`nse_plugin.hparams.variants`); with
OVERTONE's loss ``NSE+OVERTONE``; ``ROME-plugin`` for ours if the host has a method of that name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nse_plugin.data.defaults import defaults_for
from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.hparams.variants import (
    VARIANTS,
    changes_of,
    read_method_yaml,
    split_changes,
    with_changes,
)
from nse_plugin.hparams.yaml_files import yaml_dir
from nse_plugin.methods.registry import METHODS

UNTOUCHED = "untouched"
"""The name of the row of the model without edits."""
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
class MethodSpec:
    """One entry of ``--methods``."""

    name: str
    """The entry as given."""
    method: str
    """Name of the method, without ``-plugin``."""
    ours: bool = False
    """``-plugin``: ours, even if the host has a method of that name."""
    overtone: bool = False
    """With OVERTONE's loss."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that differ from the YAML."""

    @property
    def folder(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w.+=-]+", "_", self.name)

    def about(self) -> str:
        """The changes, variants in words."""
        variants = VARIANTS.get(self.method, {})
        items = _split(self.name)[1] or []
        return "; ".join(
            variants[item].about
            if item in variants
            else " = ".join(part.strip() for part in item.split("=", 1))
            for item in items
        )

    def values(self, model_key: str, model_name: Any, folder: Path | None = None) -> dict[str, Any]:
        """The keys of the method's YAML for a model, with the changes.

        ``<folder>/METHOD/MODEL.yaml`` takes precedence over a shipped YAML; without either they are
        general settings.  With OVERTONE these keys stand under ``base``, and its own settings are
        those of ``OVERTONE/METHOD/MODEL``, or the published ones without such a YAML.

        Raises:
            HparamsError: there is no YAML and the method needs one, or it is damaged.
        """
        path = _find(f"{self.method}/{model_key}", folder)
        found = defaults_for(self.method, model_name) if path is None else read_method_yaml(path)
        if not self.overtone:
            return with_changes(found, {**self.changes, "model_name": model_name})
        own_path = _find(f"{OVERTONE}/{self.method}/{model_key}", folder)
        outer = {"alg_name": OVERTONE} if own_path is None else read_method_yaml(own_path)
        its_own = {key: value for key, value in self.changes.items() if key in _OVERTONE_KEYS}
        rest = {key: value for key, value in self.changes.items() if key not in _OVERTONE_KEYS}
        base = with_changes(found, {**rest, "model_name": model_name})
        shared = {key: base[key] for key in _OF_THE_MODEL if key in base}
        return {**outer, **its_own, "base": base, **shared}


def _find(name: str, folder: Path | None) -> Path | None:
    """The YAML of this name in the folder, or the shipped one, or None."""
    for root in (folder, yaml_dir()):
        if root is not None and (path := root / f"{name}.yaml").is_file():
            return path
    return None


def parse_methods(text: str) -> list[MethodSpec]:
    """Parse ``NSE,ROME,NSE:p=0.6``; commas inside brackets belong to a value.

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
    """Parse one entry; see the docstring of this module.

    Raises:
        HparamsError: the method, the variant or the form is not known.
    """
    name, items, loss = _split(text)
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
    return MethodSpec(
        name=text.strip(),
        method=method,
        ours=name.endswith(_SUFFIX),
        overtone=loss is not None,
        changes=changes_of(method, items, text),
    )


def _split(text: str) -> tuple[str, list[str] | None, str | None]:
    """Method, changes after the colon and loss after the plus; None for a missing part."""
    head, loss = _FORM.fullmatch(text.strip()).groups()  # type: ignore[union-attr]
    return *split_changes(head), loss
