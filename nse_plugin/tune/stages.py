"""The stages of a search by method: what they change, and in which order.

A stage tries changes of the best settings so far and keeps the best of all.  Stages on *few* facts
write one round.  Those on a *stream* edit in rounds and are tested after the last one, because
settings that suit one round may fail after a hundred edits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse_plugin.data.defaults import first_values, layers_up_to, usual_layer
from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams import AlphaEditHparams
from nse_plugin.methods.bases import BASES
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.session.session import EditSession

Settings = Mapping[str, Any]
Changes = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A set of changes to try."""

    name: str
    options: Callable[[EditSession, Settings], Sequence[Changes]]
    """Changes to try, given the best settings so far."""
    until: float
    """Share of the time at which the stage ends."""
    stream: bool = False
    """Edit a stream, not a single round."""


def layers_of(options: Sequence[Changes]) -> list[int]:
    """All layers that these changes name."""
    return [layer for changes in options for layer in changes.get("layers", [])]


def first_settings(session: EditSession, method: str, model_name: str, given: Settings) -> Changes:
    """The settings with which a search begins.

    Args:
        given: keys that are not searched, e.g. the folder of statistics.

    Raises:
        HparamsError: there is no search for this method.
    """
    check_method(method)
    settings = {**_first_settings(session.layout, method, model_name), **given}
    if method == "AlphaEdit":  # these two settings depend on the scale of the keys
        settings |= _null_spaces(session, settings)[1]
        settings |= _weights_of_identity(session, settings)[1]
    return settings


def check_method(method: str) -> None:
    """Raise :class:`HparamsError` unless there is a search for this method."""
    if method not in _STAGES:
        raise HparamsError(
            f"method {method!r} cannot be tuned{did_you_mean(method, _STAGES)}; there are: "
            f"{', '.join(sorted(_STAGES))}. For OVERTONE tune its base method, and name that YAML "
            "as its base, as OVERTONE/NSE/atlas-gpt2 does"
        )


