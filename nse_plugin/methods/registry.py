"""The methods by name, and the call that EasyEdit makes of a method."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams import Hparams, NSEHparams, OvertoneHparams
from nse_plugin.ledger.records import RoundRecord
from nse_plugin.methods import nse, overtone
from nse_plugin.requests import EditRequest, as_requests
from nse_plugin.session import EditSession


@dataclass(frozen=True)
class Method:
    """One editing method."""

    name: str
    """``alg_name`` in hparams and the host's table."""
    edit_round: Callable[..., RoundRecord]
    """``edit_round(session, requests, hparams)``."""
    hparams: type[Hparams]


METHODS: dict[str, Method] = {
    "NSE": Method("NSE", nse.edit_round, NSEHparams),
    "OVERTONE": Method("OVERTONE", overtone.edit_round, OvertoneHparams),
}


def find_method(name: str) -> Method:
    """The method of this ``alg_name``.

    Raises:
        HparamsError: there is none; the message names the nearest.
    """
    name = name.removesuffix("-plugin")  # what ours is called where the host has its own
    if name not in METHODS:
        raise HparamsError(
            f"alg_name {name!r} is not a method of nse_plugin ({', '.join(sorted(METHODS))})"
            f"{did_you_mean(name, METHODS)}"
        )
    return METHODS[name]


def apply_function(name: str) -> Callable[..., tuple[PreTrainedModel, dict[str, torch.Tensor]]]:
    """A method as EasyEdit calls it.

    The function takes ``(model, tok, requests, hparams, copy=False, return_orig_weights=True,
    keep_original_weight=False, **ignored)`` and returns the edited model and the weights that it
    changed, as they were before this call.
    """
    method = find_method(name)

    def apply(
        model: PreTrainedModel,
        tok: Any,
        requests: Sequence[EditRequest | Mapping[str, Any]],
        hparams: Any,
        copy: bool = False,
        return_orig_weights: bool = True,
        keep_original_weight: bool = False,
        **_ignored: Any,
    ) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
        if copy:
            model = copying.deepcopy(model)
        session = EditSession.of(model, tok)
        originals: dict[str, torch.Tensor] = {}
        if return_orig_weights or keep_original_weight:
            session.layout.check_layers(hparams.layers)
            for layer in hparams.layers:
                weight = session.layout.down(layer).weight
                originals[session.layout.down_name(layer)] = weight.detach().clone()
        n_before = sum(len(record.outcomes) for record in session.ledger)
        method.edit_round(session, as_requests(requests, first=n_before), hparams)
        return model, originals

    apply.__name__ = f"apply_{name.lower()}_to_model"
    return apply
