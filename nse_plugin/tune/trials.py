"""Trials of settings on one model: edit, measure, undo; each trial is a line of a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nse_plugin.errors import DataError, HparamsError, ModelError, NSEPluginError
from nse_plugin.evaluation.metrics import Answered, ask, summarise
from nse_plugin.evaluation.questions import mean
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.files import JsonLines
from nse_plugin.hparams import LocateHparams
from nse_plugin.marks import mark
from nse_plugin.methods.bases import BASES
from nse_plugin.objectives import nll
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import model_fingerprint

ROUND = 20
"""Edits per round."""
PROTOCOL = Protocol(paraphrases=1, portability=0, locality=2)
"""Few probes, because every trial is measured."""
_FLOATS = 2**28
"""Largest size of covariances that are computed ahead: 1 GB."""
SHOWN = ("efficacy", "paraphrase", "locality")
_LEAST = 0.01
"""What a score of 0 counts as, so that settings can still be compared if none has a paraphrase in
effect, as with GRACE."""


@dataclass(frozen=True)
class Trial:
    """One set of settings and its scores."""

    stage: str
    settings: dict[str, Any]
    """All keys that differ from the method's defaults."""
    changes: dict[str, Any]
    """The keys that this trial changes in the best settings so far."""
    case_ids: list[int | str]
    """The facts edited, in rounds of :data:`ROUND`; all are tested after the last round."""
    of: str
    """A hash of the facts and the model, which distinguishes others with the same names."""
    scores: dict[str, float | None] = field(default_factory=dict)
    injected: float | None = None
    """Share of targets that the model produces with the values themselves, before the write; None
    for a method without values, and for values kept from an earlier trial."""
    left: float | None = None
    """Mean share of the residual that is left after the write."""
    seconds: float = 0.0
    error: str | None = None
    """Why there are no scores."""

    @property
    def score(self) -> float:
        """The harmonic mean of the measured scores, each at least :data:`_LEAST`; 0 without any."""
        found = [value for name in SHOWN if (value := self.scores.get(name)) is not None]
        return len(found) / sum(1 / max(value, _LEAST) for value in found) if found else 0.0

    @property
    def efficacy(self) -> float:
        """The efficacy; 0 without scores."""
        return self.scores.get("efficacy") or 0.0

    @property
    def edits(self) -> int:
        """Number of facts edited."""
        return len(self.case_ids)


