"""The record of one round: its requests' outcomes, its writes and its keys.

A write to a layer is kept as left [d_model, n] x right [n, |I|] on neurons I, so the record of a
round of 100 edits in an 8B model takes tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch

from nse_plugin.files import now
from nse_plugin.marks import marks_of
from nse_plugin.requests import EditRequest
from nse_plugin.session.moments import Moments
from nse_plugin.session.norms import ChangeSum, Factors

if TYPE_CHECKING:
    from nse_plugin.session.ledger_files import RoundFile

EditStatus = Literal["converged", "residual_left", "out_of_bounds"]
STATUSES: tuple[EditStatus, ...] = get_args(EditStatus)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one request."""

    case_id: int | str
    digest: str
    """Hash of the whole request, probes included: :meth:`EditRequest.digest`."""
    status: EditStatus
    """converged: little of the residual is left, or, with a method that has no residual, every
    token of the target is the model's first choice; residual_left: more is left;
    out_of_bounds: left out of the last pass because its residual was not below upper_bound, though
    an earlier pass may have written it."""
    passes: int
    """Number of write passes that the request took part in."""
    residual_before: float | None = None
    """||z - h|| before the first pass; None with a method that has no value z."""
    residual_after: float | None = None
    """||z - h|| after the last one."""
    z_norm: float | None = None
    z_shift: float | None = None
    """||z - h||, for the h from which the value was searched: that of the untouched model with NSE,
    of the current one with other methods and in repairs."""
    z_loss: float | None = None
    """The last loss of the optimisation: of the value z, or of what a method trains."""
    z_steps: int | None = None
    """Number of evaluations of the loss."""
    earlier_round: int | None = None
    """If the round wrote an earlier edit again: the round that wrote it last.  It was no longer in
    effect (repair), shares a value (merge_subjects), or was trained again (replay)."""
    repairs: int = 0
    """How often it was optimised and written again because it was not in effect."""
    answered_before_repair: bool | None = None
    """Whether greedy decoding wrote the whole target after the round's own passes; None if this was
    not tested."""
    answered: bool | None = None
    """The same at the end of the round."""
    answered_before_consolidation: bool | None = None
    """The same before a consolidation; None for a request that came with it, or without one."""
    residual_before_repair: float | None = None
    """||z - h|| after the round's own passes; ``residual_after`` belongs to the last value."""
    past_sink: bool = False
    """Whether it was written at a later token because its subject ends at an attention sink."""

    @property
    def is_new(self) -> bool:
        """Whether the request came with this round and was in no earlier one."""
        return self.earlier_round is None and self.answered_before_consolidation is None


