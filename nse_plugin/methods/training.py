"""What methods that train on target tokens share: batches, steps, stopping, outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from nse_plugin.errors import NotFiniteError
from nse_plugin.hparams import Hparams
from nse_plugin.methods.bookkeeping import Clock
from nse_plugin.model.prompts import encode_request
from nse_plugin.model.targets import Targets
from nse_plugin.objectives import TokenLoss, TokenObjective, TokenTrace
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import Outcome, RoundRecord
from nse_plugin.session.session import EditSession


class Training:
    """A round's requests in mini-batches, and their loss under a forward pass.

    The loss of a batch is the mean over its requests of the mean over each target's tokens.

    Args:
        forward: called in place of the model, with the weights being trained.
        from_prompt: see :meth:`Targets.of`.
        with_end: put the end-of-text token after each target.
        numbers: what the trace calls each request; their places by default.

    Raises:
        RequestError: a prompt is longer than the model's context.
    """

    def __init__(
        self,
        session: EditSession,
        requests: Sequence[EditRequest],
        batch_size: int,
        objective: TokenObjective,
        trace: TokenTrace | None = None,
        *,
        forward: Callable[..., Any] | None = None,
        from_prompt: bool = False,
        with_end: bool = False,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.layout, self.requests = session.layout, requests
        self._objective, self._trace, self._forward = objective, trace, forward
        longest, device = self.layout.max_positions, self.layout.input_device
        prompts = [
            encode_request(
                session.tokenizer,
                request,
                with_target=True,
                with_end=with_end,
                max_positions=longest,
            )
            for request in requests
        ]
        self.starts = range(0, len(prompts), batch_size)
        """Index in the round of each batch's first request."""
        self.batches = [
            Targets.of(prompts[start : start + batch_size], device, from_prompt=from_prompt)
            for start in self.starts
        ]
        self._references: list[torch.Tensor | None] = [None] * len(self.batches)
        if objective.needs_reference:
            with torch.no_grad():
                self._references = [batch.logits(self.layout, forward) for batch in self.batches]
        n = len(requests)
        self._numbers = torch.tensor(range(n) if numbers is None else numbers)
        self.steps = torch.zeros(n, dtype=torch.long)
        """[n], how often each request's loss was evaluated for a step."""
        self.loss = torch.full((n,), float("nan"))
        """[n], loss after the last step, as the rule for stopping sees it."""
        self.right = torch.zeros(n, dtype=torch.bool)
        """[n], whether every target token was the model's first choice after the last step."""

    def run(
        self,
        parameters: Sequence[torch.Tensor],
        *,
        lr: float,
        n_passes: int,
        stop_loss: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        penalty: Callable[[], torch.Tensor] | None = None,
        after_step: Callable[[], None] = lambda: None,
        only: int | None = None,
        mode: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Adam on some parameters: passes over all batches, a step for each.

        A batch whose mean loss is below ``stop_loss`` makes no step, and a pass whose mean loss is
        below it is the last one.

        Args:
            n_passes: maximum number of passes.
            betas: Adam's, of the mean gradient and the mean squared gradient.
            weight_decay: Adam's, L2 added to the gradient.
            penalty: added to the training loss.
            after_step: called after each batch, e.g. to keep the parameters within bounds.
            only: train on this batch alone; None for all of them.
            mode: a context for the training passes, e.g. with dropout.
        """
        chosen = list(range(len(self.batches))) if only is None else [only]
        optimiser = torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
        steps = 0
        while steps < n_passes:
            steps, total = steps + 1, 0.0
            for index in chosen:
                with mode():
                    train, stop, _ = self._evaluate(index)
                loss = float(stop.mean())
                if loss >= stop_loss:
                    optimiser.zero_grad()
                    full = train.mean()
                    if penalty is not None:
                        full = full + penalty().to(full.device)
                    full.backward()
                    optimiser.step()
                after_step()
                total += float(stop.sum())
            n = sum(self.batches[index].n for index in chosen)
            if total / n < stop_loss:
                break
        self.finish(chosen, steps)

    @torch.no_grad()
    def finish(self, chosen: Iterable[int], steps: int) -> None:
        """Evaluate what was reached after this number of steps, for the outcomes.

        Raises:
            NotFiniteError: a loss is not finite.
        """
        for index in chosen:
            _, stop, logits = self._evaluate(index)
            right = self.batches[index].all_first(logits)
            start = self.starts[index]
            rows = slice(start, start + self.batches[index].n)
            self.loss[rows], self.right[rows] = stop.cpu(), right.cpu()
            self.steps[rows] = steps
            lost = (~torch.isfinite(self.loss[rows])).nonzero()[:, 0].tolist()
            if lost:
                cases = [self.requests[start + i].case_id for i in lost]
                raise NotFiniteError(
                    f"the losses of requests {cases} are not finite after training, so nothing "
                    "was kept; look for NaN in the model's weights, or lower the learning rate"
                )

    def _evaluate(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses [n] to train on, detached losses [n] for stopping, and logits [k, vocab]."""
        batch = self.batches[index]
        losses, logits = self.token_losses(index)
        return batch.means(losses.train), batch.means(losses.stop).detach(), logits.detach()

    def token_losses(self, index: int) -> tuple[TokenLoss, torch.Tensor]:
        """A batch's losses per token [k], and the logits [k, vocab] behind them."""
        batch = self.batches[index]
        logits = batch.logits(self.layout, self._forward)
        target = batch.target.to(logits.device)
        if self._trace is not None:
            owner = self._numbers.to(batch.owner.device)[batch.owner + self.starts[index]]
            self._trace.record(owner, batch.place, logits.detach(), target)
        return self._objective(logits, target, self._references[index]), logits

    def outcomes(self) -> tuple[Outcome, ...]:
        """The outcome of every request: converged if every target token is the first choice."""
        return tuple(
            Outcome(
                case_id=request.case_id,
                digest=request.digest(),
                status="converged" if bool(self.right[i]) else "residual_left",
                passes=1,
                z_loss=float(self.loss[i]),
                z_steps=int(self.steps[i]),
            )
            for i, request in enumerate(self.requests)
        )


def commit_attached(
    session: EditSession, hparams: Hparams, training: Training, clock: Clock
) -> RoundRecord:
    """Enter a round that trained what is attached to the model into the session's ledger."""
    record = RoundRecord(
        number=session.ledger.next_number(),
        method=hparams.method,
        outcomes=training.outcomes(),
        seconds=clock.seconds,
        state=session.attached.state(),
    )
    session.commit(record)
    return record
