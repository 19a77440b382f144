"""A comparison as tables of text, for the terminal, Markdown and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from nse_plugin.compare.results import (
    ENDED,
    CellResult,
    ComparisonResult,
    Difference,
    ScoreSummary,
)
from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.evaluation.settings import MAIN_SCORES
from nse_plugin.report.kinds import AGES, KINDS, kinds_note
from nse_plugin.table import NOTHING, Table, best_of, percent

SHOWN = {
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "portability": "portability",
    "locality": "locality",
    "retention_first": "first round",
}
"""Scores of the first table, all shares, with their heads."""
ABILITY = {"ability": "unedited facts"}
"""The first table's score that the protocol can switch on, with its head."""
AGED = {
    "whole answers": ("efficacy", "paraphrase", "portability"),
    "tokens about other facts": ("locality", "locality_of_effective"),
}
"""Scores that are shown by the age of the edit, with a table for each kind of score."""
_NOTE = (
    "After the last round, over all edits, in percent; mean ± sd over seeds. efficacy, paraphrase, "
    "portability: greedy decoding gives the whole answer; locality: tokens as the untouched "
    "model's; first round: efficacy of its edits; unedited facts: share of those asked that are "
    "given. PPL: perplexity of held-out text. A cell that was stopped is in with the edits until "
    "then."
)
_AGE_NOTE = (
    "In percent. right after: each round before the next, mean over rounds, by their edits; "
    "thirds of the rounds are tested at the end. locality of effective edits: of the edits that "
    "are in effect."
)


def score_table(result: ComparisonResult, model: str) -> Table:
    """Methods down, scores across, of one model."""
    scores, methods = summaries(result, model), by_method(result["cells"], model)
    optional = _measured(ABILITY, scores, methods)
    rows = []
    for method, cells in methods.items():
        row = [method]
        row += [_share(scores.get((method, name))) for name in (*SHOWN, *optional)]
        row += [_number(scores.get((method, "perplexity")), ".3f")]
        row += [_seconds(method, cells), _memory(cells), _status(cells)]
        rows.append(tuple(row))
    heads = ("method", *SHOWN.values(), *optional.values(), "PPL", "s/edit", "peak MiB", "seeds")
    n_shares = len(SHOWN) + len(optional)
    better: dict[int, Callable[[Iterable[float]], float]] = {
        **dict.fromkeys(range(1, n_shares + 1), max), n_shares + 1: min, n_shares + 2: min,
    }  # fmt: skip
    numeric = (False, *[True] * (len(heads) - 2), False)
    marks = best_of(rows, better, without=[UNTOUCHED])
    return Table(f"{model}: scores", heads, tuple(rows), numeric, _NOTE, marks=marks)


def kind_table(result: ComparisonResult, model: str) -> Table:
    """The same edits by kind of score, without scores that no method has."""
    scores, methods = summaries(result, model), list(by_method(result["cells"], model))
    kinds = _measured(KINDS, scores, methods)
    rows = [
        (
            method,
            *(_share(scores.get((method, name))) for name in kinds),
            _number(scores.get((method, "free_words_after")), ".1f"),
        )
        for method in methods
    ]
    heads = ("method", *kinds.values(), "words after")
    title = f"{model}: the same edits by kind of score"
    return Table.of_numbers(title, heads, rows, kinds_note(heads))


def age_tables(result: ComparisonResult, model: str) -> list[Table]:
    """Scores right after each round, and at the end by the age of the edit."""
    ended = [cell for cell in result["cells"] if cell["run_info"]["status"] in ENDED]
    found = []
    for kind, names in AGED.items():
        rows = []
        for name in names:
            ages = {m: _ages(c, name) for m, c in by_method(ended, model).items()}
            if any(values != [None] * 4 for values in ages.values()):
                head = SHOWN.get(name) or KINDS[name]
                rows += [(method, head, *map(percent, ages[method])) for method in ages]
        if rows:
            title = f"{model}: by age of the edit, {kind}"
            heads = ("method", "score", *AGES)
            found.append(Table.of_numbers(title, heads, rows, _AGE_NOTE, names=2))
    return found


