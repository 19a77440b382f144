"""Show the inputs of chosen modules at every token of a batch, one module at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn

from nse_plugin.model.hooks import StopPass
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch


@torch.no_grad()
def visit_inputs(
    layout: DecoderLayout,
    batch: TokenBatch,
    modules: Mapping[Any, nn.Module],
    visit: Callable[[Any, torch.Tensor], None],
) -> None:
    """Run the decoder once and hand over what goes into some modules, padding left out.

    Nothing is kept, so the pass needs no memory for the features of more than one module.  It
    stops after the last module that was asked for.

    Args:
        modules: modules by a name of your choice.
        visit: called once per module, in the order of the pass, with its name and its first
            input [tokens, features] on the module's device.
    """
    waiting = set(modules)

    def show(name: Any) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])  # [rows * width, features]
            real = batch.attention_mask.to(rows.device).bool().flatten()
            visit(name, rows[real])
            waiting.discard(name)
            if not waiting:
                raise StopPass

        return hook

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(show(name)).remove)
        with suppress(StopPass):
            layout.body(**batch.model_inputs(), use_cache=False)
