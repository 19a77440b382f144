"""Only the changed matrices, and the change from which a session restores them bit for bit.

``weights.safetensors`` has the edited matrices by parameter name, in the model's dtype, for
``model.load_state_dict(..., strict=False)``.  ``change.safetensors`` has the written columns of the
accumulated change in float32, from which :func:`from_delta` makes the same weights without the
rounding of the model's dtype.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from nse_plugin.errors import DataError, ModelError, SessionError
from nse_plugin.export.card import metadata_of, write_card
from nse_plugin.export.entry import enter
from nse_plugin.export.folder import (
    check_model,
    edited_layers,
    new_folder,
    read_export,
    read_tensors,
    total_change,
    write_manifest,
)  # fmt: skip
from nse_plugin.model.weights import fingerprint
from nse_plugin.runs.reading import RunFiles
from nse_plugin.session.session import EditSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CHANGE = "weights.safetensors", "change.safetensors"


@torch.no_grad()
def to_delta(session: EditSession, folder: str | Path, *, files: RunFiles | None = None) -> None:
    """Write the edited matrices and their change to a new folder.

    Args:
        files: the session's run, for the model card.

    Raises:
        SessionError: there is nothing to export, or the weights are not the session's.
        DataError: the folder holds something or cannot be written.
    """
    layout = session.layout
    layers = edited_layers(session)
    weights, change = {}, {}
    for layer in layers:
        name = layout.down_name(layer)
        weights[name] = layout.down(layer).weight.detach().cpu().contiguous()
        total = total_change(session, layer)  # [d_model, d_ff]
        neurons = (total != 0).any(dim=0).nonzero()[:, 0]
        change[f"{name}.neurons"] = neurons.cpu()
        change[f"{name}.columns"] = total[:, neurons].cpu().contiguous()
    with new_folder(Path(folder)) as temporary:
        save_file(weights, temporary / WEIGHTS, metadata_of(session))
        save_file(change, temporary / CHANGE, metadata_of(session))
        write_card(temporary, session, "delta", files)
        write_manifest(temporary, session, "delta", hashed=(WEIGHTS, CHANGE))


def from_delta(model: PreTrainedModel, tokenizer: Any, folder: str | Path) -> EditSession:
    """Write the edited matrices into a model, as one round of its session.

    Returns:
        The model's session; ``undo_last()`` restores the originals.

    Raises:
        DataError: the folder holds no delta, or a damaged one.
        ModelError: it was made from another model, or from other weights.
        SessionError: the session of this model has rounds already.
    """
    folder = Path(folder)
    manifest = read_export(folder, "delta")
    session = EditSession.of(model, tokenizer)
    if len(session.ledger):
        raise SessionError(
            f"this session has {len(session.ledger)} rounds already, and a delta is made from the "
            "originals; undo_all() them first, or use a freshly loaded model"
        )
    check_model(folder, manifest, session)
    tensors = read_tensors(folder / CHANGE)
    factors = {}
    try:
        for name, entry in manifest["parameters"].items():
            _check_original(folder, session, name, entry)
            columns = tensors[f"{name}.columns"]
            factors[int(entry["layer"])] = (tensors[f"{name}.neurons"], None, columns)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a whole delta: {error} is missing; export again") from (
            error
        )

    def check() -> None:
        for name, entry in manifest["parameters"].items():
            if fingerprint(model.get_parameter(name)) != entry["edited"]:
                raise DataError(
                    f"{folder}: {name} does not get the bits that were exported; nothing was "
                    "changed. Export again"
                )

    enter(session, factors, check)
    return session


def _check_original(folder: Path, session: EditSession, name: str, entry: dict[str, Any]) -> None:
    layout = session.layout
    if name != layout.down_name(int(entry["layer"])):
        raise ModelError(
            f"{folder} changes {name}, and layer {entry['layer']} of this model is "
            f"{layout.down_name(int(entry['layer']))}; load the model it was made from"
        )
    weight = layout.down(int(entry["layer"])).weight
    dtype = str(weight.dtype).removeprefix("torch.")
    if dtype != entry["dtype"]:
        raise ModelError(
            f"{name} is {dtype}, and {folder} was made from {entry['dtype']}; load the model with "
            f"dtype={entry['dtype']}"
        )
    now = fingerprint(weight)
    if now == entry["original"]:
        return
    if now == entry["edited"]:
        raise ModelError(f"{name} holds the edited weights of {folder} already; load the original")
    raise ModelError(
        f"{name} is not the matrix that {folder} was made from: its fingerprint is {now}, not "
        f"{entry['original']}; load the model {folder} was made from, without other edits"
    )
