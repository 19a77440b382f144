"""OVERTONE around FT-M, LoRA, NSE and MEMIT on both embedded models; writes docs/overtone.md.

Single edits (each from the untouched model), sequential edits, and the ablation on LoRA:

    python benchmarks/overtone.py --out docs/overtone.md [--jobs 2] [--work FOLDER] [--quick]

Each cell (model, base editor, variant, kind, seed) is a JSON file in the work folder; the same
command goes on after an interrupt and only writes the page when all cells are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.evaluation.metrics import Bounds, ask, summarise
from nse_plugin.evaluation.overfitting import single_edits
from nse_plugin.files import write_json, write_text
from nse_plugin.hparams import Hparams, OvertoneHparams
from nse_plugin.methods.registry import find_method
from nse_plugin.objectives.token_table import TokenTable
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from nse_plugin.version import __version__

MODELS = ("gpt2", "llama")
BASES = {"FT": "FT-M", "LoRA": "LoRA", "NSE": "NSE", "MEMIT": "MEMIT"}
"""Base editors by alg_name, as the tables name them."""
VARIANTS: dict[str, dict[str, bool] | None] = {
    "base": None,
    "full": {},
    "no clip": {"clip": False},
    "frozen reference": {"frozen_reference": True},
    "no argmax check": {"argmax_check": False},
    "no filter": {"filter": False},
}
"""Switches by name; None is the base editor's own loss."""
ABLATION = ("base", "no clip", "frozen reference", "no argmax check", "no filter", "full")
SCORES = {
    "Rel": ("efficacy", "efficacy_tokens"),
    "Gen": ("paraphrase", "paraphrase_tokens"),
    "Por": ("portability", "portability_tokens"),
    "Loc": ("locality_exact", "locality"),
}
"""Columns: whole answers, and answer tokens under teacher forcing."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    kind: str
    """single or sequential."""
    model: str
    base: str
    variant: str
    seed: int
    edits: int

    @property
    def file(self) -> str:
        """Name of its JSON file."""
        parts = (self.kind, self.model, self.base, self.variant, self.seed, self.edits)
        return "-".join(map(str, parts)).replace(" ", "_") + ".json"


def cells(seeds: Sequence[int], single: int, sequential: int) -> list[Cell]:
    """All cells of the page; the long ones first, so that no process waits at the end."""
    rows = [
        Cell("sequential", model, base, variant, seed, sequential)
        for base in BASES
        for variant in ("base", "full")
        for model in MODELS
        for seed in seeds
    ]
    for base in BASES:
        for variant in ABLATION if base == "LoRA" else ("base", "full"):
            for model in MODELS:
                rows += [Cell("single", model, base, variant, seed, single) for seed in seeds]
    return rows


# --- one cell -----------------------------------------------------------------------------------


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """Edit and measure, or read what was measured before."""
    path = work / cell.file
    hparams = hparams_of(cell, work)
    identity = {"version": __version__, "cell": asdict(cell), "hparams": hparams.to_dict()}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            return known
    torch.set_num_threads(1)
    start = time.perf_counter()
    model, tokenizer = atlas.load(cell.model)
    requests = parse_records(atlas.edit_set(cell.edits, seed=cell.seed))
    bounds = Bounds()
    frozen = ask(model, tokenizer, requests, bounds)
    session = EditSession.of(model, tokenizer)
    measure = single if cell.kind == "single" else sequential
    answered, spreads = measure(session, requests, hparams, bounds)
    result = {
        "identity": identity,
        "scores": summarise(answered, frozen, edited_texts(cell, requests)),
        "before": summarise(frozen, frozen),
        "spread": fmean(spreads),
        "seconds": time.perf_counter() - start,
    }
    write_json(path, result)
    return result


def hparams_of(cell: Cell, work: Path) -> Hparams:
    """What ships for the base editor, or for OVERTONE around it with this variant's switches."""
    switches = VARIANTS[cell.variant]
    folder = cell.base if switches is None else f"OVERTONE/{cell.base}"
    kind = find_method(folder.partition("/")[0]).hparams
    hparams = kind.from_hparams(f"{folder}/atlas-{cell.model}")
    inner = hparams.base if isinstance(hparams, OvertoneHparams) else hparams
    if hasattr(inner, "stats_dir"):
        inner.stats_dir = str(work / "stats")
    return dataclasses.replace(hparams, **(switches or {}))


