"""The settings of a comparison, from options or from a YAML file; does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from nse_plugin.hparams.validation import bounded
from nse_plugin.runs.order import Order
from nse_plugin.runs.settings import CommonSettings

Engine = Literal["serial", "processes", "ray"]

PROTOCOL: dict[str, Any] = {"every": 5, "generation": 100, "fluency": 0, "key_space": 0,
                            "weights": False, "each": True}  # fmt: skip
"""The default protocol: measure all earlier edits every 5 rounds and at the end, and free
generation for 100 of them."""


@dataclass
class CompareSettings(CommonSettings):
    """The settings of a comparison; names may be a list or a text with commas."""

    methods: str | list[str] = ""
    """NSE,ROME,...; variants as NSE:no-rewinding, NSE:p=0.6 or METHOD:key=value;key=value;
    NSE+OVERTONE; METHOD-plugin for this package's method inside EasyEdit."""
    models: str | list[str] = "atlas:gpt2"
    """atlas:gpt2,atlas:llama, model folders, or name=folder."""
    data: str = "atlas:200"
    rounds: int = bounded(10, low=1)
    """Number of rounds."""
    seeds: str | int | list[int] = "0,1,2"
    """Seeds of the draw and the order."""
    order: Order | None = None
    """given, shuffled or grouped; records of a file are shuffled by default."""
    reference: str | None = None
    """Method that the others are compared with; the first one by default."""
    hparams_dir: str | None = None
    """Folder with METHOD/MODEL.yaml, which override the shipped ones."""
    engine: Engine = "serial"
    """serial, processes or ray."""
    jobs: int = bounded(1, low=1)
    """Number of cells (one model, method and seed each) at a time."""
    threads: int = bounded(1, low=1)
    """Number of torch's threads in each cell."""
    out: str = "compared"
    """Folder of the comparison."""

    def conflicts(self) -> Iterator[str]:
        """Errors: no methods to compare, more than one job in one process, or no retention."""
        if not self.methods:
            yield "methods is missing; give --methods NSE,MEMIT, or methods: in the YAML"
        if self.jobs > 1 and self.engine == "serial":
            yield f"jobs is {self.jobs}; give --engine processes or ray for more than 1"
        if self.protocol.get("retention") == 0:
            yield "protocol.retention is 0, and a comparison is made of it; leave it out"
