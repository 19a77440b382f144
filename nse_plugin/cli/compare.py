"""``nse compare``: methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import AS_JSON, Group, config_option, examples, with_fields
from nse_plugin.cli.output import interrupt_says, show_result, show_tables, teller
from nse_plugin.compare.settings import CompareSettings
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.runs.stopping import StopRules

_GRID, _MEASURED, _HOW = "What is compared", "What is measured", "How it is run"


@command(
    EDIT,
    examples(
        "nse compare --methods NSE,MEMIT --data atlas:100 --rounds 5 --seeds 0,1 --out compared",
        "nse compare --methods 'NSE,NSE:one-pass,NSE+OVERTONE' --engine processes --jobs 2",
        "nse compare --config compare.yaml --out compared",
    ),
)
@with_fields(
    Group(_GRID, CompareSettings, ("methods", "models", "data", "rounds", "seeds", "limit")),
    Group(_GRID, CompareSettings, ("schema", "on_bad_record", "known", "chat", "order")),
    Group(_MEASURED, Protocol, ("every",)),
    Group(_MEASURED, CompareSettings, ("held_out", "reference")),
    Group(_MEASURED, StopRules, ("until_collapse",)),
    Group(_HOW, CompareSettings, ("hparams_dir", "device", "stats_dir")),
    Group(_HOW, CompareSettings, ("engine", "jobs", "threads", "out")),
)
def compare(
    given: dict[str, Any],
    config: Annotated[Path | None, config_option(_GRID)] = None,
    as_json: AS_JSON = False,
) -> int:
    """Compare methods side by side on the same streams of edits.

    The same command resumes a comparison that was interrupted; methods, models and seeds may be
    added to it.
    """
    protocol = {"every": given.pop("every", None)}
    stop = {"until_collapse": given.pop("until_collapse", None)}
    settings = CompareSettings.read(config, {**given, "protocol": protocol, "stop": stop})
    from nse_plugin.compare.comparison import exit_code, read_comparison, write_report
    from nse_plugin.compare.tables import all_tables

    out, show = Path(settings.out), teller(as_json)
    with interrupt_says(lambda: _finished_cells(out)):
        result = read_comparison(settings).run(show)
    write_report(out, result)
    show("")
    if as_json:
        show_result({"out": str(out), **{k: v for k, v in result.items() if k != "cells"}})
    else:
        show_tables(*all_tables(result))
    show(f"written to {out}: report.html, table.md, results.json, results/, cells/")
    return exit_code(result)


def _finished_cells(folder: Path) -> str:
    done = sum(1 for _ in folder.glob("results/**/*.json"))
    cells = "1 finished cell is" if done == 1 else f"{done} finished cells are"
    return f"{cells} in {folder}; the same command resumes the others from their last round"
