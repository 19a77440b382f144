"""OVERTONE around EasyEdit's own FT, LoRA, MELO and WISE.

If EasyEdit is the host, a name that it has means its method: ``base`` with ``alg_name: FT`` is
EasyEdit's FT, and ours is ``FT-plugin``.  The editor gets EasyEdit's own hyperparameters of that
method, under that method's name, because EasyEdit decides by name how batches are made, how an edit
is undone and what is saved; only the loss is replaced.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from nse_plugin.easyedit.hparams import hparams_class, hparams_of
from nse_plugin.easyedit.losses import TERMS, with_objective
from nse_plugin.errors import HostError, HparamsError
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.hparams.host_editors import HostEditorHparams
from nse_plugin.methods.overtone import objective_of

_OF_THE_EVALUATOR = ("fp16", "use_chat_template", "evaluation_type", "api_key")


def wraps_easyedit(hparams: Any) -> bool:
    """Whether these are OVERTONE's around one of EasyEdit's own editors."""
    return isinstance(hparams, OvertoneHparams) and hparams.base.alg_name in TERMS


def base_hparams(hparams: OvertoneHparams) -> Any:
    """EasyEdit's hyperparameters of the base editor.

    Their attribute ``overtone`` holds OVERTONE's settings, for the manifest of a run.

    Raises:
        HparamsError: the base has a setting that EasyEdit's editor does not have.
        HostError: EasyEdit has no such editor, or requires a key that is missing.
    """
    base = hparams.for_base()
    kind = hparams_class(base.alg_name)
    known = {f.name for f in dataclasses.fields(kind)}
    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    replaced = base.to_host() if isinstance(base, HostEditorHparams) else {}
    _check_lost(base, known | set(replaced) | {"margin_factor"})
    values = {k: v for k, v in values.items() if k in known}
    found = hparams_of(values | replaced)
    for name in _OF_THE_EVALUATOR:
        setattr(found, name, getattr(base, name))
    found.overtone = dataclasses.asdict(objective_of(hparams))
    return found


def apply_function(hparams: OvertoneHparams) -> Callable[..., tuple[Any, Any]]:
    """EasyEdit's function of the base editor, with OVERTONE's loss and the same arguments."""
    return with_objective(hparams.base.alg_name, objective_of(hparams))


def in_table(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of ours for EasyEdit's method table.

    It refuses to wrap EasyEdit's own editors: under the name OVERTONE, EasyEdit would not know how
    to undo a LoRA or a WISE.
    """

    @functools.wraps(function)
    def apply(model: Any, tok: Any, requests: Any, hparams: Any, *args: Any, **options: Any) -> Any:
        if wraps_easyedit(hparams):
            name = hparams.base.alg_name
            raise HostError(
                f"OVERTONE around EasyEdit's own {name} needs an editor that knows {name}: make it "
                "with nse_plugin.BaseEditor"
            )
        return function(model, tok, requests, hparams, *args, **options)

    return apply


def _check_lost(base: Hparams, known: set[str]) -> None:
    """Refuse a setting that would have no effect."""
    shared = {f.name for f in dataclasses.fields(Hparams)} - {"target_eos"}
    for f in dataclasses.fields(base):
        value = getattr(base, f.name)
        if f.name in known | shared or value == f.default:
            continue
        raise HparamsError(
            f"{f.name} is {value!r}, and EasyEdit's {base.method} has no such setting; leave it "
            f"out, or use our own {base.method}: NSE_PLUGIN_HOST=embedded"
        )
