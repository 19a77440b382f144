"""The write passes of one round: layer by layer, keys, residual, and a closed-form change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nse_plugin.errors import NotFiniteError
from nse_plugin.locate.keys import Found
from nse_plugin.locate.values import Values
from nse_plugin.methods.bookkeeping import Clock, Progress
from nse_plugin.model.residual_path import path_of
from nse_plugin.requests import EditRequest
from nse_plugin.session.norms import Factors
from nse_plugin.session.records import EditStatus, Write
from nse_plugin.session.session import EditSession

Solve = Callable[[int, torch.Tensor, torch.Tensor], Factors]
"""``solve(layer, keys [d_ff, n + m], residual [d_model, n])``: the change that adds the residual to
the output of the first n keys, as far as the method allows; the output of the others is
preserved."""


@dataclass(frozen=True)
class Passes:
    """How many passes a round has, and which requests take part in each."""

    most: int = 1
    """Maximum number of passes over all layers."""
    alpha: float = 0.0
    """A residual ||z - h|| of at most this needs no further pass."""
    upper_bound: float | None = None
    """A request whose residual is at least this is left out of a pass."""
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
MOST_LEFT_OF_FIRST = 0.5
"""A request has converged if at most this share of its first residual is left.  Then nearly all
edits are in effect; the more is left, the fewer are."""
MOST_LEFT_OF_H = 0.01
"""It also has if the residual is at most this share of ||h||, as that of a fact that the model
knew: half of nothing is not reached."""


@dataclass
class Writer:
    """Writes a round in passes, and keeps track of its residuals."""

    session: EditSession
    requests: Sequence[EditRequest]
    layers: Sequence[int]
    start: Found
    """Read before the first write: keys of the first layer, and h of the z-layer."""
    values: Values
    solve: Solve
    allowed: Passes
    clock: Clock
    preserved: Mapping[int, torch.Tensor]
    """By layer: keys [d_ff, m] that are in every solve, without a residual."""
    weights: torch.Tensor
    """[n], weights of the requests' squared errors in :meth:`rewrite`."""
    writes: list[Write] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.start.h is not None
        self.before = self.after = self._residual_norms(self.start.h)
        self.first = self.before  # the first residuals of the current values; see rewrite()
        self.passes = torch.zeros(len(self.requests), dtype=torch.long)
        self.left_out = torch.zeros(len(self.requests), dtype=torch.bool)  # by the last pass
        self.last_keys: dict[int, torch.Tensor] = {}  # of the last pass, by layer
        self.order = torch.arange(len(self.requests))  # requests in the order of the columns read
        self.unread = self.order  # those not read by the last pass, at the end of that order

    def run(self) -> None:
        """Make passes over all layers until no request is active or the passes are used up."""
        low, high = self._bounds()
        for _ in range(self.allowed.most):
            self.left_out = self.after >= high
            active = ((self.after > low) & ~self.left_out).nonzero()[:, 0]
            if len(active) == 0:
                break
            self._write(active)

    def rewrite(self, chosen: torch.Tensor, values: Values) -> torch.Tensor:
        """Make another pass for some requests with new values; the others' outputs are preserved.

        Args:
            chosen: [n], indices of the requests.
            values: their new values; one that is out of bounds is not used.

        Returns:
            The indices of those that were written [m].
        """
        first = (values.z - self.h[chosen.to(self.h.device)]).norm(dim=1).cpu()
        _, high = self.allowed.bounds(first, values.base.norm(dim=1).to(first))
        inside = (first < high).nonzero()[:, 0]
        active = chosen[inside]
        if len(active):
            self.values = self.values.replaced(active, values[inside])
            self.first = self.first.index_copy(0, active, first[inside])
            self._write(active, again=True)
        return active

    def progress(self) -> Progress:
        """The outcome of every request.

        ``out_of_bounds`` is a request that the last pass left out because its residual was not
        below the upper bound, and that is still not below it or was never written; an earlier pass
        may have written it.  A request that the last pass wrote is ``residual_left``, however large
        its residual has become, and so is one that alpha kept out of every pass.
        """
        low, high = self._bounds()
        near = torch.maximum(MOST_LEFT_OF_FIRST * self.first, MOST_LEFT_OF_H * self._h_norms())
        reached = self.after <= torch.where(self.passes > 0, torch.maximum(low, near), near)
        too_far = self.left_out & ((self.after >= high) | (self.passes == 0))
        status: list[EditStatus] = [
            "out_of_bounds" if out else "converged" if yes else "residual_left"
            for out, yes in zip(too_far.tolist(), reached.tolist())
        ]
        return Progress(self.before, self.after, self.passes, tuple(status))

    def keys(self) -> dict[int, torch.Tensor]:
        """Keys of all requests after the last write, by layer: float32 [d_ff, n], on the CPU.

        A key depends only on layers below its own, so the keys that the last pass read still hold.
        """
        parts = [self.last_keys] if self.last_keys else []
        if len(self.unread):
            with self.clock("keys"):
                rest = self.start.lookups.select(self.unread).keys(self.layers)
            parts.append({layer: keys.cpu() for layer, keys in rest.items()})
        back = self.order.argsort()
        return {
            layer: torch.cat([part[layer] for part in parts], dim=1)[:, back]
            for layer in self.layers
        }

    def _write(self, active: torch.Tensor, again: bool = False) -> None:
        """Make a pass over all layers; what is read for one continues where the last reading ended.

        Args:
            again: the requests have their weights in the solve, and the keys of the other requests
                are preserved.
        """
        others = torch.ones(len(self.requests), dtype=torch.bool)
        others[active] = False
        rest = others.nonzero()[:, 0]
        preserving = again and len(rest) > 0
        roots = self.weights[active].sqrt() if again else None
        number = max((write.pass_number for write in self.writes), default=0) + 1
        z_layer = self.layers[-1]
        # keys of the first layer do not change: no layer below it is written
        own = self.start.select(active)._replace(h=self.h[active.to(self.h.device)])
        other = self.start.select(rest)
        for layer in self.layers:
            if layer != self.layers[0]:
                with self.clock("keys"):
                    own = own.lookups.read([layer], h_of=z_layer, keep=layer)
                    if preserving:
                        other = other.lookups.read([layer], keep=layer, last=z_layer)
            keys = own.keys[layer]
            if preserving:
                keys = torch.cat([keys, other.keys[layer]], dim=1)
            self._write_layer(layer, active, own, keys, roots, number)
            self.last_keys[layer] = keys.cpu()
        self.order, self.unread = torch.cat([active, rest]), rest[:0] if preserving else rest
        self.passes[active] += 1
        self.left_out[active] = False
        with self.clock("keys"):
            h = [found.lookups.activations(z_layer) for found in (own, other) if len(found.lookups)]
        self.after = self._residual_norms(torch.cat(h)[self.order.argsort().to(h[0].device)])

    def _write_layer(
        self,
        layer: int,
        active: torch.Tensor,
        own: Found,
        keys: torch.Tensor,
        roots: torch.Tensor | None,
        pass_number: int,
    ) -> None:
        """Solve for one layer and write the change.

        Args:
            own: what was read of the active requests.
            keys: their keys, then those of the requests to preserve.
            roots: [n], square roots of their weights: scaling a column by the root multiplies its
                squared error by the weight.
        """
        assert own.h is not None
        layout = self.session.layout
        with self.clock("solve"):
            layers_left = len(self.layers) - self.layers.index(layer)
            residual = self.values.z[active.to(self.values.z.device)] - own.h
            output = layout.recalled(layer, own.bare[layer])
            share = path_of(layout, layer).pull_back(residual / layers_left, output)
            if layer in self.preserved:
                keys = torch.cat([keys, self.preserved[layer].to(keys)], dim=1)
            if roots is not None:
                weighted = keys[:, : len(roots)] * roots.to(keys)
                keys = torch.cat([weighted, keys[:, len(roots) :]], dim=1)
                share = share * roots.to(share)[:, None]
            neurons, left, right = self.solve(layer, keys, share.T)  # share: [n, d_model]
        mine = own.keys[layer]
        write = Write(
            layer=layer,
            pass_number=pass_number,
            neurons=neurons.cpu(),
            left=left.contiguous().cpu(),
            right=right.contiguous().to("cpu", copy=True),  # not with the rows of preserved keys
            case_ids=tuple(self.requests[i].case_id for i in active.tolist()),
            key_mass=float(mine[neurons].abs().sum() / mine.abs().sum()),
        )
        with self.clock("write"):
            self.session.write(write)
        self.writes.append(write)

    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.allowed.bounds(self.first, self._h_norms())

    def _h_norms(self) -> torch.Tensor:
        return self.values.base.norm(dim=1).to(self.first)

    def _residual_norms(self, h: torch.Tensor) -> torch.Tensor:
        """||z - h|| [n], for the current h [n, d_model], which is kept as :attr:`h`.

        Raises:
            NotFiniteError: a norm is not finite.
        """
        self.h = h
        norms = (self.values.z - h).norm(dim=1).cpu()
        lost = [r.case_id for r, ok in zip(self.requests, norms.isfinite().tolist()) if not ok]
        if lost:
            raise NotFiniteError(
                f"the activations of requests {lost} are not finite, so the round was undone; "
                "earlier edits may have broken the model: undo them, or load it in float32"
            )
        return norms