class Trials:
    """Runs trials on one session, or finds them in the file of an earlier search.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(
        self, session: EditSession, path: Path | None, told: Callable[[Trial], None]
    ) -> None:
        self.session, self.done = session, list[Trial]()
        self._told = told
        self._file: JsonLines[dict[str, Any]] | None = None
        self._known: dict[str, Trial] = {}
        self._frozen: dict[str, Answered] = {}
        if path is not None:
            self._file = JsonLines(path, writable=True)
            for line in self._file:
                try:
                    trial = Trial(**line)
                except TypeError as error:
                    raise DataError(
                        f"{path} is damaged or of another version ({error}); remove it to search "
                        "from the beginning"
                    ) from error
                self._known[_key(trial.settings, trial.of)] = trial
        self._model = model_fingerprint(session.layout)
        session.untouched.keep_values()

    @property
    def seconds(self) -> float:
        """The time of the trials, including those found in the file."""
        return sum(trial.seconds for trial in self.done)

    def run(
        self,
        stage: str,
        settings: Mapping[str, Any],
        facts: Sequence[EditRequest],
        changes: Mapping[str, Any] | None = None,
        layers: Sequence[int] = (),
    ) -> Trial:
        """Try settings with changes on some facts.

        Args:
            layers: layers of later trials, whose statistics are computed together.
        """
        changes = dict(changes or {})
        settings = {**settings, **changes}
        of = mark(self._model, *(fact.digest() for fact in facts)).hex()
        key = _key(settings, of)
        again = next((t for t in self.done if _key(t.settings, t.of) == key), None)
        if again is not None:
            return again
        trial = self._known.get(key)
        if trial is None:
            case_ids = [fact.case_id for fact in facts]
            self._compute_statistics(settings, layers)
            trial = self._made(Trial(stage, settings, changes, case_ids, of), facts)
            if self._file is not None:
                self._file.append(asdict(trial))
        self.done.append(trial)
        self._told(trial)
        return trial

    def _compute_statistics(self, settings: Mapping[str, Any], layers: Sequence[int]) -> None:
        """Compute the covariances of a trial, so that they do not count to its time; also those of
        other layers if they fit into memory."""
        hparams: Any = BASES[settings["alg_name"]].hparams.from_dict(settings)
        if not isinstance(hparams, LocateHparams):
            return
        wanted = sorted({*layers, *hparams.layers})
        if len(wanted) * self.session.layout.d_ff**2 > _FLOATS:
            wanted = hparams.layers
        hparams.layers = wanted
        untouched = self.session.untouched
        untouched.keep_only(wanted)
        with suppress(ModelError):  # a layer that cannot be edited fails in its own trial
            untouched.compute_statistics(hparams)

    def _made(self, trial: Trial, facts: Sequence[EditRequest]) -> Trial:
        session, begun = self.session, time.monotonic()
        found: dict[str, Any] = {}
        try:
            found = self._edited(trial.settings, facts)
        except HparamsError:
            raise
        except NSEPluginError as error:
            found = {"error": str(error)}
        except torch.OutOfMemoryError:  # other settings may need less
            found = {"error": "out of memory on the device"}
        finally:
            session.undo_all()
        return replace(trial, **found, seconds=round(time.monotonic() - begun, 2))

    def _edited(self, settings: dict[str, Any], facts: Sequence[EditRequest]) -> dict[str, Any]:
        method = BASES[settings["alg_name"]]
        hparams = method.hparams.from_dict(settings)
        session, seen = self.session, _Injected()
        left: list[float] = []
        self._freeze(facts)
        for first in range(0, len(facts), ROUND):
            seen.next_round()
            record = method.edit_round(session, facts[first : first + ROUND], hparams, nll, seen)
            left += [
                outcome.residual_after / outcome.residual_before
                for outcome in record.outcomes
                if outcome.residual_after is not None and outcome.residual_before
            ]
        answered = ask(session.model, session.tokenizer, facts, PROTOCOL)
        texts = {text for fact in facts for text in (fact.text, *fact.rephrase_prompts)}
        scores = summarise(answered, [self._frozen[fact.digest()] for fact in facts], texts)
        return {
            "scores": {name: scores[name] for name in SHOWN},
            "injected": seen.share() if left else None,
            "left": mean(left),
        }

    def _freeze(self, facts: Sequence[EditRequest]) -> None:
        """Ask the untouched model, which the session holds between trials, about new facts."""
        new = [fact for fact in facts if fact.digest() not in self._frozen]
        answered = ask(self.session.model, self.session.tokenizer, new, PROTOCOL) if new else []
        self._frozen.update(zip((fact.digest() for fact in new), answered))


def _key(settings: Mapping[str, Any], of: str) -> str:
    """The identity of a trial, without folder of statistics and device."""
    told = {key: value for key, value in settings.items() if key not in ("stats_dir", "device")}
    return json.dumps([told, of], sort_keys=True)


class _Injected:
    """A :class:`TokenTrace` that records whether the model produces the targets with the values."""

    def __init__(self) -> None:
        self._round, self._right = 0, dict[tuple[int, int], bool]()

    def next_round(self) -> None:
        """Begin a round, in which requests are counted from 0 again."""
        self._round += 1

    def record(self, owner: Tensor, place: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Record one evaluation; a later one of a request replaces an earlier one."""
        right = logits.argmax(dim=1).cpu() == targets.cpu()
        owner = owner.cpu()
        for request in owner.unique().tolist():
            self._right[self._round, request] = bool(right[owner == request].all())

    def share(self) -> float | None:
        """Share of the recorded requests; None if there are none."""
        return mean([float(right) for right in self._right.values()])


def check_enough(facts: Sequence[EditRequest]) -> None:
    """Raise :class:`ModelError` if there are too few facts for a search."""
    if len(facts) < ROUND:
        raise ModelError(
            f"there are {len(facts)} facts to try edits on, and a search needs {ROUND}; give other "
            "data, or --no-known to edit facts that the model does not know"
        )
