"""One cell of a comparison: a run of the scheduler, and its result from the run's files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nse_plugin.compare.hosts import Recipe, editor_of, recipe
from nse_plugin.compare.machine import MemoryMeter, meta_info
from nse_plugin.compare.plan import Cell, round_size
from nse_plugin.compare.pool import ModelPool
from nse_plugin.compare.results import SCHEMA, CellResult, RoundPoint, Seconds
from nse_plugin.compare.untouched import NoEdits
from nse_plugin.data.streams import held_out_texts, settled
from nse_plugin.easyedit.checkout import ROOT_VARIABLE
from nse_plugin.errors import DataError, NSEPluginError
from nse_plugin.evaluation.known import keep_known
from nse_plugin.evaluation.metrics import SCORES, Answered
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.files import JsonLines, write_text
from nse_plugin.methods.spread import FOUND_ELSEWHERE
from nse_plugin.model.seeding import seeded
from nse_plugin.requests import EditRequest
from nse_plugin.runs.identity import as_json, hashed, model_identity
from nse_plugin.runs.reading import RunFiles, RunResult
from nse_plugin.runs.reopen import chat_tokenizer
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.schema import ModelIdentity
from nse_plugin.runs.start import read_requests
from nse_plugin.runs.stopping import StopRules
from nse_plugin.session.session import EditSession
from nse_plugin.session.value_files import ValueFiles

log = logging.getLogger(__name__)

Results = Generator[tuple[Cell, CellResult], None, None]
"""Each finished cell with its result.  Closing the generator ends the workers."""
RETRIES = 1
"""How often a cell is resumed whose worker died."""

_RETAINED = ("efficacy", "efficacy_tokens", "paraphrase", "portability", "locality")


def run_cell(cell: Cell, pool: ModelPool, own_process: bool = False) -> CellResult:
    """Run a cell, or resume it; an error of the method becomes the cell's result, and other cells
    still run.

    Args:
        pool: provides the untouched model.
        own_process: this process runs only this cell.
    """
    try:
        with _own_threads_and_seed(cell):
            return _run(cell, pool, own_process)
    except Exception as error:  # of any method, ours or EasyEdit's
        known = isinstance(error, NSEPluginError)  # its message is enough
        log.warning("%s failed", cell, exc_info=None if known else error)
        return failed(cell, f"{type(error).__name__}: {error}")


def failed(cell: Cell, error: str) -> CellResult:
    """The result of a cell that failed."""
    found = _empty(cell, None)
    found["run_info"] |= {"status": "failed", "error": error}
    return found


def lost(cell: Cell, how: str) -> CellResult:
    """The result of a cell whose worker died too often."""
    again = "the same command tries again"
    return failed(cell, f"its worker was lost {RETRIES + 1} times ({how}); {again}")


def _run(cell: Cell, pool: ModelPool, own_process: bool) -> CellResult:
    settings = cell.settings
    start = time.perf_counter()
    made = recipe(cell)
    with pool.lend(made.hparams) as (model, tokenizer), _own_folder(made):
        meter = MemoryMeter(own_process)
        if settings.chat:  # a new cell takes the texts of the cells whose frozen answers it uses
            begun = sorted(cell.untouched_runs.glob("*"))
            tokenizer = chat_tokenizer(tokenizer, cell.run_dir, *begun)
        requests = _stream(cell, model, tokenizer)
        texts = held_out_texts(settings.held_out, cell.model.source, requests)
        if cell.untouched:
            edited: Any = NoEdits(model, tokenizer)
        else:
            edited, made = editor_of(made, model, tokenizer)
            if made.hosts_own and cell.run_dir.exists():
                log.info("%s begins anew, because the host's method has lost its state", cell)
                shutil.rmtree(cell.run_dir)
        now = model_identity(model)
        prepare = _prepare(cell, edited, made, now)
        frozen = _frozen(cell, now)
        result = _schedule(cell, edited, made.hparams, requests, texts, frozen)
        memory = meter.read()
    found = _collect(cell, None if cell.untouched else made, result)
    found["seconds"], elsewhere = _seconds(result.files, prepare, time.perf_counter() - start)
    found["memory"] = None if elsewhere else memory  # the search for values takes most of it
    found["run_info"]["stream"] = hashed([request.digest() for request in requests])
    return found


def _stream(cell: Cell, model: nn.Module, tokenizer: Any) -> list[EditRequest]:
    """The requests of a cell, in the order of the data.

    With ``known``, the first cell of a model and seed asks the untouched model which facts it
    knows, and stores them in the folder of the comparison.

    Raises:
        DataError: the data or the stored stream cannot be read, or the model knows no fact.
    """
    settings = cell.settings
    if not settings.known:
        return read_requests(settings, cell.seed)
    if not cell.stream.exists():
        asked = read_requests(settings, cell.seed)
        known = keep_known(model, tokenizer, asked, limit=settings.limit)
        log.warning("%s seed %d: %s", cell.model.key, cell.seed, known)
        chosen = settled(settings.data, known.requests)
        lines = [json.dumps(request.to_json(), ensure_ascii=False) for request in chosen]
        write_text(cell.stream, "\n".join(lines) + "\n")
    kept: JsonLines[dict[str, Any]] = JsonLines(cell.stream)
    return [EditRequest.from_json(record) for record in kept]


def _schedule(
    cell: Cell,
    edited: Any,
    hparams: Any,
    requests: Sequence[EditRequest],
    texts: Sequence[str],
    frozen: Mapping[tuple[str, ...], Sequence[Answered]],
) -> RunResult:
    """Run the cell's stream of edits, or resume it."""
    settings = cell.settings
    return SequentialScheduler(
        edited,
        requests,
        round_size(len(requests), settings.rounds),
        Protocol.from_dict({"seed": cell.seed, **settings.protocol}),
        cell.run_dir,
        StopRules() if cell.untouched else StopRules.from_dict(settings.stop),
        hparams=hparams,
        order=cell.order,
        seed=cell.seed,
        held_out=texts,
        frozen=frozen,
    ).run()


