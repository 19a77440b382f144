"""Everything that a run is made of, from options or from a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams import read_yaml


@dataclass
class RunSettings:
    """Everything that a run is made of.

    Raises:
        HparamsError: a value is missing or of the wrong type.
    """

    hparams: str = ""
    """Name or path of a method's YAML."""
    data: str = ""
    """A benchmark's JSON file, ``atlas:N`` for N edits of the embedded world, or ``earth:N`` for N
    real facts; ``earth`` for all."""
    round_size: int = 100
    """Edits per round."""
    out: str = "run"
    """Folder of the run."""
    model: str | None = None
    """Model to load instead of the hparams' model_name."""
    device: str | None = None
    """``cpu``, or the number of a GPU, instead of the hparams' device."""
    stats_dir: str | None = None
    """Folder of the statistics, instead of the hparams'."""
    order: str = "given"
    """given, shuffled, or grouped by subject."""
    seed: int = 0
    """Seed of the order, of what is sampled, and of the facts that ``atlas:N`` or ``earth:N``
    draws."""
    limit: int | None = None
    """Read at most N records."""
    schema: str | None = None
    """Format of the records, e.g. ``counterfact``; by default recognised."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """What to do with a record that cannot be used."""
    known: bool = False
    """Keep the records whose true answer the untouched model gives, up to the limit."""
    held_out: str | None = None
    """Text file for the perplexity, one text per line; ``atlas`` for texts of the embedded world,
    the default for its models; ``none`` for no perplexity."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """Fields of the protocol, e.g. ``every: 5``."""
    stop: dict[str, Any] = field(default_factory=dict)
    """Fields of the stop rules, e.g. ``max_perplexity: 30``."""
    tensorboard: bool = False
    """Write scalars for TensorBoard to the run's folder."""
    wandb: str | None = None
    """Log to this project of Weights & Biases."""

    def __post_init__(self) -> None:
        for name in ("hparams", "data"):
            if not getattr(self, name):
                raise HparamsError(f"{name} is missing; give --{name}, or {name}: in the YAML")
        for name in ("round_size", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise HparamsError(f"{name} is {value!r}; give a whole number")

    @classmethod
    def read(cls, config: str | Path | None, given: Mapping[str, Any]) -> RunSettings:
        """From a YAML file and options; an option that is not None goes before the file.

        ``protocol`` and ``stop`` are merged key by key.
        """
        values: dict[str, Any] = {}
        if config is not None:
            values = read_yaml(Path(config))
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise HparamsError(f"{config}: unknown key {key!r}{did_you_mean(key, known)}")
        for key, value in given.items():
            if isinstance(value, Mapping):
                set_ones = {k: v for k, v in value.items() if v is not None}
                values[key] = {**(values.get(key) or {}), **set_ones}
            elif value is not None:
                values[key] = value
        return cls(**values)


@dataclass(frozen=True)
class DemoSettings:
    """What the demo lets a user choose; the rest of its run is set."""

    model: str = "atlas:gpt2"
    """Embedded model (``atlas:gpt2``, ``atlas:llama``), or a real one: ``smollm2-135m``."""
    edits: int = 0
    """Number of facts to edit; 0 for 100 on an embedded model and 30 on a real one."""
    rounds: int = 0
    """Number of rounds to edit them in; 0 for 10 on an embedded model and 3 on a real one."""
    seed: int = 0
    """Seed that chooses the facts."""
    out: str = "run-demo"
    """Folder of the run."""

    @property
    def embedded(self) -> bool:
        """Whether the model is one of the embedded world."""
        return self.model.startswith("atlas:")

    def __post_init__(self) -> None:
        edits, rounds = (100, 10) if self.embedded else (30, 3)
        if not self.edits:
            object.__setattr__(self, "edits", edits)
        if not self.rounds:
            object.__setattr__(self, "rounds", min(rounds, self.edits))
        if self.edits < 1:
            raise HparamsError(f"edits is {self.edits}; give a number above 0")
        if not 1 <= self.rounds <= self.edits:
            raise HparamsError(
                f"rounds is {self.rounds}; give 1 to {self.edits}, the number of edits"
            )
