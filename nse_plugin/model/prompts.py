"""From texts to tokens: where the subject ends, where the target starts, how rows are padded.

Rows are padded here, on the right, with an attention mask, so the tokenizer's ``padding_side`` and
pad token do not matter and are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from nse_plugin.errors import ModelError, RequestError
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.printable import counted, shortened
from nse_plugin.requests import EditRequest

TOKEN_BUDGET = 16384
"""Tokens of a batch, padding included, unless the hparams say otherwise."""
PASS = 64
"""Overhead of a pass, in tokens of computation; measured on one CPU thread, where passes with few
rows are bound by reading the weights."""


@dataclass(frozen=True)
class EncodedPrompt:
    """Tokens of one text, with the edited token and the target."""

    ids: tuple[int, ...]
    """Token ids, special tokens of the tokenizer included."""
    subject_last: int
    """Index of the edited token: the subject's last, unless that is an attention sink; -1 if the
    text has no subject."""
    n_target: int = 0
    """Number of target tokens at the end of :attr:`ids`."""

    @property
    def n_prompt(self) -> int:
        """Number of tokens before the target."""
        return len(self.ids) - self.n_target

    @property
    def up_to_subject(self) -> tuple[int, ...]:
        """The tokens up to the edited one."""
        return self.ids[: self.subject_last + 1]

    @property
    def target_ids(self) -> tuple[int, ...]:
        """The target's tokens."""
        return self.ids[self.n_prompt :]


def encode_prompt(
    tokenizer: Any,
    text: str,
    *,
    subject: tuple[int, int] | None = None,
    target: str | None = None,
) -> EncodedPrompt:
    """Tokenise a prompt and, one space after it, its target.

    Prompt and target are tokenised together, as the evaluators do, or separately if a token would
    straddle the two.  In a chat the prompt is the user's turn, and the target begins the model's
    turn, after a space only if the template has one.

    Args:
        tokenizer: the model's, or a :class:`ChatTokenizer`.
        subject: indices in ``text`` of the subject's first character and of the one after it.

    Raises:
        ModelError: the tokenizer cannot map tokens to characters.
        RequestError: no token covers the subject.
    """
    shift, continued = 0, f" {target}"
    chat = isinstance(tokenizer, ChatTokenizer)
    if chat:
        shift, continued = len(tokenizer.before), f"{tokenizer.blank}{target}"
        text = f"{tokenizer.before}{text}{tokenizer.after}"
    ids, offsets = _encode(tokenizer, text, special=not chat)
    subject_last = -1
    if subject is not None:
        subject_last = _last_token(offsets, shift + subject[0], shift + subject[1], text)
    n_target = 0
    if target is not None:
        prompt_ids = ids
        ids, _ = _encode(tokenizer, text + continued, special=not chat)
        if ids[: len(prompt_ids)] != prompt_ids or len(ids) == len(prompt_ids):
            ids = prompt_ids + tokenizer.encode(continued, add_special_tokens=False)
        n_target = len(ids) - len(prompt_ids)
    return EncodedPrompt(tuple(ids), subject_last, n_target)