@contextmanager
def _own_threads_and_seed(cell: Cell) -> Iterator[None]:
    """Set the number of threads and the random seed of a cell, and restore both afterwards, so that
    its results depend neither on earlier cells nor on the engine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cell.settings.threads)
    try:
        with seeded(cell.seed):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _own_folder(made: Recipe) -> Iterator[None]:
    """An empty working folder for a method of the host.

    EasyEdit's AlphaEdit writes its projection to the working folder and reads it from there, even
    if it is of another model.
    """
    if not made.hosts_own:
        yield
        return
    if root := os.environ.get(ROOT_VARIABLE):
        os.environ[ROOT_VARIABLE] = str(Path(os.path.expanduser(root)).absolute())
    before = Path.cwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _frozen(cell: Cell, now: ModelIdentity) -> dict[tuple[str, ...], list[Answered]]:
    """The untouched model's answers to rounds, by the digests of their requests.

    They come from its finished cells of any seed.  Only whole rounds are used, because the last
    bits of an answer depend on the questions in the same batch.

    Raises:
        DataError: a cell was run with another model than this one.
    """
    found: dict[tuple[str, ...], list[Answered]] = {}
    for final in sorted(cell.untouched_runs.glob("*/final.json")):
        files = RunFiles(final.parent)
        if files.manifest["run"]["model"] != now:
            raise DataError(
                f"{final.parent} has the answers of another model than {cell.model.source} is now "
                "(its weights, dtype or device); give another folder for the comparison"
            )
        for number in range(1, len(files.frozen) + 1):
            requests, answers = files.frozen.read(number)
            found[tuple(request.digest() for request in requests)] = answers
    return found


def _prepare(cell: Cell, edited: Any, made: Recipe, now: ModelIdentity) -> float:
    """Before the first round: share values with other cells, and compute the statistics; returns
    the seconds that they took."""
    start = time.perf_counter()
    if isinstance(edited, EditSession):
        made_by = json.dumps([now, cell.settings.threads], sort_keys=True)
        edited.untouched.share_values(ValueFiles(cell.shared_values, made_by))
        edited.untouched.compute_statistics(made.hparams)
    return time.perf_counter() - start


def _collect(cell: Cell, made: Recipe | None, result: RunResult) -> CellResult:
    """The cell's result, still without times and memory."""
    final = result.final
    measurement = final["measurement"] or {}
    stop = final["stop"]
    found = _empty(cell, made)
    found["run_info"] |= {
        "status": "complete" if cell.untouched else result.status,
        "error": None if stop is None else f"{stop['rule']}: {stop['value']}",
        "rounds": final["rounds"],
        "edits": final["edits"],
    }
    found["scores"] = _scores(measurement)
    found["each"] = measurement.get("each") or []
    found["points"] = list(_points(result.files))
    for name in _RETAINED:
        matrix = result.files.retention_matrix(name)
        found["retention"][name] = {
            str(tested): {str(edited): value for edited, value in row.items()}
            for tested, row in matrix.items()
        }
    return found


