"""What one edit did: answers before and after it, earlier edits, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from nse_plugin.evaluation.model_state import holds
from nse_plugin.requests import EditRequest

Kind = Literal["prompt", "in chat", "paraphrase", "neighbour", "subject"]
FULL = 3
"""Facts of one edit that are shown with all that was asked; of more, a line each."""


def shows(text: str, request: EditRequest) -> bool:
    """Whether a text has a request's new answer in it, as whole words, in whatever case."""
    return holds(text.casefold(), request.target_new.casefold())


def about_subject(request: EditRequest) -> str:
    """A text that shows whether an edit changes what else the model says about its subject; none of
    those that ``kl_texts`` keeps as they are."""
    return f"People say that {request.subject} is"


@dataclass(frozen=True)
class Asked:
    """A text that the model continued before and after the edit."""

    kind: Kind
    prompt: str
    before: str
    """By the model as it was just before this edit, by greedy decoding."""
    after: str
    as_wanted: bool
    """The whole new answer is given; of a neighbour, the answer is the untouched model's; in chat,
    the reply has the new answer in it; what is said about the subject is the same as before."""

    @property
    def remarked(self) -> str:
        """The answer after the edit, with a remark if it is not as wanted."""
        if self.as_wanted:
            return self.after
        what = "changed" if self.kind in ("neighbour", "subject") else "not the new answer"
        return f"{self.after}   <- {what}"


@dataclass(frozen=True)
class EditedFact:
    """One fact that was edited."""

    case_id: int | str
    subject: str
    prompt: str
    """With the subject in its place."""
    target: str
    in_effect: bool
    """Greedy decoding gives the whole new answer to the prompt."""
    known_before: bool
    """It did so before the edit."""
    asked: tuple[Asked, ...]

    @property
    def answer(self) -> str:
        """What the model answers to the prompt after the edit."""
        return next(asked.after for asked in self.asked if asked.kind == "prompt")

    @property
    def caption(self) -> str:
        """What was asked for, and whether there was nothing to do."""
        known = " (which it gave before, too)" if self.known_before else ""
        return f"{self.prompt} -> {self.target}{known}"


@dataclass(frozen=True)
class Earlier:
    """The edits made before that no later one replaced and no undo took back."""

    asked: int
    lost: tuple[str, ...]
    """Prompts whose new answer the model does not give (any more)."""


@dataclass(frozen=True)
class Cost:
    """What a round cost."""

    seconds: float
    """Seconds of the edit itself, statistics left out."""
    seconds_in_all: float
    """With the questions before and after it, and the first time with the statistics."""
    relative_change: float | None
    """Largest ||change|| / ||original|| of a matrix, all rounds together; None without matrices."""
    matrices: int
    """Matrices changed by all rounds."""
    size: int
    """Bytes of the round's file."""


@dataclass(frozen=True)
class EditReport:
    """What one edit did to a folder of edits."""

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
        """All of it as values for JSON."""
        return {**asdict(self), "in_effect": self.in_effect}

    def text(self) -> str:
        """For people: what was asked, the cost, and last whether the edit is in effect."""
        return f"{self.asked()}\n{self.outcome()}"

    def verdict(self) -> str:
        """Whether the edit is in effect, and what can be done if it is not."""
        failed = [fact for fact in self.facts if not fact.in_effect]
        number = f"round {self.round} of {self.folder}"
        if not failed:
            whole = "the edit is" if len(self.facts) == 1 else f"all {len(self.facts)} edits are"
            return f"{whole} in effect: {number}"
        return (
            f"NOT in effect: {len(failed)} of {len(self.facts)}. {number} is kept; undo it "
            f"with: nse undo {self.folder} --round {self.round}"
        )

    def asked(self) -> str:
        """What the model said before and says now, in lines."""
        lines = []
        for fact in self.facts:
            if len(self.facts) > FULL:
                gives = "" if fact.in_effect else f" (gives: {fact.answer})"
                state = "in effect    " if fact.in_effect else "NOT in effect"
                lines.append(f"{state}  {fact.caption}{gives}")
                continue
            lines.append(fact.caption)
            for asked in fact.asked:
                lines.append(f"  {asked.kind:10s} {asked.prompt} ...")
                lines.append(f"    before: {asked.before}")
                lines.append(f"    after:  {asked.remarked}")
        return "\n".join(lines)

    def outcome(self) -> str:
        """The cost, what became of earlier edits, and last whether the edit is in effect."""
        cost, lost = self.cost, self.earlier.lost
        size = f"{cost.size / 1e6:.1f} MB" if cost.size >= 1e5 else f"{cost.size / 1e3:.0f} kB"
        spent = f"{cost.seconds:.1f} s to edit, {cost.seconds_in_all:.1f} s in all; {size} on disk"
        if cost.relative_change is not None:
            share = f"{cost.relative_change:.1%}"
            spent += f"; {cost.matrices} matrices changed, by at most {share} of their norm"
        lines = [f"cost: {spent}"]
        if self.past_sinks:
            some = "" if len(self.facts) == 1 else f"{self.past_sinks} of {len(self.facts)} "
            lines.append(
                f"{some}edited at the prompt's last word, because this model has an attention sink "
                "where the subject ends, as it can have at the beginning of a text; other wordings "
                "may keep the old answer, and other subjects in this wording may have the new one"
            )
        if self.earlier.asked:
            kept = self.earlier.asked - len(lost)
            lines.append(f"earlier edits: {kept} of {self.earlier.asked} are in effect")
            lines += [f"  not in effect: {prompt}" for prompt in lost[:5]]
            lines += [f"  and {len(lost) - 5} more"] if len(lost) > 5 else []
        return "\n".join([*lines, self.verdict()])
