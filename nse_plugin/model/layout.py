"""The parts of one decoder, as modules: blocks, MLP down-projections, final norm, head.

:func:`nse_plugin.model.probe.layout_of` makes the layout of a model, once.
"""

from __future__ import annotations

import weakref
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from nse_plugin.errors import ModelError
from nse_plugin.model.families import Family


class DecoderLayout:
    """The parts of one causal language model, by name and as modules.

    It holds the model by a weak reference, so that a layout kept with its model makes no cycle.

    Raises:
        ModelError: the model does not have the parts of the family.
    """

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self._model = weakref.ref(model)
        self.model_type: str = getattr(model.config, "model_type", "unknown")
        self.family = family
        get_text_config = getattr(model.config, "get_text_config", lambda: model.config)
        self.text_config: Any = get_text_config()
        try:
            self.blocks: nn.ModuleList = model.get_submodule(self.family.blocks)
        except AttributeError as error:
            raise ModelError(
                f"model type {self.model_type!r} does not have the parts of its family: {error}; "
                "is it a causal language model of transformers?"
            ) from error
        self.n_layers = len(self.blocks)
        dense = [layer for layer in range(self.n_layers) if self._is_dense(layer)]
        if not dense:
            raise ModelError(
                f"no block of model type {self.model_type!r} has a plain "
                f"{self.family.down}; {self._why_not_dense(0)}"
            )
        self.d_ff, self.d_model = self._sizes(dense[0])
        self.measured: dict[Any, Any] = {}
        """What was found out about the model by trying it, so that each is tried once."""

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
    def loaded_from(self) -> str:
        """Path or hub id that the model was loaded from; empty if unknown."""
        return str(getattr(self.model.config, "_name_or_path", "") or "")

    @property
    def input_device(self) -> torch.device:
        """Device of the input embeddings."""
        return device_of(self.model.get_input_embeddings(), torch.device("cpu"))

    @property
    def max_positions(self) -> int | None:
        """Longest input in tokens; None if the config has no limit."""
        for name in ("max_position_embeddings", "n_positions"):
            value = getattr(self.text_config, name, None)
            if value:
                return int(value)
        return None

    def at_most(self, n: int) -> int:
        """The smaller of n and the longest input, in tokens."""
        return min(n, self.max_positions or n)

    def down(self, layer: int) -> nn.Linear:
        """The MLP down-projection of a block, the linear memory that is edited.

        In GPT-2 it is a ``Conv1D``, whose weight is transposed.
        """
        return cast(nn.Linear, self.blocks[layer].get_submodule(self.family.down))

    def down_path(self, layer: int) -> str:
        """Name of the down-projection among the model's modules."""
        return f"{self.family.blocks}.{layer}.{self.family.down}"

    def down_name(self, layer: int) -> str:
        """Name of the down-projection's weight among the model's parameters."""
        return f"{self.down_path(layer)}.weight"

    def check_layers(self, layers: list[int]) -> None:
        """Raise :class:`ModelError` unless every layer exists and has its own down-projection."""
        wrong = [layer for layer in layers if not 0 <= layer < self.n_layers]
        if wrong:
            raise ModelError(
                f"layers {wrong} do not exist: the model has {self.n_layers} blocks, "
                f"numbered 0 to {self.n_layers - 1}; correct `layers` in the hparams"
            )
        for layer in layers:
            if not self._is_dense(layer):
                raise ModelError(
                    f"layer {layer} of model type {self.model_type!r} cannot be edited: "
                    f"{self._why_not_dense(layer)}"
                )
            shared = [n for n in range(self.n_layers) if n != layer and self._shares(n, layer)]
            if shared:
                raise ModelError(
                    f"layer {layer} of model type {self.model_type!r} has the same "
                    f"{self.family.down} as layers {shared}, which an edit would change too; "
                    "choose other layers, or use LoRA or GRACE"
                )
            if self._sizes(layer) != (self.d_ff, self.d_model):
                d_ff, _ = self._sizes(layer)
                raise ModelError(
                    f"layer {layer} of model type {self.model_type!r} has {d_ff} neurons and "
                    f"other layers have {self.d_ff}; edit layers of equal width"
                )

    def _is_dense(self, layer: int) -> bool:
        try:
            weight = getattr(self.down(layer), "weight", None)
        except AttributeError:
            return False
        plain = isinstance(weight, torch.Tensor) and weight.dim() == 2
        return plain and experts(self.blocks[layer]) is None

    def _shares(self, one: int, other: int) -> bool:
        return self._is_dense(one) and self.down(one).weight is self.down(other).weight

    def _why_not_dense(self, layer: int) -> str:
        if mixture := experts(self.blocks[layer]):
            return (
                f"its MLP is a mixture of experts ({mixture}), in which a fact has no one "
                "down-projection; choose layers with a dense MLP, or use LoRA or GRACE"
            )
        return f"it has no matrix {self.family.down}; choose other layers, or use LoRA or GRACE"

    def _sizes(self, layer: int) -> tuple[int, int]:
        """d_ff and d_model of a layer's down-projection."""
        first, second = self.down(layer).weight.shape
        return (first, second) if self.family.conv1d else (second, first)

    def to_weight(self, change: torch.Tensor) -> torch.Tensor:
        """Transpose a change [d_model, d_ff] if the weight is stored transposed."""
        return change.T if self.family.conv1d else change

    @torch.no_grad()
    def recalled(self, layer: int, keys: torch.Tensor) -> torch.Tensor:
        """Output of a down-projection for keys [d_ff, n]: float32 [n, d_model]."""
        down = self.down(layer)
        return down(keys.T.to(down.weight.dtype)).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and head over hidden states [..., d_model]: float32 logits [..., vocab]."""
        norm = self.final_norm
        hidden = norm(hidden.to(device_of(norm, hidden.device)))
        head = self.model.get_output_embeddings()
        logits = head(hidden.to(device_of(head, hidden.device))).float()
        for name in ("logit_scale", "lm_head_multiplier"):
            scale = getattr(self.text_config, name, None)
            if scale is not None:
                logits = logits * scale
        scaling = getattr(self.text_config, "logits_scaling", None)
        if scaling is not None:
            logits = logits * scaling if self.family.multiplies else logits / scaling
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


def experts(block: nn.Module) -> str | None:
    """Name of the experts in a block whose MLP is a mixture of experts; else None."""
    return next((name for name, _ in block.named_modules() if "expert" in name), None)


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden states in a block's output, which is a tensor or a tuple."""
    return output[0] if isinstance(output, tuple) else output


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Device on which a module computes: that of its weights, or of accelerate's execution if they
    are offloaded; ``default`` without weights."""
    weight = next(module.parameters(), None)
    if weight is None or not weight.is_meta:
        return default if weight is None else weight.device
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return default if place is None else torch.device(place)
