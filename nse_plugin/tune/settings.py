"""The settings of a search, from options; does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nse_plugin.hparams.validation import LARGEST_SEED, Settings, bounded


@dataclass
class TuneSettings(Settings):
    """The settings of a search.

    Raises:
        HparamsError: a value is missing, of the wrong type or out of range.
    """

    model: str = ""
    """Model to find settings for: a folder, a hub id, a .gguf file or a short name."""
    method: str = "NSE"
    """Methods to find settings for, e.g. NSE,MEMIT."""
    data: str = "earth"
    """Facts to try edits on: earth, atlas, or a benchmark's JSON file."""
    minutes: float = bounded(15.0, above=0)
    """Time for each method."""
    out: str = "tuned.yaml"
    """The YAML to write; for several methods a folder, which gets METHOD/MODEL.yaml."""
    edits: int = bounded(100, low=20)
    """Edits of the stream that decides the last stages; fewer if the time is short."""
    known: bool | None = None
    """Keep only records whose true answer the unedited model gives; the default for earth."""
    limit: int | None = bounded(None, low=1)
    """Read at most N records."""
    schema: str | None = None
    """Format of the records, e.g. counterfact; by default recognised."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """What to do with a record that cannot be used."""
    device: int | str | None = None
    """``cpu``, or the number of a GPU; by default the first GPU, if there is one."""
    source: str | None = None
    """Text of the covariance: factbook (the default), self, a file or a dataset."""
    stats_dir: str | None = None
    """Folder of the covariance statistics."""
    seed: int = bounded(0, low=0, high=LARGEST_SEED)
    """Seed that draws the facts."""

    def conflicts(self) -> Iterator[str]:
        """Errors: there is no model or method, or one file is to hold several methods."""
        if not self.model:
            yield "model is missing; give --model, e.g. --model smollm2-135m"
        if not self.methods:
            yield f"method is {self.method!r}; give at least one, e.g. NSE"
        if len(self.methods) > 1 and self.one_file:
            yield (
                f"out is {self.out!r}, one YAML, and method names {len(self.methods)} methods; "
                "give a folder"
            )

    @property
    def methods(self) -> list[str]:
        """The methods by name."""
        return [name for part in self.method.split(",") if (name := part.strip())]

    @property
    def only_known(self) -> bool:
        """Whether only facts that the model knows are used."""
        return self.data.startswith("earth") if self.known is None else self.known

    @property
    def one_file(self) -> bool:
        """Whether ``out`` is a YAML and not a folder."""
        return self.out.endswith((".yaml", ".yml"))
