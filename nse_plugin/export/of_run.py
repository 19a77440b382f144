"""Export the edits of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nse_plugin.errors import DataError
from nse_plugin.evaluation.model_state import share_given
from nse_plugin.export.adapter import WEIGHTS, adapter_changes, to_peft
from nse_plugin.export.card import base_name, write_card
from nse_plugin.export.delta import to_delta
from nse_plugin.export.factors import Fit
from nse_plugin.export.folder import read_tensors, refuse_used
from nse_plugin.export.full import to_full
from nse_plugin.printable import counted
from nse_plugin.requests import EditRequest
from nse_plugin.runs.listeners import Listener
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.reopen import open_run
from nse_plugin.session.session import EditSession

KINDS = ("peft", "delta", "full")
_MOST = 200
"""Largest number of edits that are tested with an adapter of a bounded rank."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    folder: str
    kind: str
    base_model: str
    edits: int
    rounds: int
    layers: tuple[Fit, ...] = ()
    """Rank and error by layer of an adapter, unless it was trained."""
    efficacy: float | None = None
    """Share of the edits that are in effect with an adapter of a bounded rank."""
    efficacy_of_all: float | None = None
    """Share of the edits that are in effect with the whole change."""
    asked: int = 0
    """Number of edits tested for these shares."""

    def of_rank(self) -> str:
        """What was measured with a bounded rank; empty if nothing was."""
        if self.efficacy is None:
            return ""
        return (
            f"efficacy with this rank {self.efficacy:.1%}, with the whole change "
            f"{self.efficacy_of_all:.1%} ({counted(self.asked, 'edit')} tested)"
        )

    def text(self) -> str:
        """For people, without the layers."""
        written = (
            f"{counted(self.edits, 'edit')} of {counted(self.rounds, 'round')} on "
            f"{self.base_model} written to {self.folder}; README.md there says what it holds"
        )
        return "\n".join(line for line in (self.of_rank(), written) if line)


def export_run(
    run: Path,
    kind: str,
    out: Path,
    *,
    rank: int | None = None,
    equal_ranks: bool = True,
    device: str | None = None,
    listener: Listener = lambda _event, _facts: None,
) -> Exported:
    """Write a run's edits as an adapter, as changed matrices or as a complete model.

    Raises:
        DataError: ``run`` is not a run directory, or ``out`` cannot be written.
        ModelError: the run's model cannot be loaded, or has changed since.
    """
    if kind not in KINDS:
        raise DataError(f"cannot export to {kind!r}; there are: {', '.join(KINDS)}")
    if rank is not None and kind != "peft":
        raise DataError(f"--max-rank is for --to peft; {kind} holds the whole change. Leave it out")
    refuse_used(out)
    files = RunFiles(run)
    listener("phase", {"name": "loading the model"})
    model, session = open_run(run, device)
    listener("phase", {"name": "exporting"})
    about = (str(out), kind, base_name(session), session.ledger.edits(), len(session.ledger))
    if kind == "peft":
        by_layer = to_peft(session, out, rank=rank, equal_ranks=equal_ranks, files=files)
        fits = tuple(by_layer.values())
        if rank is None or not fits:
            return Exported(*about, fits)
        listener("phase", {"name": "asking the model with this rank"})
        requests = _in_effect(files, session)[:_MOST]
        whole = _efficacy(model, session, requests)
        of_adapter = _efficacy_of_adapter(session, out, requests)
        exported = Exported(*about, fits, of_adapter, whole, len(requests))
        write_card(out, session, "peft", files, by_layer, exported.of_rank())
        return exported
    (to_delta if kind == "delta" else to_full)(session, out, files=files)
    return Exported(*about)


def _in_effect(files: RunFiles, session: EditSession) -> list[EditRequest]:
    """The requests of the active rounds that no later one replaces."""
    rounds = files.requests_of(session.ledger.numbers_in_effect()).values()
    return list({request.fact: request for requests in rounds for request in requests}.values())


def _efficacy(model: nn.Module, session: EditSession, requests: list[EditRequest]) -> float | None:
    prompts, answers = [r.text for r in requests], [r.target_new for r in requests]
    return share_given(model, session.tokenizer, prompts, answers)


def _efficacy_of_adapter(
    session: EditSession, folder: Path, requests: list[EditRequest]
) -> float | None:
    """The efficacy with the change of an adapter's factors; the model is restored afterwards."""
    layout, weights = session.layout, session.weights
    before = weights.snapshot()
    try:
        tensors = read_tensors(folder / WEIGHTS)
        for layer, change in adapter_changes(layout, tensors).items():
            weights.set(layout.down_name(layer), layout.to_weight(change))
        return _efficacy(session.model, session, requests)
    finally:
        weights.restore(before)
