"""LoRA: one set of PEFT adapters that every round continues to train.

Each round trains the same adapters with a new Adam state, as in EasyEdit; nothing preserves the
edits of earlier rounds.  The model's own weights are not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from nse_plugin.hparams.training import LoRAHparams
from nse_plugin.methods.bookkeeping import Clock, check_inputs
from nse_plugin.methods.training import Training, commit_attached
from nse_plugin.model.hooks import quiet
from nse_plugin.model.seeding import seeded
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.adapters import Adapters
from nse_plugin.session.records import RoundRecord
from nse_plugin.session.session import EditSession

KIND = "lora"
_CONFIG = ("lora_type", "rank", "lora_alpha", "lora_dropout", "target_modules", "layers")


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: LoRAHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Train the session's adapters on one round of requests; the first round attaches them.

    After an error, model and ledger are as before.  Random numbers (dropout, and the adapters'
    start) depend only on ``hparams.seed`` and the round's number.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: target_modules or layers do not fit the model.
        NotFiniteError: a loss is not finite.
        SessionError: the session has rounds of another method, or adapters of other settings.
    """
    check_inputs(session, requests, hparams)
    clock, number = Clock(), session.ledger.next_number()
    with session.round([], attaches=KIND), seeded(hparams.seed, number, session.model):
        config = {name: getattr(hparams, name) for name in _CONFIG}
        adapters = cast(Adapters, session.attached.ensure(KIND, config))
        with clock("train"), quiet(session.model):
            training = Training(
                session, requests, hparams.batch_size, objective, trace, with_end=hparams.target_eos
            )
            with adapters.training() as parameters:
                training.run(
                    parameters,
                    lr=hparams.lr,
                    n_passes=hparams.num_steps,
                    stop_loss=hparams.stop_loss,
                    betas=(hparams.beta1, hparams.beta2),
                    weight_decay=hparams.weight_decay,
                    penalty=adapters.penalty if hparams.lora_type == "adalora" else None,
                    mode=adapters.dropout,
                )
        return commit_attached(session, hparams, training, clock)
