"""A comparison as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path

from nse_plugin.compare.pictures import (
    GROUPS,
    OVER_EDITS,
    edited_methods,
    efficacy_against_time,
    final_scores,
    left_at_the_end,
    over_edits,
    retention,
)
from nse_plugin.compare.results import ComparisonResult
from nse_plugin.compare.tables import (
    INTERVALS,
    age_tables,
    difference_table,
    kind_table,
    models,
    score_table,
    time_table,
    trouble_table,
)
from nse_plugin.printable import counted
from nse_plugin.report.page import Page
from nse_plugin.table import Table


def page(result: ComparisonResult) -> Page:
    """The page: per model scores, differences, time and figures; then how it was run."""
    settings = result["settings"]
    shown = Page(
        "Methods side by side",
        f"{', '.join(settings['methods'])} on {', '.join(settings['models'])}: "
        f"{Path(settings['data']).name} in {settings['rounds']} rounds, "
        f"seeds {', '.join(map(str, settings['seeds']))}",
    )
    trouble = trouble_table(result)
    if trouble is not None:
        said = (
            "These cells are left out of differences, and of means too unless they were stopped: "
            "those are in the means with the edits until then."
        )
        shown.section("Trouble", said).add(trouble)
    for model in models(result):
        section = shown.section(model)
        section.add(score_table(result, model), kind_table(result, model))
        section.add(*age_tables(result, model))
        section.add(*(difference_table(result, model, interval) for interval in INTERVALS))
        for group in GROUPS:
            section.add(final_scores(result, model, group))
            section.add(*(over_edits(result, model, score, group) for score in OVER_EDITS))
        section.add(*(efficacy_against_time(result, model, group) for group in GROUPS))
        section.add(time_table(result, model))
        section.add(*(left_at_the_end(result, model, group) for group in GROUPS))
        section.add(*(retention(result, model, m) for m in edited_methods(result, model)))
    shown.section("How it was run").add(*_machines(result), _methods(result))
    return shown


def _machines(result: ComparisonResult) -> list[str]:
    """A paragraph for each kind of machine and set of versions."""
    found: dict[str, int] = {}
    for cell in result["cells"]:
        meta = cell["meta_info"]
        versions = ", ".join(f"{name} {value}" for name, value in meta["versions"].items())
        commits = ", ".join(f"{k} {v[:10]}" for k, v in meta["commits"].items() if v)
        hardware = meta["hardware"]
        where = ", ".join([hardware["cpu"] or hardware["machine"], *hardware["gpus"]])
        text = f"{where}, {meta['threads']} thread(s); {versions}; {commits}; host {meta['host']}"
        found[text] = found.get(text, 0) + 1
    return [f"{counted(n, 'cell')}: {text}." for text, n in found.items()]


def _methods(result: ComparisonResult) -> Table:
    """The methods: whose implementation, what differs from their YAML, and all hyperparameters."""
    rows = {}
    for cell in result["cells"]:
        info, model = cell["method_info"], cell["run_info"]["model"]
        if info["hparams"]:
            hparams = {k: v for k, v in info["hparams"].items() if v is not None}
            rows[(model, info["name"])] = (
                model, info["name"], info["implementation"], info["about"],
                ", ".join(info["ignored"]), json.dumps(hparams, ensure_ascii=False),
            )  # fmt: skip
    heads = ("model", "method", "implementation", "changed", "not known to it", "hyperparameters")
    return Table("Methods", heads, tuple(rows.values()))
