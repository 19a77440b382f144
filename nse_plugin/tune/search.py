"""The search: stage after stage, each from the best settings so far, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse_plugin.errors import ModelError, SessionError
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from nse_plugin.tune.stages import Stage, first_settings, layers_of, stages
from nse_plugin.tune.trials import ROUND, Trial, Trials, check_enough

EDITS = 0.5
"""Settings are found only if their efficacy on the stream is at least this."""
_HOPELESS = 0.1
"""If the efficacy on few facts is below this, no stream is tried."""
_STREAM = 0.25
"""Share of the time for the first trial on the stream."""


@dataclass(frozen=True)
class Tuned:
    """The result of a search."""

    method: str
    trials: list[Trial]
    """All trials, in order."""
    best: Trial
    """The one whose settings are the result."""
    seconds: float
    on_stream: bool
    """Whether the best settings were tried on a stream of edits."""

    @property
    def found(self) -> bool:
        """Whether the settings edit this model; if not, none of the tried ones do."""
        return self.on_stream and self.best.efficacy >= EDITS

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of the YAML."""
        return self.best.settings


def tune(
    model: Any,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    method: str = "NSE",
    *,
    minutes: float = 15.0,
    edits: int = 100,
    model_name: str = "",
    given: Mapping[str, Any] | None = None,
    trials: Path | None = None,
    told: Callable[[Trial], None] = lambda _trial: None,
) -> Tuned:
    """Find settings of a method for a model; the model is untouched before and afterwards.

    Args:
        requests: facts to try edits on; 20 of them for the first stages, others for the stream.
        minutes: the search begins no trial that would end later, but makes at least one on few
            facts and, if edits were in effect, one on a stream.
        edits: length of the stream; shorter if a trial of it would take a quarter of the time.
        model_name: the model's name in the YAML.
        given: keys that are not searched, e.g. the folder of statistics.
        trials: a JSON lines file of finished trials, which a later call reuses.
        told: called with each trial.

    Raises:
        HparamsError: there is no such method.
        ModelError: no trial could be made, or there are too few facts.
        SessionError: the model's session has rounds already.
    """
    session = EditSession.of(model, tokenizer)
    if len(session.ledger):
        raise SessionError(
            f"the session has {len(session.ledger)} rounds, and each trial starts from the "
            "untouched model; call session.undo_all(), or load the model again"
        )
    check_enough(requests)
    settings = first_settings(session, method, model_name, given or {})
    search = _Search(Trials(session, trials, told), minutes * 60, time.monotonic())
    few, others = requests[:ROUND], requests[ROUND:]
    on_few = [stage for stage in stages(method) if not stage.stream]
    layers = layers_of(on_few[0].options(session, settings))
    best = search.first(settings, few, layers)
    for stage in on_few:
        best = search.stage(stage, best, few)
    errors = [trial.error for trial in search.trials.done]
    if all(errors):
        raise ModelError(f"{method} could not be tried: {errors[0]}")
    on_stream = best.efficacy >= _HOPELESS and len(others) >= ROUND
    if on_stream:
        stream = others[: search.affordable(min(edits, len(others)))]
        best = search.trials.run("stream", best.settings, stream)
        for stage in (stage for stage in stages(method) if stage.stream):
            best = search.stage(stage, best, stream)
    seconds = time.monotonic() - search.begun
    return Tuned(method, search.trials.done, best, seconds, on_stream)


@dataclass
class _Search:
    trials: Trials
    allowed: float
    """Seconds."""
    begun: float
    ready: float = 0.0
    """Seconds before the first trial, in which statistics are computed."""

    def first(
        self, settings: Mapping[str, Any], few: Sequence[EditRequest], layers: Sequence[int]
    ) -> Trial:
        """Try the settings unchanged; computes the statistics of all layers of the first stage."""
        trial = self.trials.run("first", settings, few, layers=layers)
        self.ready = max(0.0, time.monotonic() - self.begun - trial.seconds)
        return trial

    def stage(self, stage: Stage, best: Trial, facts: Sequence[EditRequest]) -> Trial:
        """The best of the settings so far and those of a stage; the earlier one of equals."""
        settings, expected = best.settings, best.seconds
        options = stage.options(self.trials.session, settings)
        for changes in options:
            if self._late(stage.until, expected):
                break
            trial = self.trials.run(stage.name, settings, facts, changes, layers_of(options))
            expected = trial.seconds  # the next trial also reuses values, or does not
            best = trial if trial.score > best.score else best
        return best

    def affordable(self, most: int) -> int:
        """Length of a stream in whole rounds, at least two, from the time of an edit so far."""
        trials = self.trials.done
        per_edit = sum(t.seconds for t in trials) / sum(t.edits for t in trials)
        rounds = int(min(most, _STREAM * self.allowed / max(per_edit, 1e-6))) // ROUND
        return min(most, ROUND * max(2, rounds))

    def _late(self, share: float, next_seconds: float) -> bool:
        """Whether a trial of this length would end after a share of the time for trials; trials of
        an earlier call count with the time that they took."""
        spent = max(self.trials.seconds, time.monotonic() - self.begun - self.ready)
        return spent + next_seconds > share * (self.allowed - self.ready)
