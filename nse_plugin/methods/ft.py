"""FT: fine-tuning of MLP down-projections on the target tokens, the plain baseline.

Adam on the whole matrix of each layer, with EasyEdit's two objectives: FT-M (``target_new``, each
target token is predicted from the one before it) and FT-L (``prompt_last``, all of them from the
prompt's last token; arXiv 2401.01286 has the names).  ``norm_constraint`` keeps every weight
within a distance of its value before the round (arXiv 2012.00363).

A round trains on top of the rounds before it.  With ``replay`` it trains on all edits so far, in
mini-batches that mix them: breadth-first, as is usual for fine-tuning (arXiv 2509.22072, whose
setting is all requests in one round).  EasyEdit also trains the bias of a layer whose
``rewrite_module_tmp`` does not end in ``.weight``; here only matrices are edited.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from nse_plugin.errors import SessionError
from nse_plugin.hparams.training import FTHparams
from nse_plugin.methods.bookkeeping import Clock, check_inputs, last_edits
from nse_plugin.methods.training import Training
from nse_plugin.model.hooks import quiet
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord, Write
from nse_plugin.session.session import EditSession


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: FTHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Train on one round of requests and enter the change into the session's ledger.

    After an error, model and ledger are as before.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layers or templates do not fit the model.
        NotFiniteError: a loss is not finite.
        SessionError: the edited weights were changed outside the session since the last round; or
            ``replay`` is on, and an earlier round kept no requests to train on again.
    """
    check_inputs(session, requests, hparams)
    clock = Clock()
    with session.round(hparams.layers):
        number = session.ledger.next_number()
        earlier = last_edits(_replayable(session), but=requests) if hparams.replay else []
        edits = [*requests, *(request for request, _ in earlier)]
        rounds = [*[None] * len(requests), *(written for _, written in earlier)]
        order = list(range(len(edits)))
        if earlier:  # so that mini-batches mix new and earlier edits
            random.Random(f"{hparams.seed} {number}").shuffle(order)
        with clock("train"), quiet(session.model):
            changes, training = _train(session, edits, order, hparams, objective, trace)
        outcomes = dict(zip(order, training.outcomes()))
        with clock("write"):
            writes = tuple(_write(layer, change) for layer, change in changes.items())
            for write in writes:
                session.write(write)
        record = RoundRecord(
            number=number,
            method=hparams.method,
            outcomes=tuple(
                replace(outcomes[i], earlier_round=written) for i, written in enumerate(rounds)
            ),
            writes=writes,
            keys={layer: torch.zeros(session.layout.d_ff, 0) for layer in hparams.layers},
            seconds=clock.seconds,
            d_ff=session.layout.d_ff,
            requests=tuple(request.without_probes() for request in edits),
        )
        session.commit(record)
    return record


def _replayable(session: EditSession) -> Iterator[RoundRecord]:
    """The rounds of the ledger, which must have kept their requests."""
    for record in session.ledger.heads():
        if not record.requests:
            raise SessionError(
                f"replay is true, and round {record.number} was written by {record.method}, which "
                "keeps no requests to train on again; undo it, or leave replay out"
            )
        yield record


def _train(
    session: EditSession,
    edits: Sequence[EditRequest],
    order: Sequence[int],
    hparams: FTHparams,
    objective: TokenObjective,
    trace: TokenTrace | None,
) -> tuple[dict[int, torch.Tensor], Training]:
    """By layer: the change [d_model, d_ff] that training on the edits in this order gives; the
    model is not written to."""
    layout, model = session.layout, session.model
    names = {layer: layout.down_name(layer) for layer in hparams.layers}
    starts = {layer: session.weights.value(name) for layer, name in names.items()}
    trained = {layer: start.clone().requires_grad_(True) for layer, start in starts.items()}
    dtypes = {layer: layout.down(layer).weight.dtype for layer in hparams.layers}

    def forward(**inputs: Any) -> Any:
        weights = {name: trained[layer].to(dtypes[layer]) for layer, name in names.items()}
        return functional_call(model, weights, kwargs=inputs)

    @torch.no_grad()
    def keep_within_bounds() -> None:
        bound = hparams.norm_constraint
        if bound is not None:
            for layer, start in starts.items():
                trained[layer].copy_(trained[layer].clamp(start - bound, start + bound))

    training = Training(
        session,
        [edits[i] for i in order],
        hparams.batch_size,
        objective,
        trace,
        forward=forward,
        from_prompt=hparams.objective_optimization == "prompt_last",
        with_end=hparams.target_eos,
        numbers=order,
    )
    training.run(
        list(trained.values()),
        lr=hparams.lr,
        n_passes=hparams.num_steps,
        stop_loss=hparams.stop_loss,
        betas=(hparams.beta1, hparams.beta2),
        weight_decay=hparams.weight_decay,
        after_step=keep_within_bounds,
    )
    changes = {
        layer: layout.to_weight(trained[layer].detach() - starts[layer]).float() for layer in starts
    }  # to_weight is its own inverse
    return changes, training


def _write(layer: int, change: torch.Tensor) -> Write:
    """A change [d_model, d_ff] as a write without factors, which training does not give."""
    neurons = (change != 0).any(dim=0).nonzero()[:, 0]
    columns = change[:, neurons].cpu().contiguous()
    return Write(layer, 1, neurons.cpu(), None, columns, case_ids=(), key_mass=None)
