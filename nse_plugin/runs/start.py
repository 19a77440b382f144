"""A run of sequential rounds, made from its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nse_plugin import host as hosting
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import held_out_texts, read_data
from nse_plugin.errors import HparamsError
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.hparams import Hparams, read_method_yaml
from nse_plugin.methods.registry import METHODS, hparams_from
from nse_plugin.runs.listeners import Listener, TensorBoard, WandB, progress
from nse_plugin.runs.result import RunResult
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.stopping import StopRules
from nse_plugin.session.session import EditSession


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
