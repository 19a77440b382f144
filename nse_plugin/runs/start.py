"""Start or resume a run from its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nse_plugin import host as hosting
from nse_plugin.data.defaults import values_for
from nse_plugin.data.models import from_anywhere, load_model
from nse_plugin.data.streams import held_out_source, held_out_texts, read_data, settled
from nse_plugin.errors import HparamsError
from nse_plugin.evaluation.known import keep_known
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.hparams import Hparams
from nse_plugin.hparams.variants import read_method_yaml
from nse_plugin.methods.registry import METHODS, hparams_from
from nse_plugin.requests import EditRequest
from nse_plugin.runs.directory import run_directory
from nse_plugin.runs.listeners import Listener, TensorBoard, WandB, progress
from nse_plugin.runs.reading import RunResult
from nse_plugin.runs.reopen import chat_tokenizer
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.settings import CommonSettings, RunSettings
from nse_plugin.runs.stopping import StopRules
from nse_plugin.session.session import EditSession

log = logging.getLogger(__name__)


def run(settings: RunSettings, show: Callable[[str], None]) -> RunResult:
    """Start the run, or resume it.

    Args:
        show: prints a line for people.
    """
    with progress(show) as told:
        return make_scheduler(settings, [told]).run()


def make_scheduler(
    settings: RunSettings, listeners: Sequence[Listener] = ()
) -> SequentialScheduler:
    """Load model and data, and build the scheduler; listeners also hear of the loading."""
    hparams = read_hparams(
        settings.hparams or values_for(settings.method, str(settings.model)),
        model_name=settings.model,
        device=settings.device,
        stats_dir=settings.stats_dir,
    )
    requests = read_requests(settings, settings.seed)
    out = Path(settings.out)
    with run_directory(out):  # an error now, not after the model is loaded
        pass
    protocol = Protocol.from_dict({"seed": settings.seed, **settings.protocol})
    rules = StopRules.from_dict(settings.stop)
    source = held_out_source(settings.held_out, str(hparams.model_name))
    rules.refuse_unmeasured(protocol, source != "none")
    told = list(listeners)
    if settings.tensorboard:
        told.append(TensorBoard(out / "tensorboard"))
    if settings.wandb:
        told.append(WandB(settings.wandb, out.name))
    for listener in told:
        listener("phase", {"name": "loading the model"})
    edited: Any
    if isinstance(hparams, Hparams):
        model, tokenizer, name = load_model(hparams)
        tokenizer = chat_tokenizer(tokenizer, out) if settings.chat else tokenizer
        edited = EditSession.of(model, tokenizer)
    elif settings.chat:
        raise HparamsError(
            f"chat is true, and EasyEdit's {hparams.alg_name} edits plain prompts; give a method "
            f"of this package (alg_name: {hparams.alg_name}-plugin), or leave chat out"
        )
    else:
        edited = hosting.BaseEditor.from_hparams(hparams)
        model, tokenizer, name = edited.model, edited.tok, str(edited.model_name)
    if settings.known:
        requests = _known_only(settings, requests, model, tokenizer, told)
    return SequentialScheduler(
        edited,
        requests,
        settings.round_size,
        protocol,
        out,
        rules,
        hparams=hparams,
        order=settings.order,
        seed=settings.seed,
        held_out=held_out_texts(settings.held_out, name, requests),
        listeners=told,
    )


def read_requests(settings: CommonSettings, seed: int) -> list[EditRequest]:
    """The requests of a seed; with ``known``, those among which the known ones are to be found.

    Raises:
        DataError: the data cannot be read.
    """
    return read_data(
        settings.data,
        None if settings.known else settings.limit,
        seed,
        schema=settings.schema,
        on_bad=settings.on_bad_record,
        choose=settings.known,
    )


def _known_only(
    settings: RunSettings,
    requests: Sequence[EditRequest],
    model: nn.Module,
    tokenizer: Any,
    told: Sequence[Listener],
) -> list[EditRequest]:
    """The requests whose true answer the model produces; a note says how many they are."""
    for listener in told:
        listener("phase", {"name": "asking what the model knows"})
    known = keep_known(model, tokenizer, requests, limit=settings.limit)
    text = str(known)
    name, _, count = settings.data.partition(":")
    wanted = min(int(count), settings.limit or int(count)) if name == "earth" and count else 0
    if len(known.requests) < wanted:  # earth:N draws N facts first, and then asks the model
        text += f"; for {wanted} known facts use --data earth --known --limit {wanted}"
    for listener in told:
        listener("note", {"text": text})
    for prompt, kept, asked in known.shares():
        log.info("known: %d of %d of %r", kept, asked, prompt)
    return settled(settings.data, known.requests)


def read_hparams(given: str | dict[str, Any], **changes: Any) -> Any:
    """The hyperparameters of the method that a YAML names.

    If EasyEdit is the host and has a method of that name, they are EasyEdit's, as in its editor;
    ``alg_name: NAME-plugin`` selects ours.

    Args:
        given: name or path of the YAML, or its keys.
        **changes: hyperparameters to replace; None keeps them.
    """
    values = dict(given) if isinstance(given, dict) else read_method_yaml(given)
    name = values["alg_name"] if isinstance(given, dict) else given
    warn_of_other_model(name, values.get("model_name"), changes.get("model_name"))
    values.update({key: value for key, value in changes.items() if value is not None})
    if hosting.host() == "easyedit":
        from nse_plugin.easyedit.hparams import hparams_of
        from nse_plugin.easyedit.register import has_own

        if has_own(values["alg_name"]) or values["alg_name"].removesuffix("-plugin") not in METHODS:
            return hparams_of(values)
    if isinstance(values.get("model_name"), str):
        values["model_name"] = from_anywhere(values["model_name"])
    return hparams_from(name, values)


def warn_of_other_model(name: str, tuned_for: Any, given: str | None) -> None:
    """Warn if settings are used with another model than their YAML names."""
    if given is not None and isinstance(tuned_for, str) and _plain(given) != _plain(tuned_for):
        log.warning(
            "%s is tuned for the model %r and used on %r: layers, learning rates, bounds of "
            "residuals and the covariance's weight are numbers of one model and seldom carry over; "
            "nse tune finds settings for a model",
            name, tuned_for, given,
        )  # fmt: skip


def _plain(model: str) -> str:
    """The last part of a path or hub id, in lower case."""
    return Path(model).name.lower().replace(":", "-")
