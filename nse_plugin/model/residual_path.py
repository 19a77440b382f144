"""Measure how a down-projection's output reaches the residual stream.

A Llama block adds the output unchanged.  Granite scales it; Gemma 2 and 3, OLMo 2 and 3, GLM-4 and
EXAONE 4 normalise it first; a mixture of experts or a gated stream does neither.  A method that
writes a residual of the stream into the down-projection has to know this, so each layer is measured
before it is edited (:func:`measure_path`).
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import ModelError
from nse_plugin.model.hooks import StopPass, quiet
from nse_plugin.model.layout import DecoderLayout, device_of, first_tensor

_SMALLEST_GAIN = 1e-3


@dataclass(frozen=True)
class ResidualPath:
    """What a block adds to the residual stream for an output of its down-projection.

    This is ``scale * norm(output)``, or ``scale * output`` without a norm.
    """

    scale: float = 1.0
    norm: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """What is added: [n, d_model] float32, for outputs [n, d_model] of the down-projection."""
        if self.norm is None:
            return self.scale * output
        return self.scale * _apply(self.norm, output)

    @torch.no_grad()
    def pull_back(self, residual: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The change of the down-projection's output that adds a residual to the stream.

        With a norm, only the direction of the output counts: it is turned to the direction that
        the norm maps nearest to the wanted sum (:func:`_nearest`), and its length is kept.  What
        the norm cannot reach stays as residual.

        Args:
            residual: [n, d_model], to add to the residual stream.
            output: [n, d_model], current output of the down-projection.
        """
        if self.norm is None:
            return residual / self.scale
        output = output.to(residual.device)
        gain, bias, centres = _affine(self.norm, output[:1])
        wanted = (self(output) + residual) / self.scale
        unit = _nearest(wanted - bias, gain)
        now = output
        if centres:
            unit = unit - unit.mean(dim=1, keepdim=True)
            now = output - output.mean(dim=1, keepdim=True)
        length = now.norm(dim=1, keepdim=True) / unit.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return length * unit - now


