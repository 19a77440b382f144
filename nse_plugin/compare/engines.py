"""The cells of a comparison one after the other, or in processes of their own.

An engine yields the result of each cell as it comes; all of them run :func:`run_cell`, so results
are the same but for times.  Ray's is in :mod:`nse_plugin.compare.ray_engine`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

import torch

from nse_plugin.compare.cells import RETRIES, Results, lost, run_cell
from nse_plugin.compare.plan import Cell
from nse_plugin.compare.pool import ModelPool
from nse_plugin.compare.results import CellResult
from nse_plugin.errors import HparamsError, did_you_mean

if TYPE_CHECKING:
    from nse_plugin.compare.ray_engine import RayTasks

log = logging.getLogger(__name__)

ENGINES = ("serial", "processes", "ray")
_PATIENCE = 5.0
"""Seconds that a process has to end when it is asked to; then it is killed."""


def check_engine(name: str, jobs: int) -> None:
    """Raise :class:`HparamsError` if the engine is unknown or cannot run this number of jobs."""
    if name not in ENGINES:
        raise HparamsError(
            f"engine is {name!r}{did_you_mean(name, ENGINES)}; there are: {', '.join(ENGINES)}"
        )
    if jobs < 1 or (jobs > 1 and name == "serial"):
        raise HparamsError(
            f"jobs is {jobs}; give a number above 0, and --engine processes or ray for more than 1"
        )
    if name == "ray":
        from nse_plugin.compare.ray_engine import import_ray

        import_ray()


@contextmanager
def engine_of(name: str, jobs: int) -> Iterator[Serial | Processes | RayTasks]:
    """The engine of this name; a cluster that it started ends with the context."""
    if name == "serial":
        yield Serial()
    elif name == "processes":
        yield Processes(jobs)
    else:
        from nse_plugin.compare.ray_engine import RayTasks

        with closing(RayTasks(jobs)) as tasks:
            yield tasks


class Serial:
    """In this process, in order; the model is loaded once for all cells of a model."""

    def __init__(self) -> None:
        self._pool = ModelPool()

    def run(self, cells: Sequence[Cell]) -> Results:
        """Each cell in turn."""
        for cell in cells:
            yield cell, run_cell(cell, self._pool)


class Processes:
    """A fresh process for each cell, N at a time; if one dies, only its cell is lost."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._context: Any = _context()
        self._gpus = torch.cuda.device_count()

    def run(self, cells: Sequence[Cell]) -> Results:
        """Results as they come.  Leaving ends the processes that are at work."""
        waiting = deque((cell, 0) for cell in cells)
        running: dict[Connection, tuple[Any, Cell, int]] = {}
        slots: dict[Connection, int] = {}  # which of the N jobs each one is
        try:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    cell, tries = waiting.popleft()
                    slot = min(set(range(self._jobs)) - set(slots.values()))
                    process, connection = self._start(cell, gpu_of(cell.device, slot, self._gpus))
                    running[connection] = (process, cell, tries)
                    slots[connection] = slot
                ended = wait(list(running))  # their pipes have data, or their processes ended
                for connection in cast("list[Connection]", ended):
                    process, cell, tries = running.pop(connection)
                    del slots[connection]
                    result = _received(connection)
                    process.join()
                    if result is not None:
                        yield cell, result
                    elif tries < RETRIES:
                        log.warning("%s: its process was lost; it is started again", cell)
                        waiting.append((cell, tries + 1))
                    else:
                        yield cell, lost(cell, f"exit code {process.exitcode}")
        finally:
            _end([process for process, _, _ in running.values()])

    def _start(self, cell: Cell, gpu: int | None) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe(duplex=False)
        from nse_plugin.compare.worker import work

        process = self._context.Process(target=work, args=(cell, theirs, gpu), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return process, ours


def gpu_of(device: str, slot: int, n_gpus: int) -> int | None:
    """The GPU that one of N jobs takes in place of the first; None where it takes what is named.

    Jobs are spread over the GPUs of a machine; a cell that names another than the first keeps it.
    """
    first = device.removeprefix("cuda:") in ("0", "cuda")
    return slot % n_gpus if first and n_gpus > 1 else None


def _end(processes: Sequence[Any]) -> None:
    """End processes and wait until they are gone."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


def _context() -> Any:
    """Start method: fork from a clean server process that has imported torch, otherwise spawn."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nse_plugin.compare.worker"])  # seconds, once and not per cell
    return context


def _received(connection: Connection) -> CellResult | None:
    with connection, suppress(EOFError, OSError):
        return json.loads(connection.recv_bytes())
    return None
