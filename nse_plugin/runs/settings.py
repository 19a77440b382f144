"""The settings of a run, from options or from a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from nse_plugin.errors import HparamsError
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams.validation import LARGEST_SEED, Settings, bounded, group
from nse_plugin.runs.order import Order
from nse_plugin.runs.stopping import StopRules


@dataclass
class CommonSettings(Settings):
    """The settings that a run and a comparison have in common."""

    data: str = ""
    """A benchmark's JSON file, ``atlas:N`` for N edits of the embedded world, or ``earth:N`` for N
    real facts; ``earth`` for all."""
    limit: int | None = bounded(None, low=1)
    """Read at most N records."""
    schema: str | None = None
    """Format of the records, e.g. ``counterfact``; by default recognised."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """What to do with a record that cannot be used."""
    known: bool = False
    """Keep only records whose true answer the unedited model gives, up to the limit."""
    device: int | str | None = None
    """``cpu``, or the number of a GPU, instead of the YAML's device."""
    stats_dir: str | None = None
    """Folder of the statistics, instead of the YAML's; by default ``./data/stats`` if it is there,
    else one in the cache."""
    protocol: dict[str, Any] = field(default_factory=dict, metadata=group(Protocol))
    """Fields of the protocol, e.g. ``every: 5``."""
    chat: bool = False
    """Put every prompt into the model's chat template, for editing and measuring; the edit then
    makes replies begin with the answer (not recommended for facts, see docs/scores.md)."""
    held_out: str | None = None
    """Text file for the perplexity, one text per line; ``atlas`` for texts of the embedded world,
    the default for its models; ``factbook`` for real prose; ``none`` for no perplexity."""
    stop: dict[str, Any] = field(default_factory=dict, metadata=group(StopRules))
    """Fields of the stop rules, e.g. ``max_perplexity: 30``."""


@dataclass
class RunSettings(CommonSettings):
    """The settings of a run."""

    hparams: str = ""
    """Name or path of a method's YAML."""
    method: str = ""
    """Instead of a YAML: the method to use on --model, such as NSE or NSE:stable. The YAML that
    ships for both is used, or general settings if there is none."""
    round_size: int = bounded(100, low=1)
    """Edits per round."""
    out: str = "run"
    """Folder of the run."""
    model: str | None = None
    """Model to load instead of the YAML's model_name."""
    order: Order = "given"
    """given, shuffled, or grouped by subject."""
    seed: int = bounded(0, low=0, high=LARGEST_SEED)
    """Seed of the order, of what is sampled, and of the facts that ``atlas:N`` or ``earth:N``
    draws."""
    tensorboard: bool = False
    """Write scalars for TensorBoard to the run's folder."""
    wandb: str | None = None
    """Log to this project of Weights & Biases."""

    def conflicts(self) -> Iterator[str]:
        """Errors: the method or the data is missing, or the method is given twice."""
        if not self.data:
            yield "data is missing; give --data, or data: in the YAML"
        if self.hparams and self.method:
            yield f"hparams is {self.hparams!r} and method is {self.method!r}; leave one out"
        if not self.hparams and not self.method:
            yield "hparams is missing; give --hparams, or --method with --model"
        if self.method and not self.model and not self.hparams:
            yield f"method is {self.method!r} and model is missing; give --model too"


@dataclass
class DemoSettings(Settings):
    """The options of the demo; all other settings of its run are fixed."""

    model: str = "atlas:gpt2"
    """Embedded model (``atlas:gpt2``, ``atlas:llama``), or a real one: ``smollm2-135m``."""
    edits: int = bounded(0, low=0)
    """Number of facts to edit; 0 for 100 on an embedded model and 30 on a real one."""
    rounds: int = bounded(0, low=0)
    """Number of rounds to edit them in; 0 for 10 on an embedded model and 3 on a real one."""
    seed: int = bounded(0, low=0, high=LARGEST_SEED)
    """Seed that chooses the facts."""
    out: str = "run-demo"
    """Folder of the run."""

    @property
    def embedded(self) -> bool:
        """Whether the model is one of the embedded world."""
        return self.model.startswith("atlas:")

    def __post_init__(self) -> None:
        super().__post_init__()
        edits, rounds = (100, 10) if self.embedded else (30, 3)
        self.edits = self.edits or edits
        self.rounds = self.rounds or min(rounds, self.edits)
        if self.rounds > self.edits:
            raise HparamsError(
                f"rounds is {self.rounds}; give 1 to {self.edits}, the number of edits"
            )