def single(
    session: EditSession, requests: Sequence[EditRequest], hparams: Hparams, bounds: Bounds
) -> tuple[list[Any], list[float]]:
    """Answers after each edit by itself, and the spreads at the stops."""
    answered, spreads = [], []
    for edit in single_edits(session, requests, hparams):
        answered += ask(session.model, session.tokenizer, [edit.request], bounds)
        if edit.spread is not None:
            spreads.append(edit.spread.range)
    return answered, spreads


def sequential(
    session: EditSession, requests: Sequence[EditRequest], hparams: Hparams, bounds: Bounds
) -> tuple[list[Any], list[float]]:
    """Answers after the last of all edits, made one after the other, and the spreads."""
    edit_round, spreads = find_method(hparams.alg_name).edit_round, []
    for request in requests:
        table = TokenTable()
        edit_round(session, [request], hparams, trace=table)
        spread = table.mean_spread()
        if spread is not None:
            spreads.append(spread.range)
    return ask(session.model, session.tokenizer, requests, bounds), spreads


def edited_texts(cell: Cell, requests: Sequence[EditRequest]) -> set[str]:
    """Prompts that may change: locality is not asked of what another edit of the run was about."""
    if cell.kind == "single":
        return set()
    return {text for request in requests for text in (request.text, *request.rephrase_prompts)}


# --- all cells ----------------------------------------------------------------------------------


def run_all(todo: Sequence[Cell], work: Path, jobs: int) -> dict[Cell, dict[str, Any]]:
    """Every cell, in so many processes of one thread each."""
    work.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    found = {}
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(run_cell, cell, work): cell for cell in todo}
        for future in as_completed(futures):
            cell = futures[future]
            found[cell] = future.result()
            print(
                f"{len(found)}/{len(todo)} {cell.file} {found[cell]['seconds']:.0f} s", flush=True
            )
    return found


# --- the page -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """All cells, looked up by what they are of."""

    found: dict[Cell, dict[str, Any]]

    def of(self, kind: str, model: str, base: str, variant: str) -> list[dict[str, Any]]:
        """The seeds of one row, by seed."""
        rows = [
            (cell.seed, result)
            for cell, result in self.found.items()
            if (cell.kind, cell.model, cell.base, cell.variant) == (kind, model, base, variant)
        ]
        return [result for _, result in sorted(rows, key=lambda row: row[0])]

    def edits(self, kind: str) -> int:
        """Edits per run."""
        return next(cell.edits for cell in self.found if cell.kind == kind)


def table(rows: Iterator[tuple[str, list[dict[str, Any]]]]) -> str:
    """A row per way of editing: whole answers / answer tokens, in percent, mean over the seeds."""
    lines = ["| | " + " | ".join([*SCORES, "average", "spread"]) + " |", "|---" * 7 + "|"]
    for name, results in rows:
        pairs = [tuple(mean_score(results, score) for score in both) for both in SCORES.values()]
        average = tuple(mean_of([pair[i] for pair in pairs]) for i in (0, 1))
        spread = mean_of([result.get("spread") for result in results])
        cells_ = [*map(shown, [*pairs, average]), "-" if spread is None else f"{spread:.3f}"]
        lines.append(f"| {name} | " + " | ".join(cells_) + " |")
    return "\n".join(lines)


def comparison(results: Results, kind: str, model: str) -> Iterator[tuple[str, list[Any]]]:
    """Each base editor without and with OVERTONE, below the model as it was."""
    first = results.of(kind, model, next(iter(BASES)), "base")
    yield "untouched model", [{"scores": result["before"]} for result in first]
    for base, name in BASES.items():
        yield name, results.of(kind, model, base, "base")
        yield f"{name} + OVERTONE", results.of(kind, model, base, "full")


