"""NSE: neuron-level sequential editing (arXiv 2410.04045, ACL 2025).

A round of requests is written into the MLP down-projections of a few consecutive layers:

1. values z for all requests, with the weights rewound to before the first edit of the sequence
   (section 3.1): a later edit then aims at what the original model would need;
2. write passes: per layer, keys of the requests still off their value, the neurons that carry
   them (section 3.2), a closed-form update that spares the covariance and the keys of all earlier
   rounds, and the next layer with what is left of the residual (section 3.3);
3. the keys of all requests, after the last write, join the previous keys.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from nse_plugin.errors import ModelError
from nse_plugin.hparams import NSEHparams
from nse_plugin.ledger.records import Outcome, RoundRecord, Status, Write
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.update import select_neurons, solve_right
from nse_plugin.locate.values import Values, compute_values
from nse_plugin.objectives import TokenObjective
from nse_plugin.objectives.nll import nll
from nse_plugin.objectives.trace import TokenTrace
from nse_plugin.requests import EditRequest, check_round
from nse_plugin.session import EditSession


def edit_round(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: NSEHparams,
    objective: TokenObjective = nll,
    trace: TokenTrace | None = None,
) -> RoundRecord:
    """Write one round of requests and enter it into the session's ledger.

    Where anything goes wrong half-way, model and ledger are as before.

    Raises:
        RequestError: the requests cannot be written together, or a prompt is too long.
        ModelError: layers or module templates do not fit the model, or weights are not finite.
        StatisticsError: the covariance cannot be had or belongs to another model.
        SessionError: somebody else changed the edited weights since the last round.
    """
    check_round(requests)
    check_templates(session, hparams)
    with session.round(hparams.layers):
        clock = _Clock()
        covariances = session.covariances(hparams) if hparams.mom2_adjustment else {}
        contexts = session.contexts(hparams)
        with clock("values"), session.weights.rewound():
            values = compute_values(
                session.layout, session.tokenizer, requests, contexts, hparams, objective, trace
            )
        lookups = Lookups.of(
            session.layout, session.tokenizer, requests, contexts, hparams.token_budget
        )
        writer = _Writer(session, requests, hparams, lookups, values, covariances, clock)
        writer.run()
        with clock("keys"):
            keys = {layer: k.cpu() for layer, k in lookups.keys(hparams.layers).items()}
        record = RoundRecord(
            number=session.ledger.next_number(),
            method=hparams.method,
            outcomes=writer.outcomes(),
            writes=tuple(writer.writes),
            keys=keys,
            seconds=clock.seconds,
        )
        session.commit(record)
    return record


def check_templates(session: EditSession, hparams: NSEHparams) -> None:
    """Raise :class:`ModelError` where a module template names something else than the model has."""
    expected = session.layout.templates()
    if hparams.v_loss_layer is not None:
        session.layout.check_layers([hparams.v_loss_layer])
    for name, value in expected.items():
        given = getattr(hparams, name)
        tied_head = name == "lm_head_module" and given is not None and _same_weight(session, given)
        if given is not None and given != value and not tied_head:
            raise ModelError(
                f"{name} is {given!r}, but a {session.layout.model_type} model has {value!r}; "
                "mend it or leave it out"
            )


def _same_weight(session: EditSession, path: str) -> bool:
    """EasyEdit's GPT-2 files name the tied embedding as the head."""
    try:
        module = session.model.get_submodule(path)
    except AttributeError:
        return False
    return getattr(module, "weight", None) is session.model.get_output_embeddings().weight


@dataclass
class _Clock:
    """Seconds by part of a round."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass
class _Writer:
    """The write passes of one round (section 3.3) and their bookkeeping."""

    session: EditSession
    requests: Sequence[EditRequest]
    hparams: NSEHparams
    lookups: Lookups
    values: Values
    covariances: dict[int, torch.Tensor]
    clock: _Clock
    writes: list[Write] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = self._residual_norms()
        self.after = self.before
        self.passes = torch.zeros(len(self.requests), dtype=torch.long)

    def run(self) -> None:
        """Passes over all layers until no request is active or the passes are used up."""
        for number in range(1, self.hparams.max_iterations + 1):
            active = self._active(self.after)
            if len(active) == 0:
                break
            for layer in self.hparams.layers:
                self._write_layer(layer, active, number)
            self.passes[active] += 1
            self.after = self._residual_norms()

    def outcomes(self) -> tuple[Outcome, ...]:
        """The fate of every request."""
        z, shift = self.values.z, self.values.z - self.values.base
        return tuple(
            Outcome(
                case_id=request.case_id,
                digest=request.digest(),
                status=self._status(float(self.after[i])),
                passes=int(self.passes[i]),
                residual_before=float(self.before[i]),
                residual_after=float(self.after[i]),
                z_norm=float(z[i].norm()),
                z_shift=float(shift[i].norm()),
                z_loss=float(self.values.loss[i]),
                z_steps=int(self.values.steps[i]),
            )
            for i, request in enumerate(self.requests)
        )

    def _write_layer(self, layer: int, active: torch.Tensor, pass_number: int) -> None:
        hparams, layout = self.hparams, self.session.layout
        lookups = self.lookups.select(active)
        with self.clock("keys"):
            outputs_of = {"h": layout.blocks[hparams.layers[-1]], "down": layout.down(layer)}
            found, outputs = lookups.read([layer], outputs_of)
            keys = found[layer]  # [d_ff, n]
            residual = self.values.z[active.to(self.values.z.device)] - outputs["h"]
            residual = layout.pull_back(layer, residual, outputs["down"])  # [n, d_model]
        with self.clock("solve"):
            neurons = select_neurons(keys, hparams.neuron_threshold, hparams.selection_rule)
            selected = keys[neurons]
            right = solve_right(
                selected,
                covariance=self._covariance(layer, neurons),
                weight=hparams.mom2_update_weight,
                previous=self.session.previous_keys.matrix(layer, neurons),
                layer=layer,
            )
        layers_left = len(hparams.layers) - hparams.layers.index(layer)
        write = Write(
            layer=layer,
            pass_number=pass_number,
            neurons=neurons.cpu(),
            left=(residual.T / layers_left).cpu(),
            right=right.cpu(),
            case_ids=tuple(self.requests[i].case_id for i in active.tolist()),
            key_mass=float(selected.abs().sum() / keys.abs().sum()),
        )
        with self.clock("write"):
            self.session.write(layer, write.change(layout.d_ff, keys.device))
        self.writes.append(write)

    def _residual_norms(self) -> torch.Tensor:
        """||z - h|| with the weights as they are now, [n]."""
        with self.clock("keys"):
            h = self.lookups.activations(self.hparams.layers[-1])
            return (self.values.z - h).norm(dim=1).cpu()

    def _active(self, residual: torch.Tensor) -> torch.Tensor:
        return torch.tensor(
            [i for i, r in enumerate(residual.tolist()) if self._status(r) == "residual_left"],
            dtype=torch.long,
        )

    def _status(self, residual: float) -> Status:
        if residual <= self.hparams.alpha:
            return "converged"
        if self.hparams.upper_bound is not None and residual >= self.hparams.upper_bound:
            return "out_of_bounds"
        return "residual_left"

    def _covariance(self, layer: int, neurons: torch.Tensor) -> torch.Tensor | None:
        if layer not in self.covariances:
            return None
        rows = neurons.to(self.covariances[layer].device)
        return self.covariances[layer][rows][:, rows].to(neurons.device)
