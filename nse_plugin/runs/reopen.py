"""Reopen a run directory: load its model and apply its rounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.errors import DataError
from nse_plugin.methods.registry import METHODS
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.runs.reading import RunFiles
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import model_fingerprint, same_model


def open_run(run: Path, device: str | None = None) -> tuple[Any, EditSession]:
    """The model of a run directory with the run's rounds in it, and its session.

    Keep the model: a session does not.

    Args:
        device: instead of the one that the run used.

    Raises:
        DataError: it is no run directory, is of a host's method, or a file is damaged.
        ModelError: the model cannot be loaded.
    """
    files = RunFiles(run)
    name = files.model_name
    hparams = {**files.hparams, "model_name": name}
    if device is not None:
        hparams["device"] = device
    if files.method not in METHODS:
        raise DataError(
            f"{run} is of the host's method {files.method!r}, whose rounds are whole matrices "
            "without a ledger; only runs of this package's methods can be exported"
        )
    if name is None:
        raise DataError(f"{run} does not say which model it is of; it cannot be loaded again")
    model, tokenizer, _ = load_model(SimpleNamespace(**hparams))
    return model, session_of(files, model, tokenizer)


def session_of(files: RunFiles, model: Any, tokenizer: Any) -> EditSession:
    """A session of a model that was loaded for a run, with the run's rounds in it.

    Raises:
        DataError: it is not the run's model, or a file of the run is damaged.
    """
    ledger = files.ledger()
    in_chat = "chat" in files.manifest["run"]
    session = EditSession.of(model, ChatTokenizer(tokenizer) if in_chat else tokenizer)
    there = files.manifest["run"]["model"]["fingerprint"]
    here = model_fingerprint(session.layout)
    if there != "?" and not same_model(there, here):
        raise DataError(
            f"{files.model_name} is another model now than when {files.folder} was made: its "
            f"fingerprint is {here}, not {there}; put the model of the run there"
        )
    session.adopt(ledger)
    return session