def _first_settings(layout: DecoderLayout, method: str, model_name: str) -> Changes:
    named = {"alg_name": method, "model_name": model_name}
    if method == "LoRA":
        return {
            **named,
            "target_modules": _attention_inputs(layout),
            "lr": 1e-3,
            "num_steps": 25,
            "batch_size": 20,
            "stop_loss": 1e-2,
        }
    if method == "GRACE":
        return {
            **named,
            "inner_params": [_mlp_input(layout, 2 * layout.n_layers // 3)],
            "eps": 1.0,
            "n_iter": 30,
            "stop_loss": 1e-2,
        }
    values = first_values(method, model_name, layout.n_layers)
    if method in ("ROME", "FT"):
        values["layers"] = [usual_layer(layout.n_layers)]
    return values


def stages(method: str) -> list[Stage]:
    """The stages of a method's search."""
    return list(_STAGES[method])


def _factors(key: str, *factors: float) -> Callable[[EditSession, Settings], list[Changes]]:
    """Multiples of a setting, or of the method's default."""

    def options(_session: EditSession, best: Settings) -> list[Changes]:
        default = getattr(BASES[best["alg_name"]].hparams, key)
        now = best.get(key, default)
        found = [now * factor for factor in factors]
        return [{key: round(v) if isinstance(now, int) else float(f"{v:.3g}")} for v in found]

    return options


def _each(key: str, *values: Any) -> Callable[[EditSession, Settings], list[Changes]]:
    return lambda _session, _best: [{key: value} for value in values]


def _depths(width: int) -> Callable[[EditSession, Settings], list[Changes]]:
    """Layers over the whole depth, beginning with the usual ones.

    Args:
        width: 1 for a single layer, more for the layers over which a residual is spread.
    """

    def options(session: EditSession, _best: Settings) -> list[Changes]:
        n = session.layout.n_layers
        shares = (0.15, 0.4, 0.55, 0.7, 0.85)
        lasts = [usual_layer(n), *(min(n - 1, round(share * n)) for share in shares)]
        return [{"layers": _up_to(last, width)} for last in dict.fromkeys(lasts)]

    return options


def _beside(width: int) -> Callable[[EditSession, Settings], list[Changes]]:
    """Layers half-way to the neighbouring ones that were tried."""

    def options(session: EditSession, best: Settings) -> list[Changes]:
        n, last = session.layout.n_layers, best["layers"][-1]
        step = max(1, round(0.07 * n))
        near = [at for at in (last - step, last + step) if 0 <= at < n]
        return [{"layers": _up_to(at, width)} for at in near]

    return options


def _up_to(last: int, width: int) -> list[int]:
    return layers_up_to(last) if width > 1 else [last]


def _null_spaces(session: EditSession, best: Settings) -> list[Changes]:
    """Thresholds that keep these shares of the z-layer's directions, as AlphaEdit counts them."""
    eigenvalues = _of_covariance(session, best, _eigenvalues)
    found = [float(eigenvalues.quantile(share)) for share in (0.8, 0.6, 0.4)]
    return [{"nullspace_threshold": float(f"{value:.2g}")} for value in found]


def _weights_of_identity(session: EditSession, best: Settings) -> list[Changes]:
    """L2 as shares of the mean squared norm of a key."""
    scale = float(_of_covariance(session, best, torch.trace))
    return [{"L2": float(f"{share * scale:.2g}")} for share in (0.003, 0.03, 0.3)]


def _of_covariance(
    session: EditSession, best: Settings, function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """``function(C)`` for C [d_ff, d_ff] of the z-layer, computed once."""
    hparams = AlphaEditHparams(**best)
    return session.untouched.of_covariance(hparams, hparams.layers[-1], function)


def _eigenvalues(covariance: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(covariance.double())


def _grace_layers(session: EditSession, _best: Settings) -> list[Changes]:
    n = session.layout.n_layers
    layers = dict.fromkeys(min(n - 1, round(share * n)) for share in (0.65, 0.3, 0.85))
    return [{"inner_params": [_mlp_input(session.layout, layer)]} for layer in layers]


def _mlp_input(layout: DecoderLayout, layer: int) -> str:
    """Name of the weight of an MLP's input projection, as in GRACE's YAMLs."""
    mlp = layout.blocks[layer].get_submodule(layout.family.mlp)
    names = [
        name for name, _ in _matrices(mlp) if mlp.get_submodule(name) is not layout.down(layer)
    ]
    if not names:
        raise HparamsError("GRACE needs an MLP with an input projection, and this model has none")
    return f"{layout.family.blocks}[{layer}].{layout.family.mlp}.{names[-1]}.weight"


def _attention_inputs(layout: DecoderLayout) -> list[str]:
    """Suffixes of the modules that LoRA adapts: queries and values, or the fused projection."""
    attention = layout.blocks[0].get_submodule(layout.family.attn)
    names = [name for name, _ in _matrices(attention)]
    return [name for name in names if name in ("q_proj", "v_proj")] or names[:1]


def _matrices(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if name and isinstance(weight, torch.Tensor) and weight.dim() == 2:
            yield name, part


_BOUND = Stage("clamp", _factors("clamp_norm_factor", 0.67, 1.5, 2.25), 0.45)
_STEPS = Stage("steps", _factors("v_num_grad_steps", 0.5, 1.75), 0.6)
_SPREAD = (Stage("layers", _depths(5), 0.3), Stage("layers", _beside(5), 0.38), _BOUND, _STEPS)
_CLAMP = Stage("clamp", _factors("clamp_norm_factor", 0.67, 1.5), 1.0, stream=True)
_MARGIN = Stage("margin", _each("value_margin", 0.0, 0.25, 0.5), 1.0, stream=True)
_LAMBDA = Stage("lambda", _each("mom2_update_weight_relative", 1.0, 0.2, 5.0), 1.0, stream=True)
_OTHER_TOKENS = Stage("other tokens", _each("other_token_weight", 1.0), 1.0, stream=True)
_TRAINING = (
    Stage("learning rate", _factors("lr", 1.0, 0.3, 3.0), 0.5),
    Stage("steps", _factors("num_steps", 0.5, 2), 0.65),
    Stage("learning rate", _factors("lr", 1.0, 0.5), 1.0, stream=True),
)
_STAGES: dict[str, Sequence[Stage]] = {
    "NSE": (
        *_SPREAD,
        _LAMBDA,
        _OTHER_TOKENS,
        _MARGIN,
        Stage("passes", _each("max_iterations", 2), 1.0, stream=True),
        _CLAMP,
    ),
    "MEMIT": (*_SPREAD, _LAMBDA, _OTHER_TOKENS, _MARGIN, _CLAMP),
    "AlphaEdit": (
        *_SPREAD,
        Stage("null space", _null_spaces, 0.8, stream=True),
        Stage("weight of the identity", _weights_of_identity, 1.0, stream=True),
        _MARGIN,
    ),
    "ROME": (
        Stage("layers", _depths(1), 0.3),
        Stage("layers", _beside(1), 0.4),
        _BOUND,
        Stage("learning rate", _factors("v_lr_relative", 0.5, 2, 0.2), 0.55),
        _STEPS,
        Stage("clamp", _factors("clamp_norm_factor", 1.0, 0.5), 1.0, stream=True),
    ),
    "FT": (Stage("layers", _depths(1), 0.35), *_TRAINING),
    "LoRA": _TRAINING,
    "UltraEdit": (
        Stage("learning rate", _factors("lr", 10, 3, 0.3, 0.1, 0.03, 0.01), 0.4),
        Stage("layers", _depths(5), 0.65),
        Stage("learning rate", _factors("lr", 1.0, 0.3, 3), 1.0, stream=True),
    ),
    "GRACE": (
        Stage("layers", _grace_layers, 0.3),
        Stage("radius", _factors("eps", 3, 10, 0.3), 0.6),
        Stage("radius", _factors("eps", 1.0, 0.5, 2), 1.0, stream=True),
    ),
}
