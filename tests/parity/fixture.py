"""The stored inputs and numbers, and the tiny models they were computed with."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from nse_plugin.model.layout import DecoderLayout
from nse_plugin.requests import EditRequest

DATA = Path(__file__).parent / "data"
CASES: dict[str, Any] = json.loads((DATA / "cases.json").read_text(encoding="utf-8"))
FAMILIES = ["gpt2", "llama"]
TOLERANCE = 1e-4
_CONFIGS = {"gpt2": "GPT2Config", "llama": "LlamaConfig"}
_END = "<|endoftext|>"


@dataclass(frozen=True)
class Fixture:
    """What is stored for one model family."""

    family: str
    tensors: dict[str, torch.Tensor]

    @classmethod
    @functools.cache
    def of(cls, family: str) -> Fixture:
        return cls(family, load_file(DATA / f"{family}.safetensors"))

    def model(self) -> Any:
        """The model with its initial weights, whatever transformers would initialise it with."""
        settings = dict(CASES["config"][self.family], bos_token_id=0, eos_token_id=0)
        config = getattr(transformers, _CONFIGS[self.family])(**settings, pad_token_id=0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        parameters = dict(model.named_parameters())
        stored = self.group("initial.")
        assert parameters.keys() == stored.keys()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name].float())
        model.config._name_or_path = f"parity-{self.family}"
        return model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; Llama's puts a first token in front of every text."""
        tokenizer = Tokenizer.from_file(str(DATA / "tokenizer.json"))
        special = dict(eos_token=_END, pad_token=_END)
        if self.family == "llama":
            tokenizer.post_processor = TemplateProcessing(
                single=f"{_END} $A", special_tokens=[(_END, 0)]
            )
            special["bos_token"] = _END
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            padding_side="right",
            model_input_names=["input_ids", "attention_mask"],
            **special,
        )

    def host_templates(self, layout: DecoderLayout) -> dict[str, str]:
        """The module paths of EasyEdit's hyperparameters."""
        templates = layout.templates()
        if self.family == "gpt2":
            templates["lm_head_module"] = "transformer.wte"  # EasyEdit does not find a tied head
        return templates

    def group(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names have this prefix, by the rest of their names."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def contexts() -> tuple[str, ...]:
    """The texts put before the prompts, separators included."""
    return tuple(CASES["contexts"])


def as_requests(facts: list[list[str]]) -> list[EditRequest]:
    return [EditRequest(number, *fact) for number, fact in enumerate(facts)]