def encode_text(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text to continue, without special tokens at its end.

    A tokenizer that cannot map tokens to characters keeps what it puts there.

    Args:
        special: keep the special tokens that the tokenizer puts before a text.
    """
    if not special:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if getattr(tokenizer, "is_fast", False):
        return _encode(tokenizer, text)[0]
    return list(tokenizer(text)["input_ids"])


def encode_request(
    tokenizer: Any,
    request: EditRequest,
    context: str = "",
    *,
    with_target: bool = False,
    with_end: bool = False,
    max_positions: int | None = None,
) -> EncodedPrompt:
    """Tokenise a request's prompt after a context text.

    Args:
        context: text put directly before the prompt, with its separator.
        with_target: put the new target after the prompt.
        with_end: put the end-of-text token after it, as part of the target.
        max_positions: longest input of the model in tokens.

    Raises:
        RequestError: the text is longer than the model's context.
        ModelError: the tokenizer cannot map tokens to characters, or has no end-of-text token.
    """
    encoded = encode_prompt(
        tokenizer,
        context + request.text,
        subject=(len(context) + request.subject_start, len(context) + request.subject_end),
        target=request.target_new if with_target else None,
    )
    if max_positions is not None and len(encoded.ids) > max_positions:
        what = f"a prompt of {counted(encoded.n_prompt, 'token')}"
        if encoded.n_target:
            what += f" with a target of {counted(encoded.n_target, 'token')}"
        longer = "target" if encoded.n_target > encoded.n_prompt else "prompt"
        raise RequestError(
            f"case {request.case_id}: {what} is longer than the model's context of "
            f"{max_positions}: {shortened(request.text, 60)!r}; shorten the {longer}"
        )
    if not with_end:
        return encoded
    end = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        raise ModelError(
            "target_eos is true, and the tokenizer has no end-of-text token; leave target_eos out"
        )
    return replace(encoded, ids=(*encoded.ids, end), n_target=encoded.n_target + 1)


def check_vocabulary(layout: DecoderLayout, tokenizer: Any) -> None:
    """Raise :class:`ModelError` if ordinary tokens of the tokenizer have no embedding.

    Tokens that were added to a tokenizer, e.g. for padding, do not count: no text contains them.
    """
    rows = layout.model.get_input_embeddings().weight.shape[0]
    get_vocab = getattr(tokenizer, "get_vocab", None)
    if get_vocab is None:
        return
    added = set(getattr(tokenizer, "added_tokens_decoder", {}))
    beyond = sorted(token for token in get_vocab().values() if token >= rows and token not in added)
    if beyond:
        raise ModelError(
            f"the tokenizer has tokens up to number {beyond[-1]} and the model has embeddings for "
            f"{rows}; load the tokenizer that belongs to the model"
        )


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded rows of tokens."""

    input_ids: torch.Tensor
    """[rows, width], 0 where padded."""
    attention_mask: torch.Tensor
    """[rows, width], 1 where there is a token."""
    lengths: torch.Tensor
    """[rows], tokens per row."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device | str) -> TokenBatch:
        """Pad rows of ids to the width of the longest."""
        lengths = torch.tensor([len(row) for row in rows])
        each = [torch.tensor(row, dtype=torch.long) for row in rows]
        input_ids = pad_sequence(each, batch_first=True)
        mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
        return cls(input_ids.to(device), mask.to(device), lengths.to(device))

    def select(self, rows: torch.Tensor) -> TokenBatch:
        """Some of the rows [kept], cut to their width."""
        lengths = self.lengths[rows.to(self.lengths.device)]
        width = int(lengths.max())
        return TokenBatch(
            self.input_ids[rows.to(self.input_ids.device)][:, :width],
            self.attention_mask[rows.to(self.attention_mask.device)][:, :width],
            lengths,
        )

    def rows(self) -> list[list[int]]:
        """The ids without padding."""
        pairs = zip(self.input_ids.tolist(), self.lengths.tolist())
        return [row[:length] for row, length in pairs]

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments for a forward pass."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


def micro_batches(widths: Sequence[int], token_budget: int) -> list[slice]:
    """Cut rows into runs whose padded size stays within a token budget.

    A row wider than the budget is a run of its own.

    Args:
        widths: of the rows; sorted rows give the least padding.
    """
    runs, start, widest = [], 0, 0
    for index, width in enumerate(widths):
        widest = max(widest, width)
        if index > start and widest * (index + 1 - start) > token_budget:
            runs.append(slice(start, index))
            start, widest = index, width
    if len(widths) > start:
        runs.append(slice(start, len(widths)))
    return runs


def cheapest_batches(widths: Sequence[int], rows_each: int = 1) -> list[slice]:
    """Cut rows, sorted by width, into the runs of least cost.

    The cost counts padded tokens, and :data:`PASS` tokens for each pass, since a pass reads all
    weights.  So few rows run together despite padding, and many are cut by width.

    Args:
        rows_each: number of model rows that each of these rows stands for.
    """
    ends = [i for i in range(1, len(widths) + 1) if i == len(widths) or widths[i] > widths[i - 1]]
    best = [(0, 0)]  # by number of ends taken: cost, and where its last run starts among the ends
    starts = [0, *ends]
    for last, end in enumerate(ends, 1):
        best.append(
            min(
                (best[first][0] + PASS + (end - starts[first]) * rows_each * widths[end - 1], first)
                for first in range(last)
            )
        )
    runs, last = [], len(ends)
    while last:
        first = best[last][1]
        runs.append(slice(starts[first], starts[last]))
        last = first
    return runs[::-1]


def alike_batches(
    order: Sequence[int],
    widths: Sequence[int],
    sizes: Sequence[int],
    token_budget: int,
    *,
    rows_each: int = 1,
) -> list[list[int]]:
    """Indices of rows to run together: alike in width, and within a token budget.

    Args:
        order: the indices, sorted by width.
        widths: of the rows, by index.
        sizes: tokens of each row that count towards the budget, by index.
        rows_each: number of model rows that each of these rows stands for.
    """
    found = []
    for alike in cheapest_batches([widths[i] for i in order], rows_each):
        some = order[alike]
        found += [list(some[run]) for run in micro_batches([sizes[i] for i in some], token_budget)]
    return found


def _encode(
    tokenizer: Any, text: str, *, special: bool = True
) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and the characters that each covers, without special tokens at the end.

    Args:
        special: keep the special tokens that the tokenizer puts before a text; a rendered chat
            has its own.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} cannot map tokens to characters; "
            "load the model's fast tokenizer (AutoTokenizer does by default)"
        )
    encoded = tokenizer(
        text,
        add_special_tokens=special,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        verbose=False,  # texts that are too long are refused later
    )
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    if not special:
        return ids, offsets
    mask = list(encoded["special_tokens_mask"])
    while mask and mask[-1] and not all(mask):  # the end token, since a target may follow
        del ids[-1], offsets[-1], mask[-1]
    return ids, offsets


def _last_token(offsets: Sequence[tuple[int, int]], start: int, end: int, text: str) -> int:
    """Index of the last token that covers the last character of ``text[start:end]``.

    Tokenizers that compose letters and their accents (Qwen) cover only the letters; so the nearest
    covered character before the last one counts.
    """
    for character in range(end - 1, start - 1, -1):
        covering = [i for i, (first, last) in enumerate(offsets) if first <= character < last]
        if covering:
            return covering[-1]
    raise RequestError(
        f"no token covers the subject {text[start:end]!r} of {text!r}; the tokenizer drops it, so "
        "write it in other characters"
    )
