"""The ledger on disk: one safetensors file per round, and a line of JSON about each.

``round-0001.safetensors`` holds the factors, neurons and keys of a round, and the rest of its
record as metadata; ``rounds.jsonl`` is for people and plots.  ``undone.json`` names the rounds that
were taken back, whose files stay.  Nothing needs a model to be read.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from nse_plugin.errors import DataError
from nse_plugin.files import checksum, write_json, write_whole
from nse_plugin.session.records import (
    AttachedState,
    Ledger,
    Outcome,
    RoundRecord,
    Undone,
    Write,
    later_trained,
    not_standing,
)

SCHEMA = 2
"""Version of the files; a reader refuses others."""
UNDONE = "undone.json"
_ROUND = re.compile(r"round-(\d+)\.safetensors")


def round_path(folder: Path, number: int) -> Path:
    """The file of a round, counted from 1."""
    return folder / f"round-{number:04d}.safetensors"


def save_round(folder: Path, record: RoundRecord) -> Path:
    """Write a round's file, all of it or nothing."""
    tensors: dict[str, torch.Tensor] = {}
    for index, write in enumerate(record.writes):
        for part in ("neurons", "left", "right"):
            tensors[f"write.{index}.{part}"] = getattr(write, part).contiguous()
    for layer, keys in record.keys.items():
        tensors[f"keys.{layer}"] = keys.contiguous()
    if record.state is not None:
        for name, tensor in record.state.tensors.items():
            tensors[f"state.{name}"] = tensor.contiguous()
    header = {
        "schema": SCHEMA,
        "number": record.number,
        "method": record.method,
        "outcomes": [dataclasses.asdict(outcome) for outcome in record.outcomes],
        "writes": [
            {
                "layer": write.layer,
                "pass_number": write.pass_number,
                "case_ids": write.case_ids,
                "key_mass": write.key_mass,
            }
            for write in record.writes
        ],
        "seconds": record.seconds,
        "state": record.state and {"kind": record.state.kind, "config": record.state.config},
    }
    path = round_path(folder, record.number)
    write_whole(
        path, lambda temporary: save_file(tensors, temporary, {"record": json.dumps(header)})
    )
    return path


