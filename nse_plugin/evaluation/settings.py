"""What a run measures: settings, fields of a measurement, main scores; loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from nse_plugin.hparams.validation import LARGEST_SEED, Settings, bounded

MAIN_SCORES = ("efficacy", "paraphrase", "portability", "locality")
"""The scores that summaries show."""
GROUPS = ("rewrite", "paraphrase", "portability", "locality")
"""Groups of probes."""
OPTIONAL_GROUPS = ("negation", "distractor", "reversal", "translation")
"""Groups that the protocol can switch on."""


@dataclass(frozen=True)
class Protocol(Settings):
    """What to measure; a size of 0 switches a part off.

    Raises:
        HparamsError: a size is out of range.
    """

    every: int = bounded(5, low=0)
    """Measure all edits so far every N rounds and at the end; 0: only at the end."""
    paraphrases: int = bounded(2, low=0)
    """Paraphrases asked per request."""
    portability: int = bounded(3, low=0)
    """Portability probes per request and kind."""
    locality: int = bounded(5, low=0)
    """Locality probes per request and kind."""
    negation: bool = False
    """Ask each edit's negated prompt (from the data, or "It is not true that ..."), to which the
    model should not give the new answer."""
    distractor: bool = False
    """Ask each edit's prompt after a sentence that names the old answer."""
    reversal: bool = False
    """Ask for the subject, given the new answer, if the data have a prompt for that (earth)."""
    translation: bool = False
    """Ask in another language, if the data have a prompt for that (earth)."""
    retention: int = bounded(1000, low=0)
    """Earlier edits tested each time; of more, a sample drawn by ``seed`` and round."""
    answers: int = bounded(200, low=0)
    """Edits whose answers are recorded as text at the end, for the list of facts."""
    generation: int = bounded(50, low=0)
    """Edits tested by free generation."""
    generation_tokens: int = bounded(16, low=0)
    """New tokens of each generated text."""
    judge: bool = False
    """Score these texts too, by the judge that the environment names or offline."""
    fluency: int = bounded(10, low=0)
    """Edits from whose prompts a text of 100 tokens is sampled."""
    perplexity: int = bounded(100, low=0)
    """Held-out texts used, from the first."""
    ability: int = bounded(0, low=0)
    """Facts of ``earth`` about subjects that are never edited, asked of the model as a whole."""
    each: bool = False
    """Also record the scores of every single earlier edit tested."""
    weights: bool = True
    """Norm of each edited matrix's change, relative to the original."""
    directions: int | None = bounded(None, low=1)
    """Dominant singular directions of each edited matrix that are compared with the original's;
    costs two eigenvalue problems of d_model per matrix."""
    key_space: int = bounded(2048, low=0)
    """Previous keys per layer from which the used share of the key space is computed."""
    harness_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness; the package has to be installed."""
    harness_limit: int | None = bounded(50, low=1)
    """Documents per task."""
    seed: int = bounded(0, low=0, high=LARGEST_SEED)
    """Seed of the samples."""

    def conflicts(self) -> Iterator[str]:
        """Errors if texts would have no tokens."""
        if self.generation and self.generation_tokens < 1:
            yield f"generation_tokens is {self.generation_tokens}; give at least 1"

    def to_dict(self) -> dict[str, Any]:
        """All values, ready for JSON."""
        return asdict(self) | {"harness_tasks": list(self.harness_tasks)}

    def is_due(self, number: int) -> bool:
        """Whether all edits so far are measured after this round."""
        return self.every > 0 and number % self.every == 0


class Measurement(TypedDict, total=False):
    """A measurement of all edits so far and of the model as a whole."""

    tested: int
    """The round after which it was measured."""
    in_effect: int
    """Edits that no later one superseded."""
    retention: list[dict[str, Any]]
    """One row per round edited: ``edited``, ``n`` and scores."""
    all: dict[str, Any]
    """The same scores over all edits tested."""
    each: list[dict[str, Any]]
    """Those of every edit tested."""
    answers: list[dict[str, Any]]
    """``round``, ``case_id``, ``exact`` and ``answer`` (text) of some edits."""
    generation: dict[str, Any]
    fluency: float | None
    perplexity: float | None
    """None if it overflows."""
    ability: float | None
    """Share of never-edited facts whose true answer is given."""
    relative_change: dict[str, float | None]
    """By parameter: ||change|| / ||original||."""
    direction_drift: dict[str, float | None]
    """By parameter: share of the span of the original's dominant singular directions that is
    outside the span of the current matrix's."""
    key_share: dict[str, float | None]
    """By layer: share of the key space that previous keys use."""
    harness: dict[str, Any]


def percentages(scores: Mapping[str, Any] | None) -> dict[str, str]:
    """The main scores that were measured, in percent."""
    found = scores or {}
    return {name: f"{found[name]:.1%}" for name in MAIN_SCORES if found.get(name) is not None}
