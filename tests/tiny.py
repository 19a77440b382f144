"""Builders of tiny random models and of the tokenizer and requests that go with them."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from nse_plugin.data.models import load_model
from nse_plugin.hparams import NSEHparams
from nse_plugin.requests import EditRequest

_TEXT = """
Mara Voss lives in Tellin by the sea. Oren Falk works as a baker. The capital of Ostrell is Garn.
Where does Lio Brandt come from? Lio Brandt was born in Quill. Therefore the old bridge of Garn
is closed. Because of rain we stayed at home. I think that you know the name of the river.
You said that Anna is a painter and that Ann, her sister, is a doctor. Is a, was a, has been.
"""

TEXTS = Path(__file__).with_name("tiny.txt")
"""Forty sentences, for second moments that take less time than those of sampled text."""

_SMALL: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
_SMALL_GPT: dict[str, Any] = dict(n_embd=32, n_inner=48, n_layer=4, n_head=4, n_positions=64)

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _SMALL_GPT),
    "gptj": ("GPTJConfig", dict(_SMALL_GPT, rotary_dim=8)),
    "gpt_neox": ("GPTNeoXConfig", _SMALL),
    "llama": ("LlamaConfig", _SMALL),
    "mistral": ("MistralConfig", _SMALL),
    "qwen2": ("Qwen2Config", _SMALL),
    "qwen3": ("Qwen3Config", _SMALL),
    "gemma2": ("Gemma2Config", _SMALL),
    "gemma3_text": ("Gemma3TextConfig", _SMALL),
    "phi3": ("Phi3Config", _SMALL),
}
UNKNOWN_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("Olmo2Config", _SMALL),
    "starcoder2": ("Starcoder2Config", _SMALL),
    "cohere": ("CohereConfig", _SMALL),
    "opt": ("OPTConfig", dict(_SMALL, ffn_dim=48, word_embed_proj_dim=32)),
    "granite": ("GraniteConfig", dict(_SMALL, residual_multiplier=0.22)),
    "glm4": ("Glm4Config", _SMALL),
    "exaone4": ("Exaone4Config", _SMALL),
    "stablelm": ("StableLmConfig", _SMALL),
    "phi": ("PhiConfig", _SMALL),
    "smollm3": ("SmolLM3Config", _SMALL),
}
"""Families that are not in the table and are probed."""

EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", dict(_SMALL, num_local_experts=4)),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        dict(_SMALL, num_experts=4, moe_intermediate_size=16, num_experts_per_tok=2),
    ),
    "llama4_text": (
        "Llama4TextConfig",
        dict(_SMALL, num_local_experts=2, intermediate_size_mlp=48),
    ),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        dict(_SMALL, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=48),
    ),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1Config",
        dict(_SMALL, num_experts=4, moe_topk=2),
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        dict(
            _SMALL, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            first_k_dense_replace=1, n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8,
            qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4,
        ),
    ),
}  # fmt: skip
"""Decoders whose MLPs are mixtures of experts, in all layers or after a dense first one."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5_text": (
        "Qwen3_5TextConfig",
        dict(
            _SMALL, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
    ),
    "falcon_h1": (
        "FalconH1Config",
        dict(_SMALL, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8),
    ),
    "lfm2": (
        "Lfm2Config",
        dict(
            _SMALL, block_auto_adjust_ff_dim=False,
            layer_types=["conv", "conv", "full_attention", "full_attention"],
        ),
    ),
    "nemotron_h": (
        "NemotronHConfig",
        dict(
            {k: v for k, v in _SMALL.items() if k != "num_hidden_layers"}, ssm_state_size=8,
            layers_block_type=["mamba", "mlp", "mlp", "attention"], mamba_num_heads=8,
            mamba_head_dim=8, n_groups=1,
        ),
    ),
    "mamba": ("MambaConfig", dict(hidden_size=32, num_hidden_layers=2, state_size=4)),
    "gemma3n_text": (
        "Gemma3nTextConfig",
        dict(
            _SMALL, layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=0, laurel_rank=4, activation_sparsity_pattern=[0.0] * 4,
            vocab_size_per_layer_input=300, hidden_size_per_layer_input=8,
        ),
    ),
    "gemma4_text": (
        "Gemma4TextConfig",
        dict(_SMALL, vocab_size_per_layer_input=300, hidden_size_per_layer_input=8),
    ),
}  # fmt: skip
"""Decoders whose blocks are not attention and an MLP alone."""
FAMILY_NAMES = list(_CONFIGS)


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 entries; returns no token_type_ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT.split("."), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any):
    """A random model of a family, with weights large enough that its answers differ."""
    name, settings = (_CONFIGS | UNKNOWN_FAMILIES | EXPERTS | OTHERS)[family]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = getattr(transformers, name)(
        **{**settings, **changes},
        vocab_size=len(tiny_tokenizer()),
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    model.config._name_or_path = f"tiny-{family}"
    return model.eval()


def tiny_gemma3_with_vision():
    """Gemma 3 as it is published: the decoder lies beside a vision tower."""
    text = dict(_SMALL, vocab_size=len(tiny_tokenizer()), pad_token_id=0, eos_token_id=0)
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Gemma3Config(text_config=text, vision_config=vision)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def some_requests(n: int = 4) -> list[EditRequest]:
    """A few requests with different lengths, subject places and targets of several tokens."""
    facts = [
        ("{} lives in", "Mara Voss", "Quill"),
        ("By trade, the man called {} is a", "Oren Falk", "painter"),
        ("The capital of {} is", "Ostrell", "Tellin by the sea"),
        ("Where does {} come from? It is", "Lio Brandt", "Garn"),
        ("{} was born in", "Anna", "Ostrell"),
        ("The name of the sister of {} is", "Ann", "Mara"),
    ]
    return [EditRequest(i, *fact) for i, fact in enumerate(facts[:n])]


def tiny_hparams(**changes: Any) -> NSEHparams:
    """Hyperparameters that edit a tiny model in little time."""
    settings: dict[str, Any] = dict(
        alg_name="NSE",
        model_name="tiny",
        layers=[1, 2],
        v_num_grad_steps=8,
        v_lr=0.1,
        v_weight_decay=0.05,
        clamp_norm_factor=4.0,
        mom2_update_weight=1.0,
        mom2_dataset=str(TEXTS),
        mom2_n_samples=40,
        n_contexts=2,
        context_length=4,
        alpha=0.01,
        max_iterations=2,
        token_budget=4096,
    )
    return NSEHparams(**{**settings, **changes})


def atlas_model(name: str) -> tuple[Any, Any]:
    """An embedded model, "gpt2" or "llama", and its tokenizer."""
    return load_model(SimpleNamespace(model_name=f"atlas:{name}", device="cpu"))[:2]


def bits(model: Any) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(model: Any, other: Any) -> bool:
    """Whether a model's parameters are, to the bit, those of another model or of :func:`bits`."""
    kept = other if isinstance(other, dict) else dict(other.named_parameters())
    return all(torch.equal(p, kept[name]) for name, p in model.named_parameters())
