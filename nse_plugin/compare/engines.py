"""Engines, which run the cells of a comparison: one after the other, or in processes of their own.

An engine yields the result of each cell as soon as it is finished.  All engines call
:func:`run_cell`, so their results differ only in times.  Ray's is in
:mod:`nse_plugin.compare.ray_engine`.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from nse_plugin.compare.cells import RETRIES, Results, lost, run_cell
from nse_plugin.compare.plan import Cell
from nse_plugin.compare.pool import ModelPool
from nse_plugin.compare.results import CellResult

if TYPE_CHECKING:
    from nse_plugin.compare.ray_engine import RayTasks

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds after which a process is killed that was asked to end."""


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


class _Job(NamedTuple):
    """A process that runs a cell."""

    process: Any
    cell: Cell
    tries: int
    """How often the cell was started before."""
    slot: int
    """A number below that of the jobs, which no other running job has."""


class Processes:
    """A new process for each cell, N at a time; if one dies, only its cell is affected."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._context: Any = _context()
        self._gpus = torch.cuda.device_count()

    def run(self, cells: Sequence[Cell]) -> Results:
        """Each result as soon as it is there.  Closing the generator ends the processes."""
        waiting = deque((cell, 0) for cell in cells)
        running: dict[Connection, _Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    cell, tries = waiting.popleft()
                    slot = min(set(range(self._jobs)) - {job.slot for job in running.values()})
                    process, connection = self._start(cell, gpu_of(cell.device, slot, self._gpus))
                    running[connection] = _Job(process, cell, tries, slot)
                ended = wait(list(running))  # their pipes have data, or their processes ended
                for connection in cast("list[Connection]", ended):
                    job = running.pop(connection)
                    result = _received(connection)
                    job.process.join()
                    if result is not None:
                        yield job.cell, result
                    elif job.tries < RETRIES:
                        log.warning("%s: its process was lost; it is started again", job.cell)
                        waiting.append((job.cell, job.tries + 1))
                    else:
                        yield job.cell, lost(job.cell, f"exit code {job.process.exitcode}")
        finally:
            _end([job.process for job in running.values()])
            for connection in running:
                connection.close()

    def _start(self, cell: Cell, gpu: int | None) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(cell, theirs, gpu), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends with the process
        return process, ours


def _work(cell: Cell, connection: Connection, gpu: int | None) -> None:
    """Run a cell in a new process, and send its result.

    Args:
        gpu: the only GPU that this process sees; None for all.  CUDA is not initialised yet.
    """
    if gpu is not None:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    result = run_cell(cell, ModelPool(), own_process=True)
    connection.send_bytes(json.dumps(result).encode())


def _end_with_the_parent() -> None:
    """End this process when its parent has ended, even if the parent was killed; otherwise it would
    continue and hold the lock of its cell."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def gpu_of(device: str, slot: int, n_gpus: int) -> int | None:
    """The GPU of one of N jobs, which are spread over the GPUs of a machine; None if the cell names
    another device than the first GPU, or there is only one."""
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
    context.set_forkserver_preload([__name__])  # imports once, not for each cell
    return context


def _received(connection: Connection) -> CellResult | None:
    with connection, suppress(EOFError, OSError):
        return json.loads(connection.recv_bytes())
    return None
