"""The table of model families: paths of blocks, MLP down-projections and the final norm.

A family that is not in the table is probed (:mod:`nse_plugin.model.probe`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """Module paths of one model family; those of the block are relative to it."""

    blocks: str
    down: str
    mlp: str
    attn: str
    final_norm: str
    conv1d: bool = False
    """Whether the down-projection is stored as [d_ff, d_model], as in GPT-2's Conv1D."""
    multiplies: bool = False
    """Whether ``config.logits_scaling`` multiplies the logits, as in HyperCLOVA X; Granite's
    divides them."""

    @property
    def body(self) -> str:
        """Path of the model without its head; it holds the blocks."""
        return self.blocks.rpartition(".")[0]


_LLAMA = Family("model.layers", "mlp.down_proj", "mlp", "self_attn", "model.norm")
_GEMMA3 = replace(
    _LLAMA, blocks="model.language_model.layers", final_norm="model.language_model.norm"
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "mlp.c_proj", "mlp", "attn", "transformer.ln_f", conv1d=True),
    "gptj": Family("transformer.h", "mlp.fc_out", "mlp", "attn", "transformer.ln_f"),
    "gpt_neox": Family(
        "gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "attention", "gpt_neox.final_layer_norm"
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gemma3": _GEMMA3,
    "phi3": _LLAMA,
}
"""Family by ``config.model_type``."""
