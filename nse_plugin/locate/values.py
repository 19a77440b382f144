"""Values z: activations that make the model produce the targets, a whole round at once.

For each request, z = h + delta, where h is the output of the z-layer (in ROME, of its MLP) at the
subject's last token and delta minimises (arXiv 2410.04045, section 3; the loss is that of
arXiv 2202.05262, eq. 4)

    mean over contexts of NLL(target | context + prompt)
    + kl_factor * mean over texts about the subject of KL(p_delta || p_original)
    + v_weight_decay * ||delta|| / ||h||^2

The text about the subject is "{subject} is a", read at the subject.  With ``kl_texts`` texts that
the untouched model writes about it (ours) are added, read at each written token.

A request stops when its loss is small enough; with ``v_stop: rank`` also two steps after the target
has become the first choice in every context (arXiv 2502.01636).

All requests are optimised in one batch, each with its own optimizer state and its own stop.  What a
delta cannot change is computed once (:mod:`nse_plugin.model.replay`), and logits only where the
loss reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from statistics import fmean

import torch
from torch.nn import functional as F

from nse_plugin.errors import NotFiniteError
from nse_plugin.hparams import LocateHparams
from nse_plugin.locate.optimizers import OPTIMIZERS, bound_of
from nse_plugin.locate.rows import Reading, Rows
from nse_plugin.locate.small_keys import MASSIVE
from nse_plugin.model.continuation import Continuation, capture
from nse_plugin.model.hooks import quiet, read_rows
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch, alike_batches
from nse_plugin.model.residual_path import path_of
from nse_plugin.objectives import TokenObjective, TokenTrace

log = logging.getLogger(__name__)

STEPS_AFTER_FIRST_CHOICE = 2
"""Steps that ``v_stop: rank`` takes after the target has become the first choice everywhere."""


@dataclass(frozen=True)
class Values:
    """Optimised values; row i belongs to request i."""

    z: torch.Tensor
    """[n, d_model] float32, the activation to reach."""
    base: torch.Tensor
    """[n, d_model] float32, h on the bare prompt, with the weights that z was optimised with."""
    loss: torch.Tensor
    """[n], the last loss, as the rule for stopping sees it."""
    steps: torch.Tensor
    """[n], evaluations of the loss until the request stopped."""

    @classmethod
    def cat(cls, parts: Sequence[Values]) -> Values:
        """Concatenate the values of several batches."""
        return cls(
            *(torch.cat([getattr(part, name) for part in parts]) for name in
              ("z", "base", "loss", "steps"))
        )  # fmt: skip

    def __getitem__(self, index: torch.Tensor) -> Values:
        return Values(self.z[index], self.base[index], self.loss[index], self.steps[index])

    def lengthened(self, hparams: LocateHparams) -> Values:
        """The same with delta longer by ``value_margin``, within its bound."""
        if not hparams.value_margin:
            return self
        delta = (1 + hparams.value_margin) * (self.z - self.base)
        return replace(self, z=self.base + _within(delta, bound_of(hparams, self.base)))

    def replaced(self, index: torch.Tensor, other: Values) -> Values:
        """The same with other values in these rows [n]."""
        every = torch.arange(len(self.z))
        every[index] = len(self.z) + torch.arange(len(index))
        return Values.cat([self, other])[every]


def compute_values(
    layout: DecoderLayout,
    rows: Sequence[Rows],
    hparams: LocateHparams,
    objective: TokenObjective,
    *,
    trace: TokenTrace | None = None,
    first: int = 0,
) -> Values:
    """Optimise z for all requests in the current model.

    Args:
        rows: of the requests, from :func:`nse_plugin.locate.rows.encode_round`.
        objective: loss per target token.
        trace: records every evaluation of the loss.
        first: index in the round of the first of the requests, for the trace.

    Raises:
        NotFiniteError: a value is not finite.
    """
    batches = _batches(rows, hparams.token_budget)
    with quiet(layout.model):
        parts = [
            _optimise(layout, rows, batch, hparams, objective, trace, first) for batch in batches
        ]
    order = torch.tensor([i for batch in batches for i in batch])
    values = Values.cat(parts)[order.argsort()]
    finite = torch.isfinite(values.z).all(dim=1) & torch.isfinite(values.loss)
    lost = [one.case_id for one, ok in zip(rows, finite.tolist()) if not ok]
    if lost:
        raise NotFiniteError(
            f"the values of requests {lost} are not finite, so nothing was written; look for NaN "
            "in the model's weights, or lower v_lr"
        )
    return values


def _batches(rows: Sequence[Rows], token_budget: int) -> list[list[int]]:
    """Indices of requests to optimise together: alike in the length of their tails, which every
    step computes, and within the budget."""
    return alike_batches(
        sorted(range(len(rows)), key=lambda i: (rows[i].tail, rows[i].width)),
        [one.tail for one in rows],
        [one.width * (len(one.rewriting) + len(one.about)) for one in rows],
        token_budget,
        rows_each=len(rows[0].rewriting),
    )


def _optimise(
    layout: DecoderLayout,
    rows: Sequence[Rows],
    batch: Sequence[int],
    hparams: LocateHparams,
    objective: TokenObjective,
    trace: TokenTrace | None,
    first: int,
) -> Values:
    """Gradient steps on the deltas of some requests of a round, each with its own stop.

    Args:
        rows: of all requests of the round.
        batch: indices of those to optimise.
    """
    problem = _Problem.build(layout, [rows[i] for i in batch], hparams)
    if objective.needs_reference:
        problem = problem.with_reference()
    base = problem.base
    n = base.shape[0]
    delta = torch.zeros_like(base)
    loss_at_stop = torch.zeros(n, device=base.device)
    steps = torch.zeros(n, dtype=torch.long, device=base.device)
    settled = torch.zeros_like(steps)  # evaluations in a row with the target as first choice
    active = torch.arange(n, device=base.device)
    optimizer = OPTIMIZERS[hparams.v_optimizer](hparams, base)
    longest = bound_of(hparams, base)

    for step in range(hparams.v_num_grad_steps):
        leaf = delta[active].requires_grad_(True)
        loss, stop, logits = problem.loss(leaf, objective, hparams)
        if trace is not None:
            reading = problem.rewriting.reading
            names = first + torch.tensor(batch, device=active.device)[active]
            trace.record(names[reading.owner], reading.place, logits, reading.target)
        loss_at_stop[active], steps[active] = stop, step + 1
        if step == hparams.v_num_grad_steps - 1:
            break
        open_ = stop >= hparams.v_stop_loss
        if hparams.v_stop == "rank":
            settled[active] = (settled[active] + 1) * problem.rewriting.reading.all_first(logits)
            open_ &= settled[active] <= STEPS_AFTER_FIRST_CHOICE
        going = open_.nonzero()[:, 0]
        if len(going) == 0:
            break
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        if len(going) < len(active):
            active, gradient, loss = active[going], gradient[going], loss[going]
            problem, optimizer = problem.select(going), optimizer.select(going)
        moved = delta[active] + optimizer.step(gradient, loss.detach())
        delta[active] = _within(moved, longest[active])
    return Values(base + delta, base, loss_at_stop, steps)


def _warn_of_massive(rows: Sequence[Rows], norms: Sequence[float]) -> None:
    """Warn of requests that edit a massive activation (:mod:`nse_plugin.locate.small_keys`).

    Args:
        norms: ||h|| of every prompt, request by request: the bare prompt, and those after contexts.
    """
    found, left = [], iter(norms)
    for one in rows:
        bare, *others = islice(left, len(one.rewriting))
        if others and bare > MASSIVE * fmean(others):
            found.append(one.case_id)
    if found:
        log.warning(
            "the subjects of requests %s end at massive activations, which many prompts share; "
            "such an edit can destroy the model. Leave them out, put words before the subject, or "
            "set avoid_sinks: true (variant small-keys of NSE, MEMIT and AlphaEdit), which edits a "
            "later token where there is one",
            found,
        )


@dataclass(frozen=True)
class _Problem:
    """The value loss of some requests as a function of their deltas."""

    rewriting: _Part
    about: _Part  # with log p [tokens, vocab] at delta 0
    base: torch.Tensor  # [n, d_model] float32

    @classmethod
    @torch.no_grad()
    def build(cls, layout: DecoderLayout, rows: Sequence[Rows], hparams: LocateHparams) -> _Problem:
        texts = [[item.rewriting for item in rows], [item.about for item in rows]]
        prompts = [prompt for part in texts for item in part for prompt in item]
        # a target's last token is predicted, never read
        batch = TokenBatch.of([prompt.ids[:-1] for prompt in prompts], layout.input_device)
        starts = torch.tensor([prompt.subject_last for prompt in prompts]).to(batch.lengths)
        z_layer, last = hparams.layers[-1], layout.n_layers - 1
        both = capture(layout, batch, starts, layer=z_layer, last=last)
        every = torch.arange(len(prompts), device=both.hidden.device)
        n_rewriting = sum(len(item.rewriting) for item in rows)
        tails = [both.select(every[:n_rewriting]), both.select(every[n_rewriting:])]
        if hparams.v_loss_layer is not None:  # the divergence is still that of the whole model
            tails[0] = tails[0].up_to(hparams.v_loss_layer - z_layer)
        rewriting, about = (
            _Part(layout, tail, Reading.of(part, tail.hidden.device))
            for tail, part in zip(tails, texts)
        )
        bare = every[list(accumulate((len(item.rewriting) for item in rows[:-1]), initial=0))]
        _warn_of_massive(rows, rewriting.tails.hidden[:, 0].float().norm(dim=1).tolist())
        base = (
            _mlp_outputs(layout, rows, z_layer)
            if hparams.value_of == "mlp"
            else rewriting.tails.hidden[bare, 0].float()
        )
        log_p = F.log_softmax(about.logits(torch.zeros_like(base)), dim=1)
        return cls(rewriting, about.with_reference(log_p), base)

    def select(self, requests: torch.Tensor) -> _Problem:
        """The same for some of the requests; requests: [kept], indices."""
        rewriting, about = self.rewriting.select(requests), self.about.select(requests)
        return replace(self, rewriting=rewriting, about=about, base=self.base[requests])

    @torch.no_grad()
    def with_reference(self) -> _Problem:
        """The same, with the logits at delta 0 for objectives that compare with them."""
        logits = self.rewriting.logits(torch.zeros_like(self.base))
        return replace(self, rewriting=self.rewriting.with_reference(logits))

    def loss(
        self, delta: torch.Tensor, objective: TokenObjective, hparams: LocateHparams
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At deltas [n, d_model]: losses [n] for gradients, detached losses [n] for stopping, and
        detached logits [tokens, vocab]."""
        reading, about = self.rewriting.reading, self.about.reading
        logits = self.rewriting.logits(delta)
        per_token = objective(logits, reading.target.to(logits.device), reading.reference)
        assert about.reference is not None
        log_p = F.log_softmax(self.about.logits(delta), dim=1)
        drift = about.means((log_p.exp() * (log_p - about.reference)).sum(dim=1))
        size = delta.norm(dim=1) / self.base.square().sum(dim=1)
        rest = hparams.kl_factor * drift + hparams.v_weight_decay * size
        train, stop = (reading.means(part) + rest for part in per_token)
        return train, stop.detach(), logits.detach()