def ablation(results: Results, model: str) -> Iterator[tuple[str, list[Any]]]:
    """LoRA with one part of OVERTONE left out at a time."""
    for variant in ABLATION:
        name = {"base": "LoRA", "full": "OVERTONE, full"}.get(variant, f"OVERTONE, {variant}")
        yield name, results.of("single", model, "LoRA", variant)


def findings(results: Results, kind: str) -> str:
    """What OVERTONE changed, seed by seed, in points of answer tokens and of whole answers."""
    lines = []
    for base, name in BASES.items():
        for model in MODELS:
            plain, full = (results.of(kind, model, base, variant) for variant in ("base", "full"))
            parts = []
            for column, both in SCORES.items():
                deltas = [deltas_of(plain, full, score) for score in both]
                parts.append(f"{column} " + " / ".join(map(signed, deltas)))
            spread = mean_of([b["spread"] - a["spread"] for a, b in zip(plain, full)])
            parts.append(f"spread {spread:+.3f}")
            lines.append(f"- {name}, atlas:{model}: " + ", ".join(parts))
    return "\n".join(lines)


def deltas_of(plain: list[Any], full: list[Any], score: str) -> list[float]:
    """Per seed, points gained."""
    pairs = [(a["scores"][score], b["scores"][score]) for a, b in zip(plain, full)]
    return [100 * (b - a) for a, b in pairs if a is not None and b is not None]


def signed(deltas: list[float]) -> str:
    """The mean, and in brackets its sign in how many seeds."""
    if not deltas:
        return "-"
    mean = fmean(deltas)
    same = sum(delta * mean > 0 for delta in deltas)
    return f"{mean:+.1f}" + (f" ({same} of {len(deltas)})" if abs(mean) >= 0.05 else "")


def mean_score(results: list[dict[str, Any]], score: str) -> float | None:
    """Mean over seeds; None where no request has such probes."""
    return mean_of([result["scores"][score] for result in results])


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of those that there are."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def shown(pair: Sequence[float | None]) -> str:
    """Two shares in percent."""
    return " / ".join("-" if value is None else f"{100 * value:.1f}" for value in pair)


def page(results: Results, seeds: Sequence[int], command: str, minutes: float) -> str:
    """The whole page: the text beside this file around the tables."""
    parts = {
        "seeds": f"{min(seeds)} to {max(seeds)}",
        "n_seeds": str(len(seeds)),
        "single": str(results.edits("single")),
        "sequential": str(results.edits("sequential")),
        "single_findings": findings(results, "single"),
        "sequential_findings": findings(results, "sequential"),
        "made_by": f"`{command}` in {minutes:.0f} minutes of computing (sum over the cells), "
        f"nse_plugin {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    for model in MODELS:
        for kind in ("single", "sequential"):
            parts[f"{kind}_{model}"] = table(comparison(results, kind, model))
        parts[f"ablation_{model}"] = table(ablation(results, model))
    text = (Path(__file__).parent / "overtone.md.in").read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace(f"@{name}@", value)
    return text


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/overtone.md"))
    parser.add_argument("--work", type=Path, default=Path("run-overtone"), help="folder of cells")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--single", type=int, default=20, help="single edits per seed")
    parser.add_argument("--sequential", type=int, default=100, help="sequential edits per seed")
    parser.add_argument("--quick", action="store_true", help="two edits, one seed: a test")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.single, options.sequential = [0], 2, 2
    todo = cells(options.seeds, options.single, options.sequential)
    found = run_all(todo, options.work, options.jobs)
    minutes = sum(result["seconds"] for result in found.values()) / 60
    command = "python benchmarks/overtone.py" + (" --quick" if options.quick else "")
    write_text(options.out, page(Results(found), options.seeds, command, minutes))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
