"""The edited model as a folder of its own."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.export.folder import edited_layers, new_folder, write_manifest
from nse_plugin.session.session import EditSession


def to_full(session: EditSession, folder: str | Path) -> None:
    """Write the edited model and its tokenizer with ``save_pretrained`` to a new folder.

    Raises:
        SessionError: there is nothing to export, or the weights are not the session's.
        DataError: the folder holds something or cannot be written.
    """
    edited_layers(session)
    with new_folder(Path(folder)) as temporary:
        session.model.save_pretrained(temporary)
        session.tokenizer.save_pretrained(temporary)
        write_manifest(temporary, session, "full")
