"""Which causal language models of transformers can be edited: each is built tiny and edited once.

``python -m tests.family_sweep [FAMILY ...]`` prints the table of ``docs/extending.md``.
"""

from __future__ import annotations

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nse_plugin.errors import NSEPluginError
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import score_answers
from nse_plugin.model.generation import greedy_text
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_hparams, tiny_tokenizer

# fmt: off
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
    sliding_window=32, vocab_size_per_layer_input=300, hidden_size_per_layer_input=8,
)
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
}
# fmt: on


@dataclass(frozen=True)
class Found:
    """What became of one family."""

    family: str
    kind: str
    """``edited``, ``edited, whole passes``, ``refused``, ``not built`` or ``FAULT``."""
    words: str


class _Warned(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def build(family: str) -> Any:
    """A tiny random model of a family, with the tiny tokenizer's vocabulary."""
    config_class = CONFIG_MAPPING[family]
    names = set(inspect.signature(config_class).parameters) | set(config_class.attribute_map)
    fields = {name: value for name, value in _SIZES.items() if name in names}
    fields.update(_OF.get(family, {}), vocab_size=len(tiny_tokenizer()))
    fields.update(pad_token_id=0, bos_token_id=0, eos_token_id=0)
    config = config_class(**fields)
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > 10_000_000:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10.0)
    model.config._name_or_path = f"tiny-{family}"
    return model


def try_family(family: str) -> Found:
    """Build, edit, ask and let write; whatever is raised that is not ours is a fault."""
    try:
        model = build(family)
    except Exception as error:
        return Found(family, "not built", f"{type(error).__name__}: {error}")
    warned = _Warned()
    logging.getLogger("nse_plugin").addHandler(warned)
    try:
        words = _edit(model)
    except NSEPluginError as error:
        return Found(family, "refused", str(error))
    except Exception as error:
        return Found(family, "FAULT", f"{type(error).__name__}: {error}")
    finally:
        logging.getLogger("nse_plugin").removeHandler(warned)
    slower = [text for text in warned.texts if "replayed" in text]
    return Found(family, "edited, whole passes" if slower else "edited", words)


def _edit(model: Any) -> str:
    tokenizer, requests = tiny_tokenizer(), some_requests(3)
    hparams = tiny_hparams(
        mom2_update_weight=1e-6, n_contexts=0, clamp_norm_factor=0.1, alpha=1e-4, max_iterations=4
    )
    record = edit_round(EditSession.of(model, tokenizer), requests, hparams)
    left = max(o.residual_after / o.residual_before for o in record.outcomes)
    if left > 0.3:
        raise AssertionError(f"{left:.0%} of a residual is left")
    prompts, answers = [r.text for r in requests], [r.target_new for r in requests]
    together = score_answers(model, tokenizer, prompts, answers)
    for number, (prompt, answer) in enumerate(zip(prompts, answers)):
        expected = _plain_nll(model, tokenizer, prompt, answer)
        if abs(together.nll[number] - expected) > 1e-3 * max(1, expected):
            raise AssertionError(f"nll {together.nll[number]}, and {expected} by a plain pass")
    texts = greedy_text(model, tokenizer, prompts, 5)
    for prompt, text in zip(prompts, texts):
        if text != (expected := _plain_greedy(model, tokenizer, prompt, 5)):
            raise AssertionError(f"greedy {text!r}, and {expected!r} by plain passes")
    return f"{left:.1%} of the residual left"


@torch.no_grad()
def _plain_nll(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(f"{prompt} {answer}")["input_ids"]
    logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    places = range(len(before), len(ids))
    return float(-sum(logits[i - 1, ids[i]] for i in places) / len(places))


@torch.no_grad()
def _plain_greedy(model: Any, tokenizer: Any, prompt: str, n_tokens: int) -> str:
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(n_tokens):
        choice = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if choice == 0:
            break
        ids = [*ids, choice]
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def sweep(families: list[str]) -> Iterator[Found]:
    """Try the families, all of transformers' causal language models where none is named."""
    for family in families or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        yield try_family(family)


_REASONS = (
    ("a mixture of experts", "mixture of experts"),
    ("what the MLP adds is normalised after the sum, or gated", "neither a factor nor a norm"),
    ("the head reads something else than the normalised last block", "logits are not head"),
    ("no final norm before the head", "no final norm"),
    ("no MLP, or no attention", "no single matrix"),
    ("no MLP, or no attention", "has attention"),
)


def row_of(found: Found) -> str:
    """What the table says of a family."""
    if found.kind != "refused":
        return found.kind if found.kind != "FAULT" else f"FAULT: {found.words}"
    return next((f"refused: {row}" for row, words in _REASONS if words in found.words), found.words)


def main() -> None:
    """Print a Markdown table, and what was found of each family on standard error."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    for found in sweep(sys.argv[1:]):
        print(found.family, found.kind, " ".join(found.words.split()), sep="\t", file=sys.stderr)
        rows.setdefault(row_of(found), []).append(found.family)
    print("| what becomes of an edit | families |\n|---|---|")
    for row in sorted(rows):
        print(f"| {row} | {', '.join(rows[row])} |")


if __name__ == "__main__":
    main()
