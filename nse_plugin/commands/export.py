"""Export the edits of a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.errors import DataError
from nse_plugin.export import to_delta, to_full, to_peft
from nse_plugin.methods.registry import METHODS
from nse_plugin.runs.manifest import read_manifest
from nse_plugin.session.ledger_files import load_ledger
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import model_fingerprint, same_model

KINDS = ("peft", "delta", "full")


def export(
    run: Path,
    kind: str,
    out: Path,
    show: Callable[[str], None],
    *,
    rank: int | None = None,
    device: str | None = None,
) -> None:
    """Write a run's edits as an adapter, as changed matrices or as a model of its own.

    Raises:
        DataError: ``run`` is no run directory, or ``out`` cannot be written.
        ModelError: the run's model cannot be loaded, or is another one now.
    """
    if kind not in KINDS:
        raise DataError(f"cannot export to {kind!r}; there are: {', '.join(KINDS)}")
    if rank is not None and kind != "peft":
        raise DataError(f"--rank is for --to peft; {kind} holds the whole change. Leave it out")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise DataError(f"{out} holds files already; give the name of a new folder")
    model, session = open_run(run, device)
    edits = sum(len(record.outcomes) for record in session.ledger)
    if kind == "peft":
        fits = to_peft(session, out, rank=rank)
        if fits:
            show("layer   rank   of  relative error")
        for fit in fits.values():
            show(f"{fit.layer:5d} {fit.rank:6d} {fit.full_rank:4d}  {fit.relative_error:.2e}")
    elif kind == "delta":
        to_delta(session, out)
    else:
        to_full(session, out)
    show(f"{edits} edits of {len(session.ledger)} rounds on {_name(model)} written to {out}")


def open_run(run: Path, device: str | None = None) -> tuple[Any, EditSession]:
    """The model of a run directory with the run's rounds in it, and its session.

    Keep the model: a session does not.

    Args:
        device: instead of the one that the run used.

    Raises:
        DataError: it is no run directory of ``nse demo`` or ``nse run``, or of a host's method.
        ModelError: the model cannot be loaded.
    """
    manifest = read_manifest(run)
    hparams = {**manifest.hparams, "model_name": manifest.model_name}
    if device is not None:
        hparams["device"] = device
    if manifest.method not in METHODS:
        raise DataError(
            f"{run} is of the host's method {manifest.method!r}, whose rounds are whole matrices "
            "without a ledger; only runs of this package's methods can be exported"
        )
    if manifest.model_name is None:
        raise DataError(f"{run} does not say which model it is of; it cannot be loaded again")
    ledger = load_ledger(run)
    model, tokenizer, _ = load_model(SimpleNamespace(**hparams))
    session = EditSession.of(model, tokenizer)
    if not isinstance(manifest.model, str):
        there, here = manifest.model.get("fingerprint", "?"), model_fingerprint(session.layout)
        if there != "?" and not same_model(there, here):
            raise DataError(
                f"{manifest.model_name} is another model now than when {run} was made: its "
                f"fingerprint is {here}, not {there}; put the model of the run there"
            )
    session.adopt(ledger)
    return model, session


def _name(model: Any) -> str:
    return Path(str(getattr(model.config, "_name_or_path", ""))).name or model.config.model_type
