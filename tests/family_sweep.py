"""Which causal language models of transformers can be edited: each is built tiny and edited once.

``python -m tests.family_sweep [FAMILY ...]`` prints the table of ``docs/extending.md``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nse_plugin.errors import NSEPluginError
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import score_answers
from nse_plugin.model.generation import greedy_text
from nse_plugin.session.session import EditSession
from tests.plain import plain_answer
from tests.tiny import some_requests, tiny_config, tiny_hparams, tiny_model, tiny_tokenizer


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
    """A tiny random model of a family; refused where its config does not make it small."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_config(family))
    size = sum(parameter.numel() for parameter in empty.parameters())
    if size > 10_000_000:
        raise ValueError(f"{size:,} parameters")
    return tiny_model(family)


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
        expected = plain_answer(model, tokenizer, prompt, answer).nll
        if abs(together.nll[number] - expected) > 1e-3 * max(1, expected):
            raise AssertionError(f"nll {together.nll[number]}, and {expected} by a plain pass")
    texts = greedy_text(model, tokenizer, prompts, 5)
    for prompt, text in zip(prompts, texts):
        if text != (expected := _plain_greedy(model, tokenizer, prompt, 5)):
            raise AssertionError(f"greedy {text!r}, and {expected!r} by plain passes")
    return f"{left:.1%} of the residual left"


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