def _nearest(wanted: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """u [n, d_model] with root mean square 1 for which gain * u is nearest to ``wanted``.

    By Lagrange, u = gain * wanted / (gain^2 + mu), with the mu > -min gain^2 for which u has that
    length; it falls as mu rises.  Dividing by the gain alone (mu = 0) would spend the length on the
    features of smallest gain; in Gemma 3, gains differ by three orders of magnitude.
    """
    g, w = gain.double(), wanted.double()
    low = -g.square().amin(dim=1, keepdim=True).expand(len(w), 1)
    high = (g * w).norm(dim=1, keepdim=True) / w.shape[1] ** 0.5
    for _ in range(64):
        mu = (low + high) / 2
        too_long = (g * w / (g.square() + mu)).square().mean(dim=1, keepdim=True) > 1
        low, high = torch.where(too_long, mu, low), torch.where(too_long, high, mu)
    return (g * w / (g.square() + high)).to(wanted.dtype)


def _apply(norm: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    weight = next(norm.parameters(), None)
    if weight is None:
        return norm(rows)
    return norm(rows.to(device_of(norm, rows.device), weight.dtype)).to(rows.device).float()


def _affine(norm: nn.Module, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Gain and bias [1, d_model] of a norm, and whether it subtracts the mean."""
    signs = torch.ones_like(like)
    signs[:, 1::2] = -1  # root mean square 1, mean 0
    bias = _apply(norm, torch.zeros_like(like))
    gain = (_apply(norm, signs) - bias) * signs
    gain = torch.where(gain.abs() < _SMALLEST_GAIN, torch.full_like(gain, _SMALLEST_GAIN), gain)
    shifted = _apply(norm, signs + 1)
    centres = bool((shifted - bias - gain * signs).norm() < 0.1 * gain.norm())
    return gain, bias, centres


def path_of(layout: DecoderLayout, layer: int) -> ResidualPath:
    """The path of a layer, measured when first needed."""
    key = ("residual path", layer)
    if key not in layout.measured:
        layout.measured[key] = measure_path(layout, layer)
    return layout.measured[key]


@torch.no_grad()
def measure_path(layout: DecoderLayout, layer: int) -> ResidualPath:
    """Measure how known changes of a layer's down-projection output reach the block's output.

    Raises:
        ModelError: the path is neither a factor nor a norm.
    """
    generator = torch.Generator().manual_seed(layer)
    with quiet(layout.model):
        before = _Observed.of(layout, layer)
        size = before.stream.float().square().mean().sqrt()
        drawn = torch.randn(2, *before.output.shape, generator=generator, dtype=torch.float32)
        after = [
            _Observed.of(layout, layer, change)
            for change in (size * drawn.to(size.device)).to(before.output.dtype)
        ]
    effect, rounding = map(torch.cat, zip(*(_effect(before, changed) for changed in after)))
    outputs = [before.output.float(), *(changed.output.float() for changed in after)]
    for norm in (None, *before.norms):
        through = outputs if norm is None else [_apply(norm, output) for output in outputs]
        change = torch.cat([output - through[0] for output in through[1:]]).flatten()
        scale = _common_factor(change, effect, rounding)
        if scale is not None:
            return ResidualPath(scale, norm)
    raise ModelError(
        f"layer {layer} of model type {layout.model_type!r} does not add the output of "
        f"{layout.family.down} to its stream: what happens in between is neither a factor nor a "
        "norm, so no value can be written there; edit other layers, or use FT, LoRA or GRACE"
    )


def _effect(before: _Observed, after: _Observed) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of the residual stream [tokens * d_model], float32, and the possible rounding
    error of each of its numbers, since the stream has the model's dtype."""
    size = after.stream.float() - before.stream.float()
    largest = torch.maximum(before.stream.abs(), after.stream.abs()).float()
    rounding = torch.finfo(after.stream.dtype).eps * largest
    return size.flatten(), rounding.flatten()


def _common_factor(
    change: torch.Tensor, effect: torch.Tensor, rounding: torch.Tensor
) -> float | None:
    """c if effect = c * change, else None; exactly 1 if it is nearly 1.

    In half precision, the few numbers of a stream that are a thousand times larger than the others
    are left out, since their rounding error is larger than the effect.
    """
    effect, rounding = effect.to(change.device), rounding.to(change.device)
    clear = rounding <= torch.maximum(0.5 * effect.abs().median(), rounding.median())
    change, effect, rounding = change[clear], effect[clear], rounding[clear]
    scale = float((change @ effect) / (change @ change).clamp(min=1e-30))
    allowed = 2e-3 * effect.norm() + rounding.norm()
    if not scale or not (effect - scale * change).norm() <= allowed:
        return None
    return 1.0 if abs(scale - 1) <= float(allowed / effect.norm()) else scale


@dataclass(frozen=True)
class _Observed:
    """One pass through a block."""

    output: torch.Tensor
    """Output of the down-projection, in the block's shape."""
    stream: torch.Tensor
    """[1, tokens, d_model], output of the block."""
    norms: tuple[nn.Module, ...]
    """Norms of the block whose input was the down-projection's output."""

    @classmethod
    def of(cls, layout: DecoderLayout, layer: int, change: torch.Tensor | None = None) -> _Observed:
        """Run a few tokens up to the block's end, with a change of the projection's output."""
        block, down = layout.blocks[layer], layout.down(layer)
        seen: dict[str, torch.Tensor] = {}
        norms: list[nn.Module] = []

        def at_down(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            seen["output"] = output if change is None else output + change
            return seen["output"]

        def at_norm(module: nn.Module, args: tuple[Any, ...]) -> None:
            given = args[0] if args else None
            output = seen.get("output")
            if (
                isinstance(given, torch.Tensor)
                and output is not None
                and given.numel() == output.numel()
                and torch.equal(given.reshape(output.shape), output)
            ):
                norms.append(module)

        def at_end(_module: Any, _args: Any, output: Any) -> None:
            seen["stream"] = first_tensor(output)
            raise StopPass

        with ExitStack() as hooks:
            hooks.enter_context(down.register_forward_hook(at_down))
            for module in block.modules():
                if "norm" in type(module).__name__.lower():
                    hooks.enter_context(module.register_forward_pre_hook(at_norm))
            hooks.enter_context(block.register_forward_hook(at_end))
            ids = torch.arange(1, 7, device=layout.input_device)[None]
            with suppress(StopPass):
                layout.body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        if seen.keys() != {"output", "stream"}:
            raise ModelError(
                f"layer {layer} of model type {layout.model_type!r} does not use "
                f"{layout.family.down} for an ordinary token, so it cannot be edited there"
            )
        return cls(seen["output"], seen["stream"], tuple(norms))
