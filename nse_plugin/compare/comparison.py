"""Methods side by side: plan the grid, run what is missing, write results, tables and page."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nse_plugin.compare.engines import engine_of
from nse_plugin.compare.hosts import changed_since, recipe
from nse_plugin.compare.intervals import mean_and_deviation, paired_differences
from nse_plugin.compare.plan import Cell, ModelSpec, claimed_for, grid, lasting, round_size
from nse_plugin.compare.ray_engine import import_ray
from nse_plugin.compare.report import page
from nse_plugin.compare.results import SCHEMA, CellResult, ComparisonResult, read_cell
from nse_plugin.compare.settings import PROTOCOL, CompareSettings
from nse_plugin.compare.specs import MethodSpec, parse_methods
from nse_plugin.compare.tables import all_tables
from nse_plugin.data.streams import held_out_source
from nse_plugin.errors import DataError, HostError, HparamsError, did_you_mean
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.files import write_json, write_text
from nse_plugin.printable import counted
from nse_plugin.runs.listeners import progress
from nse_plugin.runs.start import read_requests
from nse_plugin.runs.stopping import StopRules


@dataclass(frozen=True)
class Comparison:
    """A grid of cells, and its settings."""

    methods: Sequence[MethodSpec]
    models: Sequence[ModelSpec]
    seeds: Sequence[int]
    settings: CompareSettings
    """With absolute paths, because a cell may run in another folder."""

    def __post_init__(self) -> None:
        if self.settings.engine == "ray":
            import_ray()
        names, reference = [spec.name for spec in self.methods], self.settings.reference
        if reference is not None and reference not in names:
            raise HparamsError(
                f"reference is {reference!r}{did_you_mean(reference, names)}; give one of the "
                f"methods: {', '.join(names)}"
            )

    def cells(self) -> list[Cell]:
        """All cells, in the order of the table."""
        return grid(self.methods, self.models, self.seeds, self.settings)

    def run(self, show: Callable[[str], None]) -> ComparisonResult:
        """Run the cells that are not finished, then write ``results.json``.

        Raises:
            NSEPluginError: methods, models, data or folder are wrong; no cell was started.
        """
        cells = self.cells()
        records = read_requests(self.settings, self.seeds[0])
        self._check(cells)
        with claimed_for(self.settings):
            return self._run(cells, len(records), show)

    def _run(
        self, cells: list[Cell], n_records: int, show: Callable[[str], None]
    ) -> ComparisonResult:
        found = {c.place: kept for c in cells if (kept := self._kept(c)) is not None}
        show(self._plan(len(cells), n_records))
        if found:
            show(f"{len(found)} of them are done already")
        missing = [c for c in cells if c.place not in found]
        with (
            progress(show, rounds=False) as told,
            closing(self._run_missing(missing)) as results,  # an error here ends the engine now
        ):
            told("phase", {"name": "running cells", "detail": lambda: self._at_work(cells, found)})
            for cell, result in results:
                write_json(cell.result, result)
                found[cell.place] = result
                told("note", {"text": f"[{len(found)}/{len(cells)}] {_line(cell, result)}"})
        whole = self._result([found[cell.place] for cell in cells])
        write_json(Path(self.settings.out) / "results.json", whole)
        return whole

    def _at_work(self, cells: list[Cell], found: Mapping[Path, CellResult]) -> str:
        """How many cells are finished, and after which round those are that run now."""
        at_once = 1 if self.settings.engine == "serial" else self.settings.jobs
        running = [cell for cell in cells if cell.place not in found][:at_once]
        parts = [f"{cell} after round {cell.rounds_done()}" for cell in running]
        return ", ".join([f"{len(found)} of {len(cells)} done", *parts])

    def _plan(self, n_cells: int, n_records: int) -> str:
        """A line for people: the cells, and the stream of edits in each."""
        settings = self.settings
        edits = settings.limit if settings.known else n_records
        fewer = ""
        if edits:
            size = round_size(edits, settings.rounds)
            if (rounds := -(-edits // size)) < settings.rounds:
                fewer = f", which make {counted(rounds, 'round')} of {size}, not {settings.rounds}"
        asked = counted(edits, "edit") if edits else "all facts that the model knows"
        return (
            f"{n_cells} cells: {', '.join(spec.name for spec in self.methods)} and the untouched "
            f"model, on {', '.join(model.key for model in self.models)}, with "
            f"{'seed' if len(self.seeds) == 1 else 'seeds'} {', '.join(map(str, self.seeds))}; "
            f"{asked} in each{fewer}"
        )

    def _run_missing(self, cells: list[Cell]) -> Generator[tuple[Cell, CellResult], None, None]:
        """Run the cells of the untouched model, and then the others, which share its answers."""
        if not cells:
            return
        with engine_of(self.settings.engine, self.settings.jobs) as engine:
            for wave in (True, False):
                with closing(engine.run([c for c in cells if c.untouched is wave])) as results:
                    yield from results

    def _check(self, cells: list[Cell]) -> None:
        """Check, before anything is written, that every cell can start."""
        for cell in cells:
            if cell.seed != self.seeds[0]:
                continue
            how = {key: cell.values().get(key) for key in ("device", "dtype", "fp16")}
            first = next(c for c in cells if c.model == cell.model)
            wanted = {key: first.values().get(key) for key in how}
            if how != wanted:
                raise HparamsError(
                    f"{cell}: its YAML loads the model with {how}, and {first.spec.name}'s with "
                    f"{wanted}; all methods have to start from the same model (see --device)"
                )
            hosts_own = recipe(cell).hosts_own
            if hosts_own and self.settings.chat:
                raise HostError(
                    f"chat is true, and EasyEdit's {cell.spec.method} edits plain prompts; take "
                    f"ours: {cell.spec.method}-plugin, or leave chat out"
                )
            if hosts_own and self.settings.engine != "processes":
                raise HostError(
                    f"EasyEdit's {cell.spec.method} keeps state in its modules from run to run; "
                    "take --engine processes, which gives each cell a process of its own"
                )

    def _kept(self, cell: Cell) -> CellResult | None:
        """A cell's result on disk, unless it failed.

        Raises:
            DataError: it is of other hyperparameters, or of another implementation.
        """
        kept = read_cell(cell.result)
        if kept is None or kept["run_info"]["status"] == "failed":
            return None
        of = tuple(kept["run_info"][key] for key in ("model", "method", "seed"))
        if of != (cell.model.key, cell.method, cell.seed):
            raise DataError(
                f"{cell.result} is the result of {of[1]} on {of[0]} with seed {of[2]}, so it is at "
                "the wrong place; remove it to run the cell"
            )
        found = changed_since(cell, kept["method_info"])
        if found:
            raise DataError(
                f"{cell} was run with other settings: {'; '.join(found[:4])}. Put them back, give "
                f"another folder, or remove {cell.result} and {cell.run_dir} to run it anew"
            )
        return kept

    def _result(self, results: list[CellResult]) -> ComparisonResult:
        reference = self.settings.reference or self.methods[0].name
        settings: dict[str, Any] = {
            **lasting(self.settings),
            "methods": [spec.name for spec in self.methods],
            "models": {model.key: model.source for model in self.models},
            "seeds": list(self.seeds),
            "reference": reference,
        }
        return {
            "schema": SCHEMA,
            "settings": settings,
            "cells": results,
            "summaries": mean_and_deviation(results),
            "differences": paired_differences(results, reference),
        }


def read_comparison(given: CompareSettings) -> Comparison:
    """The comparison that settings describe, with absolute paths.

    Raises:
        HparamsError: a name in them cannot be read.
    """
    of_file = given.data.partition(":")[0] not in ("atlas", "earth")
    named_text = given.held_out in (None, "atlas", "factbook", "none")
    settings = replace(
        given,
        methods=_with_commas(given.methods),
        models=_with_commas(given.models),
        seeds=_with_commas(given.seeds),
        data=os.path.abspath(given.data) if of_file else given.data,
        out=os.path.abspath(given.out),
        order=given.order or ("shuffled" if of_file else "given"),
        held_out=given.held_out if named_text else _absolute(given.held_out),
        protocol={**PROTOCOL, **given.protocol},
        stop={"on_collapse": "stop", **given.stop} if given.stop else {},
        hparams_dir=_absolute(given.hparams_dir),
        stats_dir=_absolute(given.stats_dir),
    )
    models = [ModelSpec.parse(text) for text in str(settings.models).split(",")]
    sources = {held_out_source(settings.held_out, model.source) for model in models}
    measured = Protocol.from_dict(settings.protocol)
    StopRules.from_dict(settings.stop).refuse_unmeasured(measured, "none" not in sources)
    return Comparison(
        methods=parse_methods(str(settings.methods)),
        models=models,
        seeds=_seeds(str(settings.seeds)),
        settings=settings,
    )


def _with_commas(names: str | int | Sequence[Any]) -> str:
    return ",".join(map(str, names)) if isinstance(names, list) else str(names)


def write_report(folder: Path, result: ComparisonResult) -> None:
    """``table.md`` and ``report.html``."""
    tables = all_tables(result)
    text = "\n\n".join(f"## {table.caption}\n\n{table.markdown()}" for table in tables)
    write_text(folder / "table.md", f"# Scores of the comparison\n\n{text}\n")
    page(result).write(folder / "report.html")


def exit_code(result: ComparisonResult) -> int:
    """0 if every cell is complete, else 3."""
    return 0 if all(c["run_info"]["status"] == "complete" for c in result["cells"]) else 3


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise HparamsError(f"seeds is {text!r}; give whole numbers, e.g. 0,1,2") from None


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _line(cell: Cell, result: CellResult) -> str:
    info, scores = result["run_info"], result["scores"]
    if info["status"] != "complete":
        return f"{cell}: {info['status']} after {info['edits']} edits: {info['error']}"
    shown = ", ".join(
        f"{name} {value:.1%}"
        for name in ("efficacy", "paraphrase", "locality")
        if (value := scores.get(name)) is not None
    )
    seconds = result["seconds"]
    return f"{cell}: {shown}" + (f" ({seconds['wall']:.1f} s)" if seconds else "")
