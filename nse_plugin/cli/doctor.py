"""``nse doctor``: report versions, devices, EasyEdit and free disk space of this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from nse_plugin.cli.app import MACHINE, command
from nse_plugin.cli.options import AS_JSON, examples
from nse_plugin.cli.output import show_result
from nse_plugin.table import Table


@command(MACHINE, examples("nse doctor"))
def doctor(
    stats_dir: Annotated[
        str | None, typer.Option(help="Folder of the statistics; see docs/statistics.md.")
    ] = None,
    as_json: AS_JSON = False,
) -> int:
    """Show versions, devices, the host, the embedded models and the free disk space."""
    from nse_plugin.runs.doctor import report

    rows = report(stats_dir)
    table = Table("What nse finds on this machine", ("what", "found"), tuple(rows))
    show_result(dict(rows) if as_json else table)
    return 0
