"""The states that a session has left a model in, and which of them it holds again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nse_plugin.errors import SessionError
from nse_plugin.session.records import ActiveRound


class State(NamedTuple):
    """The model after a round."""

    fingerprint: dict[str, int]
    """By name, of the edited matrices and of what is attached."""
    within: tuple[State, ...] = ()
    """The states after the rounds that a consolidation takes the place of, where it was made in
    this process: a host that undoes the round that was one gives the model the last of them."""


Earlier = tuple[Sequence[ActiveRound], Sequence[State]]


def earlier(rounds: Sequence[ActiveRound], states: Sequence[State]) -> Iterator[Earlier]:
    """The active rounds and their states, without the last one, without the last two, ...

    After them come the rounds inside the consolidation that is the first, in the same way; the last
    are no rounds at all.
    """
    for length in range(len(states), 0, -1):
        yield rounds[:length], states[:length]
    if states and states[0].within:
        yield from earlier(rounds[0].within, states[0].within)
    else:
        yield (), ()


def foreign(names: Sequence[str], since: str) -> SessionError:
    """What to say where other code has changed these parameters."""
    named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return SessionError(
        f"{named} changed since {since}, and not by this session, whose values and covariances "
        "are of the model as it was; put the weights back, or accept them as the new originals "
        "with EditSession.forget(model)"
    )
