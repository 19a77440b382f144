"""Which rounds change the model's answer to a prompt most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nse_plugin.errors import RequestError, SessionError
from nse_plugin.model.answers import check_length
from nse_plugin.model.hooks import own_modes, quiet
from nse_plugin.model.prompts import TokenBatch, encode_prompt
from nse_plugin.session.records import RoundRecord, later_trained

if TYPE_CHECKING:
    from pandas import DataFrame

    from nse_plugin.session.session import EditSession


@own_modes()
def blame(session: EditSession, prompt: str, tokenizer: Any = None) -> DataFrame:
    """Remove each round in turn, and measure how the next token's probabilities change.

    The weights are restored exactly, even on error.

    Args:
        tokenizer: for the prompt; by default the session's, which may use the chat format.

    Returns:
        a row per round, the largest ``kl`` first: ``round``, ``kl`` (divergence in nats of the
        next token's distribution without the round from that of the current model), ``top`` (the
        most likely next token), ``top_change`` (what the round adds to its log-probability) and
        ``top_without`` (the most likely next token without the round).

    Raises:
        SessionError: the weights were changed outside the session, or the rounds trained an
            attachment, from which no round can be removed alone.
        RequestError: the prompt has no tokens, or is longer than the model's context.
    """
    import pandas as pd

    session.check()
    if session.attached.kind is not None:
        raise SessionError(
            f"rounds cannot be removed one by one: {later_trained(session.ledger.numbers()[-1])}"
        )
    ids = encode_prompt(tokenizer or session.tokenizer, prompt).ids
    if not ids:
        raise RequestError(f"prompt is {prompt!r} and has no tokens; give a text to continue")
    check_length(session.model, [len(ids)], "shorten the prompt")
    now = _next_token(session, ids)
    top = int(now.argmax())
    rows = []
    before = session.weights.snapshot()
    try:
        for record in session.ledger:
            _remove(session, record)
            without = _next_token(session, ids)
            session.weights.restore(before)
            rows.append(
                {
                    "round": record.number,
                    "kl": float((now.exp() * (now - without)).sum()),
                    "top": session.tokenizer.decode([top]),
                    "top_change": float(now[top] - without[top]),
                    "top_without": session.tokenizer.decode([int(without.argmax())]),
                }
            )
    finally:
        session.weights.restore(before)
    rows.sort(key=lambda row: -row["kl"])
    return pd.DataFrame(rows, columns=["round", "kl", "top", "top_change", "top_without"])


def _remove(session: EditSession, record: RoundRecord) -> None:
    layout, weights = session.layout, session.weights
    for layer in record.layers():
        name = layout.down_name(layer)
        rest = weights.change(name)
        for write in record.writes_to(layer):
            if rest is not None:
                rest = rest - layout.to_weight(write.change(layout.d_ff, rest.device))
        weights.set(name, rest)


@torch.no_grad()
def _next_token(session: EditSession, ids: tuple[int, ...]) -> torch.Tensor:
    """log p of every next token, float64 [vocab]."""
    batch = TokenBatch.of([ids], session.layout.input_device)
    with quiet(session.model):
        logits = session.model(**batch.model_inputs(), use_cache=False).logits[0, -1]
    return logits.cpu().double().log_softmax(dim=-1)
