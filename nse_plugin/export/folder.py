"""The folder of an export: its manifest and checksums, and an atomic rename when complete."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nse_plugin.errors import DataError, ModelError, SessionError
from nse_plugin.files import checksum, write_json
from nse_plugin.model.weights import fingerprint
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import model_fingerprint, same_model
from nse_plugin.version import __version__

MANIFEST = "nse_export.json"
"""The file with the kind of the export and its model."""
SCHEMA = 1


def refuse_used(folder: Path) -> None:
    """Raise :class:`DataError` if a folder is a file or is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "holds files already" if folder.is_dir() else "is a file"
        raise DataError(f"{folder} {what}; give the name of a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, which is renamed to it if the block succeeds.

    Raises:
        DataError: the folder is a file, holds something, or cannot be written.
    """
    refuse_used(folder)
    folder = folder.absolute()
    for left in folder.parent.glob(f"{glob.escape(folder.name)}.*.tmp"):
        pid = left.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):  # it was killed
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        (probe := temporary / "probe").touch()
        usual = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(usual)  # only the owner may read a file that safetensors writes
                with path.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write {folder}: {error}; free space, fix the permissions, or give another "
            "folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def edited_layers(session: EditSession) -> list[int]:
    """The layers that the active rounds changed, in order.

    Raises:
        SessionError: there are none, modules are attached to the model instead, or the weights were
            changed outside the session.
    """
    session.check()
    if session.attached.kind is not None:
        raise SessionError(
            f"the rounds of this session are in what is attached to the model "
            f"({session.attached.kind!r}), not in its weights; adapters of LoRA can be exported "
            "with to_peft(), and nothing else of the kind"
        )
    known = {layer for entry in session.ledger.active() for layer in entry.key_counts}
    weights, layout = session.weights, session.layout
    layers = [n for n in sorted(known) if weights.change(layout.down_name(n)) is not None]
    if not layers:
        raise SessionError(
            "there is nothing to export: no round is active; edit first, or adopt the "
            "ledger of a run"
        )
    return layers


def total_change(session: EditSession, layer: int) -> torch.Tensor:
    """The accumulated change of an edited layer, float32 [d_model, d_ff]."""
    change = session.weights.change(session.layout.down_name(layer))
    assert change is not None  # of a layer that an active round wrote
    return session.layout.to_weight(change)  # a transposition, so it is its own inverse


def write_manifest(
    folder: Path,
    session: EditSession,
    kind: str,
    *,
    hashed: Iterable[str] = (),
    more: Mapping[int, Mapping[str, Any]] | None = None,
) -> None:
    """Write the manifest of an export whose other files are there.

    Args:
        hashed: files whose checksums are kept.
        more: further entries by layer.
    """
    layout, weights = session.layout, session.weights
    parameters = {}
    for layer in [] if session.attached.kind is not None else edited_layers(session):
        name = layout.down_name(layer)
        original, edited = weights.original(name), layout.down(layer).weight
        parameters[name] = {
            "layer": layer,
            "shape": list(original.shape),
            "dtype": str(original.dtype).removeprefix("torch."),
            "original": fingerprint(original),
            "edited": fingerprint(edited),
            **((more or {}).get(layer, {})),
        }
    write_json(
        folder / MANIFEST,
        {
            "made_by": "nse export",
            "schema": SCHEMA,
            "kind": kind,
            "version": __version__,
            "model": layout.loaded_from,
            "fingerprint": model_fingerprint(layout),
            "dtype": str(layout.model.dtype).removeprefix("torch."),
            "rounds": len(session.ledger),
            "edits": session.ledger.edits(),
            "parameters": parameters,
            "sha256": {name: checksum(folder / name) for name in hashed},
        },
    )


def read_export(folder: Path, kind: str) -> dict[str, Any]:
    """Read a folder's manifest, and compare the files with their checksums.

    Raises:
        DataError: there is none, it is damaged, of another version or kind, or a file differs.
    """
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise DataError(
                f"{path} has schema {found['schema']!r}, and this version reads {SCHEMA}; read it "
                "with the version of nse_plugin that wrote it"
            )
        if found["kind"] != kind:
            raise DataError(
                f"{folder} is an export of kind {found['kind']!r}, not {kind!r}; read it with "
                "from_peft, from_delta, or from_pretrained where it is 'full'"
            )
        for name, expected in found["sha256"].items():
            if checksum(folder / name) != expected:
                raise DataError(
                    f"{folder / name} is damaged: its checksum is not that of {MANIFEST}; "
                    "export again"
                )
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is not there; give a folder that `nse export --to {kind}` wrote"
        ) from error
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged ({error}); export again") from error
    return found


def check_model(folder: Path, manifest: Mapping[str, Any], session: EditSession) -> None:
    """Raise :class:`ModelError` if an export was made from another model than the session's."""
    here = model_fingerprint(session.layout)
    if not same_model(manifest["fingerprint"], here):
        raise ModelError(
            f"{folder} was made from another model: {manifest['model']!r} with fingerprint "
            f"{manifest['fingerprint']}, and this one has {here}; load the model it was made from"
        )


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file, in main memory.

    Raises:
        DataError: the file is not there or damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error}); restore it") from error
