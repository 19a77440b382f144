"""Values z: the activation that makes the model give the new answer, a whole round at once.

For each request, z = h + delta, where h is the output of the z-layer (in ROME, of its MLP) at the
subject's last token and delta minimises (arXiv 2410.04045, section 3; the loss is that of
arXiv 2202.05262, eq. 4)

    mean over contexts of NLL(target | context + prompt)
    + kl_factor * KL(p_delta || p_original) at "{subject} is a"
    + v_weight_decay * ||delta|| / ||h||^2

A request stops when its loss is small enough; with ``v_stop: rank`` also once greedy decoding has
written the target in every context for two more steps (arXiv 2502.01636).

NSE rewinds every edited weight to its original for that.  All requests are optimised in one batch,
each with its own optimizer state and its own stop; what a delta cannot change is computed once (see
:mod:`nse_plugin.model.replay`), and logits only where the loss reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch.nn import functional as F

from nse_plugin.errors import NotFiniteError
from nse_plugin.hparams import LocateHparams
from nse_plugin.locate.optimizers import OPTIMIZERS, bound_of
from nse_plugin.locate.rows import Reading, Rows
from nse_plugin.model.continuation import Continuation, capture
from nse_plugin.model.hooks import quiet, read_rows
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import TokenBatch, cheapest_batches, micro_batches
from nse_plugin.model.residual_path import path_of
from nse_plugin.objectives import TokenObjective
from nse_plugin.objectives.trace import TokenTrace

STEPS_AFTER_FIRST_CHOICE = 2
"""Steps that ``v_stop: rank`` still takes once the target is the first choice everywhere."""


@dataclass(frozen=True)
class Values:
    """What the optimisation found; row i belongs to request i."""

    z: torch.Tensor
    """[n, d_model] float32, the activation to reach."""
    base: torch.Tensor
    """[n, d_model] float32, h on the bare prompt, with the weights that z was optimised with."""
    loss: torch.Tensor
    """[n], the loss that the search ended with, as the rule for stopping sees it."""
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
) -> Values:
    """Optimise z for all requests, with the weights that the model holds now.

    Args:
        rows: of the requests, from :func:`nse_plugin.locate.rows.encode_round`.
        objective: loss per target token.
        trace: is told of every evaluation of the loss.

    Raises:
        NotFiniteError: a value is not.
    """
    batches = _batches(rows, hparams.token_budget)
    with quiet(layout.model):
        parts = [_optimise(layout, rows, batch, hparams, objective, trace) for batch in batches]
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
    """Numbers of the requests that are optimised together: by length of the tails, which are
    computed at every step, and within the budget."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].tail, rows[i].width))
    found = []
    for alike in cheapest_batches([rows[i].tail for i in order], len(rows[0].rewriting)):
        some = order[alike]
        widths = [rows[i].width * (len(rows[i].rewriting) + 1) for i in some]
        found += [some[run] for run in micro_batches(widths, token_budget)]
    return found


