"""The settings of a folder of edits: given once, and read from its manifest afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import from_anywhere
from nse_plugin.errors import DataError, HparamsError
from nse_plugin.hparams import Hparams, SpreadHparams
from nse_plugin.hparams.variants import REPAIRS, VARIANTS, read_method_yaml, split_changes
from nse_plugin.methods.registry import METHODS, find_method, hparams_from
from nse_plugin.runs.differences import completed, differences
from nse_plugin.runs.identity import as_json
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.schema import MANIFEST
from nse_plugin.runs.start import warn_of_other_model


def edit_hparams(
    folder: Path,
    files: RunFiles | None,
    model: str | None,
    method: str | None,
    hparams: str | Path | None,
    chat: bool = False,
    **changes: Any,
) -> Hparams:
    """The hyperparameters of an existing folder, or of a new one.

    Args:
        files: the files of the existing folder; None for a new one.
        chat: prompts are put into the chat template.
        **changes: hyperparameters that may change between calls; None keeps them.

    Raises:
        DataError: the folder was started with other settings.
        HparamsError: a new folder has neither model nor YAML, or an argument is wrong.
    """
    if hparams is not None and not isinstance(hparams, (str, Path)):
        raise HparamsError(
            f"hparams is of type {type(hparams).__name__}; give the name or path of a YAML, or "
            "changes as in method='NSE:v_lr=0.2'"
        )
    given = {name: value for name, value in changes.items() if value is not None}
    if files is not None:
        files.refuse_host("be added to")
        _refuse_others(folder, files, model, method, hparams, chat)
        kept = {**files.hparams, "model_name": files.model_name}
        return hparams_from(folder / MANIFEST, {**kept, **given})
    if hparams is not None:
        if method is not None:
            raise HparamsError(f"give method ({method}) or hparams ({hparams}), not both")
        values = read_method_yaml(str(hparams))
        warn_of_other_model(str(hparams), values.get("model_name"), model)
    elif model is None:
        what = "holds no edits" if folder.exists() else "is new"
        raise HparamsError(
            f"{folder} {what}, and no model is given; name one with --model, such as "
            "smollm2-135m (nse models lists some), to begin a new folder of edits"
        )
    else:
        values = values_for(method or "NSE", model)
    if model is not None:
        values["model_name"] = model
    if isinstance(values.get("model_name"), str):
        values["model_name"] = from_anywhere(values["model_name"])
    return hparams_from(hparams or values["alg_name"], _with_folder_defaults({**values, **given}))


def _with_folder_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters with the defaults of folders of edits for keys that a YAML leaves out: a
    second fact of a subject does not erase the first, an edit that does not take effect is
    repaired, and a subject at the beginning of a prompt can be edited."""
    method = METHODS.get(str(values.get("alg_name")))
    if method is None or not issubclass(method.hparams, SpreadHparams):
        return values
    changes: dict[str, Any] = {"merge_subjects": True, "repair_rounds": REPAIRS}
    if values.get("n_contexts", method.hparams.n_contexts):
        changes |= VARIANTS[method.name]["small-keys"].changes
    return {**changes, **values}


def _refuse_others(
    folder: Path,
    files: RunFiles,
    model: str | None,
    method: str | None,
    hparams: str | Path | None,
    chat: bool,
) -> None:
    """Raise :class:`DataError` if a folder was started with other settings than are given."""
    found = []
    if model is not None and from_anywhere(model) != from_anywhere(str(files.model_name)):
        found.append(f"model was {files.model_name!r}, is {model!r}")
    name, changes = split_changes(method or files.method)
    if find_method(name).name != files.method:
        found.append(f"method was {files.method}, is {name}")
    if chat and "chat" not in files.manifest["run"]:
        found.append("prompts were plain text, and chat is given")
    values: dict[str, Any] = {}
    if hparams is not None:
        values = read_method_yaml(str(hparams))
    elif method is not None and changes is not None and not found:
        values = values_for(method, str(files.model_name))
    if values:
        values["model_name"] = files.hparams["model_name"]  # compared above
        values["device"] = files.hparams["device"]  # which may change between calls
        made = hparams_from(hparams or values["alg_name"], _with_folder_defaults(values))
        now = as_json(made)
        found += differences(completed(files.hparams, now, made), now, "hparams")
    if found:
        raise DataError(
            f"{folder} was started with other settings: {'; '.join(found[:3])}; leave them out to "
            "add to it, or give another folder"
        )
