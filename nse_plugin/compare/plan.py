"""A comparison as a grid of cells (model x method x seed), and its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse_plugin.compare.results import SCHEMA
from nse_plugin.compare.settings import CompareSettings
from nse_plugin.compare.specs import UNTOUCHED, MethodSpec
from nse_plugin.data.defaults import model_key
from nse_plugin.data.models import from_anywhere
from nse_plugin.errors import DataError, HparamsError
from nse_plugin.files import explained, read_json, write_json
from nse_plugin.hparams.validation import LARGEST_SEED
from nse_plugin.runs.differences import differences
from nse_plugin.runs.directory import claimed


@dataclass(frozen=True)
class ModelSpec:
    """One entry of ``--models``: ``atlas:gpt2``, ``gpt2-xl``, a folder, or ``name=folder``."""

    key: str
    """Name of its YAMLs and of its folder: ``atlas-gpt2``."""
    source: str
    """The model to load."""

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read an entry; the key of a folder is its last part.

        Raises:
            HparamsError: a part is empty.
        """
        key, equals, source = text.strip().partition("=")
        source = source if equals else key
        if not equals:
            key = model_key(source)
        if not key or not source or "/" in key:
            raise HparamsError(
                f"models has {text!r}; give e.g. atlas:gpt2, a folder, or gpt2-xl=/path/to/it"
            )
        return cls(key, from_anywhere(source))


_LASTING = (
    "data", "rounds", "limit", "schema", "on_bad_record", "known", "chat", "order", "held_out",
    "protocol", "stop",
)  # fmt: skip


def lasting(settings: CompareSettings) -> dict[str, Any]:
    """The settings that stay the same when methods, models and seeds are added."""
    values = dataclasses.asdict(settings)
    return {name: values[name] for name in _LASTING} | {"stop": settings.stop or None}


@dataclass(frozen=True)
class Cell:
    """One cell, with all that a worker needs, as values that can be pickled."""

    spec: MethodSpec
    model: ModelSpec
    seed: int
    settings: CompareSettings
    """With absolute paths, since a cell may run elsewhere."""
    untouched: bool = False
    """Nothing is edited; ``spec`` only determines how the model is loaded."""

    @property
    def method(self) -> str:
        """The name of its row."""
        return UNTOUCHED if self.untouched else self.spec.name

    @property
    def place(self) -> Path:
        """``<model>/<method>/<seed>``."""
        method = UNTOUCHED if self.untouched else self.spec.folder
        return Path(self.model.key) / method / str(self.seed)

    def values(self) -> dict[str, Any]:
        """The keys of its method's YAML with all changes made.

        Raises:
            HparamsError: there is no YAML for this model, or it is damaged.
        """
        folder = None if self.settings.hparams_dir is None else Path(self.settings.hparams_dir)
        values = self.spec.values(self.model.key, self.model.source, folder)
        if self.settings.device is not None:
            values["device"] = str(self.settings.device)
        return values

    @property
    def order(self) -> str:
        """The order of its stream."""
        return self.settings.order or "given"

    @property
    def device(self) -> str:
        """Device of its model."""
        return str(self.values().get("device", "cpu"))

    @property
    def run_dir(self) -> Path:
        """Folder of the scheduler's run."""
        return Path(self.settings.out) / "cells" / self.place

    def rounds_done(self) -> int:
        """The number of rounds that its run has on disk."""
        with suppress(OSError):
            return (self.run_dir / "rounds.jsonl").read_bytes().count(b"\n")
        return 0

    @property
    def result(self) -> Path:
        """File of its result."""
        return Path(self.settings.out) / "results" / self.place.with_suffix(".json")

    @property
    def stream(self) -> Path:
        """File of the facts that the model knows; the first cell of a model and seed writes it."""
        return Path(self.settings.out) / "streams" / self.model.key / f"{self.seed}.jsonl"

    @property
    def untouched_runs(self) -> Path:
        """Folder of the untouched runs of its model, of all seeds."""
        return Path(self.settings.out) / "cells" / self.model.key / UNTOUCHED

    @property
    def shared_values(self) -> Path:
        """Folder of the values that cells of its model share."""
        return Path(self.settings.out) / "values" / self.model.key

    def __str__(self) -> str:
        return f"{self.model.key} {self.method} seed {self.seed}"


def grid(
    specs: Sequence[MethodSpec],
    models: Sequence[ModelSpec],
    seeds: Sequence[int],
    settings: CompareSettings,
) -> list[Cell]:
    """All cells; first those of the untouched model, whose answers the others share.

    Raises:
        HparamsError: a seed or a model comes twice, or a seed is out of range.
    """
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise HparamsError(f"seeds has {seed}; give whole numbers from 0 to {LARGEST_SEED}")
    for name, given in (("seeds", seeds), ("models", [model.key for model in models])):
        if len(set(given)) < len(given):
            raise HparamsError(f"{name} is {','.join(map(str, given))}; give each once")
    untouched = [
        Cell(specs[0], model, seed, settings, untouched=True) for model in models for seed in seeds
    ]
    return untouched + [
        Cell(spec, model, seed, settings) for model in models for spec in specs for seed in seeds
    ]


@contextmanager
def claimed_for(settings: CompareSettings) -> Iterator[None]:
    """Begin a comparison in its folder, or check that the folder holds it, and keep other
    processes out.

    Raises:
        DataError: it holds something else or a comparison with other settings, or another
            process is working in it.
    """
    folder = Path(settings.out)
    manifest, wanted = folder / "comparison.json", json.loads(json.dumps(lasting(settings)))
    with claimed(folder, manifest.name, "the comparison"):
        if not manifest.is_file():
            with explained(manifest, "free space or fix the permissions"):
                content = {"made_by": "nse compare", "schema": SCHEMA, "settings": wanted}
                write_json(manifest, content)
        kept = read_json(manifest, "give another folder")
        if kept.get("schema") != SCHEMA or kept.get("made_by") != "nse compare":
            raise DataError(f"{manifest} is of another version; give another folder")
        found = differences(kept["settings"], wanted)
        if found:
            raise DataError(
                f"{folder} holds another comparison: {'; '.join(found[:4])}. Give another "
                "folder, or the same settings to resume it; methods, models and seeds may be added"
            )
        yield


def round_size(edits: int, rounds: int) -> int:
    """Edits per round, rounded up; the last round may be smaller, and there may be fewer rounds."""
    return -(-edits // rounds)
