"""Add an imported change to a session, as one round."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from nse_plugin.session.records import RoundRecord, Write
from nse_plugin.session.session import EditSession


def enter(
    session: EditSession,
    factors: Mapping[int, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Add changes to a session's model and ledger: all of them or nothing.

    The round has no requests and no keys, because an export holds none, so later rounds do not
    protect it.

    Args:
        factors: by layer: neurons [|I|], left [d_model, n], right [n, |I|]; or no left and the
            change itself, [d_model, |I|].
        check: called before the round is committed; an exception undoes the round.
    """
    layout = session.layout
    writes = tuple(  # copies, because a round's file holds no shared tensors
        Write(
            layer,
            0,
            neurons.cpu().clone(),
            None if left is None else left.float().cpu(),
            right.float().cpu(),
            case_ids=(),
            key_mass=None,
        )
        for layer, (neurons, left, right) in sorted(factors.items())
    )
    record = RoundRecord(
        number=session.ledger.next_number(),
        method="import",
        outcomes=(),
        writes=writes,
        keys={write.layer: torch.zeros(layout.d_ff, 0) for write in writes},
        d_ff=layout.d_ff,
    )
    with session.round(record.layers()):
        for write in writes:
            session.write(write)
        check()
        session.commit(record)
