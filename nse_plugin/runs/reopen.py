"""Reopen a run directory: load its model and apply its rounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.errors import DataError
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.runs.reading import RunFiles, read_manifest
from nse_plugin.runs.schema import IF_DAMAGED, MANIFEST
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import model_fingerprint, same_model


def open_run(run: Path, device: str | None = None) -> tuple[Any, EditSession]:
    """The model of a run directory with the run's rounds in it, and its session.

    Keep a reference to the model, because the session holds none.

    Args:
        device: instead of the device of the run.

    Raises:
        DataError: it is not a run directory, is of a host's method, or a file is damaged.
        ModelError: the model cannot be loaded.
    """
    files = RunFiles(run)
    name = files.model_name
    hparams = {**files.hparams, "model_name": name}
    if device is not None:
        hparams["device"] = device
    files.refuse_host("be opened")
    if name is None:
        raise DataError(f"{run} does not say which model it is of; it cannot be loaded again")
    model, tokenizer, _ = load_model(SimpleNamespace(**hparams))
    return model, session_of(files, model, tokenizer)


def session_of(files: RunFiles, model: Any, tokenizer: Any) -> EditSession:
    """A session of the model of a run, with the run's rounds in it.

    Raises:
        DataError: it is not the model of the run, or a file of the run is damaged.
    """
    ledger = files.ledger
    in_chat = "chat" in files.manifest["run"]
    tokenizer = chat_tokenizer(tokenizer, files.folder) if in_chat else tokenizer
    session = EditSession.of(model, tokenizer)
    there = files.manifest["run"]["model"]["fingerprint"]
    here = model_fingerprint(session.layout)
    if there != "?" and not same_model(there, here):
        raise DataError(
            f"{files.model_name} is another model now than when {files.folder} was made: its "
            f"fingerprint is {here}, not {there}; put the model of the run there"
        )
    session.adopt(ledger)
    return session


def chat_tokenizer(tokenizer: Any, *folders: Path) -> ChatTokenizer:
    """The tokenizer for prompts in chat, with the texts of the first of these runs that exists.

    Only a new run takes its texts from the template.  A template may write the date, and the keys,
    values and answers of a run belong to the texts that it began with.

    Raises:
        DataError: a manifest is damaged.
        ModelError: the run is new, and the template cannot be used.
    """
    for folder in folders:
        kept = read_manifest(folder)
        if kept is None:
            continue
        texts = kept["run"].get("chat")  # None: a run in plain text, which is not resumed in chat
        if texts is not None and (
            len(texts) not in (2, 3) or not all(isinstance(text, str) for text in texts)
        ):
            raise DataError(
                f"{folder / MANIFEST} is damaged: chat is {repr(texts)[:60]}, not the texts around "
                f"a prompt; {IF_DAMAGED}"
            )
        return ChatTokenizer(tokenizer, texts)
    return ChatTokenizer(tokenizer)
