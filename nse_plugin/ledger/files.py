"""The ledger on disk: one safetensors file per round, and a line of JSON about each.

``round-0001.safetensors`` holds the factors, neurons and keys of a round, and the rest of its
record as metadata; ``rounds.jsonl`` is for people and plots.  Nothing needs a model to be read.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nse_plugin.errors import DataError
from nse_plugin.files import write_whole
from nse_plugin.ledger.records import Ledger, Outcome, RoundRecord, Write

SCHEMA = 1
"""Version of the files; a reader refuses others."""


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
    }
    path = round_path(folder, record.number)
    write_whole(
        path, lambda temporary: save_file(tensors, temporary, {"record": json.dumps(header)})
    )
    return path


def load_round(path: Path) -> RoundRecord:
    """Read a round's file.

    Raises:
        DataError: the file is damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
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
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a whole round file ({error}); restore it") from error


def load_ledger(folder: Path) -> Ledger:
    """Read all rounds of a run directory.

    Raises:
        DataError: there is no round, one is missing, or a file is damaged.
    """
    ledger = Ledger()
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        raise DataError(f"{folder} holds no round-*.safetensors; give a run directory")
    for number, path in enumerate(paths, start=1):
        if path != round_path(folder, number):
            raise DataError(f"{folder} lacks {round_path(folder, number).name}; restore it")
        ledger.append(load_round(path))
    return ledger
