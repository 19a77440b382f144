"""The edit session: the memory of one model that is edited again and again.

It owns the original weights, the accumulated change, what is attached to the model, the quantities
of the untouched model, and the ledger, from which the previous keys follow.  It lives as long as
the model, and ``EditSession.of(model)`` finds it again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from nse_plugin.errors import SessionError
from nse_plugin.model.hooks import own_modes
from nse_plugin.model.probe import layout_of
from nse_plugin.model.prompts import check_vocabulary
from nse_plugin.model.watch import Watch
from nse_plugin.model.weights import EditedWeights
from nse_plugin.printable import counted
from nse_plugin.session.attached import Attached
from nse_plugin.session.blame import blame
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.link import link, linked, refuse_other_sizes, refuse_other_tokenizer, unlink
from nse_plugin.session.previous_keys import PreviousKeys
from nse_plugin.session.records import ActiveRound, RoundRecord, Undone, Write, later_trained
from nse_plugin.session.states import Earlier, State, earlier, foreign, same_start
from nse_plugin.session.untouched import Untouched

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_PUT_BACK = "weights were put back"


class EditSession:
    """The memory of one model under editing.

    Args:
        model: a causal language model of transformers.
        tokenizer: its fast tokenizer, which is not changed.

    Raises:
        ModelError: the model's family is unknown and could not be probed, or the tokenizer has
            tokens without an embedding.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        self.layout = layout_of(model)
        check_vocabulary(self.layout, tokenizer)
        self.tokenizer = tokenizer
        self.weights = EditedWeights()
        self.attached = Attached(self.layout)
        self.ledger = Ledger()
        self.previous_keys = PreviousKeys(self.ledger)
        self.untouched = Untouched(self.layout, tokenizer, self.weights, self.rewound)
        self._layers: dict[str, int] = {}  # layer of each tracked parameter
        self._elsewhere: Watch | None = None  # watches the other parameters from the first round on
        self._states: list[State] = []  # the state after each round

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Any = None) -> EditSession:
        """The session of this model; a new one if there is none yet.

        Raises:
            SessionError: the model has no session and no tokenizer was given to start one; or it
                has one, with a tokenizer that encodes prompts differently from the one given.
        """
        session = linked(model)
        if session is not None:
            if tokenizer is not None:
                refuse_other_tokenizer(session, tokenizer)
            return session
        if tokenizer is None:
            raise SessionError(
                "this model has no edit session yet; give its tokenizer to start one: "
                "EditSession.of(model, tokenizer)"
            )
        session = cls(model, tokenizer)
        link(model, session)
        return session

    @staticmethod
    def forget(model: PreTrainedModel) -> None:
        """Drop the session of this model; its current weights count as original."""
        unlink(model)

    @property
    def model(self) -> PreTrainedModel:
        """The model under editing."""
        return self.layout.model

    @contextmanager
    def round(self, layers: list[int], attaches: str | None = None) -> Iterator[None]:
        """One round of editing these layers, or an attachment: all of it or nothing.

        The model is checked first (:meth:`check`).  If an exception leaves the block, the model is
        as before.

        Args:
            attaches: the kind of attachment that the round trains; None if it writes weights.  The
                two kinds of round cannot be mixed in a session.

        Raises:
            SessionError: the model was changed outside the session, or has rounds of another kind.
        """
        with own_modes():
            self.check()
            self._track(layers, attaches)
            with self._as_before_on_error():
                yield

    @contextmanager
    def anew(self) -> Iterator[list[ActiveRound]]:
        """Replace all active rounds by one; yields them, and inside none is active.

        The record that is committed inside must keep them as :attr:`RoundRecord.within`, so that
        undoing it makes them active again.  If an exception leaves the block, all is as before.
        """
        self.check()
        with self._as_before_on_error() as entries:
            states = self._states[:]
            self._go_back_to(0)
            yield entries
            self._states = [
                state._replace(within=tuple(states[: len(entry.within)]))
                for entry, state in zip(self.ledger.active(), self._states)
            ]

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Inside, the model is the untouched one; it is restored afterwards, even on error."""
        with self.weights.rewound(), self.attached.off():
            yield

    def write(self, write: Write) -> None:
        """Add a change to the down-projection of its layer."""
        layout, layer = self.layout, write.layer
        change = write.change(layout.d_ff, layout.down(layer).weight.device)
        self.weights.add(layout.down_name(layer), layout.to_weight(change))

    def commit(self, record: ActiveRound, within: tuple[State, ...] = ()) -> None:
        """Enter a finished round into the ledger; ``within`` is that of its :class:`State`."""
        self.ledger.append(record)
        self._states.append(State(self._fingerprint(), within))

    @own_modes()
    def adopt(self, ledger: Ledger) -> None:
        """Take over the rounds and undone rounds of a ledger, as read from a run directory.

        Changes are added in the order in which they were written, so on the same device the weights
        get the same bits.

        Raises:
            SessionError: this session has rounds of its own.
            ModelError: the layers or their sizes do not fit the model, which is then as before.
        """
        if len(self.ledger):
            raise SessionError(
                f"this session has {len(self.ledger)} rounds already; undo_all() them first, or "
                "adopt the ledger with a freshly loaded model"
            )
        self.check()
        with self._as_before_on_error():
            for entry in ledger.active():
                record = entry.read()
                refuse_other_sizes(self, record)
                kind = None if record.state is None else record.state.kind
                self._track(sorted(record.key_counts), kind)
                self._replay(entry, record)
        self.ledger.undone = list(ledger.undone)

    def undo(self, number: int, reason: str = "") -> None:
        """Undo the round with this number (:attr:`RoundRecord.number`), which need not be the last.

        The weights become original + the changes of the other rounds, added in order: the same bits
        as in a new session that adopts those rounds.  Its keys leave the previous keys, and the
        ledger notes the undo.  Undoing a consolidation makes the rounds inside it active again.
        After an error, all is as before.

        Raises:
            SessionError: the round was undone already, is inside a consolidation, or does not
                exist; it trained an attachment and is not the last one; or the model was changed
                outside the session.
        """
        self._undo([number], reason)

    def put_back(self, number: int) -> None:
        """Undo a round for a host that undoes its edits; without rounds, numbers start over."""
        self.undo(number, _PUT_BACK)
        self._start_over_if_empty()

    def drop_last(self) -> None:
        """Undo the last round without a note in the ledger."""
        self.undo_last()
        self.ledger.undone.pop()

    def undo_last(self, rounds: int = 1) -> None:
        """Undo the last rounds, all of them or after an error none.

        Raises:
            SessionError: fewer rounds are active.
        """
        if not 0 <= rounds <= len(self.ledger):
            there = counted(len(self.ledger), "active round")
            raise SessionError(f"rounds is {rounds}, and the ledger has {there}; undo no more")
        if rounds:
            self._undo(self.ledger.numbers()[-rounds:])

    @own_modes()
    def undo_all(self) -> None:
        """Restore the original weights, bit for bit, and start over with round 1."""
        self.check()
        self._go_back_to(0)
        self._start_over_if_empty()

    @own_modes()
    def check(self) -> None:
        """Check that the model still has the weights that this session wrote.

        If a host has restored the weights of an earlier round (EasyEdit does so after an edit that
        is not sequential), later rounds are dropped, consolidations included.

        Raises:
            SessionError: the edited weights are those of no round of this session, or other weights
                were changed.
        """
        changed = self._elsewhere.changed(self.model) if self._elsewhere else []
        changed += self.weights.replaced(self.model)
        if changed:
            raise foreign(changed, "the first round")
        now, active = self._fingerprint(), self.ledger.active()
        for rounds, states in earlier(active, self._states):
            if now == self._fingerprint_after(states):
                if [entry.number for entry in rounds] != self.ledger.numbers():
                    self._take_back_to((rounds, states))
                return
        expected = self._fingerprint_after(self._states)
        changed = [name for name in now if now[name] != expected.get(name)]
        numbers = self.ledger.numbers()
        raise foreign(changed, f"round {numbers[-1]}" if numbers else "the first round")

    def blame(self, prompt: str, tokenizer: Any = None) -> DataFrame:
        """Which rounds change the answer to a prompt most: see :mod:`nse_plugin.session.blame`."""
        return blame(self, prompt, tokenizer)

    @own_modes()
    def _undo(self, numbers: list[int], reason: str = "") -> None:
        """Undo rounds that follow each other; each other round is read once."""
        self.check()
        end = self.ledger.index(numbers[-1]) + 1
        start = end - len(numbers)
        if self.attached.kind is not None and end < len(self.ledger):
            last = self.ledger.numbers()[-1]
            raise SessionError(f"round {numbers[0]} cannot be undone alone: {later_trained(last)}")
        with self._as_before_on_error() as entries:
            self._go_back_to(start)
            for entry in (*entries[start].within, *entries[end:]):
                self._replay(entry, entry.read())
            self.ledger.undone += [Undone.now(number, reason) for number in reversed(numbers)]

    def _fingerprint(self) -> dict[str, int]:
        return {**self.weights.fingerprint(), **self.attached.fingerprint()}

    def _track(self, layers: list[int], attaches: str | None) -> None:
        """Prepare for writes to these layers, or for an attachment."""
        self.attached.refuse_mixture(attaches, len(self.ledger))
        self.layout.check_layers(layers)
        for layer in layers:
            name = self.layout.down_name(layer)
            self.weights.track(name, self.layout.down(layer).weight)
            self._layers[name] = layer
        self._elsewhere = self._elsewhere or Watch(self.model)
        self._elsewhere.leave_out(self.weights.names())

    def _fingerprint_after(self, states: Sequence[State]) -> dict[str, int]:
        """The fingerprint of the last state; matrices not edited by then have their original."""
        return self.weights.original_fingerprint() | (states[-1].fingerprint if states else {})

    def _take_back_to(self, kept: Earlier) -> None:
        """Drop all rounds but these, whose weights a host has restored."""
        before = set(self.ledger.numbers_in_effect())
        with self._as_before_on_error() as entries:
            same = same_start(kept[0], entries)
            self._go_back_to(same)
            for entry, state in list(zip(*kept))[same:]:  # they were inside a consolidation
                self._replay(entry, entry.read(), state.within)
            dropped = sorted(before - set(self.ledger.numbers_in_effect()), reverse=True)
            log.info("weights were put back; rounds %s dropped", dropped)
            self.ledger.undone += [Undone.now(number, _PUT_BACK) for number in dropped]
        self._start_over_if_empty()

    @contextmanager
    def _as_before_on_error(self) -> Iterator[list[ActiveRound]]:
        """Yields the active rounds; if an exception leaves the block, all is as before."""
        entries, states, undone = self.ledger.active(), self._states[:], self.ledger.undone[:]
        before, state = self.weights.snapshot(), self.attached.state()
        try:
            yield entries
        except BaseException:
            same = same_start(entries, self.ledger.active())
            self.ledger.truncate(same)
            self.previous_keys.forget()  # a round may be in them in part
            for entry in entries[same:]:
                self.ledger.append(entry)
            self._states, self.ledger.undone = states, undone
            self.weights.restore(before)
            self.attached.set(state)
            raise

    def _replay(
        self, entry: ActiveRound, record: RoundRecord, within: tuple[State, ...] = ()
    ) -> None:
        """Write a round's changes again and enter it into the ledger."""
        for write in record.writes:
            self.write(write)
        self.attached.set(record.state)
        self.commit(entry, within)

    def _go_back_to(self, length: int) -> None:
        """Keep only the first rounds; each is read once, or just the last if none wrote weights."""
        self.ledger.truncate(length)
        self.previous_keys.drop_from(length)
        del self._states[length:]
        devices = {
            layer: self.weights.original(name).device for name, layer in self._layers.items()
        }
        totals: dict[int, torch.Tensor] = {}
        state = None
        for entry in self.ledger.active()[0 if devices else -1 :]:
            record = entry.read()
            record.add_changes(totals, devices, self.layout.d_ff)
            state = record.state
        for name, layer in self._layers.items():
            change = totals.get(layer)
            self.weights.set(name, None if change is None else self.layout.to_weight(change))
        self.attached.set(state)

    def _start_over_if_empty(self) -> None:
        """If no round is left, the next one is round 1 again."""
        if not len(self.ledger):
            self.ledger.undone.clear()
