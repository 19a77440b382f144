"""Values straight from requests, for the tests that compare with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import Values, compute_values
from nse_plugin.model.sampling import texts_about
from nse_plugin.objectives import nll


def values_of(
    layout: Any, tokenizer: Any, requests: Any, contexts: Any, hparams: Any, objective: Any = nll
) -> Values:
    """Values of some requests with the weights of now."""
    rows = encode_round(layout, tokenizer, requests, contexts)
    if hparams.kl_texts:
        subjects = [request.subject for request in requests]
        texts = texts_about(layout.model, tokenizer, subjects, hparams.kl_texts)
        rows = [replace(one, about=(*one.about, *more)) for one, more in zip(rows, texts)]
    return compute_values(layout, rows, hparams, objective)
