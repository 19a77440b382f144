"""Hooks that read activations and stop passes early; modes of torch and of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import ModelError
from nse_plugin.model.layout import DecoderLayout, first_tensor
from nse_plugin.model.prompts import TokenBatch


class StopPass(Exception):
    """Raised in a forward pass to stop it when everything has been read."""


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and no weight requires gradients."""
    was_training = {name: module.training for name, module in model.named_modules()}
    wanted_grad = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter in wanted_grad:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted_grad:
            parameter.requires_grad_(True)
        for name, module in model.named_modules():
            module.training = was_training[name]


@contextmanager
def own_modes() -> Iterator[None]:
    """Inside: gradients, no autocast, no TF32, and new tensors are on the CPU and in float32 unless
    a call says otherwise; whatever the caller has set.

    Undo and export are exact to the bit, and TF32 would change bits.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as modes:
            modes.enter_context(_no_tf32())
            if torch.get_default_device().type != "cpu":
                modes.enter_context(torch.device("cpu"))
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            for device in ("cpu", "cuda"):
                modes.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Set by torch's old function, which also sets the new attributes; both are restored."""
    backends: Any = torch.backends  # torch has no types for mkldnn's
    matmuls = (backends.cuda.matmul, backends.mkldnn.matmul)
    before = [matmul.fp32_precision for matmul in matmuls]
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has set a new attribute
        old = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(old)
        for matmul, precision in zip(matmuls, before):
            matmul.fp32_precision = precision


@contextmanager
def head_at(model: Any, rows: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Inside, the output head runs at k positions only, and the model's logits are [1, k, vocab].

    Operations after the head (scaling, soft-capping) stay as they are.

    Args:
        rows: [k], row of each position.
        positions: [k].

    Raises:
        ModelError: the model has no output head.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no output head; load it with AutoModelForCausalLM"
        )

    def pick(_head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden = args[0]
        return (hidden[rows.to(hidden.device), positions.to(hidden.device)][None], *args[1:])

    with head.register_forward_pre_hook(pick):
        yield


@torch.no_grad()
def read_rows(
    layout: DecoderLayout,
    batch: TokenBatch,
    positions: torch.Tensor,
    *,
    inputs_of: Mapping[Any, nn.Module] | None = None,
    outputs_of: Mapping[Any, nn.Module] | None = None,
    whole_inputs_of: Mapping[Any, nn.Module] | None = None,
) -> dict[Any, torch.Tensor]:
    """Run the decoder once and read activations at one position per row.

    The pass stops as soon as everything has been read; the head never runs.

    Args:
        positions: [rows], the position to read in each row.
        inputs_of: modules, by any name, whose first input is read.
        outputs_of: modules whose output is read.
        whole_inputs_of: modules whose first input is read at all positions.

    Returns:
        By name: [rows, features], or [rows, width, features], on the module's device.
    """
    found: dict[Any, torch.Tensor] = {}
    whole = whole_inputs_of or {}

    def keep(name: Any, value: torch.Tensor) -> None:
        if name in whole:
            found[name] = value.clone()
            return
        if value.dim() == 2:  # OPT's blocks work on [rows * width, features]
            value = value.view(*batch.input_ids.shape, -1)
        rows = torch.arange(value.shape[0], device=value.device)
        found[name] = value[rows, positions.to(value.device)].clone()

    _run_until_seen(layout, batch, keep, {**(inputs_of or {}), **whole}, outputs_of or {})
    return found


@torch.no_grad()
def visit_inputs(
    layout: DecoderLayout,
    batch: TokenBatch,
    modules: Mapping[Any, nn.Module],
    visit: Callable[[Any, torch.Tensor], None],
) -> None:
    """Run the decoder once and visit the inputs of some modules, without padding.

    Nothing is stored, so only the features of one module are in memory at a time.

    Args:
        modules: modules by any name.
        visit: called once per module, in the order of the pass, with its name and its first input
            [tokens, features] on the module's device.
    """

    def without_padding(name: Any, value: torch.Tensor) -> None:
        real = batch.attention_mask.to(value.device).bool().flatten()
        visit(name, value.reshape(-1, value.shape[-1])[real])

    _run_until_seen(layout, batch, without_padding, modules, {})


def _run_until_seen(
    layout: DecoderLayout,
    batch: TokenBatch,
    see: Callable[[Any, torch.Tensor], None],
    inputs_of: Mapping[Any, nn.Module],
    outputs_of: Mapping[Any, nn.Module],
) -> None:
    """Run the decoder, and stop when ``see`` was called for all inputs and outputs."""
    waiting = {*inputs_of, *outputs_of}

    def shown(name: Any, value: torch.Tensor) -> None:
        see(name, value)
        waiting.discard(name)
        if not waiting:
            raise StopPass

    def read_input(name: Any) -> Callable[..., None]:
        return lambda _module, args: shown(name, args[0])

    def read_output(name: Any) -> Callable[..., None]:
        return lambda _module, _args, output: shown(name, first_tensor(output))

    with ExitStack() as hooks:
        for name, module in inputs_of.items():
            hooks.enter_context(module.register_forward_pre_hook(read_input(name)))
        for name, module in outputs_of.items():
            hooks.enter_context(module.register_forward_hook(read_output(name)))
        with suppress(StopPass):
            layout.body(**batch.model_inputs(), use_cache=False)


def take_positions(value: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Positions of each row: value [rows or 1, width, ...], index [rows, tail]."""
    index = index.to(value.device)
    value = value.expand(index.shape[0], *value.shape[1:])
    return value[torch.arange(index.shape[0], device=value.device)[:, None], index]