def _empty(cell: Cell, made: Recipe | None) -> CellResult:
    """A cell's result before anything is measured."""
    return {
        "schema": SCHEMA,
        "run_info": {
            "model": cell.model.key,
            "method": cell.method,
            "seed": cell.seed,
            "status": "complete",
            "error": None,
            "rounds": 0,
            "edits": 0,
            "data": cell.settings.data,
            "order": cell.order,
            "protocol": dict(cell.settings.protocol),
            "stream": "",
        },
        "method_info": {
            "name": cell.method,
            "about": "no edit is made" if cell.untouched else cell.spec.about(),
            "implementation": "" if made is None else made.implementation,
            "hparams": {} if made is None else as_json(made.hparams),
            "ignored": [] if made is None else list(made.ignored),
        },
        "meta_info": meta_info(cell.settings.threads),
        "scores": {},
        "each": [],
        "points": [],
        "retention": {},
        "seconds": None,
        "memory": None,
    }


def _scores(measurement: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of a measurement, by name."""
    scores = {name: value for name, value in (measurement.get("all") or {}).items() if name != "n"}
    first = next(iter(measurement.get("retention") or []), None)
    scores["retention_first"] = None if first is None else first["efficacy"]
    generation = measurement.get("generation") or {}
    for name in ("exact", "contains", "judged", "natural_stop", "words_after"):
        scores[f"free_{name}"] = generation.get(name)
    for name in ("perplexity", "fluency", "ability"):
        scores[name] = measurement.get(name)
    return scores


def _points(files: RunFiles) -> Iterator[RoundPoint]:
    edits = 0
    for line in files.lines:
        if line["file"] is None:  # undone at once, so no model has these scores
            continue
        edits += line["edits"]
        measured = line["scores"]
        yield {
            "round": line["round"],
            "edits": edits,
            "scores": None if measured is None else {name: measured[name] for name in SCORES},
            "all": None if line["measurement"] is None else _scores(line["measurement"]),
        }


def _seconds(files: RunFiles, prepare: float, wall: float) -> tuple[Seconds, float]:
    """Means per edit over all rounds on disk and the total time of this call; and how many seconds
    of the search for values were spent in other cells, which are part of the means."""
    lines = files.lines
    edits = max(1, sum(line["edits"] for line in lines))
    edit = sum(line["seconds"]["edit"] for line in lines)
    parts: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        for name, seconds in ((line["edit"] or {}).get("seconds") or {}).items():
            parts[name] += seconds
    elsewhere = parts.pop(FOUND_ELSEWHERE, 0.0)
    if elsewhere:
        parts["values"] += elsewhere
        edit += elsewhere
    found: Seconds = {
        "parts": {name: value / edits for name, value in parts.items()},
        "other": max(0.0, edit - sum(parts.values())) / edits,
        "edit": edit / edits,
        "evaluation": sum(line["seconds"].get("measure", 0.0) for line in lines) / edits,
        "prepare": prepare,
        "wall": wall,
    }
    return found, elsewhere
