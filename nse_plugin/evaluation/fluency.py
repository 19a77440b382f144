"""Fluency of generated text, without a download."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter

FLUENCY_TOKENS = 100
"""Tokens of a sampled text, its prompt included, where the model's context allows it."""
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the n-gram entropies, by n


def ngram_entropy(text: str) -> float:
    """Weighted mean of the entropies, in bits, of a text's word pairs and triples.

    Zhang et al. 2018 (GEM) as ROME's authors use it, with weights 2/3 and 4/3.  Low values mean
    repetition.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    entropies = []
    for n, weight in _WEIGHTS.items():
        counts = Counter(zip(*(words[start:] for start in range(n))))
        total = sum(counts.values())
        bits = -sum(c / total * math.log2(c / total) for c in counts.values())
        entropies.append(weight * bits)
    return sum(entropies) / len(entropies)


def as_easyedit_counts(text: str) -> str:
    """The text as EasyEdit counts it: normalised, one line, without the end marker."""
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ").replace("<|endoftext|>", "")
