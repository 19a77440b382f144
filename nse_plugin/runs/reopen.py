"""A run directory taken up again: its model with its rounds in it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.errors import DataError
from nse_plugin.methods.registry import METHODS
from nse_plugin.runs.manifest import read_manifest
from nse_plugin.session.ledger_files import load_ledger
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import model_fingerprint, same_model


def open_run(run: Path, device: str | None = None) -> tuple[Any, EditSession]:
    """The model of a run directory with the run's rounds in it, and its session.

    Keep the model: a session does not.

    Args:
        device: instead of the one that the run used.

    Raises:
        DataError: it is not the folder of a run, or of a run with a host's method.
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
