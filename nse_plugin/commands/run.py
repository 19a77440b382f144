"""A run of sequential rounds, described by options or by a YAML file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nse_plugin import host as hosting
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import held_out_texts, read_data
from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.hparams import Hparams, read_method_yaml, read_yaml
from nse_plugin.methods.registry import METHODS, hparams_from
from nse_plugin.runs.listeners import Listener, TensorBoard, WandB, progress
from nse_plugin.runs.result import RunResult
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.stopping import StopRules
from nse_plugin.session.session import EditSession


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


def make_scheduler(settings: RunSettings, show: Callable[[str], None]) -> SequentialScheduler:
    """Load model and data, and build the scheduler."""
    hparams = read_hparams(settings.hparams, settings.model)
    requests = read_data(settings.data, settings.limit, settings.seed)
    protocol = Protocol.from_dict({"seed": settings.seed, **settings.protocol})
    try:
        rules = StopRules(**settings.stop)
    except TypeError as error:
        known = [f.name for f in dataclasses.fields(StopRules)]
        raise HparamsError(f"stop: {error}; there are: {', '.join(known)}") from error
    out = Path(settings.out)
    listeners: list[Listener] = [progress(show)]
    if settings.tensorboard:
        listeners.append(TensorBoard(out / "tensorboard"))
    if settings.wandb:
        listeners.append(WandB(settings.wandb, out.name))
    subject: Any
    if isinstance(hparams, Hparams):
        model, tokenizer, name = load_model(hparams)
        subject = EditSession.of(model, tokenizer)
    else:
        subject = hosting.BaseEditor.from_hparams(hparams)
        model, name = subject.model, str(subject.model_name)
    scheduler = SequentialScheduler(
        subject,
        requests,
        settings.round_size,
        protocol,
        out,
        rules,
        hparams=hparams,
        order=settings.order,
        seed=settings.seed,
        held_out=held_out_texts(settings.held_out, name, requests),
        listeners=listeners,
    )
    return scheduler


def run(settings: RunSettings, show: Callable[[str], None]) -> RunResult:
    """Do the run, or go on with it."""
    return make_scheduler(settings, show).run()


def read_hparams(name: str, model: str | None = None) -> Any:
    """Hyperparameters of the method that the YAML names.

    Where EasyEdit is the host and has a method of that name they are EasyEdit's own, as in its
    editor; ``alg_name: NAME-plugin`` asks for ours.
    """
    values = read_method_yaml(name)
    if model is not None:
        values["model_name"] = model
    if hosting.host() == "easyedit":
        from nse_plugin.easyedit.hparams import host_hparams
        from nse_plugin.easyedit.register import has_own

        if has_own(values["alg_name"]) or values["alg_name"].removesuffix("-plugin") not in METHODS:
            return host_hparams(values)
    return hparams_from(name, values)
