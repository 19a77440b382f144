"""Export the edits of a run directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nse_plugin.errors import DataError
from nse_plugin.export.adapter import to_peft
from nse_plugin.export.delta import to_delta
from nse_plugin.export.full import to_full
from nse_plugin.runs.reopen import open_run

KINDS = ("peft", "delta", "full")


def export_run(
    run: Path,
    kind: str,
    out: Path,
    show: Callable[[str], None],
    *,
    rank: int | None = None,
    equal_ranks: bool = True,
    device: str | None = None,
) -> None:
    """Write a run's edits as an adapter, as changed matrices or as a complete model.

    Raises:
        DataError: ``run`` is no run directory, or ``out`` cannot be written.
        ModelError: the run's model cannot be loaded, or is another one now.
    """
    if kind not in KINDS:
        raise DataError(f"cannot export to {kind!r}; there are: {', '.join(KINDS)}")
    if rank is not None and kind != "peft":
        raise DataError(f"--max-rank is for --to peft; {kind} holds the whole change. Leave it out")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise DataError(f"{out} holds files already; give the name of a new folder")
    model, session = open_run(run, device)
    edits = session.ledger.edits()
    if kind == "peft":
        fits = to_peft(session, out, rank=rank, equal_ranks=equal_ranks)
        if fits:
            show("layer   rank   of  relative error")
        for fit in fits.values():
            show(f"{fit.layer:5d} {fit.rank:6d} {fit.full_rank:4d}  {fit.relative_error:.2e}")
    elif kind == "delta":
        to_delta(session, out)
    else:
        to_full(session, out)
    show(f"{edits} edits of {len(session.ledger)} rounds on {_name(model)} written to {out}")


def _name(model: Any) -> str:
    return Path(str(getattr(model.config, "_name_or_path", ""))).name or model.config.model_type
