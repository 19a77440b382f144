"""What is inside a decoder: where blocks, MLP down-projections and the final norm are.

One row of :data:`FAMILIES` per model family, as data.  A family that is not in the table is probed
(:func:`probe_family`): the structure is guessed from shapes and then checked by comparing the
logits that the guess gives with those of the model.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nse_plugin.errors import ModelError


@dataclass(frozen=True)
class Family:
    """Module paths of one model family; those of the block are relative to it."""

    blocks: str
    down: str
    mlp: str
    attn: str
    final_norm: str
    conv1d: bool = False
    """True where the down-projection is stored [d_ff, d_model], as GPT-2's Conv1D does."""
    post_norm: str | None = None
    """Norm between the down-projection and the residual stream, where the block has one."""

    @property
    def body(self) -> str:
        """Path of the model without its head; it holds the blocks."""
        return self.blocks.rpartition(".")[0]


_LLAMA = Family("model.layers", "mlp.down_proj", "mlp", "self_attn", final_norm="model.norm")
_GEMMA2 = replace(_LLAMA, post_norm="post_feedforward_layernorm")
_GEMMA3 = replace(
    _GEMMA2, blocks="model.language_model.layers", final_norm="model.language_model.norm"
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        "transformer.h",
        "mlp.c_proj",
        "mlp",
        "attn",
        final_norm="transformer.ln_f",
        conv1d=True,
    ),
    "gptj": Family("transformer.h", "mlp.fc_out", "mlp", "attn", final_norm="transformer.ln_f"),
    "gpt_neox": Family(
        "gpt_neox.layers",
        "mlp.dense_4h_to_h",
        "mlp",
        "attention",
        final_norm="gpt_neox.final_layer_norm",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gemma3": _GEMMA3,
    "phi3": _LLAMA,
}
"""Family by ``config.model_type``."""


