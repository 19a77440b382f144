"""Compute the covariance statistics of a method's hyperparameters, without a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nse_plugin.data.models import load_model
from nse_plugin.errors import HparamsError
from nse_plugin.hparams import Hparams, LocateHparams
from nse_plugin.model.probe import layout_of
from nse_plugin.runs.listeners import progress
from nse_plugin.statistics.covariance import second_moments
from nse_plugin.statistics.files import SecondMoment, stats_folder, write_npz


def make_statistics(
    hparams: Hparams,
    show: Callable[[str], None],
    *,
    npz: bool = False,
    recompute: bool = False,
    **changes: Any,
) -> Iterator[tuple[int, SecondMoment, Path | None]]:
    """Read or compute the second moments of all layers that a method edits.

    Args:
        show: prints a line for people.
        npz: also write EasyEdit's files.
        recompute: compute them even if they are on disk.
        **changes: hyperparameters to replace; None keeps them.

    Yields:
        A layer, its statistics, and EasyEdit's file if one was written.

    Raises:
        HparamsError: a changed value is out of range.
        ModelError: the model cannot be loaded, or has no such layer.
        StatisticsError: the text cannot be had, or a file is damaged.
    """
    if not isinstance(hparams, LocateHparams):
        raise HparamsError(
            f"{hparams.alg_name} uses no covariance; give a YAML of NSE, MEMIT, ROME or AlphaEdit"
        )
    given = {name: value for name, value in changes.items() if value is not None}
    hparams = dataclasses.replace(hparams, **given)
    # EasyEdit's files belong where EasyEdit looks
    folder = Path(hparams.stats_dir) if npz else stats_folder(hparams.stats_dir)
    with progress(show) as told:
        told("phase", {"name": "loading the model"})
        model, tokenizer, _ = load_model(hparams)
    layout = layout_of(model)
    moments = second_moments(
        layout,
        tokenizer,
        hparams.layers,
        source=hparams.mom2_dataset,
        n_samples=hparams.mom2_n_samples,
        stats_dir=folder,
        dtype=hparams.mom2_dtype,
        token_budget=hparams.token_budget,
        recompute=recompute,
    )
    show(f"kept in {folder}")
    for layer, moment in moments.items():
        path = None
        if npz:
            path = write_npz(
                folder, layout, layer, moment, dtype=hparams.mom2_dtype,
                n_samples=hparams.mom2_n_samples,
            )  # fmt: skip
        yield layer, moment, path
