"""The layout of a model, made once: from the table of families, or by probing an unknown one.

Probing guesses the structure from shapes and then checks the guess, by comparing the logits that
it gives with those of the model.
"""

from __future__ import annotations

import re
import weakref
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nse_plugin.errors import ModelError
from nse_plugin.model.families import FAMILIES, Family
from nse_plugin.model.layout import DecoderLayout, first_tensor

_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, DecoderLayout] = weakref.WeakKeyDictionary()


def layout_of(model: PreTrainedModel) -> DecoderLayout:
    """The layout of a model; made when it is first asked for.

    Raises:
        ModelError: the family is unknown and probing it did not work out.
    """
    found = _LAYOUTS.get(model)
    if found is None:
        model_type = getattr(model.config, "model_type", "unknown")
        family = FAMILIES.get(model_type) or probe_family(model)
        found = _LAYOUTS[model] = DecoderLayout(model, family)
    return found


def probe_family(model: PreTrainedModel) -> Family:
    """Guess the structure of an unknown family from its modules and check it by its logits.

    Raises:
        ModelError: no consistent guess; the message says what was missing.
    """
    model_type = getattr(model.config, "model_type", type(model).__name__)
    known = ", ".join(sorted(FAMILIES))

    def fail(what: str) -> ModelError:
        return ModelError(
            f"model type {model_type!r} is not known ({known}) and probing it failed: {what}; "
            "methods that write weights cannot edit it, and docs/extending.md says how to add it"
        )

    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise fail("it has no list of blocks")
    blocks_name, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    head = model.get_output_embeddings()
    if head is None:
        raise fail("it has no output embeddings")
    d_model = head.weight.shape[-1]
    down_name = next((name for name in (_probe_down(b, d_model) for b in blocks) if name), None)
    if down_name is None:
        experts = [name for name, _ in blocks[0].named_modules() if "expert" in name]
        raise fail(
            f"the MLP of block {blocks_name}.0 is a mixture of experts ({experts[0]}), in which a "
            "fact has no one down-projection"
            if experts
            else f"block {blocks_name}.0 has no single matrix from more than {d_model} numbers to "
            f"{d_model}"
        )
    body_name = blocks_name.rpartition(".")[0]
    norms = [
        name
        for name, child in model.get_submodule(body_name).named_children()
        if "norm" in type(child).__name__.lower()
    ]
    if not norms:
        raise fail(f"{body_name!r} has no final norm")
    attention = [
        name
        for block in blocks
        for name, child in block.named_children()
        if ("attn" in name or "attention" in name) and any(p.dim() == 2 for p in child.parameters())
    ]
    if not attention:
        raise fail(f"no block of {blocks_name} has attention")
    family = Family(
        blocks=blocks_name,
        down=down_name,
        mlp=down_name.rpartition(".")[0],
        attn=attention[0],
        final_norm=f"{body_name}.{norms[-1]}",
        conv1d=any(
            name == down_name and isinstance(module, Conv1D)
            for block in blocks
            for name, module in block.named_modules()
        ),
    )
    _check_probe(model, family, fail)
    return family


def _probe_down(block: nn.Module, d_model: int) -> str | None:
    """Name of the only matrix of the block's MLP that maps to d_model from another width."""
    found = []
    for name, module in block.named_modules():
        if isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
        elif isinstance(module, nn.Linear):
            d_in, d_out = module.in_features, module.out_features
        else:
            continue
        other = any(part in name for part in ("attn", "attention", "expert"))
        if d_out == d_model and d_in != d_model and not other:
            found.append(name)
    if len(found) > 1:  # beside a state space or a convolution
        found = [name for name in found if re.search(r"mlp|ffn|feed_forward", name)]
    return found[0] if len(found) == 1 else None


def _check_probe(model: PreTrainedModel, family: Family, fail: Any) -> None:
    was_training = model.training
    model.eval()
    ids = torch.arange(1, 5, device=model.get_input_embeddings().weight.device)[None]
    layout = DecoderLayout(model, family)
    hidden: list[torch.Tensor] = []
    handle = layout.blocks[-1].register_forward_hook(
        lambda _module, _args, output: hidden.append(first_tensor(output))
    )
    try:
        with torch.no_grad():
            expected = model(input_ids=ids).logits.float()
            got = layout.logits(hidden[-1])
    finally:
        handle.remove()
        model.train(was_training)
    if got.shape != expected.shape or not torch.allclose(got, expected, atol=1e-3, rtol=1e-3):
        raise fail("its logits are not head(final norm(last block))")
