"""The ledger in memory: one record per round, with factors instead of matrices.

A write to a layer is kept as left [d_model, n] x right [n, |I|] on neurons I, so the ledger of a
round of 100 edits on an 8B model is tens of megabytes.  A round lies in main memory, or in its file
and is read when it is looked at.  Everything else that a session remembers (the accumulated change,
the previous keys) can be built from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from nse_plugin.errors import SessionError

if TYPE_CHECKING:
    from pandas import DataFrame

Status = Literal["converged", "residual_left", "out_of_bounds"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    case_id: int | str
    digest: str
    """Hash of prompt, subject and target."""
    status: Status
    """converged: residual <= alpha, or, with a method that has no residual, every token of the
    target is the model's first choice; out_of_bounds: residual >= upper_bound; else
    residual_left."""
    passes: int
    """Write passes that the request took part in."""
    residual_before: float | None = None
    """||z - h|| before the first pass; None with a method that has no value z."""
    residual_after: float | None = None
    """||z - h|| after the last one."""
    z_norm: float | None = None
    z_shift: float | None = None
    """||z - h_original||: how far the value lies from the untouched model's."""
    z_loss: float | None = None
    """The loss when the optimisation stopped: of the value z, or of what a method trains."""
    z_steps: int | None = None
    """Evaluations of it."""


