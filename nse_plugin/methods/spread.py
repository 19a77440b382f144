"""A round that is spread over a few consecutive layers: what NSE, MEMIT and AlphaEdit share.

1. values z for all requests at the last of the layers, the z-layer;
2. write passes: per layer, the keys of the requests still off their value, a closed-form change
   that takes its share of the residual z - h, and the next layer with what is left (MEMIT,
   arXiv 2210.07229, algorithm 1);
3. the keys of all requests, after the last write, join the previous keys.

What differs between methods is the closed form (:data:`Solve`), the model that values are
optimised in, and how often there is a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch

from nse_plugin.hparams import LocateHparams
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.values import Values, compute_values
from nse_plugin.methods.bookkeeping import Progress, check_templates, outcomes
from nse_plugin.methods.clock import Clock
from nse_plugin.model.residual_path import path_of
from nse_plugin.objectives import TokenObjective
from nse_plugin.objectives.trace import TokenTrace
from nse_plugin.requests import EditRequest, check_round
from nse_plugin.session.records import RoundRecord, Status, Write
from nse_plugin.session.session import EditSession

H = TypeVar("H", bound=LocateHparams)


class Factors(NamedTuple):
    """A change of one layer: left x right on the columns of some neurons."""

    neurons: torch.Tensor
    """[|I|], rising."""
    left: torch.Tensor
    """[d_model, n] float32."""
    right: torch.Tensor
    """[n, |I|] float32."""


Solve = Callable[[int, torch.Tensor, torch.Tensor], Factors]
"""``solve(layer, keys [d_ff, n], residual [d_model, n])``: the change that takes ``keys`` to what
they give now plus ``residual``, as far as the method lets it."""


@dataclass(frozen=True)
class Passes:
    """How often a round is written, and for which requests."""

    most: int = 1
    """Passes over all layers."""
    alpha: float = 0.0
    """A residual ||z - h|| of at most this needs no further pass."""
    upper_bound: float | None = None
    """A residual of at least this is left out of a pass."""
    alpha_relative: float | None = None
    """alpha as a share of the residual before the first pass."""
    upper_bound_relative: float | None = None
    """upper_bound as a multiple of ||h||."""

    def bounds(self, first: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and upper_bound of each request, for first residuals and ||h||; each [n]."""
        low = torch.full_like(first, self.alpha)
        if self.alpha_relative is not None:
            low = self.alpha_relative * first
        high = torch.full_like(first, math.inf if self.upper_bound is None else self.upper_bound)
        if self.upper_bound_relative is not None:
            high = self.upper_bound_relative * h
        return low, high


ONE_PASS = Passes()
REACHED = 0.5
"""A request reached its value if at most this share of its first residual is left: then nearly all
answers are the new ones, with more left fewer and fewer (docs/methods.md has the table)."""


def spread_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: H,
    objective: TokenObjective,
    trace: TokenTrace | None,
    *,
    solver: Callable[[EditSession, H], Solve],
    rewind: bool,
    passes: Passes = ONE_PASS,
    adjust: Callable[[Values, EditSession, Lookups, int], Values] | None = None,
) -> RoundRecord:
    """Write one round of requests and enter it into the session's ledger.

    Where anything goes wrong half-way, model and ledger are as before.

    Args:
        solver: reads the statistics that the method needs, and gives its closed form.
        rewind: optimise values with the original weights, not with those of now.
        adjust: what is done to the values, of the z-layer, before they are written.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layers or module templates do not fit the model, or weights are not finite.
        StatisticsError: the covariance cannot be had or belongs to another model.
        SessionError: somebody else changed the edited weights since the last round.
    """
    check_round(requests)
    check_templates(session, hparams)
    with session.round(hparams.layers):
        for layer in hparams.layers:
            path_of(session.layout, layer)  # refuses a layer before anything is computed
        clock = Clock()
        solve = solver(session, hparams)
        contexts = session.untouched.contexts(hparams)
        layout, tokenizer = session.layout, session.tokenizer
        with clock("values"), session.weights.rewound() if rewind else nullcontext():
            values = compute_values(
                layout, tokenizer, requests, contexts, hparams, objective, trace=trace
            )
        lookups = Lookups.of(layout, tokenizer, requests, contexts, hparams.token_budget)
        if adjust is not None:
            values = adjust(values, session, lookups, hparams.layers[-1])
        writer = _Writer(session, requests, hparams.layers, lookups, values, solve, passes, clock)
        writer.run()
        with clock("keys"):
            keys = {layer: k.cpu() for layer, k in lookups.keys(hparams.layers).items()}
        record = RoundRecord(
            number=session.ledger.next_number(),
            method=hparams.method,
            outcomes=outcomes(requests, values, writer.progress()),
            writes=tuple(writer.writes),
            keys=keys,
            seconds=clock.seconds,
            d_ff=session.layout.d_ff,
        )
        session.commit(record)
    return record


@dataclass
class _Writer:
    """The write passes of one round and how far they have come."""

    session: EditSession
    requests: Sequence[EditRequest]
    layers: Sequence[int]
    lookups: Lookups
    values: Values
    solve: Solve
    allowed: Passes
    clock: Clock
    writes: list[Write] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = self._residual_norms()
        self.after = self.before
        self.low, self.high = self.allowed.bounds(
            self.before, self.values.base.norm(dim=1).to(self.before)
        )
        self.passes = torch.zeros(len(self.requests), dtype=torch.long)

    def run(self) -> None:
        """Passes over all layers until no request is active or the passes are used up."""
        for number in range(1, self.allowed.most + 1):
            active = ((self.after > self.low) & (self.after < self.high)).nonzero()[:, 0]
            if len(active) == 0:
                break
            for layer in self.layers:
                self._write_layer(layer, active, number)
            self.passes[active] += 1
            self.after = self._residual_norms()

    def progress(self) -> Progress:
        """The outcome of every request."""
        reached = self.after <= torch.maximum(self.low, REACHED * self.before)
        too_far = self.after >= self.high
        status: list[Status] = [
            "out_of_bounds" if out else "converged" if near else "residual_left"
            for out, near in zip(too_far.tolist(), reached.tolist())
        ]
        return Progress(self.before, self.after, self.passes, tuple(status))

    def _write_layer(self, layer: int, active: torch.Tensor, pass_number: int) -> None:
        layout = self.session.layout
        lookups = self.lookups.select(active)
        with self.clock("keys"):
            outputs_of = {"h": layout.blocks[self.layers[-1]], "down": layout.down(layer)}
            found, outputs = lookups.read([layer], outputs_of)
            keys = found[layer]  # [d_ff, n]
            layers_left = len(self.layers) - self.layers.index(layer)
            residual = self.values.z[active.to(self.values.z.device)] - outputs["h"]
            share = path_of(layout, layer).pull_back(residual / layers_left, outputs["down"])
        with self.clock("solve"):
            neurons, left, right = self.solve(layer, keys, share.T)  # share: [n, d_model]
        write = Write(
            layer=layer,
            pass_number=pass_number,
            neurons=neurons.cpu(),
            left=left.cpu(),
            right=right.cpu(),
            case_ids=tuple(self.requests[i].case_id for i in active.tolist()),
            key_mass=float(keys[neurons].abs().sum() / keys.abs().sum()),
        )
        with self.clock("write"):
            self.session.write(layer, write.change(layout.d_ff, keys.device))
        self.writes.append(write)

    def _residual_norms(self) -> torch.Tensor:
        """||z - h|| with the weights as they are now, [n]."""
        with self.clock("keys"):
            h = self.lookups.activations(self.layers[-1])
            return (self.values.z - h).norm(dim=1).cpu()