def _optimise(
    layout: DecoderLayout,
    rows: Sequence[Rows],
    batch: Sequence[int],
    hparams: LocateHparams,
    objective: TokenObjective,
    trace: TokenTrace | None,
) -> Values:
    """Gradient steps on the deltas of some requests of a round, each stopping by itself.

    Args:
        rows: of all requests of the round.
        batch: which of them.
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
            reading, names = problem.reading, torch.tensor(batch, device=active.device)[active]
            trace.record(step, names[reading.owner], reading.place, logits, reading.target)
        loss_at_stop[active], steps[active] = stop, step + 1
        if step == hparams.v_num_grad_steps - 1:
            break
        open_ = stop >= hparams.v_stop_loss
        if hparams.v_stop == "rank":
            settled[active] = (settled[active] + 1) * problem.reading.all_first(logits)
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


@dataclass(frozen=True)
class _Problem:
    """The value loss of some requests as a function of their deltas."""

    layout: DecoderLayout
    rewriting: Continuation
    reading: Reading
    essence: Continuation  # one row per request, one token wide
    base: torch.Tensor  # [n, d_model] float32
    log_p_original: torch.Tensor  # [n, vocab], at "{subject} is a"

    @classmethod
    @torch.no_grad()
    def build(cls, layout: DecoderLayout, rows: Sequence[Rows], hparams: LocateHparams) -> _Problem:
        prompts = [prompt for item in rows for prompt in item.rewriting]
        n_rewriting = len(prompts)
        prompts += [item.essence for item in rows]
        # a target's last token is predicted, never read; the essence is read at its subject
        ids = [p.ids[:-1] if p.n_target else p.up_to_subject for p in prompts]
        batch = TokenBatch.of(ids, layout.input_device)
        starts = torch.tensor([prompt.subject_last for prompt in prompts]).to(batch.lengths)
        z_layer, last = hparams.layers[-1], layout.n_layers - 1
        both = capture(layout, batch, starts, layer=z_layer, last=last)
        every = torch.arange(len(prompts), device=both.hidden.device)
        rewriting, essence = both.select(every[:n_rewriting]), both.select(every[n_rewriting:])
        if hparams.v_loss_layer is not None:  # the divergence is of the whole model all the same
            rewriting = rewriting.up_to(hparams.v_loss_layer - z_layer)
        bare = every[list(accumulate((len(item.rewriting) for item in rows[:-1]), initial=0))]
        return cls(
            layout,
            rewriting,
            Reading.of(rows, both.hidden.device),
            essence,
            _mlp_outputs(layout, rows, z_layer)
            if hparams.value_of == "mlp"
            else rewriting.hidden[bare, 0].float(),
            F.log_softmax(layout.logits(essence.run(essence.hidden)[:, 0]), dim=1),
        )

    def select(self, requests: torch.Tensor) -> _Problem:
        """The same for some of the requests; requests: [kept], indices."""
        reading, rows = self.reading.select(requests)
        return _Problem(
            self.layout,
            self.rewriting.select(rows),
            reading,
            self.essence.select(requests),
            self.base[requests],
            self.log_p_original[requests.to(self.log_p_original.device)],
        )

    @torch.no_grad()
    def with_reference(self) -> _Problem:
        """The same, with the logits at delta 0 kept for objectives that compare with them."""
        logits = self._logits(torch.zeros_like(self.base))
        return replace(self, reading=replace(self.reading, reference=logits))

    def loss(
        self, delta: torch.Tensor, objective: TokenObjective, hparams: LocateHparams
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At deltas [n, d_model]: losses [n] for gradients and for stopping, and the logits.

        What is for stopping and the logits [tokens, vocab] are detached.
        """
        reading = self.reading
        logits = self._logits(delta)
        per_token = objective(logits, reading.target.to(logits.device), reading.reference)
        log_p = F.log_softmax(self.layout.logits(self._run(self.essence, delta)[:, 0]), dim=1)
        drift = (log_p.exp() * (log_p - self.log_p_original)).sum(dim=1).to(delta.device)
        size = delta.norm(dim=1) / self.base.square().sum(dim=1)
        rest = hparams.kl_factor * drift + hparams.v_weight_decay * size
        train, stop = (reading.means(part) + rest for part in per_token)
        return train, stop.detach(), logits.detach()

    def _logits(self, delta: torch.Tensor) -> torch.Tensor:
        """[tokens, vocab] float32, what predicts the target tokens at deltas [n, d_model]."""
        reading = self.reading
        out = self._run(self.rewriting, delta[reading.row_owner])
        return self.layout.logits(out[reading.row.to(out.device), reading.step.to(out.device)])

    @staticmethod
    def _run(tails: Continuation, delta: torch.Tensor) -> torch.Tensor:
        """Output [rows, tail, d_model] with delta [rows, d_model] added at each row's start."""
        start = (tails.hidden[:, 0].float() + delta).to(tails.hidden.dtype)
        return tails.run(torch.cat([start[:, None], tails.hidden[:, 1:]], dim=1))


def _mlp_outputs(layout: DecoderLayout, rows: Sequence[Rows], layer: int) -> torch.Tensor:
    """[n, d_model] float32, what a block's MLP adds to the residual stream on the bare prompts."""
    batch = TokenBatch.of([item.read for item in rows], layout.input_device)
    found = read_rows(layout, batch, batch.lengths - 1, outputs_of={"down": layout.down(layer)})
    return path_of(layout, layer)(found["down"].float())


def _within(delta: torch.Tensor, longest: torch.Tensor) -> torch.Tensor:
    """Rows of delta [n, d_model], shortened to longest [n, 1] where they are longer."""
    return delta * (longest / delta.norm(dim=1, keepdim=True)).clamp(max=1.0)
