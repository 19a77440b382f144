"""The states of a model after each round, to recognise one that a host has restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from nse_plugin.errors import SessionError
from nse_plugin.session.records import ActiveRound


class State(NamedTuple):
    """The model after a round."""

    fingerprint: dict[str, int]
    """By name, of the edited matrices and of what is attached."""
    within: tuple[State, ...] = ()
    """For a consolidation made in this process: the states after the rounds inside it.  A host that
    undoes the consolidation restores the last of them."""


Earlier = tuple[Sequence[ActiveRound], Sequence[State]]
"""Rounds that may have been the active ones, and the state after each."""


def earlier(rounds: Sequence[ActiveRound], states: Sequence[State]) -> Iterator[Earlier]:
    """The active rounds and their states, then without the last round, the last two, and so on.

    If the first round is a consolidation, the rounds inside it follow in the same way.  The last
    entry has no rounds.
    """
    for length in range(len(states), 0, -1):
        yield rounds[:length], states[:length]
    if states and states[0].within:
        yield from earlier(rounds[0].within, states[0].within)
    else:
        yield (), ()


def same_start(one: Sequence[ActiveRound], other: Sequence[ActiveRound]) -> int:
    """How many rounds at the start of two lists are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(one, other)))


def foreign(names: Sequence[str], since: str) -> SessionError:
    """The error for parameters that other code has changed."""
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return SessionError(
        f"{named} changed since {since}, and not by this session, whose values and covariances "
        "belong to the earlier weights; restore them, or accept the new ones as originals with "
        "EditSession.forget(model)"
    )
