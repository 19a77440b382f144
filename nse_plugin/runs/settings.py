"""Everything that a run is made of, from options or from a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """A benchmark's JSON file, or ``atlas`` or ``atlas:200`` for the embedded world's edits."""
    round_size: int = 100
    """Edits per round."""
    out: str = "run"
    """Folder of the run."""
    model: str | None = None
    """Another model than that of the hparams."""
    order: str = "given"
    """given, shuffled or grouped."""
    seed: int = 0
    """Of the order, the samples and the embedded world's draw."""
    limit: int | None = None
    """The first so many records."""
    held_out: str | None = None
    """Text file for the perplexity, one text a line, or ``atlas``; that is the default where the
    model is the embedded world's.  ``none`` measures no perplexity."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """Fields of the protocol, e.g. ``every: 5``."""
    stop: dict[str, Any] = field(default_factory=dict)
    """Fields of the stop rules, e.g. ``max_perplexity: 30``."""
    tensorboard: bool = False
    """Write scalars for TensorBoard to ``<out>/tensorboard``."""
    wandb: str | None = None
    """Project of Weights & Biases to log to."""

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
