"""``nse stats``: the covariance statistics that a method's hyperparameters ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nse_plugin.cli.app import MACHINE, command
from nse_plugin.cli.options import AS_JSON, MODEL, examples
from nse_plugin.cli.output import note, show_result, show_tables, working
from nse_plugin.errors import HparamsError
from nse_plugin.hparams import LocateHparams
from nse_plugin.table import NOTHING, Table

if TYPE_CHECKING:
    from nse_plugin.statistics.files import SecondMoment


@command(MACHINE, examples("nse stats --hparams NSE/gpt2-xl --source self --samples 10000 --npz"))
def stats(
    hparams: Annotated[
        str, typer.Option(help="Name or path of the YAML of a method that uses statistics.")
    ],
    model: MODEL = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, or the number of a GPU, instead of the YAML's device.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="factbook (real prose), self (written by the model), atlas, a file or a dataset."
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Number of texts.")] = None,
    stats_dir: Annotated[
        str | None, typer.Option(help="Folder of the statistics; see docs/statistics.md.")
    ] = None,
    npz: Annotated[bool, typer.Option("--npz", help="Also write EasyEdit's .npz files.")] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute them even if they are on disk.")
    ] = False,
    as_json: AS_JSON = False,
) -> int:
    """Compute the covariance statistics that a method's hyperparameters ask for."""
    moments = make_statistics(
        hparams,
        npz=npz,
        recompute=recompute,
        model_name=model,
        device=device,
        mom2_dataset=source,
        mom2_n_samples=samples,
        stats_dir=stats_dir,
    )
    found = [
        {"layer": layer, "tokens": moment.count, "texts": moment.n_samples, "npz": path}
        for layer, moment, path in moments
    ]
    if as_json:
        show_result(found)
        return 0
    rows = tuple(tuple(str(value or NOTHING) for value in row.values()) for row in found)
    heads = ("layer", "tokens", "texts", "file for EasyEdit")
    show_tables(Table("Statistics by layer", heads, rows, (True, True, True, False)))
    return 0


def make_statistics(
    name: str, *, npz: bool = False, recompute: bool = False, **changes: Any
) -> Iterator[tuple[int, SecondMoment, Path | None]]:
    """Read or compute the second moments of all layers of some hyperparameters.

    Args:
        name: a YAML's name or path.
        npz: also write EasyEdit's files.
        recompute: leave files that are there unread.
        **changes: hyperparameters to replace; None leaves them as they are.

    Yields:
        Layer, its statistics, and EasyEdit's file where one was written.

    Raises:
        HparamsError: a changed value is out of range.
        ModelError: the model cannot be loaded, or has no such layer.
        StatisticsError: the text cannot be had, or a file is damaged.
    """
    from nse_plugin.data.models import load_model
    from nse_plugin.methods.registry import load_hparams
    from nse_plugin.model.probe import layout_of
    from nse_plugin.statistics.covariance import second_moments
    from nse_plugin.statistics.files import stats_folder, write_npz

    given = {name: value for name, value in changes.items() if value is not None}
    hparams = load_hparams(name)
    if not isinstance(hparams, LocateHparams):
        raise HparamsError(
            f"{name} is for {hparams.alg_name}, which uses no covariance; give the YAML of NSE, "
            "MEMIT, ROME or AlphaEdit"
        )
    hparams = dataclasses.replace(hparams, **given)
    # EasyEdit's files belong where EasyEdit looks
    folder = Path(hparams.stats_dir) if npz else stats_folder(hparams.stats_dir)
    with working() as listener:
        listener("phase", {"name": "loading the model"})
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
    note(f"kept in {folder}")
    for layer, moment in moments.items():
        path = None
        if npz:
            path = write_npz(
                folder, layout, layer, moment, dtype=hparams.mom2_dtype,
                n_samples=hparams.mom2_n_samples,
            )  # fmt: skip
        yield layer, moment, path
