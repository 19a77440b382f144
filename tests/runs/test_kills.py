"""kill -9 at any moment: the resumed run ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from nse_plugin.files import JsonLines
from nse_plugin.runs import directory
from nse_plugin.runs.consolidate import consolidate_run
from nse_plugin.runs.reading import consolidations
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.schema import FINAL, ROUNDS
from tests.runs.runs import (
    comparable,
    hparams,
    protocol,
    requests,
    same_round_files,
    same_run,
    scheduler,
    weights,
)
from tests.tiny import same_bits

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
N_KILLS, N_AMID = 10, 5
PASSING = ("seconds", "sha256", "time")
"""What differs between equal consolidations."""


def stream():
    """Nine edits: a repeat and one that supersedes."""
    found = requests(6)
    changed = found[1]
    return [*found, found[0], type(changed)(7, changed.prompt, changed.subject, "doctor")]


def a_run(folder: Path) -> SequentialScheduler:
    settings = hparams(folder, consolidate_every_edits=4, repair_rounds=1)  # in rounds 2 and 4
    return scheduler(folder, stream(), protocol=protocol(every=2), hparams=settings)


def run_in(folder: Path) -> None:
    made = a_run(folder)
    made.run()
    save_file(weights(made), folder / "weights.safetensors")


def start(work) -> int:
    """Do some work in a child process; its number."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def forked(work) -> int:
    """Do some work in a child process; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(work), 0)[1])


class Killer:
    """Ends the process, with nothing cleaned up, at the n-th step that it counts."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.amid: list[int] = []  # steps inside a write
        self.joint: list[int] = []  # steps inside a consolidation of the stream

    def step(self, amid: bool = False) -> None:
        self.count += 1
        if amid:
            self.amid.append(self.count)
        if self.count == self.at:
            os._exit(77)

    def install(self) -> None:
        """Count file operations before, amid and after, and the steps of an edit."""
        from nse_plugin.methods import spread, together, writer

        solve = together.solve_together

        def solved(*args, **kwargs):
            first = self.count + 1
            try:
                return solve(*args, **kwargs)
            finally:
                self.joint += range(first, self.count + 1)

        together.solve_together = solved

        def around(owner, name):
            real = getattr(owner, name)

            def counted(*args, **kwargs):
                self.step()
                result = real(*args, **kwargs)
                self.step()
                return result

            setattr(owner, name, counted)

        for owner, name in (
            (os, "replace"), (os, "fsync"), (writer.Writer, "_write_layer"),
            (spread, "compute_values"), (JsonLines, "append"), (directory, "write_json"),
        ):  # fmt: skip
            around(owner, name)
        self._amid_writes()

    def _amid_writes(self) -> None:
        """Half of a file's bytes are there when the process ends."""
        from nse_plugin.session import ledger_files as files

        real_save, real_open, killer = files.save_file, Path.open, self

        def save(tensors, path, header):
            real_save(tensors, path, header)
            content = Path(path).read_bytes()
            Path(path).write_bytes(content[: len(content) // 2])
            killer.step(amid=True)
            Path(path).write_bytes(content)

        class Halves:
            def __init__(self, handle):
                self._handle = handle

            def __enter__(self):
                self._handle.__enter__()
                return self

            def __exit__(self, *args):
                return self._handle.__exit__(*args)

            def __getattr__(self, name):
                return getattr(self._handle, name)

            def write(self, data):
                half = len(data) // 2
                self._handle.write(data[:half])
                self._handle.flush()
                killer.step(amid=True)
                self._handle.write(data[half:])

        def opened(path, mode="r", *args, **kwargs):
            handle = real_open(path, mode, *args, **kwargs)
            return Halves(handle) if mode == "ab" else handle

        files.save_file, Path.open = save, opened


def killed_run(folder: Path, at: int) -> int:
    def work():
        Killer(at).install()
        run_in(folder)

    return forked(work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_in(folder)
    return folder


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """How many steps a whole run counts, those inside a write and those inside a consolidation."""
    folder = tmp_path_factory.mktemp("count")

    def work():
        killer = Killer(-1)
        killer.install()
        run_in(folder)
        (folder / "count").write_text(json.dumps([killer.count, killer.amid, killer.joint]))

    assert forked(work) == 0
    return json.loads((folder / "count").read_text())


def assert_equal(folder: Path, whole: Path) -> None:
    assert same_run(folder, whole)
    assert same_round_files(folder, whole)
    assert same_bits(*(load_file(f / "weights.safetensors") for f in (folder, whole)))
    assert not list(folder.glob("*.tmp"))
    for name in ("manifest.json", "final.json"):
        one, other = (json.loads((f / name).read_text()) for f in (folder, whole))
        assert comparable(one) == comparable(other)
    frozen, other = ((f / "frozen.jsonl").read_text() for f in (folder, whole))
    assert frozen == other


def assert_survives(points, whole: Path, tmp_path: Path) -> None:
    """A run that is killed at any of these steps and resumed is the uninterrupted one."""
    for at in sorted(points):
        folder = tmp_path / str(at)
        assert killed_run(folder, at) == 77, at
        run_in(folder)
        assert_equal(folder, whole)


def test_kills_at_random_points(whole, steps, tmp_path):
    n_steps, amid, _ = steps
    assert n_steps > 60 and len(amid) >= 10
    draw = random.Random(0)
    parts = [round(i * n_steps / N_KILLS) for i in range(N_KILLS + 1)]  # a point in each of them
    points = [draw.randint(a + 1, b) for a, b in pairwise(parts)] + draw.sample(amid, N_AMID)
    assert_survives(set(points), whole, tmp_path)


def test_kills_inside_a_consolidation_of_the_stream(whole, steps, tmp_path):
    *_, joint = steps
    assert len(joint) > N_KILLS and joint[-1] - joint[0] >= len(joint)  # of two rounds
    assert_survives(random.Random(4).sample(joint, N_KILLS), whole, tmp_path)


def consolidate_in(folder: Path, killer: Killer | None = None) -> None:
    """Solve all edits of a finished run jointly, unless that is done."""
    made = a_run(folder)
    made.run()
    if killer is not None:
        killer.install()
    if not len(consolidations(folder)):
        consolidate_run(folder, made.backend, repair_rounds=1)
    save_file(weights(made), folder / "weights.safetensors")


def test_kills_inside_a_consolidation_by_hand(whole, tmp_path):
    def copied(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    def counted():
        killer = Killer(-1)
        consolidate_in(expected, killer)
        (expected / "count").write_text(str(killer.count))

    expected = copied("expected")
    assert forked(counted) == 0
    n_steps = int((expected / "count").read_text())
    assert n_steps > N_KILLS
    for at in random.Random(3).sample(range(1, n_steps + 1), N_KILLS):
        folder = copied(str(at))
        assert forked(lambda at=at, folder=folder: consolidate_in(folder, Killer(at))) == 77, at
        consolidate_in(folder)
        assert_equal(folder, expected)
        one, other = (comparable(list(consolidations(f)), PASSING) for f in (folder, expected))
        assert one == other and len(one) == 1


def test_one_run_killed_again_and_again(whole, tmp_path):
    folder, kills = tmp_path / "run", 0
    draw = random.Random(1)
    while killed_run(folder, draw.randint(5, 25)) == 77 and kills < 40:
        kills += 1
    assert kills >= 4
    run_in(folder)
    assert_equal(folder, whole)


def test_real_kills(whole, tmp_path):
    """kill -9 from outside, some time after a further round of the run is in its log."""
    draw, folder = random.Random(2), tmp_path / "run"
    log, unfinished = folder / ROUNDS, 0
    for rounds in (1, 2, 3):
        child, ended = start(lambda: run_in(folder)), 0
        while not ended and (not log.exists() or log.read_bytes().count(b"\n") < rounds):
            time.sleep(0.002)
            ended, _ = os.waitpid(child, os.WNOHANG)
        if not ended:
            time.sleep(draw.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        unfinished += not (folder / FINAL).exists()
    assert unfinished
    run_in(folder)
    assert_equal(folder, whole)
