"""The rounds of a ledger on disk: one safetensors file each.

``round-0001.safetensors`` holds the factors, neurons, keys and values of a round, and the rest of
its record as metadata.  No model is needed to read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from nse_plugin.errors import DataError
from nse_plugin.files import checksum, write_whole
from nse_plugin.model.weights import all_finite
from nse_plugin.requests import EditRequest
from nse_plugin.session.ledger import Ledger
from nse_plugin.session.moments import Moments
from nse_plugin.session.records import ActiveRound, AttachedState, Outcome, RoundRecord, Write

SCHEMA = 4
"""Version of the files; a reader refuses others."""
_HOST = "host"
"""Metadata key of the description of a round that a host wrote."""


class Saved(NamedTuple):
    """A written round file."""

    path: Path
    sha256: str


def by_number(path: Path) -> tuple[int, str]:
    """Sorts the files of rounds by their numbers, which have four digits or more."""
    return len(path.name), path.name


def round_path(folder: Path, number: int) -> Path:
    """The file of a round; numbers begin at 1."""
    return folder / f"round-{number:04d}.safetensors"


def save_round(folder: Path, record: RoundRecord) -> Saved:
    """Write a round's file, in full or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for index, write in enumerate(record.writes):
        for part in ("neurons", "left", "right"):
            tensor = getattr(write, part)
            if tensor is not None:
                tensors[f"write.{index}.{part}"] = tensor.contiguous()
    for layer, keys in record.keys.items():
        tensors[f"keys.{layer}"] = keys.contiguous()
    if record.z is not None:
        tensors["z"] = record.z.contiguous()
    for layer, found in record.moments.items():
        tensors[f"moments.{layer}"] = torch.stack([found.mean, found.squares])
    if record.state is not None:
        for name, tensor in record.state.tensors.items():
            tensors[f"state.{name}"] = tensor.contiguous()
    header = {
        "schema": SCHEMA,
        "number": record.number,
        "method": record.method,
        "d_ff": record.d_ff,
        "outcomes": [asdict(outcome) for outcome in record.outcomes],
        **({"consolidates": [entry.number for entry in record.within]} if record.within else {}),
        **({"left_out": record.left_out} if record.left_out else {}),
        **({"put_back": True} if record.put_back else {}),
        "requests": [request.to_json() for request in record.requests],
        "writes": [
            {
                "layer": write.layer,
                "pass_number": write.pass_number,
                "case_ids": write.case_ids,
                "key_mass": write.key_mass,
            }
            for write in record.writes
        ],
        "key_counts": {str(layer): count for layer, count in record.key_counts.items()},
        "moments": {str(layer): found.count for layer, found in record.moments.items()},
        "seconds": record.seconds,
        "state": record.state and {"kind": record.state.kind, "config": record.state.config},
    }
    return _saved(round_path(folder, record.number), tensors, {"record": json.dumps(header)})


def load_round(path: Path, sha256: str | None = None) -> RoundRecord:
    """Read a round's file into memory.

    ``safe_open`` is not used: it leaks some 60 bytes per tensor (safetensors 0.8.0), and the files
    of a long run are read many times.

    Args:
        sha256: the checksum that the file should have, if known.

    Raises:
        DataError: the file is damaged, holds NaN or infinity, or is of another version.
    """
    with _readable(path):
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise damaged(path)
        tensors: dict[str, Any] = load(content)  # checks that the file is whole
        header = _record(path, _metadata(content))
        for name, tensor in tensors.items():
            if not name.startswith("state.") and not all_finite(tensor):
                raise DataError(f"{path} is damaged: {name} holds NaN or infinity; restore it")
        return replace(
            _without_tensors(header),
            writes=tuple(
                Write(
                    **{**write, "case_ids": tuple(write["case_ids"])},
                    neurons=tensors[f"write.{index}.neurons"],
                    left=tensors.get(f"write.{index}.left"),
                    right=tensors[f"write.{index}.right"],
                )
                for index, write in enumerate(header["writes"])
            ),
            keys={int(layer): tensors[f"keys.{layer}"] for layer in header["key_counts"]},
            state=_state(header["state"], tensors),
            z=tensors.get("z"),
            moments={
                int(layer): Moments(count, *tensors[f"moments.{layer}"])
                for layer, count in header.get("moments", {}).items()
            },
        )


def save_matrices(path: Path, tensors: Mapping[str, torch.Tensor], about: Any) -> Saved:
    """Write a host's round as whole matrices, in full or not at all.

    Args:
        about: the description of the round, for JSON, with the ``method``.
    """
    return _saved(path, dict(tensors), {_HOST: json.dumps(about)})


