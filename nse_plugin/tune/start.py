"""Start a search from its settings: load model and facts, search, write the files."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nse_plugin.data.defaults import LOCATE, model_key
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.errors import DataError
from nse_plugin.evaluation.known import keep_known
from nse_plugin.files import make_folder
from nse_plugin.hparams.variants import read_method_yaml
from nse_plugin.requests import EditRequest
from nse_plugin.runs.identity import versions
from nse_plugin.table import Table
from nse_plugin.tune.result import trial_text, trials_table, write_figure, write_yaml
from nse_plugin.tune.search import Tuned, tune
from nse_plugin.tune.settings import TuneSettings
from nse_plugin.tune.stages import check_method
from nse_plugin.tune.trials import ROUND

_PROBES = 4
"""Locality probes per request and kind, among which the known ones are used."""


@dataclasses.dataclass(frozen=True)
class Search:
    """A finished search."""

    tuned: Tuned
    yaml: Path | None
    """The file of its settings; None if none of the tried settings edits the model."""

    def to_dict(self) -> dict[str, Any]:
        """The search as JSON types."""
        best = self.tuned.best
        return {
            "method": self.tuned.method,
            "yaml": None if self.yaml is None else str(self.yaml),
            "settings": best.settings,
            "scores": best.scores,
            "edits": best.edits,
            "trials": len(self.tuned.trials),
            "seconds": self.tuned.seconds,
        }


def run(settings: TuneSettings, show: Callable[[str | Table], None]) -> list[Search]:
    """Search method after method; returns no search if the model knows none of the facts.

    Args:
        show: prints lines and tables for people.
    """
    places = {method: _place(settings, method) for method in settings.methods}
    for method, path in places.items():  # before the work
        check_method(method)
        _refuse_others(path, method, settings.model)
    show(f"loading {settings.model}")
    asked = SimpleNamespace(model_name=settings.model, device=settings.device)
    model, tokenizer, _ = load_model(asked)
    facts, about = _facts(settings, model, tokenizer)
    show(about)
    if not facts:
        return []
    found = []
    for method, path in places.items():
        make_folder(path.parent, "the settings")
        tuned = tune(
            model,
            tokenizer,
            facts,
            method,
            minutes=settings.minutes,
            edits=settings.edits,
            model_name=settings.model,
            given=_given(settings) if method in LOCATE else {},
            trials=path.with_suffix(".trials.jsonl"),
            told=lambda trial: show(trial_text(trial)),
        )
        written = _write(path, tuned, settings, about, show)
        found.append(Search(tuned, path if written else None))
    return found


def _refuse_others(path: Path, method: str, model: str) -> None:
    """Raise :class:`DataError` if the YAML exists and is of another method or model."""
    if not path.is_file():
        return
    values = read_method_yaml(path)
    named = (values.get("alg_name"), values.get("model_name"))
    if named != (method, model):
        raise DataError(
            f"{path} holds settings of {named[0]} for {named[1]}; give another --out, or remove it"
        )


def _facts(settings: TuneSettings, model: Any, tokenizer: Any) -> tuple[list[EditRequest], str]:
    """As many facts as a search needs, and a line about their source."""
    known = settings.only_known
    needed = ROUND + settings.edits
    requests = read_data(
        settings.data,
        settings.limit,
        settings.seed,
        schema=settings.schema,
        on_bad=settings.on_bad_record,
        choose=known,
    )
    requests = [_with_few_probes(request) for request in requests]
    if not known:
        return requests[:needed], f"facts: {settings.data}, seed {settings.seed}"
    try:
        found = keep_known(model, tokenizer, requests, limit=needed)
    except DataError as error:
        return [], f"nothing to choose settings by: {error}. No YAML was written"
    return found.requests, f"facts: {settings.data}, seed {settings.seed}; {found}"


def _with_few_probes(request: EditRequest) -> EditRequest:
    """The request without probes that no trial asks and that would have to be known."""
    locality = {kind: probes[:_PROBES] for kind, probes in request.locality.items()}
    return dataclasses.replace(request, locality=locality, portability={})


def _command(settings: TuneSettings, method: str) -> str:
    """The command of the search for one method, with the options that determine it."""
    words = ["nse", "tune", "--model", settings.model, "--method", method, "--data", settings.data]
    words += ["--minutes", f"{settings.minutes:g}", "--seed", str(settings.seed)]
    usual = TuneSettings(model=settings.model)
    for name in ("edits", "limit", "schema", "on_bad_record", "source"):
        if (value := getattr(settings, name)) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    if settings.known is not None:
        words.append("--known" if settings.known else "--no-known")
    return shlex.join(words)


def _place(settings: TuneSettings, method: str) -> Path:
    out = Path(settings.out)
    return out if settings.one_file else out / method / f"{model_key(settings.model)}.yaml"


def _given(settings: TuneSettings) -> dict[str, Any]:
    """Keys that are not searched."""
    given = {"mom2_dataset": settings.source, "stats_dir": settings.stats_dir}
    return {key: value for key, value in given.items() if value is not None}


def _write(
    path: Path,
    tuned: Tuned,
    settings: TuneSettings,
    about: str,
    show: Callable[[str | Table], None],
) -> bool:
    """Show the result, and write it if settings were found."""
    show("")
    show(trials_table(tuned))
    figure = path.with_suffix(".png")
    if write_figure(figure, tuned):
        show(f"layers: {figure}")
    if not tuned.found:
        show(
            f"{tuned.method}: nothing that was tried edits {settings.model}; no YAML was written. "
            "More --minutes try more; facts that the model does not know cannot be judged"
        )
        return False
    method, model = tuned.method, settings.model
    made = ", ".join(f"{name} {value}" for name, value in versions().items())
    head = [
        f"{method} on {model}, found by",
        f"    {_command(settings, method)}",
        about,
        f"{time.strftime('%Y-%m-%d')}; {made}",
    ]
    write_yaml(path, tuned, head)
    show(f"written to {path}; use it with")
    known = ["--known"] if settings.only_known else []
    facts = ["--data", settings.data, *known, "--limit", "100"]
    show(f"  {shlex.join(['nse', 'run', '--hparams', str(path), *facts])}")
    return True
