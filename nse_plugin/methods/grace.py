"""GRACE: edits live in a codebook in front of one layer (arXiv 2211.11031).

Each request becomes an entry: the layer's input at the prompt's last token is the key, and the
value is trained until the model, with the value as the layer's output there, gives the target.
Requests are taken one after another, since each entry depends on those before it.

Where EasyEdit's code and the paper differ, this follows the paper: targets are compared as token
sequences and with the nearest key's (EasyEdit compares means of padded labels, from the second edit
on those of another entry), and an entry whose ball grows is trained further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from nse_plugin.hparams.training import GRACEHparams
from nse_plugin.methods.bookkeeping import Clock, check_inputs
from nse_plugin.methods.training import Training, commit_attached
from nse_plugin.model.hooks import quiet, read_rows
from nse_plugin.model.prompts import TokenBatch, encode_request
from nse_plugin.model.seeding import seeded
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.codebook import Codebook
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession

KIND = "grace"


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: GRACEHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Enter one round of requests into the session's codebook; the first round attaches it.

    After an error, model and ledger are as before.  Random numbers (the start of cold values)
    depend only on ``hparams.seed`` and the round's number.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: inner_params does not fit the model.
        NotFiniteError: a loss is not finite.
        SessionError: the session has rounds of another method, or a codebook of other settings.
    """
    check_inputs(session, requests, hparams)
    clock, number = Clock(), session.ledger.next_number()
    with session.round([], attaches=KIND), seeded(hparams.seed, number, session.model):
        config = {"module": hparams.inner_params[0], "eps": hparams.eps}
        codebook = cast(Codebook, session.attached.ensure(KIND, config))
        with quiet(session.model):
            training = Training(session, requests, 1, objective, trace, with_end=hparams.target_eos)
            with clock("keys"):
                queries, outputs = _read(session, codebook, requests)
            with clock("train"):
                for index, (query, output) in enumerate(zip(queries, outputs)):
                    cold = torch.rand(1, len(output), device=output.device)[0]
                    start = cold if hparams.val_init == "cold" else output
                    label = training.batches[index].target.tolist()
                    entry = codebook.place(query, label, start)
                    with codebook.training(entry) as value:
                        training.run(
                            [value],
                            lr=hparams.edit_lr,
                            n_passes=hparams.n_iter,
                            stop_loss=hparams.stop_loss,
                            only=index,
                        )
        return commit_attached(session, hparams, training, clock)


def _read(
    session: EditSession, codebook: Codebook, requests: Sequence[EditRequest]
) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, d_in] and [n, d_out]: the layer's own input and output at the prompts' last tokens.

    Each prompt is read alone: in a batch its key would be rounded differently, which in half
    precision is enough for a prompt that is edited again to count as another one.
    """
    found, own = [], codebook.module
    for request in requests:
        ids = encode_request(session.tokenizer, request).ids
        batch = TokenBatch.of([ids], session.layout.input_device)
        last = batch.lengths - 1
        with codebook.off():
            rows = read_rows(
                session.layout, batch, last, inputs_of={"in": own}, outputs_of={"out": own}
            )
        found.append((rows["in"], rows["out"]))
    queries, values = zip(*found)
    return torch.cat(queries), torch.cat(values)
