"""Entry point of a process that runs one cell; the process imports it first."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from nse_plugin.compare.cells import run_cell
from nse_plugin.compare.pool import ModelPool

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from nse_plugin.compare.plan import Cell


def work(cell: Cell, connection: Connection, gpu: int | None = None) -> None:
    """Run a cell and send its result.

    Args:
        gpu: the only one that this process sees; None for all.  CUDA is not initialised here yet.
    """
    if gpu is not None:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    result = run_cell(cell, ModelPool(), own_process=True)
    connection.send_bytes(json.dumps(result).encode())


def _end_with_the_parent() -> None:
    """End this process once its parent is gone, even if the parent was killed.

    Otherwise it would keep running for nothing and hold the lock of its cell.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