def load_round(path: Path) -> RoundRecord:
    """Read a round's file into memory.

    Not through ``safe_open``, which keeps some 60 bytes for good of every tensor that it ever gave
    (safetensors 0.8.0), and the files of a long run are read many times.

    Raises:
        DataError: the file is damaged or of another version.
    """
    try:
        content = path.read_bytes()
        tensors: dict[str, Any] = load(content)  # sees to it that the file is whole
        length = int.from_bytes(content[:8], "little")
        header: dict[str, Any] = json.loads(
            json.loads(content[8 : 8 + length])["__metadata__"]["record"]
        )
        if header["schema"] != SCHEMA:
            raise DataError(
                f"{path} has schema {header['schema']}, and this version reads {SCHEMA}; "
                "read it with the version of nse_plugin that wrote it"
            )
        return RoundRecord(
            number=header["number"],
            method=header["method"],
            outcomes=tuple(Outcome(**outcome) for outcome in header["outcomes"]),
            writes=tuple(
                Write(
                    **{**write, "case_ids": tuple(write["case_ids"])},
                    **{
                        part: tensors[f"write.{index}.{part}"]
                        for part in ("neurons", "left", "right")
                    },
                )
                for index, write in enumerate(header["writes"])
            ),
            keys={
                int(name.removeprefix("keys.")): tensor
                for name, tensor in tensors.items()
                if name.startswith("keys.")
            },
            seconds=header["seconds"],
            state=_state(header["state"], tensors),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a whole round file ({error}); restore it") from error


def host_method(path: Path) -> str | None:
    """The host's method that a round file holds whole matrices of, or None for a ledger record.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return str(json.loads(metadata["host"])["method"]) if "host" in metadata else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a whole round file ({error}); restore it") from error


def _state(header: dict[str, Any] | None, tensors: dict[str, torch.Tensor]) -> AttachedState | None:
    if header is None:
        return None
    kept = {
        name.removeprefix("state."): tensor
        for name, tensor in tensors.items()
        if name.startswith("state.")
    }
    return AttachedState(header["kind"], header["config"], kept)


@dataclasses.dataclass(frozen=True, slots=True)
class RoundFile:
    """A round that lies in its file and is read whenever it is asked for.

    The file has to stay where it is while a ledger has the round.
    """

    number: int
    path: str
    counts: tuple[tuple[int, int], ...]
    """(layer, number of keys)."""

    @classmethod
    def of(cls, path: Path, record: RoundRecord) -> RoundFile:
        """The round in this file, which holds this record."""
        return cls(record.number, str(path), tuple(record.key_counts.items()))

    @property
    def key_counts(self) -> dict[int, int]:
        """By layer, how many keys the round has."""
        return dict(self.counts)

    def read(self) -> RoundRecord:
        """The round with its tensors.

        Raises:
            DataError: the file is gone or damaged.
        """
        return load_round(Path(self.path))


def load_rounds(paths: Iterable[Path]) -> Ledger:
    """A ledger of the rounds in some files, each of which is looked at once and left on disk.

    Raises:
        DataError: a file is damaged or of another version.
    """
    ledger = Ledger()
    for path in paths:
        ledger.append(RoundFile.of(path, load_round(path)))
    return ledger


def load_ledger(folder: Path) -> Ledger:
    """Read the rounds of a run directory that stand, and which were undone.

    Raises:
        DataError: there is no round, one is missing, or a file is damaged.
    """
    undone = load_undone(folder)
    ledger = load_rounds(_standing(folder, undone).values())
    ledger.undone = undone
    return ledger


def load_undone(folder: Path) -> list[Undone]:
    """The rounds of a run directory that were undone, in the order in which that was done.

    An entry counts for the file that it was made for: where a later run in the same folder wrote
    another round of that number, it is passed over.

    Raises:
        DataError: ``undone.json`` is damaged or of another version.
    """
    return [undone for undone, _ in _undone_entries(folder)]


def mark_undone(folder: Path, number: int, reason: str = "") -> list[int]:
    """Undo a round of a run directory, whose file is kept; returns the numbers that stand.

    Raises:
        DataError: the round was undone already, there is none, or it cannot be undone alone.
    """
    entries = _undone_entries(folder)
    undone = [entry for entry, _ in entries]
    standing = _standing(folder, undone)
    if number not in standing:
        raise DataError(f"{folder}: {not_standing(number, list(standing), undone)}")
    path = standing.pop(number)
    _refuse_host_round(path)
    if load_round(path).state is not None and number < max(standing, default=0):
        raise DataError(
            f"{folder}: round {number} cannot be undone alone: {later_trained(max(standing))}"
        )
    entries.append((Undone.now(number, reason), checksum(path)))
    content = [{**dataclasses.asdict(entry), "sha256": digest} for entry, digest in entries]
    write_json(folder / UNDONE, {"schema": SCHEMA, "undone": content})
    return list(standing)


def _undone_entries(folder: Path) -> list[tuple[Undone, str]]:
    path = folder / UNDONE
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] == SCHEMA:
            entries = [
                (Undone(int(e["number"]), str(e["time"]), str(e["reason"])), str(e["sha256"]))
                for e in found["undone"]
            ]
            files = {undone.number: round_path(folder, undone.number) for undone, _ in entries}
            return [
                (undone, digest)
                for undone, digest in entries
                if not (file := files[undone.number]).exists() or checksum(file) == digest
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}); restore it, or remove it to have all rounds stand"
        ) from error
    raise DataError(
        f"{path} has schema {found['schema']}, and this version reads {SCHEMA}; "
        "read it with the version of nse_plugin that wrote it"
    )


def _standing(folder: Path, undone: list[Undone]) -> dict[int, Path]:
    """Files of the rounds that stand, by number, rising."""
    found = [m for path in folder.glob("round-*.safetensors") if (m := _ROUND.fullmatch(path.name))]
    if not found:
        raise DataError(f"{folder} holds no round-*.safetensors; give a run directory")
    taken_back = {entry.number for entry in undone}
    standing = {}
    for number in range(1, max(int(match[1]) for match in found) + 1):
        path = round_path(folder, number)
        if number in taken_back:
            continue
        if not path.exists():
            raise DataError(f"{folder} lacks {path.name}; restore it")
        standing[number] = path
    return standing


def _refuse_host_round(path: Path) -> None:
    method = host_method(path)
    if method is not None:
        raise DataError(
            f"{path} holds whole matrices of the host's {method}, not what the round added, so it "
            "cannot be undone alone; only rounds of this package's methods can"
        )
