"""Default settings for a model without a YAML; none of them is tuned to one model.

``nse run --method NSE --model X`` uses them unchanged, ``nse tune`` starts from them.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from nse_plugin.data.models import model_place, why_not_loaded
from nse_plugin.errors import HparamsError, ModelError
from nse_plugin.hparams import Hparams
from nse_plugin.hparams.variants import (
    changes_of,
    read_method_yaml,
    split_changes,
    with_changes,
)
from nse_plugin.hparams.yaml_files import yaml_dir
from nse_plugin.methods.registry import find_method, hparams_from

log = logging.getLogger(__name__)

_SPREAD = 5
"""Number of layers that NSE, MEMIT and AlphaEdit write."""
_DEPTH = 0.28
"""The z-layer as a share of the blocks: layers 4 to 8 of 28 or 30 blocks, 5 to 9 of 32."""
_LATE = 0.9
"""UltraEdit's last layer as a share of the blocks: 30 of 32 and 26 of 28 in the paper."""
LOCATE = ("NSE", "MEMIT", "AlphaEdit", "ROME")
"""Methods that optimise values and use a covariance."""


def model_key(model_name: str) -> str:
    """The name of a model's YAML files: ``atlas-gpt2``, or the last part of a path."""
    return model_name.replace("atlas:", "atlas-").rstrip("/").rpartition("/")[2]


def hparams_for(method: str, model_name: str, **changes: Any) -> Hparams:
    """The hyperparameters of a method for a model, as ``nse run --method`` takes them.

    Args:
        method: such as ``NSE`` or ``NSE:stable``.
        model_name: a folder, hub id or short name.
        **changes: hyperparameters to replace.

    Returns:
        Those of the YAML that ships for both, or else general settings.

    Raises:
        HparamsError: there are neither, or no such method or change.
        ModelError: the model's config cannot be read.
    """
    return hparams_from(method, with_changes(values_for(method, model_name), changes))


def values_for(method: str, model_name: str) -> dict[str, Any]:
    """The settings of the YAML that ships for a method and model, else the defaults.

    Args:
        method: its name; ``-plugin`` selects ours if EasyEdit has a method of that name. Changes
            may follow, as in ``NSE:stable``.

    Raises:
        HparamsError: there are neither, or no such method or change.
        ModelError: the model's config cannot be read.
    """
    alg_name, items = split_changes(method)
    name = find_method(alg_name).name
    changes = {**changes_of(name, items, method), "alg_name": alg_name}
    path = yaml_dir() / name / f"{model_key(model_name)}.yaml"
    if path.is_file():
        return with_changes(read_method_yaml(path), {**changes, "model_name": model_name})
    found = defaults_for(name, model_name)
    log.warning(
        "nse_plugin has no settings of %s for %s and uses general ones; nse tune finds better ones",
        name, model_name,
    )  # fmt: skip
    return with_changes(found, changes)


def defaults_for(method: str, model_name: str) -> dict[str, Any]:
    """The defaults, whether or not a YAML ships; raises as :func:`values_for` does."""
    if method == "OVERTONE":
        found = sorted((yaml_dir() / method).glob(f"*/{model_key(model_name)}.yaml"))
        names = [f"{method}/{path.parent.name}/{path.stem}" for path in found]
        way_out = f"give --hparams with one of: {', '.join(names)}"
        if not names:
            way_out = "copy the YAML OVERTONE/NSE/atlas-gpt2, change its model and give --hparams"
        raise HparamsError(f"method {method!r} wraps another method; {way_out}")
    if method not in (*LOCATE, "FT", "UltraEdit"):
        raise HparamsError(
            f"method {method!r} has neither settings for {model_name} nor general ones; "
            f"find some with nse tune --method {method} --model {model_name}, or give a YAML"
        )
    return first_values(method, model_name, _blocks_of(model_name))


def first_values(method: str, model_name: str, n_layers: int) -> dict[str, Any]:
    """Settings of a method (not LoRA or GRACE) for any model with this number of blocks."""
    values: dict[str, Any] = {"alg_name": method, "model_name": model_name}
    last = usual_layer(n_layers)
    if method in LOCATE:
        embedded = model_name.startswith("atlas:")
        values |= {
            "layers": layers_up_to(last),
            "clamp_norm_factor": 0.75,
            "n_contexts": 1,
            "mom2_dataset": "atlas" if embedded else "factbook",
            "mom2_n_samples": 4000 if embedded else 100,
        }
    if method in ("NSE", "MEMIT", "AlphaEdit"):
        values |= {"v_optimizer": "polyak", "v_num_grad_steps": 12, "value_margin": 0.25}
    if method in ("NSE", "MEMIT"):
        values["mom2_update_weight_relative"] = 1.0
    if method == "NSE":
        values["max_iterations"] = 1
    if method == "ROME":
        values |= {"layers": [max(0, last - 2)], "clamp_norm_factor": 4.0, "v_weight_decay": 1e-3}
        values |= {"v_lr_relative": 0.15, "v_num_grad_steps": 20}
    if method == "FT":
        values |= {"layers": [max(0, last - 2)], "lr": 1e-3, "num_steps": 25, "batch_size": 20}
    if method == "UltraEdit":
        late = min(n_layers - 1, round(_LATE * n_layers))
        values |= {"layers": layers_up_to(late), "lr": 1e-3, "batch_size": 20}
    return values


def usual_layer(n_layers: int) -> int:
    """The default z-layer."""
    return min(n_layers - 1, max(0, round(_DEPTH * n_layers)))


def layers_up_to(last: int) -> list[int]:
    """The layers to write for a z-layer."""
    return list(range(max(0, last - _SPREAD + 1), last + 1))


@functools.cache
def _blocks_of(model_name: str) -> int:
    """A model's number of blocks, read from its config."""
    from transformers import AutoConfig

    place = model_place(model_name)
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        return int(config.get_text_config().num_hidden_layers)
    except Exception as error:  # of transformers or the hub
        raise ModelError(
            f"cannot read the config of {model_name!r}: {why_not_loaded(place, error)}"
        ) from error
