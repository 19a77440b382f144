"""Stop rules: when a run ends early, and whether its last round is kept or undone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nse_plugin.errors import HparamsError
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams.validation import Settings, bounded
from nse_plugin.runs.schema import Measurement, RunStatus, Stop

OnCollapse = Literal["undo", "stop", "continue"]


@dataclass(frozen=True)
class StopRules(Settings):
    """Bounds of a run; None switches one off.

    Every round is checked for values that are not finite and for ``max_change``.  The others are
    checked only when the protocol measures what they bound, every ``Protocol.every`` rounds: up
    to ``every - 1`` rounds may follow the one that broke the bound, and ``undo`` undoes only the
    round that was measured.  ``every=1`` checks after each round.
    """

    max_perplexity: float | None = bounded(None, above=0)
    """Highest perplexity on the held-out text."""
    max_perplexity_ratio: float | None = bounded(None, above=0)
    """Highest perplexity as a multiple of the unedited model's."""
    min_retention: float | None = bounded(None, low=0, high=1)
    """Lowest efficacy of all edits so far, 0 to 1."""
    until_collapse: float | None = bounded(None, above=0, high=1)
    """End the run when efficacy over all edits so far, or locality, falls below this share of its
    first measurement, e.g. 0.8."""
    max_change: float | None = bounded(None, above=0)
    """Largest ||sum of all changes|| / ||original|| of an edited layer; needs no measurement, so it
    is checked after every round and can end a run before its scores fall."""
    non_finite: bool = True
    """NaN or infinity in a loss or a weight."""
    on_collapse: OnCollapse = "undo"
    """undo: undo the round and end; stop: keep it and end; continue: log it and continue."""

    def check_write(self, problem: str | None, change: float | None) -> Stop | None:
        """The rule that a round's write broke, or None.

        Args:
            problem: a description of what is not finite, if anything.
            change: the largest relative change of a layer, if the method writes weights.
        """
        if self.non_finite and problem:
            return self._broken("non_finite", problem, None)
        if self.max_change is not None and change is not None and not change <= self.max_change:
            return self._broken("max_change", change, self.max_change)
        return None

    def check_scores(
        self, measurement: Measurement, base: Measurement, first: Measurement | None
    ) -> Stop | None:
        """The rule that the scores after a round broke, or None.

        Args:
            base: the measurement of the untouched model.
            first: the first measurement of the run, if there was one before this round.
        """
        perplexity, before = measurement.get("perplexity"), base.get("perplexity")
        bounds = {"max_perplexity": self.max_perplexity}
        if self.max_perplexity_ratio is not None and before is not None:
            bounds["max_perplexity_ratio"] = self.max_perplexity_ratio * before
        for rule, bound in bounds.items() if "perplexity" in measurement else ():
            # None: not a finite number, so above every bound
            if bound is not None and (perplexity is None or not perplexity <= bound):
                return self._broken(rule, perplexity, bound)
        now, at_first = measurement.get("all") or {}, (first or {}).get("all") or {}
        kept = now.get("efficacy")
        if self.min_retention is not None and kept is not None and kept < self.min_retention:
            return self._broken("min_retention", kept, self.min_retention)
        for score in ("efficacy", "locality"):
            value, was = now.get(score), at_first.get(score)
            if self.until_collapse is None or value is None or was is None:
                continue
            if value < self.until_collapse * was:
                return self._broken(f"until_collapse.{score}", value, self.until_collapse * was)
        return None

    def _broken(self, rule: str, value: Any, bound: Any) -> Stop:
        return {"rule": rule, "value": value, "bound": bound, "action": self.on_collapse}

    def refuse_unmeasured(self, protocol: Protocol, held_out: bool) -> None:
        """Raise :class:`HparamsError` if a rule bounds a score that the run does not measure.

        Args:
            held_out: whether there is text for the perplexity.
        """
        until = self.until_collapse is not None
        scores = {
            "perplexity": (self.max_perplexity or self.max_perplexity_ratio, protocol.perplexity),
            "retention": (self.min_retention is not None or until, protocol.retention),
            "locality": (until, protocol.locality),
        }
        for name, (is_bounded, size) in scores.items():
            measured = size and protocol.every and (held_out or name != "perplexity")
            if is_bounded and not measured:
                raise HparamsError(
                    f"a stop rule bounds {name}, which is not measured; set every and {name} in "
                    "the protocol above 0 (perplexity also needs held-out text), or leave the rule "
                    "out"
                )


def ends(stop: Stop | None) -> bool:
    """Whether a line's ``stop`` ends the run."""
    return stop is not None and stop["action"] != "continue"


def status_of(stop: Stop | None, changed: bool) -> RunStatus:
    """Status of a run whose last line has this ``stop``.

    Args:
        changed: whether any round changed the model.
    """
    if stop is None or not ends(stop):
        return "complete" if changed else "nothing_written"
    return "collapsed" if stop["action"] == "undo" else "stopped"
