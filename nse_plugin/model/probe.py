"""The layout of a model, made once: from the table of families, or by probing an unknown one.

Probing guesses the structure from names and shapes, and checks the guess by comparing its logits
with those of the model.
"""

from __future__ import annotations

import re
import weakref
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nse_plugin.errors import ModelError
from nse_plugin.model.families import FAMILIES, Family
from nse_plugin.model.hooks import quiet
from nse_plugin.model.layout import DecoderLayout, experts, first_tensor

_STATE = re.compile("mamba|attention|deltanet|shortconv|recurrentblock", re.IGNORECASE)
"""Classes whose output projection is no MLP down-projection."""

_LAYOUTS: weakref.WeakKeyDictionary[nn.Module, DecoderLayout] = weakref.WeakKeyDictionary()


def layout_of(model: PreTrainedModel) -> DecoderLayout:
    """The layout of a model, made when first needed.

    Raises:
        ModelError: it is no model, or the family is unknown and could not be probed.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"the model is {model!r:.60}; give a causal language model of transformers"
        )
    found = _LAYOUTS.get(model)
    if found is None:
        if not hasattr(model, "config"):
            raise ModelError(
                f"the model is a {type(model).__name__} without a config; give a causal language "
                "model of transformers"
            )
        model_type = getattr(model.config, "model_type", "unknown")
        try:
            family = FAMILIES.get(model_type) or probe_family(model)
            found = _LAYOUTS[model] = DecoderLayout(model, family)
        except ModelError as error:
            if isinstance(model, PreTrainedModel) or not hasattr(model, "peft_config"):
                raise
            raise ModelError(
                f"the model is wrapped in PEFT's {type(model).__name__}, in which its parts are "
                f"not found; use model.merge_and_unload() instead ({error})"
            ) from error
    return found


def probe_family(model: PreTrainedModel) -> Family:
    """Guess the structure of an unknown family from its modules, and check it by its logits.

    Raises:
        ModelError: no guess fits; the message says what is missing.
    """
    family = _right_guess(model, _guesses(model))
    if family is None:
        raise _unknown(
            model, "its logits are not head(final norm(last block)) of the tokens so far"
        )
    return family


def _unknown(model: PreTrainedModel, why: str) -> ModelError:
    model_type = getattr(model.config, "model_type", type(model).__name__)
    return ModelError(
        f"methods that write weights cannot edit a model of type {model_type!r}: {why}. "
        "docs/extending.md says how to add a family to those known: "
        f"{', '.join(sorted(FAMILIES))}"
    )


def _guesses(model: PreTrainedModel) -> list[Family]:
    """The structures that names and shapes allow; they differ in the final norm and the head."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise _unknown(model, "it has no list of blocks")
    blocks_name, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    head = model.get_output_embeddings()
    if head is None:
        raise _unknown(model, "it has no output embeddings")
    d_model = head.weight.shape[-1]
    down_name = next((name for name in (_probe_down(b, d_model) for b in blocks) if name), None)
    if down_name is None:
        if mixture := experts(blocks[0]):
            raise _unknown(
                model,
                f"the MLP of block {blocks_name}.0 is a mixture of experts ({mixture}), in which "
                "a fact has no one down-projection",
            )
        raise _unknown(
            model,
            f"block {blocks_name}.0 has no single matrix to {d_model} numbers from another number",
        )
    body_name = blocks_name.rpartition(".")[0]
    norms = [
        name
        for name, child in model.get_submodule(body_name).named_children()
        if "norm" in type(child).__name__.lower()
    ]
    if not norms:
        raise _unknown(model, f"{body_name!r} has no final norm")
    attention = next((name for name in map(_probe_attention, blocks) if name), None)
    if attention is None:
        raise _unknown(model, f"no block of {blocks_name} has attention")
    guess = Family(
        blocks=blocks_name,
        down=down_name,
        mlp=down_name.rpartition(".")[0],
        attn=attention,
        final_norm="",
        conv1d=any(
            name == down_name and isinstance(module, Conv1D)
            for block in blocks
            for name, module in block.named_modules()
        ),
    )
    return [
        replace(guess, final_norm=f"{body_name}.{norm}", multiplies=multiplies)
        for norm in reversed(norms)
        for multiplies in (False, True)
    ]


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
        parent = type(block.get_submodule(name.rpartition(".")[0])).__name__
        other = re.search("attn|attention|expert", name) or _STATE.search(parent)
        if d_out == d_model and d_in != d_model and not other:
            found.append(name)
    if len(found) > 1:  # beside a state space or a convolution
        found = [name for name in found if re.search(r"mlp|ffn|feed_forward", name)]
    return found[0] if len(found) == 1 else None


def _probe_attention(block: nn.Module) -> str | None:
    for name, child in block.named_children():
        named = any(part in name for part in ("attn", "attention"))
        if (named or "attention" in type(child).__name__.lower()) and any(
            p.dim() == 2 for p in child.parameters()
        ):
            return name
    return None


def _right_guess(model: PreTrainedModel, guesses: list[Family]) -> Family | None:
    """The guess whose logits are those of the model, if the model is causal."""
    layouts = [DecoderLayout(model, guess) for guess in guesses]
    ids = torch.arange(1, 5, device=layouts[0].input_device)[None]
    other_end = torch.cat([ids[:, :-1], ids[:, -1:] + 1], dim=1)
    hidden: list[torch.Tensor] = []

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden.append(first_tensor(output))

    with quiet(model), torch.no_grad(), layouts[0].blocks[-1].register_forward_hook(read):
        logits = model(input_ids=ids, use_cache=False).logits
        others = model(input_ids=other_end, use_cache=False).logits
    tolerance = 1e-3 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    if _differ(others[:, :-1], logits[:, :-1], tolerance):
        return None
    for layout in layouts:
        with suppress(Exception), torch.no_grad():  # the wrong norm may not accept these
            if not _differ(layout.logits(hidden[0]), logits, tolerance):
                return layout.family
    return None


def _differ(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors differ in shape or by more than a share of the largest number."""
    if got.shape != expected.shape:
        return True
    error = (got.float() - expected.float()).abs().max()
    return not error <= tolerance * expected.float().abs().max()
