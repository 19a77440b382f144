"""Whose implementation of a method is run, and with which hyperparameters.

With EasyEdit as the host, a method that EasyEdit has is EasyEdit's own, unless it is asked for as
``NAME-plugin``; variants and OVERTONE are always ours, and so is every method without EasyEdit.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import Any

from nse_plugin import toolkit
from nse_plugin.compare.plan import Cell
from nse_plugin.compare.specs import MethodSpec
from nse_plugin.errors import HparamsError
from nse_plugin.hparams import Hparams, LocateHparams, OvertoneHparams
from nse_plugin.methods.registry import find_method
from nse_plugin.session import EditSession

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """A method's hyperparameters, and whose implementation they are for."""

    hparams: Any
    implementation: str
    ignored: tuple[str, ...] = ()
    """Keys of the YAML that the host's method does not have."""


def is_hosts_own(spec: MethodSpec) -> bool:
    """Whether the host's own implementation is run."""
    if spec.ours or spec.overtone or toolkit.host() != "easyedit":
        return False
    from nse_plugin.toolkit.easyedit import has_own

    return has_own(spec.method)


def recipe(cell: Cell) -> Recipe:
    """Read what a cell's method runs with.

    Raises:
        HparamsError: there is no YAML for this model, or a key or value is wrong.
        HostError: the host's method cannot take them.
    """
    spec, settings = cell.spec, cell.settings
    values = cell.values()
    if is_hosts_own(spec):
        from nse_plugin.toolkit.easyedit import host_hparams, host_hparams_keys

        known = host_hparams_keys(values["alg_name"])
        unknown = sorted(set(values) - set(known))
        changed = sorted(set(spec.changes) & set(unknown))
        if changed:
            raise HparamsError(
                f"method {spec.name!r}: EasyEdit's {spec.method} has no {', '.join(changed)}; "
                f"ask for ours as {spec.method}-plugin"
            )
        log.info("%s: EasyEdit does not know %s", spec.name, ", ".join(unknown))
        kept = {key: value for key, value in values.items() if key in known}
        return Recipe(host_hparams(kept), "EasyEdit", tuple(unknown))
    try:
        hparams = find_method(values["alg_name"]).hparams.from_dict(values)
    except HparamsError as error:
        raise HparamsError(f"method {spec.name!r} on {cell.model.key}: {error}") from None
    return Recipe(_with_statistics(hparams, settings.stats_dir), "nse_plugin")


def base_of(hparams: Any) -> Any:
    """The hyperparameters of the method itself, where OVERTONE is around it."""
    return hparams.base if isinstance(hparams, OvertoneHparams) else hparams


def _with_statistics(hparams: Hparams, folder: str | None) -> Hparams:
    """The same with an absolute folder of statistics: a cell may run elsewhere."""
    if isinstance(hparams, OvertoneHparams):
        return dataclasses.replace(hparams, base=_with_statistics(hparams.base, folder))
    if not isinstance(hparams, LocateHparams):
        return hparams
    return dataclasses.replace(hparams, stats_dir=os.path.abspath(folder or hparams.stats_dir))


def subject(made: Recipe, model: Any, tokenizer: Any) -> Any:
    """What the scheduler edits: a session of ours, or the host's editor around this model."""
    if isinstance(made.hparams, Hparams):
        return EditSession.of(model, tokenizer)
    from nse_plugin.toolkit.easyedit import ReadyModel

    made.hparams.model_name = ReadyModel(model, tokenizer)
    return toolkit.BaseEditor.from_hparams(made.hparams)