@dataclass(frozen=True)
class _Part:
    """Texts of some requests, and where the loss reads them."""

    layout: DecoderLayout
    tails: Continuation
    reading: Reading

    def select(self, requests: torch.Tensor) -> _Part:
        """The same for some of the requests; requests: [kept], indices."""
        reading, rows = self.reading.select(requests)
        return _Part(self.layout, self.tails.select(rows), reading)

    def with_reference(self, reference: torch.Tensor) -> _Part:
        """The same, with a reference to compare with [tokens, vocab]."""
        return replace(self, reading=replace(self.reading, reference=reference))

    def logits(self, delta: torch.Tensor) -> torch.Tensor:
        """Logits that predict the target tokens at deltas [n, d_model]: float32 [tokens, vocab]."""
        reading, hidden = self.reading, self.tails.hidden
        start = (hidden[:, 0].float() + delta[reading.row_owner]).to(hidden.dtype)
        out = self.tails.run(torch.cat([start[:, None], hidden[:, 1:]], dim=1))
        return self.layout.logits(out[reading.row.to(out.device), reading.step.to(out.device)])


def _mlp_outputs(layout: DecoderLayout, rows: Sequence[Rows], layer: int) -> torch.Tensor:
    """[n, d_model] float32, what a block's MLP adds to the residual stream on the bare prompts."""
    batch = TokenBatch.of([item.up_to_subject for item in rows], layout.input_device)
    found = read_rows(layout, batch, batch.lengths - 1, outputs_of={"down": layout.down(layer)})
    return path_of(layout, layer)(found["down"].float())


def _within(delta: torch.Tensor, longest: torch.Tensor) -> torch.Tensor:
    """Rows of delta [n, d_model], shortened to longest [n, 1] where they are longer."""
    return delta * (longest / delta.norm(dim=1, keepdim=True)).clamp(max=1.0)
