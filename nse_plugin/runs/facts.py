"""The facts of a run, one by one: what was asked for, what became of it, what is answered now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from nse_plugin.runs.reading import RunFiles, load_undone

FactOutcome = Literal[
    "not in effect", "not written", "not asked", "in effect", "replaced", "undone"
]
"""From the worst: the new answer is not given; a stop rule undid the round; it is not known; it
is given; a later edit gives another answer; the round was undone."""
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
    """What the model wrote at the last measurement; None if it was not asked then."""
    outcome: FactOutcome


def facts_of(files: RunFiles) -> list[Fact]:
    """The facts of the finished rounds, in order.

    Answers and outcomes are those of the last measurement.  A round that was undone since has
    ``undone``; the answers of the others were given with it in the model.

    Raises:
        DataError: ``frozen.jsonl`` does not hold the requests, or a file is damaged.
    """
    undone = {entry.number for entry in load_undone(files.folder)}
    answers = _last_answers(files)
    requests = files.requests()
    latest: dict[tuple[str, str], tuple[int, Any]] = {}  # by fact: the edit that counts
    for line in files.lines:
        if line["file"] is not None and line["file"] not in undone:
            for request in requests[line["round"]]:
                latest[request.fact] = (line["round"], request.case_id)
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
            elif said is None:
                outcome = "not asked"
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
                )
            )
    return found


def _last_answers(files: RunFiles) -> dict[tuple[int, Any], Mapping[str, Any]]:
    """By round and case: the edits asked at the last measurement of single edits."""
    final = files.final()
    points = [line["measurement"] for line in files.lines]
    points.append(final["measurement"] if final else None)
    for point in reversed(points):
        if point and point.get("answers"):
            return {(row["round"], row["case_id"]): row for row in point["answers"]}
        if point and point.get("each"):
            return {
                (row["round"], row["case_id"]): {"exact": row["efficacy"] == 1}
                for row in point["each"]
            }
    return {}
