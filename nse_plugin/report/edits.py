"""The report of one edit as tables: the answers before and after it."""

from __future__ import annotations

from nse_plugin.printable import shortened
from nse_plugin.runs.edit_report import FULL, EditedFact, EditReport
from nse_plugin.table import Mark, Table


def edit_tables(report: EditReport) -> list[Table]:
    """A table of all answers for each fact or, for many facts, one table with a row for each."""
    if len(report.facts) <= FULL:
        return [_asked(fact) for fact in report.facts]
    rows = tuple(
        (*map(shortened, (fact.prompt, fact.target, fact.answer)), fact.outcome)
        for fact in report.facts
    )
    marks: dict[tuple[int, int], Mark] = {
        (number, 3): "good" if fact.in_effect else "bad" for number, fact in enumerate(report.facts)
    }
    heads = ("prompt", "new answer", "answer now", "outcome")
    return [Table(f"{len(rows)} facts", heads, rows, marks=marks)]


def _asked(fact: EditedFact) -> Table:
    rows = tuple(
        (asked.kind, shortened(asked.prompt), shortened(asked.before), asked.remarked)
        for asked in fact.asked
    )
    marks: dict[tuple[int, int], Mark] = {
        (number, 3): "good" if asked.as_wanted else "bad" for number, asked in enumerate(fact.asked)
    }
    return Table(fact.caption, ("asked", "text", "before", "after"), rows, marks=marks)
