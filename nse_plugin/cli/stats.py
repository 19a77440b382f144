"""``nse stats``: compute the covariance statistics of a method's hyperparameters."""

from __future__ import annotations

from typing import Annotated

import typer

from nse_plugin.cli.app import MACHINE, command
from nse_plugin.cli.options import AS_JSON, MODEL, examples
from nse_plugin.cli.output import note, show_result, show_tables
from nse_plugin.errors import HparamsError
from nse_plugin.table import NOTHING, Table


@command(
    MACHINE,
    examples(
        "nse stats --model path/to/model",
        "nse stats --hparams NSE/gpt2-xl --source self --samples 10000 --npz",
    ),
)
def stats(
    model: MODEL = None,
    method: Annotated[
        str | None,
        typer.Option(help="Whose layers and text on --model, without a YAML: NSE (the default)."),
    ] = None,
    hparams: Annotated[
        str | None, typer.Option(help="Name or path of the YAML of a method that uses statistics.")
    ] = None,
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
    """Compute the covariance statistics of a method's hyperparameters."""
    from nse_plugin.data.defaults import hparams_for
    from nse_plugin.methods.registry import load_hparams
    from nse_plugin.runs.statistics import make_statistics

    if hparams is not None and method is not None:
        raise HparamsError(f"hparams is {hparams!r} and method is {method!r}; leave one out")
    if hparams is None and model is None:
        raise HparamsError("model is missing; give --model, or --hparams with a YAML")
    moments = make_statistics(
        load_hparams(hparams) if hparams else hparams_for(method or "NSE", str(model)),
        note,
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
    rows = tuple(
        tuple(NOTHING if value is None else str(value) for value in row.values()) for row in found
    )
    heads = ("layer", "tokens", "texts", "file for EasyEdit")
    show_tables(Table("Statistics by layer", heads, rows, (True, True, True, False)))
    return 0
