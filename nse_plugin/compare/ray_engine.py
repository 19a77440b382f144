"""The cells of a comparison as tasks of Ray, on this machine or on a cluster.

``RAY_ADDRESS`` names a cluster; without it one is started here.  Workers need data, YAMLs and
models at the same paths.  If they share the comparison's folder, a cell whose worker was lost
resumes after its last complete round and reuses the untouched model's answers; otherwise it starts
again and asks the untouched model itself.  Ray returns the results in both cases.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nse_plugin.compare.cells import RETRIES, Results, failed, lost, run_cell
from nse_plugin.compare.plan import Cell
from nse_plugin.compare.pool import ModelPool
from nse_plugin.files import require

log = logging.getLogger(__name__)


def import_ray() -> Any:
    """Import Ray, or say how to install it."""
    return require("ray", "engine 'ray'", otherwise="or take --engine processes")


class RayTasks:
    """One task per cell.

    Args:
        jobs: number of processes of a cluster that is started here.
    """

    def __init__(self, jobs: int) -> None:
        self._ray = ray = import_ray()
        self._started = not ray.is_initialized()
        if self._started:
            cpus = None if os.environ.get("RAY_ADDRESS") else jobs
            with _handler_kept():
                ray.init(num_cpus=cpus, log_to_driver=False, include_dashboard=False)

    def run(self, cells: Sequence[Cell]) -> Results:
        """Each result as soon as it is there.  Closing the generator cancels the open tasks."""
        ray = self._ray
        task = ray.remote(max_retries=RETRIES)(_work)
        open_tasks = {
            task.options(num_cpus=1, num_gpus=int(cell.device != "cpu"), name=str(cell)).remote(
                cell
            ): cell
            for cell in cells
        }
        try:
            while open_tasks:
                (done,), _ = ray.wait(list(open_tasks), num_returns=1)
                cell = open_tasks.pop(done)
                yield cell, self._result(done, cell)
        finally:
            for reference in open_tasks:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """End the cluster if it was started here."""
        if self._started:
            self._ray.shutdown()

    def _result(self, reference: Any, cell: Cell) -> Any:
        errors = self._ray.exceptions
        try:
            return json.loads(self._ray.get(reference))
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError,
                errors.OutOfMemoryError) as error:  # fmt: skip
            return lost(cell, type(error).__name__)
        except errors.RayError as error:
            return failed(cell, f"{type(error).__name__}: {error}")


@contextmanager
def _handler_kept() -> Iterator[None]:
    """Restore the SIGTERM handler, which ``ray.init`` replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    installed_by_python = before is not None
    if installed_by_python and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _work(cell: Cell) -> str:
    if cell.device not in ("cpu", "0"):  # a task sees only the GPU that Ray assigned, as number 0
        cell = replace(cell, settings=replace(cell.settings, device="0"))
    return json.dumps(run_cell(cell, _pool()))


@functools.cache
def _pool() -> ModelPool:
    """The pool of a worker, which runs one task after the other."""
    return ModelPool()
