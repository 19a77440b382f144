"""The report of one edit: answers before and after it, earlier edits, and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from shlex import quote
from typing import Any, Literal

from nse_plugin.evaluation.model_state import holds
from nse_plugin.evaluation.neighbours import MOST_FACTS
from nse_plugin.printable import shortened
from nse_plugin.requests import EditRequest

Kind = Literal["prompt", "in chat", "paraphrase", "neighbour", "subject"]
FULL = 3
"""Up to this number of facts, every answer is shown; of more facts, a line each and counts."""
_VERY_LARGE = 1.0
"""Relative change of a matrix above which the report warns."""


def shows(text: str, request: EditRequest) -> bool:
    """Whether a text contains a request's target, as whole words, ignoring case."""
    return holds(text.casefold(), request.target_new.casefold())


def about_subject(request: EditRequest) -> str:
    """A text that shows whether an edit changes other facts about its subject.  It is none of the
    texts that ``kl_texts`` preserves."""
    return f"People say that {request.subject} is"


@dataclass(frozen=True)
class Asked:
    """A text that the model continued before and after the edit."""

    kind: Kind
    prompt: str
    before: str
    """Greedy decoding just before this edit."""
    after: str
    as_wanted: bool
    """Prompt and paraphrase: the answer is the whole target.  Neighbour: it is the untouched
    model's.  In chat: the reply contains the target.  Subject: it is the same as before."""


@dataclass(frozen=True)
class EditedFact:
    """One fact that was edited."""

    case_id: int | str
    subject: str
    prompt: str
    """With the subject in its place."""
    target: str
    in_effect: bool
    """Greedy decoding produces the whole target after the prompt."""
    known_before: bool
    """It did so before the edit."""
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Earlier:
    """Earlier edits that were neither replaced nor undone."""

    asked: int
    lost: tuple[str, ...]
    """The prompts of those that are not in effect."""


@dataclass(frozen=True)
class Cost:
    """The cost of a round."""

    seconds: float
    """Seconds of the edit itself, without statistics."""
    seconds_in_all: float
    """Including the questions before and after it and, the first time, the statistics."""
    relative_change: float | None
    """Largest ||change|| / ||original|| of a matrix, over all rounds; None without matrices."""
    matrices: int
    """Number of matrices that all rounds changed."""
    size: int
    """Size of the round's file in bytes."""

    def text(self) -> str:
        """The cost of this round, and the change of all rounds so far."""
        size = f"{self.size / 1e6:.1f} MB" if self.size >= 1e5 else f"{self.size / 1e3:.0f} kB"
        spent = f"{self.seconds:.1f} s to edit, {self.seconds_in_all:.1f} s in all; {size} on disk"
        if self.relative_change is None:
            return spent
        share = f"{self.relative_change:.1%}"
        many = f"{self.matrices} matrices by at most {share} of their norm"
        change = f"1 matrix by {share} of its norm" if self.matrices == 1 else many
        if self.relative_change > _VERY_LARGE:
            change += " - a very large change; other answers may suffer"
        return f"{spent}; all rounds together change {change}"


@dataclass(frozen=True)
class EditReport:
    """The result of one edit of a folder."""

    folder: str
    round: int
    """Number of the round's file, which ``nse undo --round`` takes."""
    facts: tuple[EditedFact, ...]
    earlier: Earlier
    cost: Cost
    past_sinks: int = 0
    """Facts whose subject ends at an attention sink, which were written at a later token."""

    @property
    def in_effect(self) -> bool:
        """Whether every fact of the edit is in effect."""
        return all(fact.in_effect for fact in self.facts)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {**asdict(self), "in_effect": self.in_effect}

    def text(self) -> str:
        """For people: the answers before and after the edit, the cost, the state of earlier edits,
        and at the end whether the edit is in effect."""
        lines = [line for fact in self.facts for line in self._lines_of(fact)]
        lines += [*self._counts(), f"cost: {self.cost.text()}"]
        if self.past_sinks:
            some = "" if len(self.facts) == 1 else f"{self.past_sinks} of {len(self.facts)} "
            lines.append(
                f"{some}edited at the prompt's last word, because this model has an attention sink "
                "where the subject ends, as it can have at the beginning of a text; other wordings "
                "may keep the old answer, and other subjects in this wording may have the new one"
            )
        lost = self.earlier.lost
        if self.earlier.asked:
            kept = self.earlier.asked - len(lost)
            lines.append(f"earlier edits: {kept} of {self.earlier.asked} are in effect")
            lines += [f"  not in effect: {shortened(prompt)}" for prompt in lost[:5]]
            lines += [f"  and {len(lost) - 5} more"] if len(lost) > 5 else []
        failed = sum(not fact.in_effect for fact in self.facts)
        number = f"round {self.round} of {self.folder}"
        if failed:
            lines.append(
                f"NOT in effect: {failed} of {len(self.facts)}. {number} is kept; undo it "
                f"with: nse undo {quote(self.folder)} --round {self.round}"
            )
        else:
            whole = "the edit is" if len(self.facts) == 1 else f"all {len(self.facts)} edits are"
            lines.append(f"{whole} in effect: {number}")
        return "\n".join(lines)

    def _lines_of(self, fact: EditedFact) -> Iterator[str]:
        """Every answer; of many facts, the outcome and an answer that is not the new one."""
        known = " (was already in effect before this round)" if fact.known_before else ""
        caption = f"{shortened(fact.prompt)} -> {shortened(fact.target)}{known}"
        if len(self.facts) > FULL:
            answer = next(asked.after for asked in fact.asked if asked.kind == "prompt")
            gives = "" if fact.in_effect else f" (gives: {shortened(answer)})"
            state = "in effect    " if fact.in_effect else "NOT in effect"
            yield f"{state}  {caption}{gives}"
            return
        yield caption
        for asked in fact.asked:
            what = "changed" if asked.kind in ("neighbour", "subject") else "not the new answer"
            remark = "" if asked.as_wanted else f"   <- {what}"
            yield f"  {asked.kind:10s} {shortened(asked.prompt)} ..."
            yield f"    before: {shortened(asked.before)}"
            yield f"    after:  {shortened(asked.after)}{remark}"

    def _counts(self) -> list[str]:
        """How many paraphrases and neighbours are as wanted, unless every answer is shown, and how
        many facts have no neighbours."""
        number = len(self.facts)
        asked = [asked for fact in self.facts for asked in fact.asked]
        paraphrases = [each.as_wanted for each in asked if each.kind == "paraphrase"]
        neighbours = [each.as_wanted for each in asked if each.kind == "neighbour"]
        lines = []
        if number > FULL and paraphrases:
            given = f"{sum(paraphrases)} of {len(paraphrases)}"
            lines.append(f"paraphrases: {given} give the new answer")
        if number > FULL and neighbours:
            changed = f"{neighbours.count(False)} of {len(neighbours)}"
            lines.append(f"neighbours: {changed} changed")
        alone = sum(all(each.kind != "neighbour" for each in fact.asked) for fact in self.facts)
        if alone and number > MOST_FACTS:
            some = "" if alone == number else f" of {alone} facts"
            lines.append(f"neighbours{some} were not asked (more than {MOST_FACTS} facts)")
        elif alone:
            whom = "this subject" if number == 1 else f"{alone} of {number} facts"
            lines.append(f"no neighbours are known for {whom}; give some with --neighbour")
        return lines
