"""The facts of a run, one by one: the request, its outcome, and the model's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nse_plugin.runs.reading import RunFiles, left_out_rounds
from nse_plugin.session.records import were_undone

FactOutcome = Literal[
    "not in effect", "not written", "not asked", "not tested", "in effect", "replaced", "undone"
]
"""From the worst: the edit is not in effect; a stop rule undid its round; its prompt was never
asked; it was asked, but another round was undone since; the edit is in effect; a later edit of the
same fact replaced it; its round was undone, or left out of a consolidation."""
ORDER: tuple[FactOutcome, ...] = get_args(FactOutcome)


@dataclass(frozen=True)
class Fact:
    """One request of a run."""

    case_id: int | str
    round: int
    """In the order of the run."""
    file: int | None
    """Number of the round's file, which ``nse undo`` takes; None if the round was not kept."""
    subject: str
    prompt: str
    """With the subject in its place."""
    old: str | None
    new: str
    answer: str | None
    """The model's answer at the last measurement; None if it was not asked then."""
    outcome: FactOutcome
    undone_since: tuple[int, ...] = ()
    """If it is ``not tested``: the rounds undone since that measurement, after which the answer may
    be another one."""

    @property
    def state(self) -> str:
        """The outcome in words."""
        since = f" since {were_undone(self.undone_since)}" if self.undone_since else ""
        return self.outcome + since


def facts_of(files: RunFiles) -> list[Fact]:
    """The facts of the finished rounds, in order.

    Answers and outcomes are those of the last measurement.  If a round was undone since, its facts
    are ``undone``, and the others that were asked are ``not tested``, because an edit may depend on
    the rounds it was solved on top of.  A consolidation after the measurement has recorded of each
    fact whether it is in effect, and no answer.

    Raises:
        DataError: ``frozen.jsonl`` does not hold the requests, or a file is damaged.
    """
    undone = {*(entry["number"] for entry in files.undone), *left_out_rounds(files.folder)}
    tested, answers = _last_answers(files)
    since = tuple(files.undone_since(tested))
    jointly = _after_consolidation(files, tested)
    requests = files.requests()
    latest = {  # by fact: the edit that counts
        request.fact: (line["round"], request.case_id)
        for line in files.lines
        if line["file"] is not None and line["file"] not in undone
        for request in requests[line["round"]]
    }
    found = []
    for line in files.lines:
        for request in requests[line["round"]]:
            key = (line["round"], request.case_id)
            said = answers.get(key)
            if line["file"] is None:
                outcome: FactOutcome = "not written"
            elif line["file"] in undone:
                outcome, said = "undone", None
            elif latest[request.fact] != key:
                outcome = "replaced"
            elif request.fact in jointly:
                outcome, said = "in effect" if jointly[request.fact] else "not in effect", None
            elif said is None:
                outcome = "not asked"
            elif since:
                outcome = "not tested"
            else:
                outcome = "in effect" if said["exact"] else "not in effect"
            found.append(
                Fact(
                    case_id=request.case_id,
                    round=line["round"],
                    file=line["file"],
                    subject=request.subject,
                    prompt=request.text,
                    old=request.ground_truth,
                    new=request.target_new,
                    answer=said.get("answer") if said else None,
                    outcome=outcome,
                    undone_since=since if outcome == "not tested" else (),
                )
            )
    return found


def _after_consolidation(files: RunFiles, tested: int) -> dict[str, bool]:
    """By fact: whether it was in effect after the last consolidation; empty if a measurement, made
    after ``tested`` rounds, followed it."""
    joint = files.consolidated()
    if joint is None or joint["after"] < tested:
        return {}
    record = next(record for record in files.ledger if record.number == joint["file"])
    outcomes = zip(record.requests, record.outcomes)
    return {request.fact: bool(outcome.answered) for request, outcome in outcomes}


def _last_answers(files: RunFiles) -> tuple[int, dict[tuple[int, Any], Mapping[str, Any]]]:
    """The last measurement of single edits: the number of rounds before it, and the answers by
    round and case."""
    for point in reversed(files.measurements):
        rows: dict[tuple[int, Any], Mapping[str, Any]] = {
            (row["round"], row["case_id"]): {"exact": row["efficacy"] == 1}
            for row in point.get("each") or []
        }
        rows |= {(row["round"], row["case_id"]): row for row in point.get("answers") or []}
        if rows:
            return point["tested"], rows
    return 0, {}
