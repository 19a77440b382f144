"""From sentences to token rows: the tokenizer of the small models, and packing for training.

The tokenizer is a byte-level BPE with ``add_prefix_space``: a name has the same pieces at the
start of a text and after ". ", and a prompt and " " + target can be tokenised apart or together.
The price: decoding a whole text gives it a leading space. It never returns ``token_type_ids``:
GPT-2 would add them as embeddings without an error.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.atlas.world import Sentence

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, PAD = "<|endoftext|>", "<|pad|>"
END_ID, PAD_ID = 0, 1
MAX_LENGTH = 256


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE over `texts`; deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads, on old and new hosts."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
        "add_prefix_space": True,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


@dataclass(frozen=True)
class Encoded:
    """A sentence as tokens; `first`..`last` is the subject, the answer starts at `answer`."""

    ids: list[int]
    first: int
    last: int
    answer: int


def encode(tokenizer: Tokenizer, sentences: Sequence[Sentence]) -> list[Encoded]:
    """Tokenise, and find the subject and the answer of each sentence."""
    result = []
    for sentence, code in zip(sentences, tokenizer.encode_batch([s.text for s in sentences])):
        start = sentence.text.index(sentence.subject)
        stop = start + len(sentence.subject)
        inside = [i for i, (a, b) in enumerate(code.offsets) if b > start and a < stop]
        answer_at = len(sentence.text) - len(sentence.answer) - 1
        answer = [i for i, (_, b) in enumerate(code.offsets) if b > answer_at]
        first_answer = answer[0] if sentence.answer else len(code.ids)
        result.append(Encoded(code.ids, inside[0], inside[-1], first_answer))
    return result


def pack(sentences: Sequence[Encoded], length: int, rng: random.Random) -> list[list[Encoded]]:
    """One epoch: all sentences in random order, cut into rows of at most `length` - 1 tokens."""
    order = list(sentences)
    rng.shuffle(order)
    rows: list[list[Encoded]] = [[]]
    used = 0
    for sentence in order:
        if used + len(sentence.ids) > length - 1:
            rows.append([])
            used = 0
        rows[-1].append(sentence)
        used += len(sentence.ids)
    rng.shuffle(rows)
    return rows