def read_matrices(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the matrices and the description that :func:`save_matrices` wrote.

    Raises:
        DataError: the file is damaged.
    """
    with _readable(path), safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {}).get(_HOST, "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


def damaged(path: Path, log: str = "rounds.jsonl") -> DataError:
    """The error for a round file whose checksum differs from that in the log of the rounds."""
    return DataError(f"{path} is damaged: its checksum is not that in {log}; {lost_round(path)}")


def lost_round(path: Path) -> str:
    """The way out if the file of a round is lost, for messages."""
    number = path.stem.rpartition("-")[2].lstrip("0")
    return (
        "restore the file from a copy, or leave the round out: "
        f"nse undo {quote(str(path.parent))} --round {number}"
    )


def host_method(path: Path) -> str | None:
    """The host's method that wrote a round file; None if the file holds a ledger record.

    Raises:
        DataError: the file is damaged.
    """
    with _readable(path):
        metadata = _metadata_of(path)
        return str(json.loads(metadata[_HOST])["method"]) if _HOST in metadata else None


@dataclass(frozen=True, slots=True)
class RoundFile:
    """A round that stays in its file and is read each time it is needed.

    The file must stay in place while a ledger has the round.
    """

    number: int
    path: str
    edits: int
    key_counts: dict[int, int]
    """Number of keys by edited layer."""
    d_ff: int | None
    sha256: str | None
    """The checksum that the file should have, if known."""
    consolidates: tuple[int, ...] = ()
    """Numbers of the rounds that it takes the place of."""
    within: tuple[ActiveRound, ...] = ()
    """Those rounds; set by :func:`load_rounds`."""
    left_out: tuple[int, ...] = ()
    """See :attr:`RoundRecord.left_out`."""
    put_back: bool = False
    """See :attr:`RoundRecord.put_back`."""
    rewrites: tuple[int, ...] = ()
    """See :attr:`RoundRecord.rewrites`."""
    method: str = ""
    """Name of the method that wrote it."""
    new_edits: int = 0
    """See :attr:`RoundRecord.new_edits`."""
    marks: tuple[bytes, ...] = ()
    """See :attr:`RoundRecord.marks`."""

    @classmethod
    def at(cls, path: Path, sha256: str | None = None) -> RoundFile:
        """The round in this file; only the header is read."""
        with _readable(path):
            header = _record(path, _metadata_of(path))
            record = _without_tensors(header)
            return cls(
                number=record.number,
                path=str(path),
                edits=record.edits,
                key_counts={int(layer): int(n) for layer, n in header["key_counts"].items()},
                d_ff=record.d_ff,
                sha256=sha256,
                consolidates=tuple(header.get("consolidates", ())),
                left_out=record.left_out,
                put_back=record.put_back,
                rewrites=record.rewrites,
                method=record.method,
                new_edits=record.new_edits,
                marks=record.marks,
            )

    def head(self) -> RoundRecord:
        """The round without its tensors; the checksum of the file is not compared."""
        path = Path(self.path)
        with _readable(path):
            return replace(_without_tensors(_record(path, _metadata_of(path))), within=self.within)

    def read(self) -> RoundRecord:
        """The round with its tensors."""
        return replace(load_round(Path(self.path), self.sha256), within=self.within)


def load_rounds(
    paths: Iterable[Path],
    sums: Mapping[Path, str] | None = None,
    lost: Collection[int] = (),
) -> Ledger:
    """A ledger of the rounds in some files; only the headers are read now.

    Args:
        sums: checksums of the files, compared when their rounds are read.
        lost: rounds without a file, which may be missing inside a consolidation.

    Raises:
        DataError: another round inside a consolidation is missing, or a file is damaged.
    """
    ledger = Ledger()
    for path in paths:
        entry = RoundFile.at(path, (sums or {}).get(path))
        if entry.consolidates:
            before = ledger.active()
            expected = [number for number in entry.consolidates if number not in lost]
            if expected != [inner.number for inner in before]:
                raise DataError(
                    f"{path} takes the place of rounds {list(entry.consolidates)}, and there are "
                    f"{ledger.numbers()}; restore the files of those rounds"
                )
            ledger.truncate(0)
            entry = replace(entry, within=tuple(before))
        ledger.append(entry)
    return ledger


def _saved(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Saved:
    """Write a file, in full or not at all."""
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))
    return Saved(path, checksum(path))


def _metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors."""
    with path.open("rb") as file:
        start = file.read(8)
        length = min(int.from_bytes(start, "little"), path.stat().st_size)
        return _metadata(start + file.read(length))


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    found: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return found


def _record(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(metadata["record"])
    if header["schema"] != SCHEMA:
        raise DataError(
            f"{path} has schema {header['schema']}, and this version reads {SCHEMA}; "
            "read it with the version of nse_plugin that wrote it"
        )
    return header


def _without_tensors(header: Mapping[str, Any]) -> RoundRecord:
    """The parts of a round that its header holds."""
    return RoundRecord(
        number=int(header["number"]),
        method=str(header["method"]),
        outcomes=tuple(Outcome(**outcome) for outcome in header["outcomes"]),
        seconds=header["seconds"],
        d_ff=header["d_ff"],
        requests=tuple(EditRequest.from_json(each) for each in header["requests"]),
        left_out=tuple(header.get("left_out", ())),
        put_back=bool(header.get("put_back", False)),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors inside into a :class:`DataError` that says the file is damaged."""
    try:
        yield
    except DataError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError,
            RecursionError) as error:  # fmt: skip
        raise DataError(
            f"{path} is not a whole round file ({error}); {lost_round(path)}"
        ) from error


def _state(header: dict[str, Any] | None, tensors: dict[str, torch.Tensor]) -> AttachedState | None:
    if header is None:
        return None
    kept = {
        name.removeprefix("state."): tensor
        for name, tensor in tensors.items()
        if name.startswith("state.")
    }
    return AttachedState(header["kind"], header["config"], kept)
