"""Every engine gives what this process gives, and a lost worker costs its cell only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nse_plugin.compare import engines, ray_engine
from nse_plugin.compare.engines import Processes
from nse_plugin.compare.plan import claimed_for
from nse_plugin.errors import DataError
from tests.compare.grids import arguments, comparison, quiet, without_machine

ROOT = Path(__file__).parent.parent.parent


def assert_equal(result, whole):
    assert without_machine(result["cells"]) == without_machine(whole[1]["cells"])
    assert result["summaries"] == whole[1]["summaries"]
    assert result["differences"] == whole[1]["differences"]


class Victims(Processes):
    """Kills the process of some cells, the given number of times each, once it is at work."""

    def __init__(self, jobs, victims):
        super().__init__(jobs)
        self.victims = victims

    def _start(self, cell, gpu):
        process, connection = super()._start(cell, gpu)
        if self.victims.get(str(cell), 0):
            self.victims[str(cell)] -= 1
            os.kill(process.pid, signal.SIGKILL)
        return process, connection


def test_processes(world, whole, tmp_path, monkeypatch):
    """Two at a time; one is killed and started again."""
    victims = {"tiny NSE seed 1": 1}
    monkeypatch.setattr(engines, "Processes", lambda jobs: Victims(jobs, victims))
    made = comparison(world, tmp_path / "out", engine="processes", jobs=2)
    result = made.run(quiet)
    assert victims == {"tiny NSE seed 1": 0}
    assert_equal(result, whole)
    # cells that run at the same time may or may not find each other's values
    measured = [c["memory"] for c in result["cells"] if c["memory"] is not None]
    assert len(measured) >= 3 and all(memory["own_process"] for memory in measured)


def test_jobs_are_spread_over_gpus():
    assert [engines.gpu_of("0", slot, 2) for slot in range(3)] == [0, 1, 0]
    assert engines.gpu_of("cuda", 3, 4) == engines.gpu_of("cuda:0", 3, 4) == 3
    for device, n_gpus in [("cpu", 2), ("1", 2), ("0", 1), ("0", 0)]:
        assert engines.gpu_of(device, 1, n_gpus) is None


def test_a_process_lost_again_and_again_is_a_failed_row(world, tmp_path, monkeypatch):
    victims = {"tiny NSE seed 0": 2}
    monkeypatch.setattr(engines, "Processes", lambda jobs: Victims(jobs, victims))
    made = comparison(world, tmp_path / "out", methods="NSE", seeds="0", engine="processes", jobs=2)
    untouched, failed = made.run(quiet)["cells"]
    assert untouched["run_info"]["status"] == "complete"
    assert failed["run_info"]["status"] == "failed"
    assert "lost 2 times (exit code -9)" in failed["run_info"]["error"]


@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [
        (signal.SIGINT, True, 130),  # Ctrl-C, which a terminal sends to parent and children
        (signal.SIGTERM, False, 143),
        (signal.SIGKILL, False, -9),
    ],
)
def test_a_signal_leaves_no_process_and_what_can_be_resumed(
    number, to_all, code, world, whole, tmp_path
):
    out = tmp_path / "out"
    given = arguments(world, out, engine="processes", jobs=2)
    child = subprocess.Popen(
        [sys.executable, "-m", "nse_plugin.cli", "compare", *given], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with child:
        done = (line for line in child.stdout if line.startswith("["))
        assert next(done).startswith("[1/6]")  # also on a machine that is busy
        assert len(at_work(child.pid)) > 1
        (os.killpg if to_all else os.kill)(child.pid, number)
        assert child.wait(timeout=30) == code
        said = child.stderr.read()
    deadline = time.monotonic() + 10
    while at_work(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert at_work(child.pid) == []
    assert "Traceback" not in said
    if number == signal.SIGKILL:  # the one that nobody can clean up after
        assert_equal(comparison(world, out).run(quiet), whole)
    else:
        assert "the same command resumes the others" in said


def at_work(group: int) -> list[psutil.Process]:
    """Processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and os.getpgid(process.pid) == group:
                found.append(process)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def test_a_second_comparison_in_one_folder_is_refused(world, tmp_path):
    made = comparison(world, tmp_path / "out")
    with (
        claimed_for(made.settings),
        pytest.raises(DataError, match=f"in use by another process \\({os.getpid()}\\)"),
    ):
        made.run(quiet)
    assert not (tmp_path / "out" / "cells").exists()


@pytest.mark.parametrize(("asked", "given"), [(None, "cpu"), ("0", "0"), ("3", "0")])
def test_a_ray_task_uses_the_gpu_that_it_sees(world, tmp_path, monkeypatch, asked, given):
    """Ray assigns a GPU by making it the only visible one, which has number 0."""
    (cell, *_) = comparison(world, tmp_path / "out", device=asked).cells()
    monkeypatch.setattr(ray_engine, "run_cell", lambda cell, _pool: cell.device)
    assert json.loads(ray_engine._work(cell)) == given


@pytest.fixture
def ten_minutes():
    """An error after ten minutes, since Ray may wait forever for a cluster that does not start."""

    def late(*_):
        raise TimeoutError("the test took more than ten minutes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_ray(world, whole, tmp_path, ten_minutes):
    """A local cluster of two processes, of which one is killed while a cell is at work."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    out = tmp_path / "out"
    made = comparison(world, out, engine="ray", jobs=2)
    before = signal.getsignal(signal.SIGTERM)
    lock = out / "cells" / "tiny" / "NSE" / "0" / "lock"
    killed = []

    def watch(line):
        """After the untouched model's cells the others begin; the worker of one is killed."""
        if line.startswith("[2/6]"):
            import threading

            threading.Thread(target=kill, daemon=True).start()

    def kill():
        deadline = time.monotonic() + 30
        while not killed and time.monotonic() < deadline:
            text = lock.read_text() if lock.exists() else ""
            if text.endswith("\n"):
                os.kill(int(text), signal.SIGKILL)
                killed.append(int(text))
            time.sleep(0.001)

    result = made.run(watch)
    assert killed and killed[0] != os.getpid()
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    assert_equal(result, whole)
