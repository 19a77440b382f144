"""What the tests of toolkit and evaluation need beside tests.tiny: tokenizers in variants."""

from __future__ import annotations

from tokenizers import Tokenizer, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests import tiny

CONTEXT = 128


def tiny_tokenizer(padding_side: str = "right", bos: bool = False) -> PreTrainedTokenizerFast:
    """A fresh tokenizer, padded with its end-of-sequence token as EasyEdit does."""
    base = Tokenizer.from_str(tiny.tiny_tokenizer().backend_tokenizer.to_str())
    if bos:
        base.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model with a context of CONTEXT tokens."""
    length = "n_positions" if family in ("gpt2", "gptj") else "max_position_embeddings"
    return tiny.tiny_model(family, seed=seed, **{length: CONTEXT})
