"""Export the edited model as a complete model folder."""

from __future__ import annotations

from pathlib import Path

from nse_plugin.errors import SessionError
from nse_plugin.export.card import add_metadata, write_card
from nse_plugin.export.folder import edited_layers, new_folder, write_manifest
from nse_plugin.runs.reading import RunFiles
from nse_plugin.session.session import EditSession


def to_full(session: EditSession, folder: str | Path, *, files: RunFiles | None = None) -> None:
    """Write the edited model and its tokenizer with ``save_pretrained`` to a new folder.

    Args:
        files: the session's run, for the model card.

    Raises:
        SessionError: there is nothing to export, the weights are not the session's, or the model
            carries an adapter of PEFT, so that ``save_pretrained`` writes only the adapter.
        DataError: the folder holds something or cannot be written.
    """
    edited_layers(session)
    wrapped = any(kind.__name__ == "PeftModel" for kind in type(session.model).__mro__)
    if wrapped or getattr(session.model, "_hf_peft_config_loaded", False):
        raise SessionError(
            "the model carries an adapter of PEFT, whose save_pretrained writes the adapter and "
            "not the edits; merge it first (model.merge_and_unload()) and edit the merged model, "
            "or export with to_peft() or to_delta()"
        )
    with new_folder(Path(folder)) as temporary:
        session.model.save_pretrained(temporary)
        session.tokenizer.save_pretrained(temporary)
        for path in temporary.glob("*.safetensors"):
            add_metadata(path, session)
        write_card(temporary, session, "full", files)
        write_manifest(temporary, session, "full")