def _ages(cells: Sequence[CellResult], name: str) -> list[float | None]:
    """Means right after the rounds; at the end over all edits, the oldest and the newest third."""
    ages: list[list[float]] = [[], [], [], []]
    for cell in cells:
        before = 0
        for point in cell["points"]:
            count, before = point["edits"] - before, point["edits"]
            value = (point["scores"] or {}).get(name)
            ages[0] += [] if value is None else [value] * count
        rounds = sorted({entry["round"] for entry in cell["each"]})
        third = -(-len(rounds) // 3)
        for entry in cell["each"]:
            value = entry.get(name)
            if value is not None:
                ages[1].append(value)
                ages[2] += [value] if entry["round"] in rounds[:third] else []
                ages[3] += [value] if entry["round"] in rounds[-third:] else []
    return [fmean(values) if values else None for values in ages]


def _measured(
    heads: Mapping[str, str],
    scores: Mapping[tuple[str, str], ScoreSummary],
    methods: Iterable[str],
) -> dict[str, str]:
    """Those of the scores, with their heads, that at least one method has."""
    return {
        name: head
        for name, head in heads.items()
        if any(
            (found := scores.get((method, name))) is not None and found["mean"] is not None
            for method in methods
        )
    }


INTERVALS = {
    "edits": "from a bootstrap over the edits of each seed: how much the difference would vary "
    "with other facts, in the same number of runs",
    "seeds": "from Student's t over seeds: how much it would vary with other runs; wide with few "
    "seeds",
}
"""The two kinds of 95% interval."""


def difference_table(result: ComparisonResult, model: str, interval: str = "edits") -> Table | None:
    """Paired differences from the reference, in points; None if there are none.

    Args:
        interval: one of :data:`INTERVALS`.
    """
    ends = ("low", "high") if interval == "edits" else ("t_low", "t_high")
    found = {(d["method"], d["score"]): d for d in result["differences"] if d["model"] == model}
    there = [d for d in found.values() if d[ends[0]] is not None]  # type: ignore[literal-required]
    methods = list(dict.fromkeys(d["method"] for d in there if d["method"] != UNTOUCHED))
    if not methods:
        return None
    rows = [
        (method, *(_difference(found.get((method, name)), *ends) for name in MAIN_SCORES))
        for method in methods
    ]
    reference, share = there[0]["reference"], there[0]["confidence"]
    note = (
        f"Percentage points more than {reference} on the same edits of the same seeds; in brackets "
        f"the {share:.0%} interval {INTERVALS[interval]}."
    )
    heads = ("method", *(SHOWN[name] for name in MAIN_SCORES))
    title = f"{model}: difference from {reference}, {share:.0%} interval over {interval}"
    return Table.of_numbers(title, heads, rows, note)


def time_table(result: ComparisonResult, model: str) -> Table:
    """The parts of the time of an edit."""
    timed = {
        method: [cell["seconds"] for cell in cells if cell["seconds"] is not None]
        for method, cells in by_method(result["cells"], model).items()
    }
    names = list(dict.fromkeys(n for group in timed.values() for s in group for n in s["parts"]))

    def mean(values: list[float]) -> str:
        return f"{1000 * fmean(values):.1f}" if values else NOTHING

    rows = []
    for method, group in timed.items():
        row = [method]
        row += [mean([s["parts"][name] for s in group if name in s["parts"]]) for name in names]
        row += [mean([s[key] for s in group]) for key in ("other", "edit", "evaluation")]
        row += [f"{fmean([s['wall'] for s in group]):.1f}" if group else NOTHING]
        rows.append(row)
    heads = ("method", *names, "other", "edit", "evaluation", "cell, s")
    note = (
        "Milliseconds per edit; edit is the sum of the columns before it. Cells share values that "
        "they would find alike; the search for them counts in each. cell: the time of this cell."
    )
    return Table.of_numbers(f"{model}: time", heads, rows, note)


def trouble_table(result: ComparisonResult) -> Table | None:
    """Cells that were not completed, and why."""
    rows = tuple(
        (i["model"], i["method"], str(i["seed"]), i["status"], str(i["edits"]), i["error"] or "")
        for i in (cell["run_info"] for cell in result["cells"])
        if i["status"] != "complete"
    )
    heads = ("model", "method", "seed", "status", "edits", "why")
    return Table("Cells that were not completed", heads, rows) if rows else None


def all_tables(result: ComparisonResult) -> list[Table]:
    """Every table, models one after the other."""
    found: list[Table | None] = []
    for model in models(result):
        found += [
            score_table(result, model),
            kind_table(result, model),
            *age_tables(result, model),
            *(difference_table(result, model, interval) for interval in INTERVALS),
            time_table(result, model),
        ]
    found.append(trouble_table(result))
    return [table for table in found if table is not None]


def models(result: ComparisonResult) -> list[str]:
    """The models, in order."""
    return list(dict.fromkeys(cell["run_info"]["model"] for cell in result["cells"]))


def summaries(result: ComparisonResult, model: str) -> dict[tuple[str, str], ScoreSummary]:
    """The summaries of a model's scores by method and score."""
    return {(s["method"], s["score"]): s for s in result["summaries"] if s["model"] == model}


def by_method(cells: Sequence[CellResult], model: str) -> dict[str, list[CellResult]]:
    """Cells of a model by method, in order."""
    found: dict[str, list[CellResult]] = {}
    for cell in cells:
        if cell["run_info"]["model"] == model:
            found.setdefault(cell["run_info"]["method"], []).append(cell)
    return found


def _share(summary: ScoreSummary | None) -> str:
    if summary is None or summary["mean"] is None:
        return NOTHING
    spread = "" if summary["sd"] is None else f" ± {100 * summary['sd']:.1f}"
    return f"{percent(summary['mean'])}{spread}"


def _number(summary: ScoreSummary | None, spec: str) -> str:
    return NOTHING if summary is None or summary["mean"] is None else f"{summary['mean']:{spec}}"


def _difference(found: Difference | None, low: str, high: str) -> str:
    if found is None or found["mean"] is None:
        return NOTHING
    ends = [found[low], found[high]]  # type: ignore[literal-required]
    spread = "" if None in ends else f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
    return f"{100 * found['mean']:+.1f}{spread}"


def _seconds(method: str, cells: Sequence[CellResult]) -> str:
    found = [cell["seconds"]["edit"] for cell in cells if cell["seconds"] is not None]
    return NOTHING if method == UNTOUCHED or not found else f"{fmean(found):.3f}"


def _memory(cells: Sequence[CellResult]) -> str:
    def most(key: str) -> int:
        return max((c["memory"][key] or 0 for c in cells if c["memory"]), default=0)  # type: ignore[literal-required]

    peak, cuda = most("peak"), most("cuda_peak")
    on_gpu = f" + {cuda / 2**20:.0f} GPU" if cuda else ""
    return f"{peak / 2**20:.0f}{on_gpu}" if peak or cuda else NOTHING


def _status(cells: Sequence[CellResult]) -> str:
    """``3``, or ``2 of 3 (seed 1 collapsed after 40 edits)``."""
    bad = [c["run_info"] for c in cells if c["run_info"]["status"] != "complete"]
    if not bad:
        return str(len(cells))
    named = ", ".join(
        f"seed {info['seed']} {info['status']}"
        + (f" after {info['edits']} edits" if info["edits"] else "")
        for info in bad
    )
    return f"{len(cells) - len(bad)} of {len(cells)} ({named})"
