"""The ledger: the active rounds, in main memory or in their files, and those that were undone.

The rest of a session's memory (the accumulated change, the previous keys) follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

import torch

from nse_plugin.errors import SessionError
from nse_plugin.marks import fact_mark
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import ActiveRound, RoundRecord, Undone, active_rounds


class Ledger:
    """The active rounds, in order, and the numbers of those that were undone.

    Undoing a round leaves a gap: a new round gets the number after the largest that an active or
    undone round has.  A round kept in its file is read again each time, so memory does not grow
    with the number of rounds.
    """

    def __init__(self) -> None:
        self._rounds: list[ActiveRound] = []
        # indices of rounds, by mark of a fact or key text
        self._places: dict[bytes, list[int]] = {}
        self.undone: list[Undone] = []
        """Undone rounds, in the order in which they were undone."""

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[RoundRecord]:
        return (entry.read() for entry in self._rounds)

    def __getitem__(self, index: int) -> RoundRecord:
        return self._rounds[index].read()

    def active(self) -> list[ActiveRound]:
        """The active rounds, without reading them."""
        return list(self._rounds)

    def append(self, record: ActiveRound) -> None:
        """Add the newest round."""
        marks, place = record.marks, len(self._rounds)
        self._rounds.append(record)
        for each in marks:
            self._places.setdefault(each, []).append(place)

    def replace_last(self, record: ActiveRound) -> None:
        """Replace the newest round, e.g. by the file that it was written to."""
        self._rounds[-1] = record

    def truncate(self, length: int) -> None:
        """Drop the rounds after the first ``length``; after an interrupt, call it again."""
        for each in {each for entry in self._rounds[length:] for each in entry.marks}:
            kept = [place for place in self._places.get(each, ()) if place < length]
            if kept:
                self._places[each] = kept
            else:
                self._places.pop(each, None)
        del self._rounds[length:]

    def heads(self) -> Iterator[RoundRecord]:
        """The active rounds; of those in files, without their tensors."""
        return (entry.head() for entry in self._rounds)

    def heads_with(self, marks: Iterable[bytes]) -> Iterator[RoundRecord]:
        """The same of the rounds that wrote a request with one of these marks.

        Args:
            marks: of facts or of key texts (:mod:`nse_plugin.marks`).
        """
        places = {place for each in marks for place in self._places.get(each, ())}
        return (self._rounds[place].head() for place in sorted(places))

    def wrote_last(self, request: EditRequest) -> int:
        """The number of the last round that wrote the fact of a request in the ledger."""
        return self._rounds[self._places[fact_mark(request.fact)][-1]].number

    def edits(self) -> int:
        """How many requests the rounds have, without reading them."""
        return sum(entry.edits for entry in self._rounds)

    def edits_made(self) -> int:
        """The same, plus the edits inside a consolidation that later edits superseded."""
        return sum(map(_made, self._rounds))

    def edits_since_joint_solve(self) -> int:
        """How many requests came after the last consolidation, or the last that was put back."""
        later = takewhile(lambda entry: not (entry.within or entry.put_back), self._rounds[::-1])
        return sum(entry.edits for entry in later)

    def put_back_within(self, edits: int) -> bool:
        """Whether the last joint solve was put back, with fewer requests than this after it."""
        tried = [entry for entry in self._rounds if entry.within or entry.put_back]
        return bool(tried) and tried[-1].put_back and self.edits_since_joint_solve() < edits

    def numbers(self) -> list[int]:
        """Numbers of the active rounds, in order."""
        return [record.number for record in self._rounds]

    def numbers_in_effect(self) -> list[int]:
        """The same, plus the rounds inside a consolidation, whose edits it solved again."""
        numbers = [n for entry in self._rounds for n in (*_numbers_within(entry), entry.number)]
        left_out = {n for entry in self._rounds for n in entry.left_out}
        return [n for n in numbers if n not in left_out]

    def next_number(self) -> int:
        """The number of the next round: the largest active or undone number plus one."""
        return max([*self.numbers(), *(undone.number for undone in self.undone)], default=0) + 1

    def refuse_rewritten(self, number: int) -> None:
        """Raise :class:`SessionError` if a later round wrote edits of this one again."""
        later = [entry.number for entry in self._rounds if number in entry.rewrites]
        if later:
            raise SessionError(
                f"round {number} cannot be undone alone: round {later[-1]} wrote edits of it again "
                f"(repair_every, merge_subjects, or FT's replay); undo round {later[-1]} first"
            )

    def index(self, number: int) -> int:
        """The index of the round with this number, which is to be undone.

        Raises:
            SessionError: it was undone, is inside a consolidation, or does not exist; or a later
                round wrote its edits again.
        """
        self.refuse_rewritten(number)
        active = self.numbers()
        if number in active:
            return active.index(number)
        for entry in self._rounds:
            if number in _numbers_within(entry):
                if number in entry.left_out:
                    raise SessionError(
                        f"round {number} is left out of the consolidation that is round "
                        f"{entry.number}, so its edits are not in effect"
                    )
                first = f"undo round {entry.number}"
                if any(inner.number == number and inner.within for inner in entry.within):
                    after = f"{first}, after which round {number}, a consolidation too, is active"
                else:
                    after = (
                        f"consolidate again without={[number]}, or, for a folder, "
                        f"nse consolidate FOLDER --without {number}"
                    )
                raise SessionError(
                    f"round {number} is inside the consolidation that is round {entry.number}; "
                    f"{after}"
                )
        when = next((entry.time for entry in self.undone if entry.number == number), None)
        what = f"there is no round {number}"
        if when is not None:
            what = f"round {number} was undone already, at {when}"
        raise SessionError(f"{what}; {active_rounds(active)}")

    def some_keys(self, layers: Sequence[int], limit: int) -> dict[int, torch.Tensor]:
        """By layer, at most ``limit`` of the previous keys, evenly spaced: [d_ff, n].

        Only rounds with one of them are read, each once.
        """
        chosen: dict[int, dict[int, list[int]]] = {}  # by round and layer: columns of its keys
        for layer in layers:
            counts = [entry.key_counts.get(layer, 0) for entry in self._rounds]
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


def _made(entry: ActiveRound) -> int:
    """New requests of a round and of the rounds inside it."""
    return sum(map(_made, entry.within)) + entry.new_edits


def _numbers_within(entry: ActiveRound) -> list[int]:
    """Numbers of the rounds inside a consolidation, at any depth."""
    return [n for inner in entry.within for n in (inner.number, *_numbers_within(inner))]
