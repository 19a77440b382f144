"""What the methods share around a round: checks, token rows, timing, outcomes, earlier edits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from nse_plugin.errors import ModelError
from nse_plugin.hparams import Hparams, LocateHparams, SpreadHparams
from nse_plugin.hparams.base import LayersHparams, check_hparams
from nse_plugin.locate.rows import Rows, encode_round
from nse_plugin.locate.small_keys import for_small_keys, with_other_subjects
from nse_plugin.locate.values import Values
from nse_plugin.requests import EditRequest, check_round
from nse_plugin.session.records import EditStatus, Outcome, RoundRecord
from nse_plugin.session.session import EditSession

if TYPE_CHECKING:
    from nse_plugin.methods.repair import Repaired


@dataclass
class Clock:
    """Adds up the time spent in ``with`` blocks, by name."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the seconds of this block to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Progress:
    """How far a round's requests have come; each [n], on the CPU."""

    before: torch.Tensor
    """||z - h|| before the first write."""
    after: torch.Tensor
    """||z - h|| after the last write."""
    passes: torch.Tensor
    """Number of write passes that the request took part in."""
    status: tuple[EditStatus, ...]


def outcomes(
    requests: Sequence[EditRequest],
    values: Values,
    progress: Progress,
    repaired: Repaired | None = None,
    earlier: Sequence[int] = (),
    rows: Sequence[Rows] = (),
) -> tuple[Outcome, ...]:
    """The outcome of every request.

    Args:
        earlier: for the last of the requests, which are written again: their earlier rounds.
        rows: the requests' token rows, which know the edited token; empty if it is the subject's.
    """
    rounds = [*[None] * (len(requests) - len(earlier)), *earlier]
    # copied at once, since each copy waits for the GPU
    z, shift = values.z.cpu(), (values.z - values.base).cpu()
    loss, steps = values.loss.tolist(), values.steps.tolist()
    return tuple(
        Outcome(
            case_id=request.case_id,
            digest=request.digest(),
            status=progress.status[i],
            passes=int(progress.passes[i]),
            residual_before=float(progress.before[i]),
            residual_after=float(progress.after[i]),
            z_norm=float(z[i].norm()),
            z_shift=float(shift[i].norm()),
            z_loss=loss[i],
            z_steps=steps[i],
            earlier_round=rounds[i],
            past_sink=bool(rows) and rows[i].past_sink,
            **({} if repaired is None else repaired.of(i)),
        )
        for i, request in enumerate(requests)
    )


EarlierEdit = tuple[EditRequest, int]
"""An edit of an earlier round, and the round that wrote it last."""


def last_edits(
    records: Iterable[RoundRecord], but: Sequence[EditRequest] = ()
) -> list[EarlierEdit]:
    """The last edit of every fact.

    Args:
        records: rounds of a ledger, of which no tensors are read; some methods keep no requests.
        but: requests whose facts are left out.
    """
    latest: dict[str, EarlierEdit] = {}
    for record in records:
        latest |= {request.fact: (request, record.number) for request in record.requests}
    for request in but:
        latest.pop(request.fact, None)
    return list(latest.values())


def rows_of(
    session: EditSession, requests: Sequence[EditRequest], hparams: SpreadHparams
) -> list[Rows]:
    """The token rows of a round's requests; with ``avoid_sinks`` and ``repair_weight`` also the
    token to edit, the weight of a repair, and other subjects to preserve."""
    layout, contexts = session.layout, session.untouched.contexts(hparams)
    rows = encode_round(layout, session.tokenizer, requests, contexts, hparams.target_eos)
    if not hparams.small_keys_matter:
        return rows
    rows = for_small_keys(
        layout, rows, hparams.layers[0], hparams.token_budget,
        avoid_sinks=hparams.avoid_sinks, most_weight=hparams.repair_weight,
    )  # fmt: skip
    longest = layout.max_positions
    return [
        with_other_subjects(session.tokenizer, request, one, longest) if one.past_sink else one
        for request, one in zip(requests, rows)
    ]


def with_texts_about(
    session: EditSession,
    requests: Sequence[EditRequest],
    rows: Sequence[Rows],
    hparams: LocateHparams,
) -> list[Rows]:
    """The rows with ``kl_texts`` more texts about each subject.

    An edit at a token after the subject gets no more, since it leaves the subject's token alone; it
    keeps "{subject} is a", to which its delta is added at the subject.
    """
    if not hparams.kl_texts:
        return list(rows)
    texts = session.untouched.texts_about([request.subject for request in requests], hparams)
    return [
        one if one.past_sink else replace(one, about=(*one.about, *more))
        for one, more in zip(rows, texts)
    ]


def check_inputs(session: EditSession, requests: Sequence[EditRequest], hparams: Hparams) -> None:
    """Raise an error for what no round can be made from: hyperparameters, requests, templates."""
    check_settings(session, hparams)
    check_round(requests)


def check_settings(session: EditSession, hparams: Hparams) -> None:
    """The same without the requests."""
    check_hparams(hparams)
    if isinstance(hparams, LayersHparams):
        check_templates(session, hparams)


def check_templates(session: EditSession, hparams: LayersHparams) -> None:
    """Raise :class:`ModelError` if a module template or ``v_loss_layer`` does not fit the model."""
    loss_layer, last = getattr(hparams, "v_loss_layer", None), session.layout.n_layers - 1
    if loss_layer is not None and loss_layer > last:
        raise ModelError(
            f"v_loss_layer is {loss_layer}, and the model's blocks are numbered 0 to {last}; give "
            f"{last}, or leave it out for the last block"
        )
    for name, value in session.layout.templates().items():
        given = getattr(hparams, name)
        if given is None or given.removesuffix(".weight") == value:
            continue
        if name != "lm_head_module" or not _same_weight(session, given):
            raise ModelError(
                f"{name} is {given!r}, but a {session.layout.model_type} model has {value!r}; "
                "correct it or leave it out"
            )


def _same_weight(session: EditSession, path: str) -> bool:
    """Whether a path leads to the head's weight: EasyEdit's GPT-2 YAMLs name the tied embedding."""
    try:
        module = session.model.get_submodule(path)
    except AttributeError:
        return False
    return getattr(module, "weight", None) is session.model.get_output_embeddings().weight
