"""The write passes of one round: per layer, keys, a closed-form change, and what is left of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from nse_plugin.errors import NotFiniteError
from nse_plugin.locate.keys import Found, Lookups
from nse_plugin.locate.values import Values
from nse_plugin.methods.bookkeeping import Clock, Progress
from nse_plugin.model.residual_path import path_of
from nse_plugin.requests import EditRequest
from nse_plugin.session.norms import Factors
from nse_plugin.session.records import EditStatus, Write
from nse_plugin.session.session import EditSession

Solve = Callable[[int, torch.Tensor, torch.Tensor], Factors]
"""``solve(layer, keys [d_ff, n + m], residual [d_model, n])``: the change that takes the first n
keys to what they give now plus ``residual``, as far as the method lets it; the others are
spared."""


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
MOST_LEFT_OF_FIRST = 0.5
"""A request reached its value if at most this share of its first residual is left: then nearly all
answers are the new ones, with more left fewer and fewer."""


@dataclass
class Writer:
    """The write passes of one round and how far they have come."""

    session: EditSession
    requests: Sequence[EditRequest]
    layers: Sequence[int]
    lookups: Lookups
    values: Values
    solve: Solve
    allowed: Passes
    clock: Clock
    spared: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """By layer: keys [d_ff, m] that are in every solve, with no residual."""
    weights: torch.Tensor | None = None
    """[n], of the requests' squared errors where they are written again; None is 1 for all."""
    writes: list[Write] = field(default_factory=list)

    def __post_init__(self) -> None:
        first, z_layer = self.layers[0], self.layers[-1]
        with self.clock("keys"):
            self.start = self.lookups.read([first], h_of=z_layer, keep=first)
        assert self.start.h is not None
        self.before = self.after = self._residual_norms(self.start.h)
        self.first = self.before  # of the values as they are; a repair gives others
        self.passes = torch.zeros(len(self.requests), dtype=torch.long)
        self.left_out = torch.zeros(len(self.requests), dtype=torch.bool)  # of the last pass
        self.read: dict[int, torch.Tensor] = {}  # keys of the last pass, by layer
        self.unread = self.order = torch.arange(len(self.requests))

    def run(self) -> None:
        """Passes over all layers until no request is active or the passes are used up."""
        low, high = self._bounds()
        for _ in range(self.allowed.most):
            self.left_out = self.after >= high
            active = ((self.after > low) & ~self.left_out).nonzero()[:, 0]
            if len(active) == 0:
                break
            self._write(active)

    def rewrite(self, rows: torch.Tensor, values: Values) -> torch.Tensor:
        """One more pass, with other values for some requests; the others keep what they give.

        Args:
            rows: [n], the requests.
            values: theirs.

        Returns:
            The requests written [m]; a new value that is out of bounds is not taken.
        """
        first = (values.z - self.h[rows.to(self.h.device)]).norm(dim=1).cpu()
        _, high = self.allowed.bounds(first, values.base.norm(dim=1).to(first))
        inside = (first < high).nonzero()[:, 0]
        active = rows[inside]
        if len(active):
            self.values = self.values.replaced(active, values[inside])
            self.first = self.first.index_copy(0, active, first[inside])
            self._write(active, again=True)
        return active

    def progress(self) -> Progress:
        """The outcome of every request.

        ``out_of_bounds`` is a request that was not below its upper bound when a pass began, so
        that the pass left it out, and that is not below it now either or was never written.  That
        also holds for one that the first pass wrote and the second left out.  One that the last
        pass wrote is ``residual_left``, however large its residual has become.
        """
        low, high = self._bounds()
        reached = self.after <= torch.maximum(low, MOST_LEFT_OF_FIRST * self.first)
        too_far = self.left_out & ((self.after >= high) | (self.passes == 0))
        status: list[EditStatus] = [
            "out_of_bounds" if out else "converged" if near else "residual_left"
            for out, near in zip(too_far.tolist(), reached.tolist())
        ]
        return Progress(self.before, self.after, self.passes, tuple(status))

    def keys(self) -> dict[int, torch.Tensor]:
        """Keys of all requests after the last write, by layer: float32 [d_ff, n], on the CPU.

        A key depends on layers below its own alone, so what the last pass has read still holds.
        """
        parts = [self.read] if self.read else []
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
        """A pass over all layers, each read where the one before it has left off.

        Args:
            again: the requests have their weights in the solve, and the other requests' keys are in
                it too, with no residual.
        """
        others = torch.ones(len(self.requests), dtype=torch.bool)
        others[active] = False
        rest = others.nonzero()[:, 0]
        spared = again and len(rest) > 0
        roots = self.weights[active].sqrt() if again and self.weights is not None else None
        number = max((write.pass_number for write in self.writes), default=0) + 1
        z_layer = self.layers[-1]
        # keys of the first layer stay what they are while layers from it on are written
        own = self.start.select(active)._replace(h=self.h[active.to(self.h.device)])
        other = self.start.select(rest)
        for layer in self.layers:
            if layer != self.layers[0]:
                with self.clock("keys"):
                    own = own.lookups.read([layer], h_of=z_layer, keep=layer)
                    if spared:
                        other = other.lookups.read([layer], keep=layer)
            keys = own.keys[layer]
            if spared:
                keys = torch.cat([keys, other.keys[layer]], dim=1)
            self._write_layer(layer, active, own, keys, roots, number)
            self.read[layer] = keys.cpu()
        self.order, self.unread = torch.cat([active, rest]), rest[:0] if spared else rest
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
        """Solve for one layer, and write it.

        Args:
            own: what was read of the active requests.
            keys: theirs, then those of the requests that are spared.
            roots: [n], of their weights; a column times a root has its squared error times the
                weight.
        """
        assert own.h is not None
        layout = self.session.layout
        with self.clock("solve"):
            layers_left = len(self.layers) - self.layers.index(layer)
            residual = self.values.z[active.to(self.values.z.device)] - own.h
            output = layout.recalled(layer, own.bare[layer])
            share = path_of(layout, layer).pull_back(residual / layers_left, output)
            if layer in self.spared:
                keys = torch.cat([keys, self.spared[layer].to(keys)], dim=1)
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
            right=right.contiguous().cpu(),
            case_ids=tuple(self.requests[i].case_id for i in active.tolist()),
            key_mass=float(mine[neurons].abs().sum() / mine.abs().sum()),
        )
        with self.clock("write"):
            self.session.write(write)
        self.writes.append(write)

    def _bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.values.base.norm(dim=1).to(self.first)
        return self.allowed.bounds(self.first, h)

    def _residual_norms(self, h: torch.Tensor) -> torch.Tensor:
        """||z - h|| [n], for what the z-layer gives now [n, d_model].

        Raises:
            NotFiniteError: one is not finite.
        """
        self.h = h
        norms = (self.values.z - h).norm(dim=1).cpu()
        lost = [r.case_id for r, ok in zip(self.requests, norms.isfinite().tolist()) if not ok]
        if lost:
            raise NotFiniteError(
                f"what the model computes at requests {lost} is not finite, so the round was taken "
                "back; earlier edits may have broken the model: undo them, or load it in float32"
            )
        return norms