class DecoderLayout:
    """The parts of one causal language model, by name and as modules.

    Holds the model by weak reference, so that a layout kept with the model is no cycle.

    Raises:
        ModelError: the family is unknown and probing it did not work out.
    """

    def __init__(self, model: PreTrainedModel, family: Family | None = None) -> None:
        self._model = weakref.ref(model)
        self.model_type: str = getattr(model.config, "model_type", "unknown")
        self.family = family or FAMILIES.get(self.model_type) or probe_family(model)
        self.text_config: Any = (
            model.config.get_text_config()
            if hasattr(model.config, "get_text_config")
            else model.config
        )
        try:
            self.blocks: nn.ModuleList = model.get_submodule(self.family.blocks)
            down = self.down(0)
        except AttributeError as error:
            raise ModelError(
                f"model type {self.model_type!r} does not have the parts of its family: {error}; "
                "is it a causal language model of transformers?"
            ) from error
        self.n_layers = len(self.blocks)
        shape = tuple(down.weight.shape)
        self.d_ff, self.d_model = shape if self.family.conv1d else shape[::-1]

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        model = self._model()
        if model is None:
            raise ModelError("the model of this layout no longer exists; keep a reference to it")
        return model

    @property
    def body(self) -> nn.Module:
        """The decoder without its head."""
        return self.model.get_submodule(self.family.body)

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the head."""
        return self.model.get_submodule(self.family.final_norm)

    @property
    def head_name(self) -> str:
        """Path of the output embeddings, as the model itself names them."""
        head = self.model.get_output_embeddings()
        return next(name for name, module in self.model.named_modules() if module is head)

    @property
    def input_device(self) -> torch.device:
        """Where token ids go in."""
        return device_of(self.model.get_input_embeddings(), torch.device("cpu"))

    @property
    def max_positions(self) -> int | None:
        """Longest input in tokens, where the config says so."""
        for name in ("max_position_embeddings", "n_positions"):
            value = getattr(self.text_config, name, None)
            if value:
                return int(value)
        return None

    def down(self, layer: int) -> nn.Linear:
        """The MLP down-projection of a block: the linear memory that is edited.

        (A ``Conv1D`` in GPT-2, which differs by the orientation of its weight only.)
        """
        return cast(nn.Linear, self.blocks[layer].get_submodule(self.family.down))

    def mlp_output(self, layer: int) -> nn.Module:
        """What gives the MLP's part of the residual stream: the down-projection, or the norm
        behind it where the block has one."""
        return self.blocks[layer].get_submodule(self.family.post_norm or self.family.down)

    def down_name(self, layer: int) -> str:
        """Name of the down-projection's weight among the model's parameters."""
        return f"{self.family.blocks}.{layer}.{self.family.down}.weight"

    def check_layers(self, layers: list[int]) -> None:
        """Raise :class:`ModelError` unless every layer exists in this model."""
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong:
            raise ModelError(
                f"layers {wrong} do not exist: the model has {self.n_layers} blocks, "
                f"numbered 0 to {self.n_layers - 1}; mend `layers` in the hparams"
            )

    def to_weight(self, change: torch.Tensor) -> torch.Tensor:
        """Turn a change [d_model, d_ff] into the orientation that the weight is stored in."""
        return change.T if self.family.conv1d else change

    @torch.no_grad()
    def pull_back(self, layer: int, residual: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What the down-projection must add for the residual stream to gain a residual.

        The same, unless the block normalises the MLP's output as Gemma 2 and 3 do.  There the
        residual is divided by the norm's slope, gain / rms, at the present output; the part
        that would change the output's length cannot be reached, and shows as residual left.

        Args:
            residual: [n, d_model], wanted in the residual stream.
            output: [n, d_model], what the down-projection gives now.
        """
        if self.family.post_norm is None:
            return residual
        norm = self.blocks[layer].get_submodule(self.family.post_norm)
        gain = norm(torch.ones_like(output[:1], dtype=next(norm.parameters()).dtype)).float()
        gain, output = gain.to(residual.device), output.to(residual.device)
        gain = torch.where(gain.abs() < 1e-3, torch.full_like(gain, 1e-3), gain)
        return residual * output.square().mean(dim=1, keepdim=True).sqrt() / gain

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and head over hidden states [..., d_model]: float32 logits [..., vocab]."""
        norm = self.final_norm
        hidden = norm(hidden.to(device_of(norm, hidden.device)))
        head = self.model.get_output_embeddings()
        logits = head(hidden.to(device_of(head, hidden.device))).float()
        scale = getattr(self.text_config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale
        divisor = getattr(self.text_config, "logits_scaling", None)
        if divisor is not None:
            logits = logits / divisor
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def templates(self) -> dict[str, str]:
        """The module templates as EasyEdit's hparams name them."""
        blocks = self.family.blocks
        return {
            "rewrite_module_tmp": f"{blocks}.{{}}.{self.family.down}",
            "layer_module_tmp": f"{blocks}.{{}}",
            "mlp_module_tmp": f"{blocks}.{{}}.{self.family.mlp}",
            "attn_module_tmp": f"{blocks}.{{}}.{self.family.attn}",
            "ln_f_module": self.family.final_norm,
            "lm_head_module": self.head_name,
        }


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden states in what a block returns, which is a tensor or a tuple by family."""
    return output[0] if isinstance(output, tuple) else output


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Where a module computes; ``default`` where its weights are offloaded or it has none."""
    weight = next(module.parameters(), None)
    return default if weight is None or weight.is_meta else weight.device


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
            "add a row to nse_plugin.model.layout.FAMILIES"
        )

    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise fail("it has no list of blocks")
    blocks_name, blocks = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    head = model.get_output_embeddings()
    if head is None:
        raise fail("it has no output embeddings")
    d_model = head.weight.shape[-1]
    down_name = _probe_down(blocks[0], d_model)
    if down_name is None:
        raise fail(f"block {blocks_name}.0 has no single matrix from wider than {d_model} to it")
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
        for name, child in blocks[0].named_children()
        if ("attn" in name or "attention" in name) and any(p.dim() == 2 for p in child.parameters())
    ]
    if not attention:
        raise fail(f"block {blocks_name}.0 has no attention")
    family = Family(
        blocks=blocks_name,
        down=down_name,
        mlp=down_name.rpartition(".")[0],
        attn=attention[0],
        final_norm=f"{body_name}.{norms[-1]}",
        conv1d=isinstance(blocks[0].get_submodule(down_name), Conv1D),
    )
    _check_probe(model, family, fail)
    return family


def _probe_down(block: nn.Module, d_model: int) -> str | None:
    """Name of the only matrix in the block that maps from more than d_model to d_model."""
    found = []
    for name, module in block.named_modules():
        if isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
        elif isinstance(module, nn.Linear):
            d_in, d_out = module.in_features, module.out_features
        else:
            continue
        attention = "attn" in name or "attention" in name
        if d_out == d_model and d_in != d_model and not attention:
            found.append(name)
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
