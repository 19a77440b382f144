"""Builders of tiny random models and of the tokenizer and requests that go with them."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

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

# fmt: off
FAMILY_NAMES = [
    "gpt2", "gptj", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text",
    "phi3",
]
"""Families of the table in ``nse_plugin/model/families.py``."""
UNKNOWN_FAMILIES = [
    "olmo2", "starcoder2", "cohere", "opt", "granite", "glm4", "exaone4", "stablelm", "phi",
    "smollm3",
]
"""Families that are not in the table and are probed."""
_SIZES: dict[str, Any] = dict(
    hidden_size=32, n_embd=32, d_model=32, dim=32, dim_model=32, embedding_size=32,
    embed_dim=32, word_embed_proj_dim=32,
    intermediate_size=48, n_inner=48, ffn_dim=48, d_ff=48, decoder_ffn_dim=48, dim_ff=48,
    ffn_hidden_size=48, encoder_ffn_dim=48, intermediate_size_mlp=48, block_ff_dim=48, dff=48,
    shared_intermediate_size=16, moe_intermediate_size=16, feed_forward_size=48,
    num_hidden_layers=4, n_layer=4, n_layers=4, num_layers=4, decoder_layers=4, encoder_layers=1,
    num_attention_heads=4, n_head=4, n_heads=4, num_heads=4, decoder_attention_heads=4,
    encoder_attention_heads=4,
    num_key_value_heads=2, num_kv_heads=2, head_dim=8, rotary_dim=8, d_kv=8, dim_head=8,
    max_position_embeddings=64, n_positions=64, max_seq_len=64, n_ctx=64,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2,
    num_experts_per_token=2, moe_topk=2, moe_k=2, top_k_experts=2,
    n_group=1, topk_group=1, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
    linear_value_head_dim=8, mamba_d_state=8, mamba_n_heads=4, mamba_d_head=16,
    mamba_d_ssm=64, mamba_expand=2, mamba_chunk_size=8, chunk_size=8, state_size=8,
    mamba_num_heads=8, mamba_head_dim=8, n_mamba_heads=2, mamba_ngroups=1, mamba_n_groups=1,
    n_groups=1, lru_width=32, attention_hidden_size=32, time_step_rank=4, mamba_dt_rank=4,
    vocab_size_per_layer_input=300, hidden_size_per_layer_input=8,
)
"""What the configs of transformers call their sizes; each gets those that it has."""
_OF: dict[str, dict[str, Any]] = {
    **{name: dict(num_key_value_heads=4) for name in (
        "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite",
        "glm_moe_dsa", "minicpm3", "youtu", "dots3_note_text",
    )},
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "gemma3n_text": dict(
        layer_types=["sliding_attention", "full_attention"] * 2, num_kv_shared_layers=0,
        laurel_rank=4, activation_sparsity_pattern=[0.0] * 4,
    ),
    "opt": dict(activation_function="gelu"),  # neurons that a tiny ReLU never uses are singular
    "mpt": dict(expansion_ratio=2, max_seq_len=64),
    "mamba2": dict(num_heads=8, head_dim=8),
    "nemotron_h": dict(layers_block_type=["mamba", "mlp", "mlp", "attention"]),
    "bamba": dict(attn_layer_indices=[1]),
    "jamba": dict(attn_layer_period=2, attn_layer_offset=1, num_experts=1, num_experts_per_tok=1),
    "granitemoehybrid": dict(
        layer_types=["mamba", "attention"] * 2, num_local_experts=0, shared_intermediate_size=48
    ),
    "openai-gpt": dict(n_positions=64),
    "granite": dict(residual_multiplier=0.22, logits_scaling=4.0),
    "hyperclovax": dict(logits_scaling=0.25),
    "falcon_h1": dict(lm_head_multiplier=0.25),
    "lfm2": dict(
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "conv", "full_attention", "full_attention"],
    ),
}
# fmt: on


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 300 entries, one for all; returns no token_type_ids."""
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
    return _wrapped(tokenizer)


def fresh_tokenizer(padding_side: str = "right", bos: bool = False) -> PreTrainedTokenizerFast:
    """A copy of it, which may be changed."""
    tokenizer = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return _wrapped(tokenizer, padding_side=padding_side)


def _wrapped(tokenizer: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"], **settings,
    )  # fmt: skip


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of any causal language model of transformers, with small sizes.

    Skips where this transformers has no such family.  Changes have the names that are usual, also
    where the family has others: ``num_hidden_layers``, and not ``n_layer``.
    """
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    config_class = CONFIG_MAPPING[family]
    names = set(inspect.signature(config_class).parameters) | set(config_class.attribute_map)
    sizes = {name: value for name, value in _SIZES.items() if name in names}
    ids = dict(vocab_size=len(tiny_tokenizer()), pad_token_id=0, bos_token_id=0, eos_token_id=0)

    def own(values: dict[str, Any]) -> dict[str, Any]:
        return {config_class.attribute_map.get(name, name): v for name, v in values.items()}

    return config_class(**own({**sizes, **_OF.get(family, {}), **ids}) | own(changes))


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any):
    """A random model of a family, with weights large enough that its answers differ."""
    config = tiny_config(family, **changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    model.config._name_or_path = f"tiny-{family}"
    return model.eval()


WIDE = 128
"""Tokens of context, for prompts of whole sentences."""
wide_model = functools.partial(tiny_model, max_position_embeddings=WIDE)


def tiny_gemma3_with_vision():
    """Gemma 3 as it is published: the decoder lies beside a vision tower."""
    text = tiny_config("gemma3_text").to_dict()
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
        alg_name="NSE", model_name="tiny", layers=[1, 2], v_num_grad_steps=4, v_lr=0.1,
        v_weight_decay=0.05, clamp_norm_factor=4.0, mom2_update_weight=1.0, mom2_dataset=str(TEXTS),
        mom2_n_samples=40, n_contexts=2, context_length=4, alpha=0.01, max_iterations=2,
        token_budget=4096,
    )  # fmt: skip
    return NSEHparams(**{**settings, **changes})


def atlas_model(name: str) -> tuple[Any, Any]:
    """An embedded model, "gpt2" or "llama", and its tokenizer."""
    return load_model(SimpleNamespace(model_name=f"atlas:{name}", device="cpu"))[:2]


def bits(model: Any) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same_bits(one: Any, other: Any) -> bool:
    """Whether two models, or what :func:`bits` has kept of them, are equal to the bit."""
    one, other = (x if isinstance(x, dict) else dict(x.named_parameters()) for x in (one, other))
    return one.keys() == other.keys() and all(torch.equal(p, other[n]) for n, p in one.items())
