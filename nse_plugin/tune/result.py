"""The result of a search: a table, a figure of the layers, and a commented YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nse_plugin.files import write_bytes, write_text
from nse_plugin.hparams.docs import field_docs
from nse_plugin.hparams.yaml_files import parse_yaml
from nse_plugin.methods.bases import BASES
from nse_plugin.report.charts import lines
from nse_plugin.report.figures import to_png
from nse_plugin.table import NOTHING, Table
from nse_plugin.tune.search import Tuned
from nse_plugin.tune.trials import ROUND, SHOWN, Trial

if TYPE_CHECKING:
    from pandas import DataFrame

_FIRST = ("alg_name", "model_name", "device", "layers")
_COMMENT = 34
"""Column where the comments of a YAML begin."""


def trial_text(trial: Trial) -> str:
    """One line about a finished trial."""
    if trial.error is not None:
        return f"{trial.stage}: {_changed(trial)}: failed: {trial.error}"
    shown = ", ".join(f"{name} {_percent(trial.scores.get(name))}" for name in SHOWN)
    return f"{trial.stage}: {_changed(trial)}: {shown} ({trial.edits} edits, {trial.seconds:.0f} s)"


def trials_table(tuned: Tuned) -> Table:
    """All trials in order, the result marked with a star."""
    heads = ("stage", "settings", "edits", "injected", *SHOWN, "left", "score", "seconds")
    rows = [
        (
            f"{trial.stage}{' *' if trial is tuned.best else ''}",
            _changed(trial),
            str(trial.edits),
            _percent(trial.injected),
            *(_percent(trial.scores.get(name)) for name in SHOWN),
            _percent(trial.left),
            f"{trial.score:.3f}",
            f"{trial.seconds:.0f}",
        )
        for trial in tuned.trials
    ]
    return Table(
        f"{tuned.method}: {len(rows)} trials in {tuned.seconds / 60:.1f} minutes",
        heads,
        tuple(rows),
        (False, False, *[True] * (len(heads) - 2)),
        "injected: targets that the values alone give; left: share of a residual that the write "
        "left; score: harmonic mean of efficacy, paraphrase and locality, where 0 counts as 1%; "
        "*: the result",
        marks={
            (row, len(heads) - 2): "good"
            for row, trial in enumerate(tuned.trials)
            if trial is tuned.best
        },
        longest=60,
    )


def layers_frame(tuned: Tuned) -> DataFrame:
    """Scores by the last edited layer, of the trials that differ only in their layers."""
    import pandas as pd

    rows = {}
    for trial in tuned.trials:
        if trial.stage in ("first", "layers") and trial.error is None and _layer(trial) is not None:
            rows[_layer(trial)] = {"injected": trial.injected, **trial.scores}
    return pd.DataFrame.from_dict(rows, orient="index").astype(float).sort_index()


def write_figure(path: Path, tuned: Tuned) -> bool:
    """Write a PNG of the scores by layer; false if only one layer was tried."""
    frame = layers_frame(tuned)
    if len(frame) < 2:
        return False
    figure = lines(
        frame.dropna(axis="columns", how="all"),
        x="last layer edited",
        y="share",
        title=f"{tuned.method}, {ROUND} edits",
        percent=True,
        limits=(0.0, 1.03),
    )
    write_bytes(path, to_png(figure))
    return True


def write_yaml(path: Path, tuned: Tuned, head: Sequence[str]) -> None:
    """Write the settings, each with a comment, below a comment on the search.

    Args:
        head: lines about the command, the data and the versions.
    """
    table = trials_table(tuned)
    story = [*head, "", *table.text().splitlines()]
    text = "".join(f"# {line}".rstrip() + "\n" for line in story)
    write_text(path, text + "".join(_yaml_lines(tuned.settings)))


def _yaml_lines(settings: Mapping[str, Any]) -> Iterator[str]:
    kind: Any = BASES[settings["alg_name"]].hparams
    docs = field_docs(kind)
    names = [field.name for field in fields(kind) if field.name not in _FIRST]
    for name in (*_FIRST, *names):
        if name not in settings or name == "stats_dir":  # a folder of this machine
            continue
        line = f"{name}: {_as_yaml(settings[name])}"
        about = re.split(r"[.;:] |\.$", docs.get(name, ""))[0]
        yield (
            f"{line:<{_COMMENT}}  # {about}\n" if about and name not in _FIRST[:3] else f"{line}\n"
        )


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).replace("\n...", "").strip()
    assert parse_yaml(text) == value
    return text


def _layer(trial: Trial) -> int | None:
    layers = trial.settings.get("layers")
    return layers[-1] if layers else None


def _changed(trial: Trial) -> str:
    """What a trial changes in the best settings before it."""
    if not trial.changes:
        return "as they are"
    return ", ".join(f"{key} {_short(value)}" for key, value in trial.changes.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]}" if len(value) > 1 else str(value[0])
    return str(value)


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"
