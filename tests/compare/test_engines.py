"""Every engine gives what this process gives, and a lost worker costs its cell only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nse_plugin.compare import engines
from nse_plugin.compare.engines import Processes
from nse_plugin.compare.results import without_machine
from tests.compare.grids import comparison, options, quiet

ROOT = Path(__file__).parent.parent.parent


def assert_equal(result, whole):
    assert without_machine(result["cells"]) == without_machine(whole[1]["cells"])
    assert result["summaries"] == whole[1]["summaries"]
    assert result["differences"] == whole[1]["differences"]


class Victims(Processes):
    """Kills the process of some cells, so many times each, once it is at work."""

    def __init__(self, jobs, victims):
        super().__init__(jobs)
        self.victims = victims

    def _start(self, cell):
        process, connection = super()._start(cell)
        if self.victims.get(str(cell), 0):
            self.victims[str(cell)] -= 1
            os.kill(process.pid, signal.SIGKILL)
        return process, connection


def test_processes(world, whole, tmp_path, monkeypatch):
    """Two at a time; one is killed and comes again."""
    victims = {"tiny NSE seed 1": 1}
    monkeypatch.setattr(engines, "Processes", lambda jobs: Victims(jobs, victims))
    made = comparison(world, tmp_path / "out", engine="processes", jobs=2)
    result = made.run(quiet)
    assert victims == {"tiny NSE seed 1": 0}
    assert_equal(result, whole)
    assert all(c["memory"]["own_process"] for c in result["cells"])


def test_a_process_lost_again_and_again_is_a_failed_row(world, tmp_path, monkeypatch):
    victims = {"tiny NSE seed 0": 2}
    monkeypatch.setattr(engines, "Processes", lambda jobs: Victims(jobs, victims))
    made = comparison(world, tmp_path / "out", methods="NSE", seeds="0", engine="processes", jobs=2)
    untouched, failed = made.run(quiet)["cells"]
    assert untouched["run_info"]["status"] == "complete"
    assert failed["run_info"]["status"] == "failed"
    assert "lost 2 times (exit code -9)" in failed["run_info"]["error"]


def test_ctrl_c_ends_all_processes_and_leaves_what_can_go_on(world, whole, tmp_path):
    code = (
        "import sys, json, torch; torch.set_num_threads(1)\n"
        "from nse_plugin.compare.comparison import read_comparison\n"
        "if __name__ == '__main__':\n"
        "    def show(line): print(line, flush=True)\n"
        "    try: read_comparison(json.load(open(sys.argv[1]))).run(show)\n"
        "    except KeyboardInterrupt: sys.exit(130)\n"
    )  # fmt: skip
    import json

    script, given, out = tmp_path / "run.py", tmp_path / "options.json", tmp_path / "out"
    script.write_text(code)
    given.write_text(json.dumps(options(world, out, engine="processes", jobs=2)))
    child = subprocess.Popen(
        [sys.executable, str(script), str(given)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    with child:
        assert child.stdout.readline().startswith("[1/6]")
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to parent and children
        assert child.wait(timeout=30) == 130
    deadline = time.monotonic() + 10
    while _alive(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child.pid)
    assert_equal(comparison(world, out).run(quiet), whole)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ray(world, whole, tmp_path):
    """A local cluster of two processes, of which one is killed while a cell is at work."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    out = tmp_path / "out"
    made = comparison(world, out, engine="ray", jobs=2)
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
    assert_equal(result, whole)