@dataclass(frozen=True)
class Write:
    """One write to one layer."""

    layer: int
    pass_number: int
    neurons: torch.Tensor
    """[|I|] int64, columns of the down-projection that were written."""
    left: torch.Tensor
    """[d_model, n] float32, the residual's share."""
    right: torch.Tensor
    """[n, |I|] float32, from the solve."""
    case_ids: tuple[int | str, ...]
    """The requests that caused it, in the order of the n factors; empty where the factors are
    those of the round as a whole."""
    key_mass: float | None
    """Share of sum |k| that the neurons hold; None with a method that has no keys."""

    def change(self, d_ff: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """The change of the layer as float32 [d_model, d_ff], computed on a device."""
        columns = self.left.to(device) @ self.right.to(device)
        if len(self.neurons) == d_ff:
            return columns
        change = columns.new_zeros(columns.shape[0], d_ff)
        change[:, self.neurons.to(device)] = columns
        return change

    def column_norms(self) -> torch.Tensor:
        """[|I|], norm of the change of each neuron written."""
        return (self.left @ self.right).norm(dim=0)


@dataclass(frozen=True)
class AttachedState:
    """All of what a method attached to the model, from which it can be attached anew."""

    kind: str
    """What is attached: see :data:`nse_plugin.session.attached.KINDS`."""
    config: dict[str, Any]
    """JSON values from which its modules are built."""
    tensors: dict[str, torch.Tensor]
    """What it has learned, in main memory."""


@dataclass(frozen=True)
class RoundRecord:
    """One round: its requests' fates, its writes and its keys."""

    number: int
    method: str
    outcomes: tuple[Outcome, ...]
    writes: tuple[Write, ...]
    keys: dict[int, torch.Tensor]
    """By layer: [d_ff, n] float32, keys of all requests after the last write."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by part: values, keys, solve, write; or train."""
    state: AttachedState | None = None
    """What is attached to the model after the round; None with a method that writes weights."""

    @property
    def key_counts(self) -> dict[int, int]:
        """By layer, how many keys the round has."""
        return {layer: keys.shape[1] for layer, keys in self.keys.items()}

    def read(self) -> RoundRecord:
        """The round itself, as any :class:`StandingRound` gives it."""
        return self

    def layers(self) -> list[int]:
        """Layers written, rising."""
        return sorted({write.layer for write in self.writes})

    def neurons(self, layer: int) -> torch.Tensor:
        """Neurons of a layer that any pass wrote, rising."""
        written = [write.neurons for write in self.writes if write.layer == layer]
        return torch.cat(written).unique() if written else torch.empty(0, dtype=torch.long)

    def norms(self) -> dict[int, float]:
        """By layer: Frobenius norm of what the round changed."""
        norms = {}
        for layer, keys in self.keys.items():
            changes = [w.change(keys.shape[0]) for w in self.writes if w.layer == layer]
            norms[layer] = float(
                sum(changes, torch.zeros(())).norm()
            )  # none where all had converged
        return norms

    def summary(self) -> dict[str, Any]:
        """The round as plain values, without tensors."""
        return {
            "number": self.number,
            "method": self.method,
            "edits": len(self.outcomes),
            "status": {
                status: sum(o.status == status for o in self.outcomes)
                for status in ("converged", "residual_left", "out_of_bounds")
            },
            "layers": {
                str(layer): {"neurons": len(self.neurons(layer)), "norm": norm}
                for layer, norm in self.norms().items()
            },
            "seconds": self.seconds,
        }


class StandingRound(Protocol):
    """A round of a ledger, wherever it is kept: a :class:`RoundRecord`, or its file."""

    @property
    def number(self) -> int:
        """Number of the round."""

    @property
    def key_counts(self) -> dict[int, int]:
        """By layer, how many keys the round has."""

    def read(self) -> RoundRecord:
        """The round with its tensors."""


@dataclass(frozen=True)
class Undone:
    """A round that was taken back."""

    number: int
    time: str
    """When, as ISO 8601 in UTC."""
    reason: str = ""

    @classmethod
    def now(cls, number: int, reason: str = "") -> Undone:
        """Taken back at this moment."""
        return cls(number, datetime.now(timezone.utc).isoformat(timespec="seconds"), reason)


class Ledger:
    """The rounds that stand, in order, and the numbers of those that were undone.

    A number belongs to one round for good: undoing leaves a gap, and a new round gets the next
    number after all that were ever given.  A round that is kept in its file is read anew each time,
    so memory does not grow with them.  The tables need ``pip install "nse-plugin[report]"``.
    """

    def __init__(self) -> None:
        self._rounds: list[StandingRound] = []
        self.undone: list[Undone] = []
        """Rounds taken back, in the order in which that was done."""

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[RoundRecord]:
        return (standing.read() for standing in self._rounds)

    def __getitem__(self, index: int) -> RoundRecord:
        return self._rounds[index].read()

    def standing(self) -> list[StandingRound]:
        """The rounds, not read."""
        return list(self._rounds)

    def append(self, record: StandingRound) -> None:
        """Add the newest round."""
        self._rounds.append(record)

    def replace_last(self, record: StandingRound) -> None:
        """Keep the newest round in another way: in the file that it was written to."""
        self._rounds[-1] = record

    def truncate(self, length: int) -> None:
        """Drop the rounds after the first ``length``."""
        del self._rounds[length:]

    def numbers(self) -> list[int]:
        """Numbers of the rounds that stand, in order."""
        return [record.number for record in self._rounds]

    def next_number(self) -> int:
        """The number of the next round: one more than any that stands or was undone."""
        return max([*self.numbers(), *(undone.number for undone in self.undone)], default=0) + 1

    def index(self, number: int) -> int:
        """Where the round of this number lies.

        Raises:
            SessionError: it was undone, or there is none.
        """
        if number in self.numbers():
            return self.numbers().index(number)
        raise SessionError(not_standing(number, self.numbers(), self.undone))

    def keys(self, layer: int) -> torch.Tensor | None:
        """Previous keys of a layer, [d_ff, N] over all rounds, or None where there is none."""
        found = [record.keys[layer] for record in self if layer in record.keys]
        return torch.cat(found, dim=1) if found else None

    def some_keys(self, layers: Sequence[int], limit: int) -> dict[int, torch.Tensor]:
        """By layer, at most so many of the previous keys, at even distances: [d_ff, n].

        Only rounds that hold one of them are read, each once.
        """
        chosen: dict[int, dict[int, list[int]]] = {}  # by round and layer: columns of its keys
        for layer in layers:
            counts = [standing.key_counts.get(layer, 0) for standing in self._rounds]
            columns = [(index, j) for index, count in enumerate(counts) for j in range(count)]
            if len(columns) > limit:
                ends = torch.linspace(0, len(columns) - 1, limit, dtype=torch.float64)
                columns = [columns[i] for i in ends.round().long().tolist()]
            for index, column in columns:
                chosen.setdefault(index, {}).setdefault(layer, []).append(column)
        parts: dict[int, list[torch.Tensor]] = {}
        for index in sorted(chosen):
            record = self[index]
            for layer, picked in chosen[index].items():
                parts.setdefault(layer, []).append(record.keys[layer][:, picked])
        return {layer: torch.cat(parts[layer], dim=1) for layer in layers if layer in parts}

    def change(
        self, layer: int, d_ff: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor | None:
        """Sum of all changes of a layer, float32 [d_model, d_ff], added in the order written.

        The order and the device decide the last bits: given those of the writes, the sum has the
        bits that the session accumulated.
        """
        total: torch.Tensor | None = None
        for record in self:
            for write in record.writes:
                if write.layer == layer:
                    change = write.change(d_ff, device)
                    total = change if total is None else total + change
        return total

    def neurons(self, layer: int) -> DataFrame:
        """See :func:`nse_plugin.session.queries.neurons`."""
        from nse_plugin.session import queries

        return queries.neurons(self, layer)

    def rounds(self) -> DataFrame:
        """See :func:`nse_plugin.session.queries.rounds`."""
        from nse_plugin.session import queries

        return queries.rounds(self)

    def requests(self) -> DataFrame:
        """See :func:`nse_plugin.session.queries.requests`."""
        from nse_plugin.session import queries

        return queries.requests(self)

    def overlap(self, layer: int | None = None) -> DataFrame:
        """See :func:`nse_plugin.session.queries.overlap`."""
        from nse_plugin.session import queries

        return queries.overlap(self, layer)

    def capacity(self) -> DataFrame:
        """See :func:`nse_plugin.session.queries.capacity`."""
        from nse_plugin.session import queries

        return queries.capacity(self)

    def who_wrote(self, layer: int, neuron: int) -> DataFrame:
        """See :func:`nse_plugin.session.queries.who_wrote`."""
        from nse_plugin.session import queries

        return queries.who_wrote(self, layer, neuron)


def not_standing(number: int, standing: Sequence[int], undone: Sequence[Undone]) -> str:
    """Why a round cannot be undone, and which can."""
    stands = f"rounds that stand: {', '.join(map(str, standing))}" if standing else "none stands"
    when = next((entry.time for entry in undone if entry.number == number), None)
    if when is None:
        return f"there is no round {number}; {stands}"
    return f"round {number} was undone already, at {when}; {stands}"


def later_trained(last: int) -> str:
    """Why a round in the middle cannot be taken back where rounds train one attachment."""
    return (
        f"what is attached to the model was trained on by later rounds, up to {last}; undo these "
        "first, the last one before the others"
    )
