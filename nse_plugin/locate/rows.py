"""The token rows of a round's requests, and where the value loss reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import EncodedPrompt, encode_prompt, encode_request
from nse_plugin.model.targets import TargetTokens
from nse_plugin.requests import EditRequest


@dataclass(frozen=True)
class Rows:
    """The rows of tokens of one request."""

    case_id: int | str
    rewriting: tuple[EncodedPrompt, ...]
    """The bare prompt, then the prompt after each context, with their targets."""
    about: tuple[EncodedPrompt, ...]
    """Texts about the subject, at whose targets the model's distribution should not change:
    "{subject} is a", and continuations by the untouched model."""
    past_sink: bool = False
    """Whether a later token is edited because the subject ends at an attention sink."""
    other_subjects: tuple[tuple[int, ...], ...] = ()
    """If a later token is edited: the bare prompt with other subjects, up to that token, whose
    outputs are preserved."""
    weight: float = 1.0
    """Weight of its squared error in a solve that repairs it."""

    @property
    def up_to_subject(self) -> tuple[int, ...]:
        """Tokens that the key depends on: those of the bare prompt up to the edited one."""
        return self.rewriting[0].up_to_subject

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(prompt.ids) for prompt in (*self.rewriting, *self.about))

    @property
    def tail(self) -> int:
        """Tokens of the longest row that every step computes."""
        return max(len(prompt.ids) - prompt.subject_last for prompt in self.rewriting)


def encode_round(
    layout: DecoderLayout,
    tokenizer: object,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    with_end: bool = False,
) -> list[Rows]:
    """Tokenise the requests of a round, for values and keys alike.

    Args:
        contexts: texts to put before the prompts, separators included; the bare prompt is added.
        with_end: put the end-of-text token after each target.

    Raises:
        RequestError: a row is longer than the model's context.
    """
    longest = layout.max_positions
    return [
        Rows(
            request.case_id,
            tuple(
                encode_request(
                    tokenizer,
                    request,
                    context,
                    with_target=True,
                    with_end=with_end,
                    max_positions=longest,
                )
                for context in ("", *contexts)
            ),
            (_essence(tokenizer, request.subject),),
        )
        for request in requests
    ]


def _essence(tokenizer: object, subject: str) -> EncodedPrompt:
    """The text "{subject} is a", read at the subject alone, as in the code of ROME."""
    text = encode_prompt(tokenizer, f"{subject} is a", subject=(0, len(subject)))
    return replace(text, ids=text.ids[: text.subject_last + 2], n_target=1)


def merged(rows: Sequence[Rows]) -> tuple[list[Rows], list[int]]:
    """Merge the rows of requests whose bare prompts agree up to the subject's last token.

    Returns:
        The merged rows, and for each request the index of its rows among them.
    """
    numbers: dict[tuple[int, ...], int] = {}
    found: list[Rows] = []
    for one in rows:
        number = numbers.setdefault(one.up_to_subject, len(found))
        if number == len(found):
            found.append(one)
        else:
            both = (*found[number].rewriting, *one.rewriting)
            found[number] = replace(found[number], rewriting=both)
    return found, [numbers[one.up_to_subject] for one in rows]


@dataclass(frozen=True)
class Reading(TargetTokens):
    """Where the loss of a batch reads its logits."""

    row: torch.Tensor  # [tokens], row of each target token
    step: torch.Tensor  # [tokens], its position in the row's tail
    row_owner: torch.Tensor  # [rows], request of each row
    reference: torch.Tensor | None = None  # [tokens, vocab], logits at delta 0, if needed

    @classmethod
    def of(cls, texts: Sequence[Sequence[EncodedPrompt]], device: torch.device) -> Reading:
        """Lay out the texts of each request."""
        row_owner: list[int] = []
        tokens: list[tuple[int, int, int, float, int, int]] = []
        for request, prompts in enumerate(texts):
            for prompt in prompts:
                first = prompt.n_prompt - 1 - prompt.subject_last
                weight = 1.0 / (prompt.n_target * len(prompts))
                tokens += [
                    (request, j, token, weight, len(row_owner), first + j)
                    for j, token in enumerate(prompt.target_ids)
                ]
                row_owner.append(request)
        columns = (*zip(*tokens), row_owner)
        return cls(len(texts), *(torch.tensor(column, device=device) for column in columns))

    def select(self, requests: torch.Tensor) -> tuple[Reading, torch.Tensor]:
        """The same for some requests [kept], in rising order, and their rows [kept rows]."""
        number = torch.full((self.n,), -1, device=requests.device)
        number[requests] = torch.arange(len(requests), device=requests.device)
        rows = (number[self.row_owner] >= 0).nonzero()[:, 0]
        row_place = torch.full((len(self.row_owner),), -1, device=requests.device)
        row_place[rows] = torch.arange(len(rows), device=requests.device)
        kept = row_place[self.row] >= 0
        reading = Reading(
            len(requests),
            number[self.owner[kept]],
            self.place[kept],
            self.target[kept],
            self.weight[kept],
            row_place[self.row[kept]],
            self.step[kept],
            number[self.row_owner[rows]],
            None if self.reference is None else self.reference[kept.to(self.reference.device)],
        )
        return reading, rows
