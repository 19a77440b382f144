"""UltraEdit: a closed form in one gradient of each request (arXiv 2505.14679).

Every token of a target gives one editing feature z = [h; g] per layer: h is the down-projection's
input where the token is predicted, and g the gradient of the requests' losses in its output there.
Features are normalised by the mean and standard deviation over all rounds so far, this one included
(lifelong normalisation).  From the normalised ones follows what the layer has to add to its output:

    v = -lr ||h^||^2 g^,    Delta = V^T H (H^T H + I)^-1

The rows of H [n, d_ff] are the round's h, not normalised, and those of V [n, d_model] the v.
No subject, covariance or earlier key is used.  A session remembers the moments of the features; the
ledger has them by round, so undoing a round removes its features.

The paper also edits up- and gate-projections of some models; here, as for its Mistral and GPT-J,
only down-projections.  Its code takes the mean loss over a mini-batch and moments over mini-batches
with a factor n / (n - 1) in their squares; here token losses are summed and moments are exact, so
nothing depends on how a round is cut into batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from nse_plugin.hparams import UltraEditHparams
from nse_plugin.locate.update import all_neurons
from nse_plugin.methods.bookkeeping import Clock, check_inputs
from nse_plugin.methods.training import Training
from nse_plugin.model.hooks import quiet
from nse_plugin.model.targets import Targets
from nse_plugin.objectives import TokenObjective, TokenTrace, nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.moments import Moments
from nse_plugin.session.records import RoundRecord, Write
from nse_plugin.session.session import EditSession

log = logging.getLogger(__name__)


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: UltraEditHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Write one round of requests.

    After an error, model and ledger are as before.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layers or templates do not fit the model.
        NotFiniteError: a loss is not finite.
        SessionError: the edited weights were changed outside the session since the last round.
    """
    check_inputs(session, requests, hparams)
    clock = Clock()
    with session.round(hparams.layers), quiet(session.model):
        training = Training(
            session, requests, hparams.batch_size, objective, trace, with_end=hparams.target_eos
        )
        with clock("train"):
            features = _features(session, training, hparams.layers)
        with clock("solve"):
            moments = {layer: Moments.of(rows) for layer, rows in features.items()}
            known = {layer: _with_earlier(session, layer, own) for layer, own in moments.items()}
            if known[hparams.layers[0]].count == 1:
                log.warning(
                    "the first round has one target token, which alone has no deviation from "
                    "the mean, so nothing is written; give the first round two edits or more"
                )
            d_ff, case_ids = session.layout.d_ff, _case_ids(training)
            writes = tuple(
                _write(layer, rows, known[layer], d_ff, hparams.lr, case_ids)
                for layer, rows in features.items()
            )
        with clock("write"):
            for write in writes:
                session.write(write)
        with clock("ask"):
            training.finish(range(len(training.batches)), 1)
        record = RoundRecord(
            number=session.ledger.next_number(),
            method=hparams.method,
            outcomes=training.outcomes(),
            writes=writes,
            keys={layer: torch.zeros(session.layout.d_ff, 0) for layer in hparams.layers},
            seconds=clock.seconds,
            d_ff=session.layout.d_ff,
            moments=moments,
        )
        session.commit(record)
    return record


def _case_ids(training: Training) -> tuple[int | str, ...]:
    """The request of each target token."""
    return tuple(
        training.requests[start + row].case_id
        for start, batch in zip(training.starts, training.batches)
        for row in batch.owner.tolist()
    )


def _with_earlier(session: EditSession, layer: int, own: Moments) -> Moments:
    """Moments of the features of all rounds, of which ``own`` are this one's."""
    before = session.previous_keys.moments(layer)
    return own if before is None else before.merged(own)


def _write(
    layer: int,
    features: torch.Tensor,
    known: Moments,
    d_ff: int,
    lr: float,
    case_ids: tuple[int | str, ...],
) -> Write:
    """The change of a layer, as a pair of factors, or as a matrix where that is smaller.

    Args:
        features: [n, d_ff + d_model].
        known: moments of the features of all rounds, this one included.
        case_ids: [n], the request of each feature.
    """
    h_hat, g_hat = known.standardised(features).split([d_ff, features.shape[1] - d_ff], dim=1)
    v = -lr * h_hat.square().sum(dim=1, keepdim=True) * g_hat  # [n, d_model]
    h = features[:, :d_ff].double()
    system = h @ h.T + torch.eye(len(h), dtype=h.dtype, device=h.device)
    left, right = v.T, torch.linalg.solve(system, h)  # H (H^T H + I)^-1 = (H H^T + I)^-1 H
    neurons = all_neurons(h.T).cpu()
    if left.numel() + right.numel() > v.shape[1] * d_ff:
        return Write(layer, 1, neurons, None, _stored(left @ right), (), None)
    return Write(layer, 1, neurons, _stored(left), _stored(right), case_ids, None)


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().cpu().contiguous()


def _features(
    session: EditSession, training: Training, layers: Sequence[int]
) -> dict[int, torch.Tensor]:
    """By layer: [h; g] of all target tokens, float32 [n, d_ff + d_model], from one pass each."""
    downs = {layer: session.layout.down(layer) for layer in layers}
    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for index, batch in enumerate(training.batches):
        with _watched(downs) as (inputs, shifts):
            losses, _ = training.token_losses(index)
        gradients = torch.autograd.grad(losses.train.sum(), [shifts[layer] for layer in layers])
        for layer, gradient in zip(layers, gradients):
            both = _at(inputs[layer], batch), _at(gradient, batch)
            parts[layer].append(torch.cat(both, dim=1))
    return {layer: torch.cat(found) for layer, found in parts.items()}


@contextmanager
def _watched(
    modules: Mapping[int, nn.Module],
) -> Iterator[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]]:
    """Inside, a forward pass leaves each module's input, and a zero added to its output, whose
    gradient is that of the output."""
    inputs: dict[int, torch.Tensor] = {}
    shifts: dict[int, torch.Tensor] = {}

    def watch(layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
            inputs[layer] = args[0].detach()
            shifts[layer] = torch.zeros_like(output, requires_grad=True)
            return output + shifts[layer]

        return hook

    with ExitStack() as hooks:
        for layer, module in modules.items():
            hooks.enter_context(module.register_forward_hook(watch(layer)))
        yield inputs, shifts


def _at(value: torch.Tensor, batch: Targets) -> torch.Tensor:
    """Features at the positions that predict target tokens: float32 [k, features]."""
    # OPT's blocks work on [rows * width, ...]
    value = value.reshape(*batch.batch.input_ids.shape, -1)
    return value[batch.owner.to(value.device), batch.position.to(value.device)].float()
