"""The rows of tokens of a round's requests, and where the loss of their values reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import EncodedPrompt, encode_prompt, encode_request
from nse_plugin.requests import EditRequest


@dataclass(frozen=True)
class Rows:
    """The rows of tokens of one request."""

    case_id: int | str
    rewriting: tuple[EncodedPrompt, ...]
    """The bare prompt, then the prompt after each context, with their targets."""
    essence: EncodedPrompt
    """The text "{subject} is a", where the model should stay as it is."""

    @property
    def read(self) -> tuple[int, ...]:
        """Tokens that the key depends on: the bare prompt's up to the subject's last."""
        return self.rewriting[0].up_to_subject

    @property
    def width(self) -> int:
        """Tokens of the longest row."""
        return max(len(prompt.ids) for prompt in self.rewriting)

    @property
    def tail(self) -> int:
        """Tokens that are computed at every step, in the longest row."""
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
            encode_prompt(tokenizer, f"{request.subject} is a", subject_end=len(request.subject)),
        )
        for request in requests
    ]


def merged(rows: Sequence[Rows]) -> tuple[list[Rows], list[int]]:
    """Requests whose bare prompts are the same up to the subject's last token, as one each.

    Returns:
        The rows of all their prompts together, and for each request its number among them.
    """
    numbers: dict[tuple[int, ...], int] = {}
    found: list[Rows] = []
    for one in rows:
        number = numbers.setdefault(one.read, len(found))
        if number == len(found):
            found.append(one)
        else:
            both = (*found[number].rewriting, *one.rewriting)
            found[number] = replace(found[number], rewriting=both)
    return found, [numbers[one.read] for one in rows]


@dataclass(frozen=True)
class Reading:
    """Where the loss of a batch reads its logits, and to which request each token belongs."""

    owner: torch.Tensor  # [rows], request of each row
    row: torch.Tensor  # [tokens], row of each target token
    step: torch.Tensor  # [tokens], its place in the row's tail
    place: torch.Tensor  # [tokens], its place in the target
    target: torch.Tensor  # [tokens], its id
    weight: torch.Tensor  # [tokens], 1 / (tokens of the target * contexts)
    reference: torch.Tensor | None = None  # [tokens, vocab], logits at delta 0, if they are read

    @classmethod
    def of(cls, rows: Sequence[Rows], device: torch.device) -> Reading:
        """The positions at which the loss of these requests reads its logits."""
        owner: list[int] = []
        tokens: list[tuple[int, int, int, int, float]] = []
        for request, item in enumerate(rows):
            for prompt in item.rewriting:
                first = prompt.n_prompt - 1 - prompt.subject_last
                weight = 1.0 / (prompt.n_target * len(item.rewriting))
                tokens += [
                    (len(owner), first + j, j, token, weight)
                    for j, token in enumerate(prompt.target_ids)
                ]
                owner.append(request)
        columns = (owner, *zip(*tokens))
        return cls(*(torch.tensor(column, device=device) for column in columns))

    def tokens(self, names: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Request by name, of names [requests], and place of each token, [tokens] both."""
        return names[self.owner[self.row]], self.place

    def all_first(self, logits: torch.Tensor, n: int) -> torch.Tensor:
        """[n], by request whether logits [tokens, vocab] have each target token as first choice."""
        wrong = (logits.argmax(dim=1) != self.target.to(logits.device)).to(self.owner.device)
        count = torch.zeros(n, device=wrong.device)
        return count.index_add(0, self.owner[self.row], wrong.float()) == 0

    def select(self, requests: torch.Tensor) -> tuple[Reading, torch.Tensor]:
        """The same for some requests [kept], rising, and the rows [kept rows] that they own."""
        place = torch.full((int(self.owner.max()) + 1,), -1, device=requests.device)
        place[requests] = torch.arange(len(requests), device=requests.device)
        rows = (place[self.owner] >= 0).nonzero()[:, 0]
        row_place = torch.full((len(self.owner),), -1, device=requests.device)
        row_place[rows] = torch.arange(len(rows), device=requests.device)
        kept = row_place[self.row] >= 0
        reading = Reading(
            place[self.owner[rows]],
            row_place[self.row[kept]],
            self.step[kept],
            self.place[kept],
            self.target[kept],
            self.weight[kept],
            None if self.reference is None else self.reference[kept.to(self.reference.device)],
        )
        return reading, rows
