"""Inspect a run directory: tables, figures and a page, without the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nse_plugin.errors import DataError
from nse_plugin.files import check_place, write_bytes
from nse_plugin.report import run_tables as tables
from nse_plugin.report.figures import to_png
from nse_plugin.report.run import Run
from nse_plugin.report.run_figures import run_pictures
from nse_plugin.report.run_page import run_page, run_tables
from nse_plugin.report.theme import LIGHT
from nse_plugin.session import queries
from nse_plugin.table import Table


def inspect(
    folder: Path,
    show: Callable[[str], None],
    *,
    layer: int | None = None,
    neuron: int | None = None,
    request: str | None = None,
    plot: Path | None = None,
    html: Path | None = None,
) -> tuple[Run, list[Table]]:
    """A run and its tables, or those of a layer, a neuron or a request; writes figures and a page.

    Args:
        show: prints a line for each written file.
        plot: folder for PNG files, one for each figure.
        html: file for a page with everything.

    Raises:
        DataError: ``folder`` is not a run directory with a finished round, it does not contain what
            was asked for, or ``plot`` or ``html`` cannot be written.
    """
    if plot is not None and plot.exists() and not plot.is_dir():
        raise DataError(f"{plot} is a file; give a folder for the figures")
    if html is not None:
        check_place(html, "the page")
        if html.exists() and html.suffix.lower() not in (".html", ".htm"):
            raise DataError(f"{html} exists and is no HTML page; give a name that ends in .html")
    run = Run(folder)
    found = _asked(run, layer, neuron, request)
    if plot is not None:
        for picture in run_pictures(run):
            path = plot / f"{picture.name}.png"
            write_bytes(path, to_png(picture.draw(LIGHT)))
            show(f"written: {path}")
    if html is not None:
        run_page(run).write(html)
        show(f"written: {html}")
    return run, found


def _asked(run: Run, layer: int | None, neuron: int | None, request: str | None) -> list[Table]:
    """The tables for these options; without any, those of the whole run."""
    if neuron is not None and layer is None:
        raise DataError(
            f"--neuron {neuron} is a number within a layer; give --layer too, one of "
            f"{', '.join(map(str, run.layers)) or 'none: no round is active'}"
        )
    found: list[Table] = []
    if layer is not None and neuron is None:
        found.append(tables.neurons_table(layer, queries.neurons(run.ledger, layer)))
    elif layer is not None and neuron is not None:
        found.append(tables.neuron_table(run, layer, neuron))
    if request is not None:
        found += tables.request_tables(run, request)
    return found or run_tables(run)
