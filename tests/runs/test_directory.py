"""A run directory under stress: full disk, no rights, damage, strangers, a second process."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nse_plugin.errors import DataError, ModelError, SessionError
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.runs import budget
from nse_plugin.runs.directory import run_directory
from nse_plugin.runs.stopping import StopRules
from nse_plugin.session.ledger_files import by_number, round_path
from tests.runs.runs import (
    hparams,
    interrupt,
    requests,
    same_run,
    scheduler,
    session,
    weights,
)
from tests.tiny import same_bits

THIRD = "round-0003.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made = scheduler(folder)
    made.run()
    return folder, weights(made)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    interrupt(scheduler(folder), after=2)
    assert not (folder / "final.json").exists()
    return folder


@pytest.fixture
def part(interrupted, tmp_path):
    """Two of three rounds are done."""
    return shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)


def answers(asked, target):
    """The same requests, with another target."""
    return [dataclasses.replace(request, target_new=target) for request in asked]


def assert_resumes(folder, whole):
    made = scheduler(folder)
    assert made.run().status == "complete"
    assert same_run(folder, whole[0])
    assert same_bits(whole[1], weights(made))


def test_an_interrupt_changes_nothing(part, whole):
    assert_resumes(part, whole)
    assert_resumes(part, whole)  # a complete run again


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_cut(part, whole, cut, caplog):
    path = part / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert_resumes(part, whole)
    assert "incomplete last line" in caplog.text


def test_frozen_answers_that_were_cut(part, whole):
    path = part / "frozen.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert_resumes(part, whole)


def test_a_damaged_line_is_an_error_wherever_it_is(part, whole):
    path = part / "rounds.jsonl"
    good = path.read_bytes()
    for rubbish in (b'{"rou', b"5", b"[" * 100_000, b"\x00\xff"):
        for number in (1, 3):
            path.write_bytes(rubbish + b"\n" + good if number == 1 else good + rubbish + b"\n")
            with pytest.raises(DataError, match=rf"line {number} of .*rounds.jsonl is damaged"):
                scheduler(part).run()
    path.write_bytes(good)
    assert_resumes(part, whole)


def test_the_file_of_a_round_without_a_line_is_written_again(part, whole):
    (part / THIRD).write_bytes(b"half of a")
    (part / "manifest.json.99.tmp").write_text("{")
    assert_resumes(part, whole)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_round_file_is_named_and_its_removal_helps(part, whole, damage):
    path = part / "round-0002.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-10]
    else:
        content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"round-0002.*damaged.*resume from round 1"):
        scheduler(part).run()
    path.unlink()
    assert_resumes(part, whole)


def test_files_are_in_the_order_of_their_numbers():
    numbers = [9998, 9999, 10_000, 10_001]
    files = [round_path(Path("run"), number) for number in reversed(numbers)]
    assert sorted(files, key=by_number) == [round_path(Path("run"), n) for n in numbers]


def test_the_unfinished_folder_of_an_export_is_left_alone(part, whole):
    (part / "adapter.99.tmp").mkdir()
    assert_resumes(part, whole)
    assert (part / "adapter.99.tmp").is_dir()


def test_a_hole_is_an_error(part):
    (part / "round-0001.safetensors").unlink()
    with pytest.raises(DataError, match=r"round-0001.*gone, and round-0002"):
        scheduler(part).run()
    assert (part / "round-0002.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line["edits"][1].update(prompt=5), "line 2 of .*frozen.jsonl is damaged"),
        (
            lambda line: line["answers"][0]["locality"][0].pop("predicted"),
            "line 2 of .*frozen.jsonl: case 2 is damaged: predicted is missing",
        ),
        (lambda line: line["answers"].pop(), "line 2 of .*frozen.jsonl is damaged"),
        (lambda line: line.update(answers=7), "answers is 7, not list"),
    ],
)
def test_frozen_answers_of_other_types_are_damage(part, change, message):
    path = part / "frozen.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[1])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=message):
        scheduler(part).run()


def test_lost_lines_do_not_cost_the_rounds(part):
    (part / "rounds.jsonl").unlink()
    with pytest.raises(DataError, match=r"rounds.jsonl has no line for round-0001.*, round-0002"):
        scheduler(part).run()
    assert len(list(part.glob("round-*"))) == 2


def test_damaged_manifest(part):
    (part / "manifest.json").write_text('{"made_by": "nse run", ')
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        scheduler(part).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hparams=dict(v_lr=0.25)), "hparams.v_lr was 0.1, is 0.25"),
        (dict(round_size=3), "round_size was 2, is 3"),
        (dict(order="shuffled"), "order was 'given', is 'shuffled'"),
        (dict(seed=3), "seed was 0, is 3"),
        (dict(protocol=Protocol()), "protocol.every was 2, is 5"),
        (dict(stop_rules=StopRules(min_retention=0.1)), "stop_rules.min_retention was None"),
        (dict(held_out=("Another text.",)), "the held-out texts differ"),
        (
            dict(stream=requests(5)),
            "the requests differ: there were 6, and now there are 5",
        ),
        (
            dict(stream=[*requests(3), *answers(requests()[3:], "Quill")]),
            "the requests differ: request 4 (case 3): target_new was 'Garn', is 'Quill'",
        ),
        (dict(subject=dict(seed=1)), "the model differs"),
    ],
)
def test_another_run_is_refused_with_what_differs(part, changes, message):
    if "subject" in changes:
        changes = {"subject": session(**changes["subject"])}
    if "hparams" in changes:
        changes = {"hparams": hparams(part, **changes["hparams"])}
    before = {p.name: p.read_bytes() for p in part.iterdir() if p.name != "lock"}
    with pytest.raises(DataError, match="holds another run") as caught:
        scheduler(part, **changes).run()
    assert message in str(caught.value)
    assert before == {p.name: p.read_bytes() for p in part.iterdir() if p.name != "lock"}


def test_settings_that_are_newer_than_an_interrupted_run_had_their_defaults(part, whole):
    manifest = part / "manifest.json"
    kept = json.loads(manifest.read_text())
    del kept["run"]["hparams"]["max_length"], kept["run"]["protocol"]["harness_tasks"]
    del kept["run"]["protocol"]["judge"]
    del kept["run"]["stop_rules"]["non_finite"], kept["run"]["hparams"]["neuron_threshold"]
    manifest.write_text(json.dumps(kept))
    with pytest.raises(DataError, match=r"hparams.max_length was 40, is 50\. Give"):
        scheduler(part, hparams=hparams(part, max_length=50)).run()
    assert_resumes(part, whole)


@pytest.mark.parametrize("wrong", [{"layers": [0, 7]}, {"v_loss_layer": 9}])
def test_hparams_that_do_not_fit_the_model_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ModelError, match="the model has 2 blocks|blocks are numbered 0 to 1"):
        scheduler(tmp_path / "new", hparams=hparams(tmp_path, **wrong)).run()
    assert not (tmp_path / "new").exists()


def test_another_version_is_refused(part, monkeypatch):
    from nse_plugin.runs import identity

    monkeypatch.setattr(identity, "__version__", "99.0")
    with pytest.raises(DataError, match=r"version was .*, is '99.0'"):
        scheduler(part).run()


def test_an_mlp_that_differs_is_another_model(part):
    other = session()
    with torch.no_grad():
        other.model.get_parameter("transformer.h.1.mlp.c_proj.weight")[0, 0] += 1e-3
    with pytest.raises(DataError, match=r"the weights of the model differ"):
        scheduler(part, subject=other).run()


def test_an_iterator_of_another_stream_is_refused(tmp_path):
    interrupt(scheduler(tmp_path, iter(requests())), after=2)
    changed = requests()
    changed[2] = dataclasses.replace(changed[2], target_new="Garn")
    with pytest.raises(DataError, match=r"holds a run of another stream: round 2"):
        scheduler(tmp_path, iter(changed)).run()
    with pytest.raises(DataError, match=r"has round 2, which the stream does not have"):
        scheduler(tmp_path, iter(requests(2))).run()


def test_a_session_with_rounds_is_refused(part):
    used = scheduler(part)
    used.run()
    with pytest.raises(SessionError, match=r"3 rounds already.*undo_all"):
        scheduler(part, subject=used.backend.session)


@pytest.mark.parametrize("what", ["file", "foreign", "demo"])
def test_other_peoples_files_are_left_alone(tmp_path, what):
    place = tmp_path / "x"
    if what == "file":
        place.write_text("thesis")
    else:
        place.mkdir()
        name = "thesis.tex" if what == "foreign" else "manifest.json"
        (place / name).write_text('{"made_by": "nse demo"}')
    with pytest.raises(DataError, match="is a file|holds something else"):
        scheduler(place).run()
    assert what == "file" or len(list(place.iterdir())) == 1


def test_a_second_process_is_refused(part):
    with run_directory(part):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                scheduler(part).run()
            except DataError as error:
                code = 0 if "in use by another process" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    scheduler(part).run()


def test_a_process_that_is_refused_leaves_the_lock_of_the_other(tmp_path):
    new = tmp_path / "new"
    with run_directory(new):
        with pytest.raises(DataError, match="in use by another process"), run_directory(new):
            pass
        assert (new / "lock").exists()
    assert not new.exists()


@pytest.mark.parametrize("where", ["save_file", "fsync", "manifest"])
def test_a_full_disk_is_explained_and_the_run_resumes_later(tmp_path, whole, where, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    count = {"left": 0 if where == "manifest" else 5}
    from nse_plugin.session import ledger_files as files

    real_fsync, real_save = os.fsync, files.save_file

    def fsync(descriptor):
        count["left"] -= 1
        if count["left"] < 0:
            raise full
        real_fsync(descriptor)

    def save(tensors, path, header):
        if path.name.startswith("round-0002"):
            Path(path).write_bytes(b"half")
            raise full
        real_save(tensors, path, header)

    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr(files, "save_file", save)
        else:
            patch.setattr(os, "fsync", fsync)
        with pytest.raises(DataError, match=r"No space left.*the same command again"):
            scheduler(tmp_path).run()
    assert not list(tmp_path.glob("*.tmp"))
    assert_resumes(tmp_path, whole)


def test_safetensors_own_errors_on_a_full_disk(tmp_path, whole, monkeypatch):
    from safetensors import SafetensorError

    from nse_plugin.session import ledger_files as files

    def save(tensors, path, header):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", save)
        with pytest.raises(DataError, match=r"No space left.*the same command again"):
            scheduler(tmp_path).run()
    assert_resumes(tmp_path, whole)


def test_a_directory_without_rights(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="the folder /proc/nothing/run cannot be made"):
        scheduler(Path("/proc/nothing/run")).run()
    real = Path.open

    def refused(path, mode="r", *args, **kwargs):
        if path.parent == tmp_path and mode != "r":
            raise PermissionError(errno.EROFS, "Read-only file system", str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"Read-only file system.*fix the permissions"):
        scheduler(tmp_path).run()


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(DataError, match="link is a link to .*nowhere, which does not exist"):
            scheduler(place).run()


def test_a_start_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda: 1000)
    (tmp_path / "there").mkdir()
    for place in (tmp_path / "new" / "run", tmp_path / "there"):
        with pytest.raises(DataError, match=r"of memory beside the model"):
            scheduler(place).run()
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_bounds_are_checked_before_the_start(tmp_path, monkeypatch):
    made = scheduler(tmp_path)
    usage = type("U", (), {"free": 2000})
    with monkeypatch.context() as patch:
        patch.setattr(budget.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DataError, match=r"has 2 KiB free, and up to .* more are needed"):
            made.run()
    with monkeypatch.context() as patch:
        patch.setattr(budget, "free_memory", lambda: 1000)
        with pytest.raises(DataError, match=r"of memory beside the model"):
            made.run()
    assert not (tmp_path / "manifest.json").exists()
    made.run()


def test_the_disk_is_checked_before_each_round(whole, tmp_path, monkeypatch):
    """Something else fills it after round 1; a byte more would do for two rounds."""
    usage = SimpleNamespace(free=1 << 40)

    def fill(event, _facts):
        if event == "round":
            per_round = json.loads((tmp_path / "manifest.json").read_text())["budget"]
            usage.free = budget._SPARE + 2 * per_round["disk_per_round"] - 1

    with monkeypatch.context() as patch:
        patch.setattr(budget.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(DataError, match="free space or give a folder elsewhere"):
            scheduler(tmp_path, listeners=[fill]).run()
    assert [path.name for path in tmp_path.glob("round-*")] == ["round-0001.safetensors"]
    rest = scheduler(tmp_path)
    rest.run()
    assert same_run(tmp_path, whole[0]) and same_bits(weights(rest), whole[1])


def test_bounds_hold(whole):
    bounds = json.loads((whole[0] / "manifest.json").read_text())["budget"]
    sizes = [path.stat().st_size for path in whole[0].glob("round-*")]
    assert max(sizes) <= bounds["disk_per_round"] <= 10 * max(sizes)
    everything = sum(p.stat().st_size for p in whole[0].iterdir() if p.name != "manifest.json")
    assert everything <= bounds["disk"]
    assert bounds["rounds"] == len(sizes)


def test_bounds_hold_if_rounds_write_all_earlier_edits_again(tmp_path, monkeypatch):
    lost = lambda _session, some, _budget: torch.zeros(len(some), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr("nse_plugin.methods.repair.answered", lost)
    settings = hparams(tmp_path, repair_every=1)
    made = scheduler(tmp_path / "run", requests(6), hparams=settings, round_size=1)
    made.run()
    bounds = json.loads((tmp_path / "run" / "manifest.json").read_text())["budget"]
    sizes = [path.stat().st_size for path in (tmp_path / "run").glob("round-*")]
    assert max(sizes) <= bounds["disk_per_round"] and sum(sizes) <= bounds["disk"]
    assert max(sizes) > 3 * min(sizes)


def test_the_bound_of_a_round_holds_with_repairs(tmp_path):
    wide = session(n_inner=4096)
    settings = hparams(tmp_path, repair_rounds=3)
    made = scheduler(tmp_path / "run", requests(1), subject=wide, hparams=settings, round_size=1)
    made.run()
    bound = json.loads((tmp_path / "run" / "manifest.json").read_text())["budget"]
    (size,) = (path.stat().st_size for path in (tmp_path / "run").glob("round-*"))
    assert size <= bound["disk_per_round"]
