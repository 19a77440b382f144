"""An answer by one plain pass over one text: no batch, no padding, no code of the package."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class PlainAnswer(NamedTuple):
    """What a model gives at the tokens of an answer."""

    choices: list[int]
    """Its first choices."""
    ids: list[int]
    """The answer's tokens."""
    log_p: torch.Tensor
    """Their log-probabilities, float64."""

    @property
    def accuracy(self) -> float:
        return sum(a == b for a, b in zip(self.choices, self.ids)) / len(self.ids)

    @property
    def exact(self) -> bool:
        """Whether the model writes the answer greedily, token by token."""
        return self.choices == self.ids

    @property
    def nll(self) -> float:
        return -self.log_p.mean().item()


@torch.no_grad()
def plain_answer(model: Any, tokenizer: Any, prompt: str, answer: str) -> PlainAnswer:
    n_prompt = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(f"{prompt} {answer}")["input_ids"]
    logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0, n_prompt - 1 : -1]
    ids = ids[n_prompt:]
    log_p = logits.double().log_softmax(-1)[range(len(ids)), ids]
    return PlainAnswer(logits.argmax(-1).tolist(), ids, log_p)