@dataclass(frozen=True)
class Write:
    """One write to one layer."""

    layer: int
    pass_number: int
    neurons: torch.Tensor
    """[|I|] int64, columns of the down-projection that were written."""
    left: torch.Tensor | None
    """[d_model, n] float32, the residual's share; None if the change has no factors (FT)."""
    right: torch.Tensor
    """[n, |I|] float32, from the solve; without ``left`` the change itself, [d_model, |I|]."""
    case_ids: tuple[int | str, ...]
    """The requests that caused it, in the order of the n factors; empty if factors do not belong to
    single requests."""
    key_mass: float | None
    """Share of sum |k| that the neurons hold; None with a method that has no keys."""

    def change(self, d_ff: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The change of the layer as float32 [d_model, d_ff], on a device."""
        columns = self.right.to(device)
        if self.left is not None:
            columns = self.left.to(device) @ columns
        if len(self.neurons) == d_ff:
            return columns
        change = columns.new_zeros(columns.shape[0], d_ff)
        change[:, self.neurons.to(device)] = columns
        return change

    def factors(self) -> Factors:
        """The change as factors; without factors, one of them is the identity."""
        if self.left is not None:
            return Factors(self.neurons, self.left, self.right)
        d_model, n_neurons = self.right.shape
        if d_model <= n_neurons:
            return Factors(self.neurons, torch.eye(d_model), self.right)
        return Factors(self.neurons, self.right, torch.eye(n_neurons))


@dataclass(frozen=True)
class AttachedState:
    """Everything needed to attach a method's modules to a model again."""

    kind: str
    """What is attached: see :data:`nse_plugin.session.attached.KINDS`."""
    config: dict[str, Any]
    """JSON values from which its modules are built."""
    tensors: dict[str, torch.Tensor]
    """Its learned tensors, in main memory."""


@dataclass(frozen=True)
class RoundRecord:
    """One round: its requests' outcomes, its writes and its keys."""

    number: int
    method: str
    outcomes: tuple[Outcome, ...]
    writes: tuple[Write, ...] = ()
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer: [d_ff, n] float32, keys of all requests after the last write."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by part, such as values, keys, solve, write, or train."""
    state: AttachedState | None = None
    """What is attached to the model after the round; None with a method that writes weights."""
    d_ff: int | None = None
    """Neurons of an edited layer; None with a method that attaches modules."""
    requests: tuple[EditRequest, ...] = ()
    """The requests of the outcomes, without probes; empty if the method does not keep them."""
    z: torch.Tensor | None = None
    """[n, d_model] float32, the last value written for each request."""
    within: tuple[ActiveRound, ...] = ()
    """If it is a consolidation: the rounds that it takes the place of."""
    left_out: tuple[int, ...] = ()
    """Numbers of those rounds, at any depth, whose new edits it does not solve, rising."""
    put_back: bool = False
    """Whether a joint solve after it was put back, since it left fewer edits in effect."""
    moments: Mapping[int, Moments] = field(default_factory=dict)
    """By layer: moments of the round's editing features; empty with a method that has none."""

    @property
    def edits(self) -> int:
        """Number of requests, without earlier edits that the round wrote again."""
        return sum(outcome.earlier_round is None for outcome in self.outcomes)

    @property
    def new_edits(self) -> int:
        """The same, without edits of the rounds inside a consolidation."""
        return sum(outcome.is_new for outcome in self.outcomes)

    @property
    def rewrites(self) -> tuple[int, ...]:
        """Earlier rounds whose edits it wrote again, rising."""
        found = {o.earlier_round for o in self.outcomes if o.earlier_round is not None}
        return tuple(sorted(found))

    @property
    def marks(self) -> tuple[bytes, ...]:
        """Marks by which its requests are found: :func:`nse_plugin.marks.marks_of`."""
        return marks_of(self.requests)

    @property
    def key_counts(self) -> dict[int, int]:
        """Number of keys by edited layer."""
        return {layer: keys.shape[1] for layer, keys in self.keys.items()}

    def head(self) -> RoundRecord:
        """The round; from a file, this reads no tensors."""
        return self

    def read(self) -> RoundRecord:
        """The round itself, as :meth:`RoundFile.read` returns it."""
        return self

    def writes_to(self, layer: int) -> list[Write]:
        """The writes to one layer."""
        return [write for write in self.writes if write.layer == layer]

    def layers(self) -> list[int]:
        """Layers written, rising."""
        return sorted({write.layer for write in self.writes})

    def neurons(self, layer: int) -> torch.Tensor:
        """Neurons of a layer that the round wrote, rising."""
        written = [write.neurons for write in self.writes_to(layer)]
        return torch.cat(written).unique() if written else torch.empty(0, dtype=torch.long)

    def norms(self) -> dict[int, float]:
        """By layer: Frobenius norm of the round's change."""
        return {layer: self._norm(layer) for layer in sorted(self.key_counts)}

    def add_changes(
        self,
        totals: dict[int, torch.Tensor],
        devices: Mapping[int, torch.device | str],
        d_ff: int,
    ) -> None:
        """Add the round's changes [d_model, d_ff] to sums by layer, in the order written.

        Args:
            devices: the layers to add, and the device of each sum.
        """
        for write in self.writes:
            if write.layer in devices:
                change = write.change(d_ff, devices[write.layer])
                total = totals.get(write.layer)
                totals[write.layer] = change if total is None else total + change

    def column_norms(self, layer: int) -> torch.Tensor:
        """[d_ff] float64, norm of the change of each neuron of a layer."""
        norms = torch.zeros(self.d_ff or 0, dtype=torch.float64)
        if (whole := self._whole(layer)) is not None:
            norms[whole.neurons] = whole.right.double().norm(dim=0)
            return norms
        return self._sum(layer).column_norms()

    def _norm(self, layer: int) -> float:
        whole = self._whole(layer)
        return self._sum(layer).norm() if whole is None else float(whole.right.double().norm())

    def _whole(self, layer: int) -> Write | None:
        """The only write to a layer if it is the change itself, and not factors of it."""
        written = self.writes_to(layer)
        return written[0] if len(written) == 1 and written[0].left is None else None

    def _sum(self, layer: int) -> ChangeSum:
        total = ChangeSum(self.d_ff or 0)
        total.add([(write.neurons, write.left, write.right) for write in self.writes_to(layer)])
        return total

    def summary(self) -> dict[str, Any]:
        """The round as plain values, without tensors."""
        return {
            "number": self.number,
            "method": self.method,
            "edits": self.edits,
            "status": {each: sum(o.status == each for o in self.outcomes) for each in STATUSES},
            "layers": {
                str(layer): {"neurons": len(self.neurons(layer)), "norm": norm}
                for layer, norm in self.norms().items()
            },
            "repaired": sum(o.repairs > 0 for o in self.outcomes),
            "written_again": len(self.outcomes) - self.edits,
            "past_sinks": sum(o.past_sink and o.is_new for o in self.outcomes),
            "consolidated": self.consolidated(),
            "left_out": list(self.left_out),
            "put_back": self.put_back,
            "seconds": self.seconds,
        }

    def consolidated(self) -> dict[str, int] | None:
        """Of a consolidation: how many edits it has and are in effect after it, and how many of
        these are earlier ones and were in effect before; None of another round."""
        if not self.within:
            return None
        earlier = [o.answered_before_consolidation for o in self.outcomes if not o.is_new]
        return {
            "edits": len(self.outcomes),
            "in_effect": sum(bool(o.answered) for o in self.outcomes),
            "earlier": len(earlier),
            "earlier_before": sum(map(bool, earlier)),
        }


@dataclass(frozen=True)
class Written:
    """The report of a round that was just written by any method."""

    summary: dict[str, Any]
    """For the log; times are under ``seconds``."""
    changed: bool
    """Whether the model was changed."""
    left_out: Sequence[Outcome] = ()
    """Requests that the last pass left out because their residual was out of bounds."""
    change: float | None = None
    """Largest ||sum of all changes|| / ||original|| over the edited layers; None if unknown."""
    bound: str = ""
    """The bound, as ``upper_bound 4.0``."""

    def why_left_out(self) -> str:
        """Which requests were left out, why, and what helps."""
        out, n_requests = self.left_out, sum(self.summary["status"].values())
        named = ", ".join(str(each.case_id) for each in out[:10]) + (", ..." if out[10:] else "")
        # for a request that was never written, the residual when it was left out
        compared = [each.residual_after if each.passes else each.residual_before for each in out]
        lowest = min(residual for residual in compared if residual is not None)
        return (
            f"{len(out)} of {n_requests} requests are out of bounds and were left out (cases "
            f"{named}): their residuals of {lowest:.3g} and more are not below {self.bound}; raise "
            "it, or lower v_lr or clamp_norm_factor"
        )


ActiveRound: TypeAlias = "RoundRecord | RoundFile"
"""A round that is not undone, in memory or in its file; ``read()`` returns its record."""


@dataclass(frozen=True)
class Undone:
    """A round that was undone."""

    number: int
    time: str
    """When, as ISO 8601 in UTC."""
    reason: str = ""

    @classmethod
    def now(cls, number: int, reason: str = "") -> Undone:
        """An undo at this moment."""
        return cls(number, now(), reason)


def active_rounds(numbers: Sequence[int]) -> str:
    """The numbers of the active rounds, for messages."""
    return f"active rounds: {', '.join(map(str, numbers))}" if numbers else "no round is active"


def rounds_named(numbers: Sequence[int]) -> str:
    """``round 1`` or ``rounds 1, 2``, for messages."""
    named = ", ".join(map(str, sorted(numbers)))
    return f"round {named}" if len(numbers) == 1 else f"rounds {named}"


def were_undone(numbers: Sequence[int]) -> str:
    """``rounds 1, 2 were undone``, for messages."""
    return f"{rounds_named(numbers)} {'was' if len(numbers) == 1 else 'were'} undone"


def later_trained(last: int) -> str:
    """Why an earlier round cannot be undone alone if all rounds train the same attachment."""
    return (
        f"what is attached to the model was trained on by later rounds, up to {last}; undo these "
        "first, the last one before the others"
    )
