"""The methods by name, and each method as the function that EasyEdit calls."""

from __future__ import annotations

import copy as copying
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nse_plugin.errors import HparamsError, SessionError, did_you_mean
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.hparams.overtone import base_of
from nse_plugin.hparams.variants import OVERTONE_ELSEWHERE, read_method_yaml
from nse_plugin.methods import overtone
from nse_plugin.methods.bases import BASES, Method
from nse_plugin.requests import EditRequest, as_requests
from nse_plugin.session.link import linked
from nse_plugin.session.session import EditSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel


METHODS = BASES | {"OVERTONE": Method("OVERTONE", overtone.edit_round, OvertoneHparams)}


def attaches(hparams: Hparams) -> bool:
    """Whether the method attaches modules to the model; OVERTONE does if its base does."""
    method = METHODS.get(base_of(hparams).method)
    return method is not None and method.attaches


def find_method(name: str) -> Method:
    """The method of this ``alg_name``.

    Raises:
        HparamsError: there is none; the message names the nearest.
    """
    name = name.removesuffix("-plugin")  # our name for it where the host has its own
    if name not in METHODS:
        near = did_you_mean(name, METHODS)
        if name.upper().endswith("+OVERTONE"):  # how nse compare writes it
            near = f"; {OVERTONE_ELSEWHERE}"
        raise HparamsError(
            f"{name!r} is not a method of nse_plugin ({', '.join(sorted(METHODS))}){near}"
        )
    return METHODS[name]


def load_hparams(name_or_path: str | Path) -> Hparams:
    """Read a YAML into the hyperparameters of its method.

    Raises:
        HparamsError: there is no such file, no such method, or a key or value is wrong.
    """
    return hparams_from(name_or_path, read_method_yaml(name_or_path))


def hparams_from(name_or_path: str | Path, config: dict[str, Any]) -> Hparams:
    """Hyperparameters from the keys of a YAML.

    Args:
        name_or_path: of the YAML, for errors.

    Raises:
        HparamsError: no such method, or a key or value is wrong.
    """
    name = config.get("alg_name")
    if not isinstance(name, str):
        raise HparamsError(f"alg_name is {name!r}; name a method, as NSE", file=name_or_path)
    try:
        method = find_method(name)
    except HparamsError as error:
        raise HparamsError(f"alg_name: {error}", file=name_or_path) from None
    return method.hparams.from_dict(config, name_or_path)


Reversal = dict[str, torch.Tensor] | Callable[[], None]
"""What undoes a call: the weights before it by name, or a function without arguments."""


def apply_function(name: str) -> Callable[..., tuple[PreTrainedModel, Reversal]]:
    """A method as a function with the arguments of EasyEdit's ``apply_*_to_model``."""
    method = find_method(name)

    def apply(
        model: PreTrainedModel,
        tok: Any,
        requests: Sequence[EditRequest | Mapping[str, Any]],
        hparams: Any,
        copy: bool = False,
        return_orig_weights: bool = False,
        keep_original_weight: bool = False,
        **_ignored: Any,
    ) -> tuple[PreTrainedModel, Reversal]:
        """Write requests into a model as one round, as EasyEdit's editors call a method.

        Args:
            requests: EasyEdit's dicts (``prompt``, ``subject``, ``target_new``), or
                :class:`EditRequest` objects.
            copy: edit a copy and leave the model unchanged.
            return_orig_weights: return the changed weights as they were before the call.
            keep_original_weight: the same under the name that some of EasyEdit's methods use.

        Returns:
            The edited model, and what undoes the edit: weights by name (empty unless requested),
            or a function without arguments if the method attaches modules.
        """
        if copy:
            model = _copy(model)
        session = EditSession.of(model, tok)
        session.check()  # a host may have put weights back since the last round
        before = session.weights.snapshot()
        first = session.ledger.edits_made()
        record = method.edit_round(session, as_requests(requests, first=first), hparams)
        if record.state is not None:
            return model, functools.partial(session.put_back, record.number)
        if not (return_orig_weights or keep_original_weight):
            return model, {}
        names = map(session.layout.down_name, sorted(record.keys))
        return model, {name: session.weights.at(name, before) for name in names}

    apply.__name__ = apply.__qualname__ = f"apply_{name.lower()}_to_model"
    return apply


apply_nse_to_model = apply_function("NSE")
"""NSE as a function in EasyEdit's style; it writes to ``EditSession.of(model)``."""


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy to edit, without a session: its present weights count as its originals.

    Raises:
        SessionError: something is attached to the model.
    """
    session = linked(model)
    if session is not None and session.attached.kind is not None:
        raise SessionError(
            f"copy=True, and the model has {session.attached.kind!r} attached, which its copy "
            "would have without the session that knows how to take it off; undo_all() first, or "
            "edit the model itself"
        )
    return copying.deepcopy(model)
